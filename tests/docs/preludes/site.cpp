// SPDX-License-Identifier: Apache-2.0
#include <dsv4/blocks/hyper_connection_site.hpp>
#include <dsv4/config/presets.hpp>
#include <dsv4/cpu.hpp>
#include <dsv4/model/parameters.hpp>

#include <cmath>

using namespace dsv4;

int main() {
  constexpr hyper_connection_config h = v4_nano.hyper_connection;
  parameter_store<v4_nano, float> store;
  initialise_by_name(store);
  const auto& weights = store.views().layers[0].ffn_site;
  const vector_view<const float> norm = store.views().layers[0].ffn_norm;
  workspace scratch;
  buffer<float> x(3 * h.hc_mult * v4_nano.hidden_size);
  for (std::int64_t i = 0; i < x.size(); ++i) x[i] = float(i % 5) - 2;
  const tensor_view<float> streams = x.as(3, h.hc_mult, v4_nano.hidden_size);
  // BLOCK
  return std::isfinite(x[0]) ? 0 : 1;
}
