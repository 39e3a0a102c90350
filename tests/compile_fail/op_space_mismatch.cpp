// expect: dsv4: the op's views live in another memory space than the policy's
// SPDX-License-Identifier: Apache-2.0
#include <dsv4/ops/hadamard.hpp>

void call(dsv4::matrix_view<float, dsv4::space::device> x) {
  dsv4::hadamard<float, dsv4::space::device>::forward(dsv4::exec::reference{}, {}, {x});
}
