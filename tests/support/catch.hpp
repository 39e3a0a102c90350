// SPDX-License-Identifier: Apache-2.0
/// Catch2, version 2 or 3.
#pragma once

#include <string>

#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_all.hpp>
namespace dsv4::testing {
inline auto contains(const std::string& text) { return Catch::Matchers::ContainsSubstring(text); }
}  // namespace dsv4::testing
#else
#include <catch2/catch.hpp>
namespace Catch {
using Detail::Approx;
}
namespace dsv4::testing {
inline auto contains(const std::string& text) { return Catch::Matchers::Contains(text); }
}  // namespace dsv4::testing
#endif
