// SPDX-License-Identifier: Apache-2.0
#include <dsv4/ops/rms_norm.hpp>

#include <support/fixtures.hpp>

namespace {
using namespace dsv4;

// BLOCK
}  // namespace

int main() { return added ? 0 : 1; }
