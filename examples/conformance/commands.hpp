// SPDX-License-Identifier: Apache-2.0
/// What dsv4-conformance does beside checking; each in a source file of its own.
#pragma once

#include <filesystem>

namespace conformance {

void make_suite_in(const std::filesystem::path& folder);
/// What exec::cpu computes in float from the inputs and models of `suite`; 0 threads: all.
void dump_float(const std::filesystem::path& suite, const std::filesystem::path& folder, int threads);

}  // namespace conformance
