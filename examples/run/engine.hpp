// SPDX-License-Identifier: Apache-2.0
/// One sequence of a model, in whichever memory it is computed: all that a session needs of it.
#pragma once

#include "options.hpp"
#include <dsv4/config/parameter_count.hpp>
#include <dsv4/exec/transfer.hpp>
#include <dsv4/exec/workspace.hpp>
#include <dsv4/model/transformer.hpp>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

namespace runner {

/// One call of the model: the next tokens, and what is wanted of them.
struct request {
  std::span<const std::int32_t> tokens;
  dsv4::logit_rows rows = dsv4::logit_rows::last;
  int layer = -1;  ///< whose incoming residual streams are wanted; -1: none
};
struct reply {
  std::vector<float> logits, streams;  ///< row by row
};

class engine {
 public:
  virtual ~engine() = default;
  /// Extends the sequence.
  virtual void extend(const request& in, reply& out) = 0;
  /// Bytes of what the sequence has stored so far.
  virtual std::int64_t cache_bytes() const = 0;
  /// Bytes that weights, caches and scratch take of the GPU; 0 where there is none.
  virtual std::int64_t device_bytes() const { return 0; }
};

template <class Model, dsv4::policy P>
class model_engine : public engine {
 public:
  static constexpr dsv4::space memory = P::memory;
  using scalar = typename Model::scalar;
  using weights = std::shared_ptr<const typename Model::parameters>;

  model_engine(const P& p, weights w, std::int64_t rewind = 0)
      : policy_(p), weights_(std::move(w)), state_(rewind) {}

  void extend(const request& in, reply& out) override {
    const auto count = static_cast<std::int64_t>(in.tokens.size());
    send_tokens(in.tokens);
    out.streams.clear();
    const auto logits = forward(count, in.rows, [&](int layer, dsv4::tensor_view<const scalar, memory> x) {
      if (layer == in.layer) receive(x, out.streams);
    });
    receive(logits, out.logits);
  }
  std::int64_t cache_bytes() const override { return state_.bytes(); }

 protected:
  void send_tokens(std::span<const std::int32_t> tokens) {
    const auto count = static_cast<std::int64_t>(tokens.size());
    make_room(tokens_, count);
    send(policy_, tokens.data(), tokens_.as(count));
  }
  /// Extends the state by the tokens that were sent; the logits are overwritten by the next call.
  template <class Observer = typename Model::no_observer>
  dsv4::matrix_view<const scalar, memory> forward(std::int64_t count, dsv4::logit_rows rows,
                                                  const Observer& observe = {}) {
    const typename Model::segment segment{&state_, count};
    const std::span segments(&segment, 1);
    const std::int64_t wanted = Model::logit_count(segments, rows), vocabulary = Model::config.vocab_size;
    make_room(logits_, wanted * vocabulary);
    const auto logits = logits_.as(wanted, vocabulary);
    Model::forward(policy_, workspace_, weights_->views(), {segments, tokens_.as(count), rows}, {logits, {}},
                   observe);
    return logits;
  }
  template <int R>
  void receive(const dsv4::view<const scalar, R, memory>& from, std::vector<float>& to) {
    to.resize(static_cast<std::size_t>(from.size()));
    if constexpr (std::is_same_v<scalar, float>) {
      fetch(policy_, from, to.data());
    } else {
      std::vector<scalar> narrow(to.size());
      fetch(policy_, from, narrow.data());
      for (std::size_t i = 0; i < to.size(); ++i) to[i] = static_cast<float>(narrow[i]);
    }
  }

  P policy_;
  weights weights_;
  typename Model::state state_;
  dsv4::basic_workspace<memory> workspace_;

 private:
  template <class U>
  static void make_room(dsv4::buffer<U, memory>& b, std::int64_t count) {
    if (b.size() < count) b = dsv4::buffer<U, memory>(count);
  }
  dsv4::buffer<std::int32_t, memory> tokens_;
  dsv4::buffer<scalar, memory> logits_;
};

/// Whether cuda_models.cu has engines of a configuration: not where it would fit no GPU in any format.
template <dsv4::model_config C>
inline constexpr bool on_gpu = dsv4::count_parameters(C).with_mtp() < 400'000'000'000;

/// Engines on the GPU, compiled in cuda_models.cu.
template <dsv4::model_config C, dsv4::numerics_config Q>
struct cuda_engines {
  /// With weights of its own. Throws cuda_error where there is no GPU, or too little memory.
  static std::unique_ptr<engine> make(dsv4::parameter_store<C, float, Q>& weights, const options& o);
};

/// Throws cuda_error, with a sentence for the user, where there is no GPU.
void expect_gpu();

}  // namespace runner
