// SPDX-License-Identifier: Apache-2.0
// The whole model on the GPU against recorded values of a public peer: tests/model/golden.test.cpp with the
// same tolerances, 2e-5 in double and 2e-4 in float.
#include "support/device.cuh"
#include "support/golden.hpp"
#include <dsv4/cuda.cuh>
#include <dsv4/model/cuda_parameters.cuh>

using namespace dsv4;

namespace {

template <class T>
constexpr double tolerance = std::is_same_v<T, double> ? 2e-5 : 2e-4;

template <class T, model_config Config>
void check_golden(const std::string& name) {
  INFO(name);
  using testing::D;
  using model = transformer<Config, T, numerics::float32, D>;
  const exec::cuda p;
  const io::safetensors_file file(std::string(DSV4_TEST_DATA) + "/" + name + ".safetensors");
  parameter_store<Config, T> host_weights;
  io::load_parameters(file, host_weights,
                      {.prefixes = {"param.", "buffer."},
                       .ignored = {"tokens", "logits", "hidden.", "loss", "decode_logits"}});
  typename model::parameters weights;
  upload_parameters(p, host_weights, weights);
  const auto tokens = testing::tensor<std::int32_t>(file, "tokens");
  const std::int64_t batch = file.at("tokens").shape[0], length = file.at("tokens").shape[1];
  const std::int64_t prefill = std::stol(file.metadata().at("prefill")), vocab = Config.vocab_size;
  buffer<std::int32_t> host_ids(batch * length);
  std::copy(tokens.begin(), tokens.end(), host_ids.begin());
  const auto device_ids = to_device(p.stream(), host_ids);
  const auto ids = device_ids.as(batch * length);
  device_workspace w;

  // All sequences of the batch in one call, twice: the second one with states that were reset.
  std::vector<typename model::state> states(static_cast<std::size_t>(batch));
  std::vector<typename model::segment> segments;
  for (auto& s : states) segments.push_back({&s, length});
  device_buffer<T> logits(batch * length * vocab);
  buffer<T> first;
  for (int round = 0; round < 2; ++round) {
    for (auto& s : states) s.reset();
    int seen = 0;
    model::forward(p, w, weights.views(), {segments, ids, logit_rows::all},
                   {logits.as(batch * length, vocab), {}}, [&](int layer, tensor_view<const T, D> device_x) {
                     const auto* t = file.find("hidden." + std::to_string(layer));
                     if (round > 0 || !t || layer == Config.num_hidden_layers()) return;
                     buffer<T> x(device_x.size());
                     copy_elements(p.stream(), device_x.data, x.data(), device_x.size());
                     p.synchronise();
                     const auto want = testing::tensor<double>(file, t->name);
                     double worst = 0, largest = 1;
                     for (double v : want) largest = std::max(largest, std::abs(v));
                     const std::int64_t width = t->shape[2] * t->shape[3];
                     for (std::int64_t b = 0; b < t->shape[0]; ++b)
                       for (std::int64_t i = 0; i < t->shape[1] * width; ++i) {
                         const double d =
                             std::abs(double(x[b * length * width + i]) -
                                      want[static_cast<std::size_t>(b * t->shape[1] * width + i)]);
                         worst = std::isnan(d) ? INFINITY : std::max(worst, d);
                       }
                     INFO("layer " << layer);
                     CHECK(worst < tolerance<T> * largest);
                     ++seen;
                   });
    if (round == 0) {
      CHECK(seen >= 1);
      first = to_host(p.stream(), logits);
      CHECK(testing::largest_difference(first, testing::tensor<double>(file, "logits")) < tolerance<T>);
    } else {
      CHECK(testing::same_bytes(first, to_host(p.stream(), logits)));
    }
  }

  // A prefill, then token by token.
  const auto want = testing::tensor<double>(file, "decode_logits");
  for (std::int64_t b = 0; b < batch; ++b) {
    typename model::state state;
    device_buffer<T> device_row(vocab);
    double worst = 0;
    for (std::int64_t t = prefill; t <= length; ++t) {
      const std::int64_t count = t == prefill ? prefill : 1;
      const typename model::segment segment{&state, count};
      model::forward(p, w, weights.views(), {std::span(&segment, 1), ids.rows(b * length + t - count, count)},
                     {device_row.as(1, vocab), {}});
      const auto row = to_host(p.stream(), device_row);
      for (std::int64_t v = 0; v < vocab; ++v) {
        const double d =
            std::abs(double(row[v]) -
                     want[static_cast<std::size_t>((b * (length - prefill + 1) + t - prefill) * vocab + v)]);
        worst = std::isnan(d) ? INFINITY : std::max(worst, d);
      }
    }
    CHECK(worst < tolerance<T>);
    CHECK(state.length() == length);
  }
}

}  // namespace

TEST_CASE("goldens on the GPU, float") {
  check_golden<float, testing::mixed>("mixed");
  check_golden<float, testing::csa_only>("csa_only");
  check_golden<float, testing::hca_first>("hca_first");
  check_golden<float, testing::yarn>("yarn");
  check_golden<float, testing::clamp>("clamp");
  check_golden<float, testing::short_text>("short");
}
// Beside the float64 oracle of oracle.test.cu one is enough.
TEST_CASE("goldens on the GPU, double") { check_golden<double, testing::mixed>("mixed"); }
