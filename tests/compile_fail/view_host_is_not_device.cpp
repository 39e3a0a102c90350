// expect: no matching
// SPDX-License-Identifier: Apache-2.0
#include <dsv4/tensor/view.hpp>

void on_device(dsv4::matrix_view<const float, dsv4::space::device>);
template <class V>
void call(V v) requires(sizeof(V) > 0) {
  dsv4::matrix_view<const float, dsv4::space::device> d(v);
  on_device(d);
}
template void call(dsv4::matrix_view<float, dsv4::space::host>);
