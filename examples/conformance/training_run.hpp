// SPDX-License-Identifier: Apache-2.0
/// A training step of a whole model: its losses, and the gradient of every parameter.
#pragma once

#include "models.hpp"
#include <dsv4/model/training.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace conformance {

/// Two documents, packed. Both have more entries than are selected.
inline constexpr std::int64_t trained_lengths[2] = {19, 13};
inline constexpr std::uint64_t trained_seed = 1;

/// Matrices are what bfloat16 holds, so that engines of any precision train the same model.
template <class T>
void trained_weights(dsv4::parameter_store<trained_model, T>& store) {
  initialise_with_table<trained_model>(store);
  dsv4::for_each_parameter<trained_model>(store.views(), [](const dsv4::parameter_info& info, auto& v) {
    if constexpr (std::is_same_v<std::remove_cvref_t<decltype(*v.data)>, T>)
      if (info.shape.size() > 1 && !info.name.ends_with(".ape") && info.name.find("hc_") == std::string::npos)
        for (std::int64_t i = 0; i < v.size(); ++i) v.data[i] = T(float(dsv4::bf16(v.data[i])));
  });
}

/// "grad.layers.0.ffn.experts.w1.weight": experts are stacked.
inline std::string gradient_name(std::string parameter) {
  if (const auto star = parameter.find("*."); star != std::string::npos) parameter.erase(star, 2);
  return "grad." + parameter;
}

template <class T, class P>
void record_training(const P& p, recorder& to, const dsv4::parameter_store<trained_model, T>& weights) {
  using model = dsv4::training<trained_model, T>;
  const std::int64_t rows = trained_lengths[0] + trained_lengths[1];
  const auto ids = draw_tokens(trained_seed, rows, trained_model.vocab_size);
  std::vector<std::int32_t> next(ids.begin() + 1, ids.end()), targets = next,
                                                              second(ids.begin() + 2, ids.end());
  next.push_back(0), targets.push_back(-1), second.insert(second.end(), {-1, -1});
  const std::vector<std::int64_t> offsets{0, trained_lengths[0], rows};
  for (const std::int64_t end : offsets)  // nothing is predicted across the end of a document
    if (end > 0)
      targets[std::size_t(end - 1)] = second[std::size_t(end - 1)] = second[std::size_t(end - 2)] = -1;
  const auto given = [&](const std::string& name, const std::vector<std::int32_t>& values) {
    to.tensors.emplace(name, tensor{dtype::i32, {rows}, {values.begin(), values.end()}});
  };
  given("tokens", ids), given("next_tokens", next), given("targets", targets),
      given("second_targets", second);
  to.tensors.emplace("lengths",
                     tensor{dtype::i32, {2}, {double(trained_lengths[0]), double(trained_lengths[1])}});

  recorder aside;  // rounds, and writes nothing down
  aside.bits = to.bits, aside.watching = false;
  const dsv4::training_weights scale{.token = 1.0 / 16, .mtp = 1.0 / 32, .indexer = 1.0 / 8};
  dsv4::workspace w;
  dsv4::parameter_store<trained_model, T> gradients;
  const auto view = [&](const std::vector<std::int32_t>& v) {
    return dsv4::vector_view<const std::int32_t>(v.data(), rows);
  };
  const auto losses =
      model::step(recording<P>{p, &aside}, w, weights.views(),
                  {offsets, view(ids), view(targets), view(second), view(next)}, scale, &gradients.views());

  node n{"training_step",
         {{"tokens", "tokens"},
          {"next_tokens", "next_tokens"},
          {"targets", "targets"},
          {"second_targets", "second_targets"},
          {"lengths", "lengths"}},
         {},
         {{"token", scale.token},
          {"mtp", scale.mtp},
          {"indexer", scale.indexer},
          {"dense", scale.dense},
          {"target_includes_sink", scale.target_includes_sink}}};
  to.name_of = [](const node&, const std::string& role) { return role; };
  for (const auto& [name, sum] :
       {std::pair{"loss.token", losses.token}, {"loss.mtp", losses.mtp}, {"loss.indexer", losses.indexer}})
    to.computed(n, name, {dtype::f32, {1}, {sum}}, "sum", comparison::scaled);
  // In the order of a backward pass: from the end to the beginning.
  std::vector<std::pair<std::string, tensor>> all;
  dsv4::for_each_parameter<trained_model>(gradients.views(), [&](const dsv4::parameter_info& info, auto& v) {
    if constexpr (std::is_same_v<std::remove_cvref_t<decltype(*v.data)>, T>)
      if (!info.name.ends_with("gate.bias"))  // it has none
        all.emplace_back(gradient_name(info.name),
                         tensor{dtype::f32, info.shape, {v.data, v.data + v.size()}});
  });
  std::reverse(all.begin(), all.end());
  for (auto& [name, t] : all) {
    const char* axes = t.shape.size() == 1   ? "channel"
                       : t.shape.size() == 2 ? "row channel"
                                             : "part row channel";
    to.computed(n, name.c_str(), std::move(t), axes, comparison::scaled);
  }
  to.nodes.push_back(std::move(n));
}

}  // namespace conformance
