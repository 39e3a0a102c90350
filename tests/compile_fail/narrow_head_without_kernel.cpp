// expect: dsv4: this policy's kernel for this op is not included here; include <dsv4/cpu.hpp> for exec::cpu
// SPDX-License-Identifier: Apache-2.0
#include <dsv4/cpu_dense.hpp>
#include <dsv4/numeric/bf16.hpp>

using op = dsv4::cross_entropy<float, dsv4::space::host, dsv4::bf16>;

void call(dsv4::workspace& w, const op::inputs& in, const op::outputs& out, const op::saved& keep) {
  op::forward(dsv4::exec::cpu{}, w, in, out, keep);
}
