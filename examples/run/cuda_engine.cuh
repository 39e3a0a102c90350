// SPDX-License-Identifier: Apache-2.0
/// The engine on the GPU.
#pragma once

#include "console.hpp"
#include "decode_graphs.cuh"
#include "engine.hpp"
#include <dsv4/cuda.cuh>
#include <dsv4/exec/cuda_transfer.cuh>
#include <dsv4/model/cuda_parameters.cuh>

namespace runner {

template <class Model>
class cuda_engine : public model_engine<Model, dsv4::exec::cuda> {
  using base = model_engine<Model, dsv4::exec::cuda>;

 public:
  cuda_engine(const dsv4::exec::cuda& p, typename base::weights w, bool graphs)
      : base(p, std::move(w), 1), use_graphs_(graphs) {}

  /// A single token's step is recorded one token ahead, while the GPU computes the one before.
  void extend(const request& in, reply& out) override {
    const bool step =
        use_graphs_ && in.tokens.size() == 1 && in.rows == dsv4::logit_rows::last && in.layer < 0;
    if (!step || !recorded_) {
      if (recorded_) this->state_.truncate(this->state_.length() - 1), recorded_ = false;
      base::extend(in, out);
      if (step) record();
      return;
    }
    this->send_tokens(in.tokens);
    graphs_.launch(this->policy_);
    record();
    out.streams.clear();
    this->receive(logits_, out.logits);
  }
  std::int64_t cache_bytes() const override { return recorded_ ? stored_ : base::cache_bytes(); }
  std::int64_t device_bytes() const override {
    return this->weights_->bytes() + cache_bytes() +
           static_cast<std::int64_t>(this->workspace_.capacity() + this->policy_.scratch_bytes());
  }

 private:
  /// The next step; the state is ahead by a token until that is launched.
  void record() {
    stored_ = base::cache_bytes();
    const std::int64_t length = this->state_.length();
    for (int i = 0; i < Model::state::layers; ++i)  // what grows would free what the graph reads
      this->state_.cache(i).reserve(this->policy_, length + 1, length);
    graphs_.record(this->policy_, [&] { logits_ = this->forward(1, dsv4::logit_rows::last); });
    recorded_ = true;
  }

  bool use_graphs_, recorded_ = false;
  std::int64_t stored_ = 0;
  decode_graphs graphs_;
  dsv4::matrix_view<const typename base::scalar, dsv4::space::device> logits_;
};

/// Fills `to`, a fresh store, with the weights of `from`: those in the scalar type rounded to bf16, narrow
/// ones the same, in the memory of `from` where that is possible.
template <dsv4::model_config C, dsv4::numerics_config Q>
void round_parameters(dsv4::parameter_store<C, float, Q>& from, dsv4::parameter_store<C, dsv4::bf16, Q>& to) {
  struct source {
    const float* wide;
    const void* narrow;  // elements in bf16, a table, or a block-scaled view
  };
  std::vector<source> sources;
  dsv4::for_each_parameter<C>(from.views(), [&]<class V>(const dsv4::parameter_info&, V& v) {
    if constexpr (!requires { v.stride; })
      sources.push_back({nullptr, &v});
    else if constexpr (std::is_same_v<typename V::value_type, float>)
      sources.push_back({v.data, nullptr});
    else
      sources.push_back({nullptr, v.data});
  });
  std::size_t next = 0;
  dsv4::for_each_parameter<C>(to.views(), [&]<class V>(const dsv4::parameter_info&, V& v) {
    const source& s = sources[next++];
    if constexpr (!requires { v.stride; }) {
      v = *static_cast<const V*>(s.narrow);
    } else {
      using value = typename V::value_type;
      for (std::int64_t i = 0; i < v.size(); ++i)
        v.data[i] = s.wide ? static_cast<value>(s.wide[i]) : static_cast<const value*>(s.narrow)[i];
    }
  });
}

/// Throws, before anything is copied, where the weights alone take more memory than the GPU has left.
template <dsv4::model_config C, class T, dsv4::numerics_config Q>
void expect_room(dsv4::parameter_store<C, T, Q>& weights) {
  std::int64_t needed = 0;
  dsv4::for_each_parameter<C>(weights.views(), [&]<class V>(const dsv4::parameter_info&, V& v) {
    if constexpr (requires { v.stride; })
      needed += v.size() * static_cast<std::int64_t>(sizeof(typename V::value_type));
    else if constexpr (requires { v.matrices; })
      needed += v.extent[0] * V::format::bytes(v.extent[1], v.extent[2]);
    else
      needed += V::format::bytes(v.extent[0], v.extent[1]);
  });
  std::size_t left = 0, all = 0;
  dsv4::detail::check_cuda(cudaMemGetInfo(&left, &all), "dsv4-run");
  if (needed > static_cast<std::int64_t>(left))
    throw dsv4::contract_error("dsv4-run", "--device cuda",
                               "memory for " + bytes_text(needed) + " of weights",
                               bytes_text(static_cast<std::int64_t>(left)));
}

template <dsv4::model_config C, class T, dsv4::numerics_config Q>
std::unique_ptr<engine> uploaded(dsv4::parameter_store<C, T, Q>& weights, const options& o) {
  using model = dsv4::transformer<C, T, Q, dsv4::space::device>;
  const dsv4::exec::cuda p;
  expect_room(weights);
  auto copy = std::make_shared<typename model::parameters>();
  dsv4::upload_parameters(p, weights, *copy);
  return std::make_unique<cuda_engine<model>>(p, std::move(copy), !o.no_graphs);
}

template <dsv4::model_config C, dsv4::numerics_config Q>
std::unique_ptr<engine> cuda_engines<C, Q>::make(dsv4::parameter_store<C, float, Q>& weights,
                                                 const options& o) {
  if (o.scalar != "bf16") return uploaded(weights, o);
  dsv4::parameter_store<C, dsv4::bf16, Q> rounded;
  round_parameters(weights, rounded);
  return uploaded(rounded, o);
}

}  // namespace runner
