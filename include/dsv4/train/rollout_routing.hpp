// SPDX-License-Identifier: Apache-2.0
/// Keep-routing: the experts that a pass chose, to be taken again by later passes over the same rows.
#pragma once

#include <dsv4/core/expects.hpp>
#include <dsv4/model/parameters.hpp>
#include <dsv4/model/training_context.hpp>

#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

namespace dsv4 {

/// The experts of every row and layer. After an update, routers may choose others than those that wrote an
/// answer, and the ratio of new to old probability jumps; with the old choice kept it is smooth in the
/// weights (DeepSeek-V3.2, "keep routing").
///
/// A hash layer reads its experts from a table by token id. With the row's number in place of the token's id,
/// that table is a kept choice, and an embedding with one vector per row gives each row its token's.
/// `as_model` makes such views of a model: its passes need no code of their own.
template <model_config C>
class rollout_routing {
 public:
  /// Copies the choices of a pass that has been run.
  template <class T, recompute_policy R>
  void record(const training_context<C, T, R>& context) {
    static_assert(!R.sublayers, "dsv4: this recompute policy keeps no routing to record");
    rows_ = context.rows;
    chosen_.assign(static_cast<std::size_t>(C.num_hidden_layers()), {});
    for (std::size_t layer = 0; layer < chosen_.size(); ++layer) {
      const auto& chosen = context.ffn[layer].chosen;
      chosen_[layer].assign(chosen.data, chosen.data + chosen.size());
    }
    row_numbers_.resize(static_cast<std::size_t>(rows_));
    for (std::size_t t = 0; t < row_numbers_.size(); ++t) row_numbers_[t] = static_cast<std::int32_t>(t);
  }

  bool empty() const { return chosen_.empty(); }
  std::int64_t rows() const { return rows_; }
  matrix_view<const std::int32_t> experts(int layer) const {
    return {chosen_[static_cast<std::size_t>(layer)].data(), rows_, C.moe.num_experts_per_tok};
  }

  /// To be given to a pass instead of the tokens. // (rows)
  vector_view<const std::int32_t> row_numbers() const { return {row_numbers_.data(), rows_}; }

  /// To be given to a pass instead of the weights: `m` with the kept choices, and with `embedded` (rows, D)
  /// filled as its embedding. Throws contract_error unless the tokens are as many as the recorded rows.
  template <class T, numerics_config Q, class E>
  model_parameters<T, Q> as_model(const model_parameters<T, Q>& m, vector_view<const std::int32_t> tokens,
                                  matrix_view<E> embedded) const {
    static_assert(std::is_same_v<E, typename storage_types<T, Q>::wide>);
    expect_extent("rollout_routing", "tokens", tokens.extent[0], rows_);
    model_parameters<T, Q> kept = m;
    for (std::int64_t t = 0; t < rows_; ++t) {
      const std::int64_t id = tokens(t);
      expect(id >= 0 && id < C.vocab_size, "rollout_routing", "tokens[" + std::to_string(t) + "]",
             "a token of the vocabulary", id);
      for (std::int64_t c = 0; c < C.hidden_size; ++c) embedded(t, c) = m.embed(id, c);
    }
    kept.embed = embedded;
    for (std::size_t layer = 0; layer < chosen_.size(); ++layer) {
      auto& ffn = kept.layers[layer].ffn;
      ffn.gate_bias = {};
      // The view's type is that of weights; passes only read it.
      ffn.tid2eid = {const_cast<std::int32_t*>(chosen_[layer].data()), rows_, C.moe.num_experts_per_tok};
    }
    return kept;
  }

  /// Adds the gradients of the rows' embeddings to those of the vocabulary's, in the order of the rows.
  template <class T>
  static void add_embedding_gradients(vector_view<const std::int32_t> tokens, matrix_view<const T> drows,
                                      matrix_view<T> dembed) {
    if (!dembed.data) return;
    for (std::int64_t t = 0; t < tokens.extent[0]; ++t)
      for (std::int64_t c = 0; c < drows.extent[1]; ++c) dembed(tokens(t), c) += drows(t, c);
  }

 private:
  std::int64_t rows_ = 0;
  std::vector<std::vector<std::int32_t>> chosen_;
  std::vector<std::int32_t> row_numbers_;
};

}  // namespace dsv4
