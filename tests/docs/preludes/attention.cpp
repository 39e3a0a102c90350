// SPDX-License-Identifier: Apache-2.0
#include <dsv4/blocks/attention.hpp>
#include <dsv4/config/presets.hpp>
#include <dsv4/cpu.hpp>
#include <dsv4/model/parameters.hpp>

#include <cmath>
#include <vector>

using namespace dsv4;
constexpr model_config config = v4_nano;

int main() {
  parameter_store<config, float> store;
  initialise_by_name(store);
  const auto& weights = store.views().layers[1].attention;
  attention_cache<float> first(config.attention, config.kind(1), 0),
      second(config.attention, config.kind(1), 0);
  workspace scratch;
  buffer<float> in(40 * config.hidden_size), out(40 * config.hidden_size);
  for (std::int64_t i = 0; i < in.size(); ++i) in[i] = float(i % 7) - 3;
  matrix_view<const float> x = in.as(40, config.hidden_size);
  matrix_view<float> y = out.as(40, config.hidden_size);
  second.reserve(exec::cpu{}, 41, 0);
  first.reserve(exec::cpu{}, 3, 0);
  const attention_segment<float> prompt{&second, 0, 0, 40};
  attention<config.attention, numerics::float32, float, space::host>(
      exec::cpu{}, scratch, weights, config.rms_norm_eps, std::span(&prompt, 1), x, y);
  x = x.rows(0, 4), y = y.rows(0, 4);
  // BLOCK
  double sum = 0;
  for (std::int64_t i = 0; i < y.size(); ++i) sum += std::abs(y.data[i]);
  return std::isfinite(sum) && sum > 0 ? 0 : 1;
}
