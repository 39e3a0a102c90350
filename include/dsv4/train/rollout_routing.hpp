// SPDX-License-Identifier: Apache-2.0
/// Keep-routing: the experts that a pass chose, to be taken again by later passes over the same rows.
#pragma once

#include <dsv4/core/expects.hpp>
#include <dsv4/exec/transfer.hpp>
#include <dsv4/model/parameters.hpp>
#include <dsv4/model/training_context.hpp>
#include <dsv4/ops/embedding.hpp>
#include <dsv4/tensor/buffer.hpp>

#include <cstddef>
#include <cstdint>
#include <numeric>
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
template <model_config C, space S = space::host>
class rollout_routing {
 public:
  /// Copies the choices of a pass that has been run.
  template <policy P, class T, recompute_policy R>
  void record(const P& p, const training_context<C, T, R, S>& context) {
    static_assert(!R.sublayers, "dsv4: this recompute policy keeps no routing to record");
    rows_ = context.rows;
    chosen_.clear();
    for (std::size_t layer = 0; layer < C.num_hidden_layers(); ++layer) {
      const matrix_view<const std::int32_t, S> chosen = context.ffn[layer].chosen;
      chosen_.emplace_back(chosen.size());
      copy_values(p, chosen, chosen_.back().as(chosen.extent[0], chosen.extent[1]));
    }
    std::vector<std::int32_t> numbers(static_cast<std::size_t>(rows_));
    std::iota(numbers.begin(), numbers.end(), 0);
    row_numbers_ = buffer<std::int32_t, S>(rows_);
    send(p, numbers.data(), row_numbers_.as(rows_));
  }

  bool empty() const { return chosen_.empty(); }
  std::int64_t rows() const { return rows_; }
  matrix_view<const std::int32_t, S> experts(int layer) const {
    return {chosen_[static_cast<std::size_t>(layer)].data(), rows_, C.moe.num_experts_per_tok};
  }

  /// To be given to a pass instead of the tokens. // (rows)
  vector_view<const std::int32_t, S> row_numbers() const { return {row_numbers_.data(), rows_}; }

  /// To be given to a pass instead of the weights: `m` with the kept choices, and with `embedded` (rows, D)
  /// filled as its embedding. Throws contract_error unless the tokens are as many as the recorded rows.
  template <policy P, class T, numerics_config Q, class E>
  model_parameters<T, Q, S> as_model(const P& p, const model_parameters<T, Q, S>& m,
                                     vector_view<const std::int32_t, S> tokens,
                                     matrix_view<E, S> embedded) const {
    static_assert(std::is_same_v<E, typename storage_types<T, Q>::wide>);
    expect_extent("rollout_routing", "tokens", tokens.extent[0], rows_);
    model_parameters<T, Q, S> kept = m;
    embedding<E, S>::forward(p, {tokens, m.embed}, {embedded.reshape(rows_, 1, embedded.extent[1])});
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
  template <policy P, class T>
  static void add_embedding_gradients(const P& p, basic_workspace<S>& w,
                                      vector_view<const std::int32_t, S> tokens,
                                      matrix_view<const T, S> drows, matrix_view<T, S> dembed) {
    embedding<T, S>::backward(p, w, {tokens, dembed}, {drows.reshape(drows.extent[0], 1, drows.extent[1])},
                              {dembed});
  }

 private:
  std::int64_t rows_ = 0;
  std::vector<buffer<std::int32_t, S>> chosen_;
  buffer<std::int32_t, S> row_numbers_;
};

}  // namespace dsv4
