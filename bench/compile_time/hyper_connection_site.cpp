// SPDX-License-Identifier: Apache-2.0
// One block: a residual site, at V4-Flash's sizes.
#include <dsv4/blocks/hyper_connection_site.hpp>
#include <dsv4/config/presets.hpp>
#include <dsv4/cpu_dense.hpp>

void run(const dsv4::exec::cpu& p, dsv4::workspace& w,
         const dsv4::hyper_connection_parameters<float>& weights, dsv4::vector_view<const float> norm,
         dsv4::tensor_view<float> x) {
  dsv4::hyper_connection_site<dsv4::v4_flash.hyper_connection, float, dsv4::space::host>(
      p, w, weights, norm, 1e-6, x, [](auto, auto) {});
}
