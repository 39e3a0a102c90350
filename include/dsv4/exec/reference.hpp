// SPDX-License-Identifier: Apache-2.0
/// The slow, single-threaded, obviously right policy. Every other policy is tested against it.
#pragma once

#include <dsv4/exec/policy.hpp>

namespace dsv4::exec {

struct reference {
  static constexpr space memory = space::host;
  static constexpr std::string_view name = "reference";
};

}  // namespace dsv4::exec
