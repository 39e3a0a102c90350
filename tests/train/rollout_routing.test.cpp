// SPDX-License-Identifier: Apache-2.0
// Choices of experts, recorded and taken again: the same bits with the same weights, the same experts with
// others.
#include "support/catch.hpp"
#include "support/rollout_case.hpp"
#include <dsv4/train/rollout_routing.hpp>

using namespace dsv4;
using testing::rollout_model;

namespace {

using pass = training<rollout_model, double>;
using routing = rollout_routing<rollout_model>;
using store = parameter_store<rollout_model, double>;

struct result {
  std::vector<double> hidden;
  std::vector<std::vector<std::int32_t>> chosen;
};

/// The last hidden states of all rows, and the experts of every layer; with `kept`, its experts.
result run(const store& m, const rollout_batch& b, routing* record, const routing* kept = nullptr) {
  const exec::cpu p(2);
  workspace w;
  const auto c = pass::context::take(w, b.offsets(), {});
  const auto embedded = w.take<double>(b.rows(), rollout_model.hidden_size);
  if (kept)
    pass::forward(p, w, kept->as_model(p, m.views(), b.tokens(), embedded),
                  {b.offsets(), kept->row_numbers(), b.targets(), {}}, c);
  else
    pass::forward(p, w, m.views(), {b.offsets(), b.tokens(), b.targets(), {}}, c);
  if (record) record->record(p, c);
  result r;
  r.hidden.assign(c.trunk.hidden.data, c.trunk.hidden.data + c.trunk.hidden.size());
  for (const auto& ffn : c.ffn) r.chosen.emplace_back(ffn.chosen.data, ffn.chosen.data + ffn.chosen.size());
  return r;
}

}  // namespace

TEST_CASE("rollout_routing: with the same weights, kept choices change no bit") {
  const auto m = testing::named_weights<rollout_model, double>(3);
  const auto batch = testing::some_answers();
  routing kept;
  CHECK(kept.empty());
  const auto free = run(m, batch, &kept);
  CHECK(kept.rows() == batch.rows());
  for (int layer = 0; layer < 4; ++layer)
    for (std::int64_t t = 0; t < batch.rows(); ++t)
      for (int j = 0; j < 2; ++j)
        CHECK(kept.experts(layer)(t, j) ==
              free.chosen[static_cast<std::size_t>(layer)][static_cast<std::size_t>(2 * t + j)]);
  CHECK(testing::same_bits(run(m, batch, nullptr, &kept).hidden, free.hidden));
}

TEST_CASE("rollout_routing: with other weights the kept experts stay, and routers would have chosen others") {
  const auto old = testing::named_weights<rollout_model, double>(3);
  const auto now = testing::named_weights<rollout_model, double>(4);
  const auto batch = testing::some_answers();
  routing kept;
  const auto before = run(old, batch, &kept);
  const auto free = run(now, batch, nullptr), held = run(now, batch, nullptr, &kept);
  CHECK(held.chosen == before.chosen);
  CHECK(free.chosen[0] == before.chosen[0]);  // hashed: a table of token ids, which weights do not change
  for (std::size_t layer = 1; layer < 4; ++layer) CHECK(free.chosen[layer] != before.chosen[layer]);
  CHECK(testing::difference(held.hidden, free.hidden) > 1e-3);
}

TEST_CASE("rollout_routing: rows that share a token add to its embedding's gradient") {
  const std::vector<std::int32_t> tokens{2, 0, 2};
  const std::vector<double> drows{1, 2, 3, 4, 5, 6};
  std::vector<double> dembed{10, 10, 10, 10, 10, 10};
  const exec::cpu p(2);
  workspace w;
  const matrix_view<const double> rows(drows.data(), 3, 2);
  routing::add_embedding_gradients(p, w, {tokens.data(), 3}, rows, matrix_view<double>(dembed.data(), 3, 2));
  CHECK(dembed == std::vector<double>{13, 14, 10, 10, 16, 18});
  routing::add_embedding_gradients(p, w, {tokens.data(), 3}, rows, matrix_view<double>());
}

TEST_CASE("rollout_routing: what it refuses") {
  const auto m = testing::named_weights<rollout_model, double>(3);
  auto batch = testing::some_answers();
  routing kept;
  run(m, batch, &kept);
  batch.add(std::vector<std::int32_t>{3}, std::vector<std::int32_t>{4, 5});
  CHECK_THROWS_WITH(run(m, batch, nullptr, &kept), "rollout_routing: tokens: expected " +
                                                       std::to_string(batch.rows() - 2) + ", found " +
                                                       std::to_string(batch.rows()));
}
