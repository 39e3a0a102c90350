// expect: dsv4: this op has no kernel for this policy here; include <dsv4/cpu.hpp> for exec::cpu
// SPDX-License-Identifier: Apache-2.0
#include <dsv4/ops/hadamard.hpp>

struct my_policy {
  static constexpr dsv4::space memory = dsv4::space::host;
  static constexpr std::string_view name = "mine";
};

void call(dsv4::matrix_view<float> x) { dsv4::hadamard<float>::forward(my_policy{}, {}, {x}); }
