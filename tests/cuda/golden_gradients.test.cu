// SPDX-License-Identifier: Apache-2.0
// The training pass on the GPU against the reference policy on the host: every gradient of the recorded
// models, with indexer losses, and of one with multi-token prediction. Tolerances, relative to a tensor's
// largest element: 1e-9 in double, two float64 programs that sum in different orders; 2e-4 in float, as for
// the recorded gradients (tests/model/golden_gradients.test.cpp).
#include "support/device.cuh"
#include "support/oracle.hpp"
#include <dsv4/cuda.cuh>
#include <dsv4/model/cuda_parameters.cuh>
#include <dsv4/model/training.hpp>

using namespace dsv4;

namespace {

using testing::D;

template <class T, recompute_policy R, model_config Config>
void check_gradients(parameter_store<Config, double>& source, const std::vector<std::int32_t>& tokens,
                     std::vector<std::int64_t> offsets, bool dense) {
  constexpr double tolerance = std::is_same_v<T, double> ? 1e-9 : 2e-4;
  constexpr bool mtp = Config.num_nextn_predict_layers > 0;
  const std::int64_t rows = offsets.back();
  buffer<std::int32_t> ids(rows), targets(rows), second(rows);
  for (std::int64_t t = 0; t < rows; ++t) {
    const bool last = std::find(offsets.begin(), offsets.end(), t + 1) != offsets.end();
    const bool before = std::find(offsets.begin(), offsets.end(), t + 2) != offsets.end();
    ids[t] = tokens[static_cast<std::size_t>(t)];
    targets[t] = last ? -1 : tokens[static_cast<std::size_t>(t + 1)];
    second[t] = last || before ? -1 : tokens[static_cast<std::size_t>(t + 2)];
  }
  const auto next = [&] {  // a token for every row: the targets, and any where a document ends
    buffer<std::int32_t> n(rows);
    for (std::int64_t t = 0; t < rows; ++t) n[t] = std::max(0, targets[t]);
    return n;
  }();
  const training_weights weight{.token = 0.5, .mtp = mtp ? 0.3 : 0, .indexer = 0.2, .dense = dense};

  // On the host, in double.
  parameter_store<Config, double> want;
  workspace host_work;
  const auto losses = training<Config, double>::step(
      exec::reference{}, host_work, source.views(),
      {offsets, ids.as(rows), targets.as(rows), second.as(rows), next.as(rows)}, weight, &want.views());

  // On the device.
  const exec::cuda p;
  parameter_store<Config, T> narrow, found;
  {
    std::vector<const void*> views;
    for_each_parameter<Config>(source.views(),
                               [&](const parameter_info&, const auto& v) { views.push_back(&v); });
    std::size_t i = 0;
    for_each_parameter<Config>(narrow.views(), [&]<class U, int N>(const parameter_info&, view<U, N>& v) {
      using other = std::conditional_t<std::is_same_v<U, T>, double, U>;
      const auto& from = *static_cast<const view<other, N>*>(views[i++]);
      for (std::int64_t j = 0; j < v.size(); ++j) v.data[j] = static_cast<U>(from.data[j]);
    });
  }
  using model = training<Config, T, numerics::float32, R, D>;
  parameter_store<Config, T, numerics::float32, D> weights, gradients;
  upload_parameters(p, narrow, weights);
  const auto d_ids = to_device(p.stream(), ids), d_targets = to_device(p.stream(), targets),
             d_second = to_device(p.stream(), second), d_next = to_device(p.stream(), next);
  const typename model::inputs in{offsets, d_ids.as(rows), d_targets.as(rows), d_second.as(rows),
                                  d_next.as(rows)};
  device_workspace w;
  const auto constant = [&](double value) {
    buffer<T> b(rows);
    for (T& v : b) v = T(value);
    return to_device(p.stream(), b);
  };
  const auto token_weight = constant(weight.token), mtp_weight = constant(weight.mtp),
             indexer_weight = constant(weight.indexer);
  device_buffer<T> loss(rows), lse(rows), dhidden(rows * Config.hidden_size), dmtp(rows * Config.hidden_size);
  buffer<T> first_run;
  for (int round = 0; round < 2; ++round) {  // twice the same bits
    parameter_store<Config, T> zero;
    upload_parameters(p, zero, gradients);
    const workspace_scope scope(w);
    const auto c = model::context::take(w, offsets, {mtp, {dense, true, false}});
    model::forward(p, w, weights.views(), in, c);
    using loss_op = cross_entropy<T, D>;
    const auto head = [&](matrix_view<const T, D> hidden, vector_view<const std::int32_t, D> to,
                          const device_buffer<T>& dloss, device_buffer<T>& dh) {
      loss_op::forward(p, w, {hidden, weights.views().head, to}, {loss.as(rows)}, {lse.as(rows)});
      loss_op::backward(p, w, {hidden, weights.views().head, to}, {lse.as(rows)}, {dloss.as(rows)},
                        {dh.as(rows, Config.hidden_size), gradients.views().head});
      double sum = 0;
      for (T v : to_host(p.stream(), loss)) sum += double(v);
      return sum;
    };
    const double token = head(c.trunk.hidden, in.targets, token_weight, dhidden);
    CHECK(std::abs(token - losses.token) <= tolerance * losses.token);
    typename model::upstream up;
    up.dhidden = dhidden.as(rows, Config.hidden_size);
    if constexpr (mtp) {
      CHECK(std::abs(head(c.mtp.hidden, in.second_targets, mtp_weight, dmtp) - losses.mtp) <=
            tolerance * losses.mtp);
      up.dmtp_hidden = dmtp.as(rows, Config.hidden_size);
    }
    up.dindexer_loss = indexer_weight.as(rows);
    model::backward(p, w, weights.views(), in, c, up, gradients.views());
    p.synchronise();

    std::vector<const void*> views;
    for_each_parameter<Config>(want.views(),
                               [&](const parameter_info&, const auto& v) { views.push_back(&v); });
    std::size_t i = 0;
    std::vector<T> all;
    for_each_parameter<Config>(
        gradients.views(), [&]<class U, int N>(const parameter_info& info, view<U, N, D>& v) {
          const void* const host = views[i++];
          if constexpr (std::is_same_v<U, T>) {
            const auto& expected = *static_cast<const view<double, N>*>(host);
            buffer<T> got(v.size());
            copy_elements(p.stream(), static_cast<const T*>(v.data), got.data(), v.size());
            p.synchronise();
            double largest = 0, worst = 0;
            for (std::int64_t j = 0; j < v.size(); ++j) {
              const double d = std::abs(double(got[j]) - expected.data[j]);
              largest = std::max(largest, std::abs(expected.data[j]));
              worst = std::isnan(d) ? INFINITY : std::max(worst, d);
              all.push_back(got[j]);
            }
            INFO(info.name);
            CHECK(worst <= tolerance * largest);
          }
        });
    buffer<T> run(static_cast<std::int64_t>(all.size()));
    std::copy(all.begin(), all.end(), run.begin());
    if (round > 0) CHECK(testing::same_bytes(run, first_run));
    first_run = std::move(run);
  }
}

template <class T, recompute_policy R, model_config Config>
void check_golden(const std::string& name) {
  INFO(name);
  const io::safetensors_file file(std::string(DSV4_TEST_DATA) + "/" + name + ".safetensors");
  parameter_store<Config, double> weights;
  io::load_parameters(file, weights,
                      {.prefixes = {"param.", "buffer."},
                       .ignored = {"tokens", "logits", "hidden.", "loss", "decode_logits"}});
  const auto tokens = testing::tensor<std::int32_t>(file, "tokens");
  const std::int64_t batch = file.at("tokens").shape[0], length = file.at("tokens").shape[1];
  std::vector<std::int64_t> offsets{0};
  for (std::int64_t b = 0; b < batch; ++b) offsets.push_back((b + 1) * length);
  check_gradients<T, R>(weights, tokens, offsets, false);
}

}  // namespace

TEST_CASE("gradients on the GPU, float") {
  check_golden<float, recompute::nothing, testing::mixed>("mixed");
  check_golden<float, recompute::nothing, testing::short_text>("short");
}

TEST_CASE("gradients on the GPU, double, everything computed again, documents of odd lengths") {
  parameter_store<testing::mtp_case, double> weights;
  initialise_by_name(weights);
  std::vector<std::int32_t> tokens;
  for (int i = 0; i < 58; ++i) tokens.push_back(std::int32_t(i * 37 % 96));
  check_gradients<double, recompute::everything>(weights, tokens, {0, 1, 42, 45, 58}, false);
  check_gradients<double, recompute::everything>(weights, tokens, {0, 58}, true);
}
