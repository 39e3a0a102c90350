// SPDX-License-Identifier: Apache-2.0
#include <dsv4/config/numerics.hpp>
#include <dsv4/config/presets.hpp>

#include <type_traits>

// BLOCK

int main() {}
