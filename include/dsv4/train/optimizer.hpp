// SPDX-License-Identifier: Apache-2.0
/// The whole model's update: Muon and AdamW, each on the parameters that parameter_rules.hpp gives it.
#pragma once

#include <dsv4/model/parameters.hpp>
#include <dsv4/tensor/buffer.hpp>
#include <dsv4/train/adamw.hpp>
#include <dsv4/train/muon.hpp>
#include <dsv4/train/parameter_rules.hpp>

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace dsv4 {

struct optimizer_options {
  muon_options muon = {};
  adamw_options adamw = {};
  bool muon_for_matrices = true;  ///< false: AdamW for all, to compare with
};

/// The state of Muon and AdamW for a model of configuration `C`: one momentum per element of a Muon matrix,
/// in storage type `M` (bf16 halves it), two moments per element of the rest. Weights and moments are in `T`,
/// the master precision. Router biases and hash tables are left alone. Move-only.
template <model_config C, class T = float, class M = T, numerics_config Q = numerics::float32,
          space S = space::host>
class optimizer {
  static_assert(storage_types<T, Q>::plain, "dsv4: only weights in the scalar type are trained");

 public:
  using store = parameter_store<C, T, Q, S>;

  struct update {
    double learning_rate;
    double gradient_scale = 1;  ///< of every gradient, before anything else: clipping, or the mean of a batch
  };

  /// All state zero. Throws contract_error for a parameter without a rule.
  explicit optimizer(const optimizer_options& options = {}) : options_(options) {
    std::int64_t moments = 0, momenta = 0;
    model_parameters<T, Q, S> views;
    for_each_parameter<C>(views, [&](const parameter_info& info, auto&) {
      slot s{info.name, rule_of(C, info), 0, 1};
      for (std::int64_t n : info.shape) s.count *= n;
      if (s.rule.rule == update_rule::muon && !options.muon_for_matrices)
        s.rule = {update_rule::adamw, true, {}};
      std::int64_t& end = s.rule.rule == update_rule::muon ? momenta : moments;
      s.offset = end;
      if (has_state(s)) end += padded(s.count);
      slots_.push_back(std::move(s));
    });
    first_ = buffer<T, S>(moments);
    second_ = buffer<T, S>(moments);
    momentum_ = buffer<M, S>(momenta);
  }

  /// One step: weights and state change, gradients do not. Same-shape matrices of all layers go through
  /// Newton-Schulz together. The results have the same bits for any number of threads.
  template <policy P>
  void step(const P& p, basic_workspace<S>& w, store& weights, const store& gradients, const update& u) {
    ++steps_;
    std::map<std::pair<std::int64_t, std::int64_t>, std::vector<muon_matrix<T, M, S>>> shapes;
    for_each_pair(
        weights, gradients, [&]<int R>(const slot& s, view<T, R, S>& weight, view<T, R, S>& gradient) {
          if (s.rule.rule == update_rule::adamw) {
            adamw_options options = options_.adamw;
            if (!s.rule.decay) options.weight_decay = 0;
            adamw<T, S>::forward(
                p, {gradient.reshape(s.count), u.learning_rate, steps_, u.gradient_scale, options},
                {weight.reshape(s.count),
                 {first_.data() + s.offset, s.count},
                 {second_.data() + s.offset, s.count}});
          } else if (s.rule.rule == update_rule::muon) {
            const std::int64_t columns = weight.extent[R - 1];
            std::int64_t at = 0;
            for (std::int64_t rows : s.rule.rows) {
              shapes[{rows, columns}].push_back({{weight.data + at, rows, columns},
                                                 {gradient.data + at, rows, columns},
                                                 {momentum_.data() + s.offset + at, rows, columns}});
              at += rows * columns;
            }
          }
        });
    for (const auto& [shape, matrices] : shapes)
      muon<T, M, S>(p, w, std::span<const muon_matrix<T, M, S>>(matrices), u.learning_rate, options_.muon,
                    u.gradient_scale);
  }

  /// Steps taken.
  std::int64_t steps() const { return steps_; }

  /// Calls f(name, view) for all that must be kept for the next step: first "steps", a vector_view of one
  /// std::int64_t, then in the order of the parameters a vector_view of M called "momentum.<parameter>", or
  /// two of T called "first.<parameter>" and "second.<parameter>".
  template <class F>
  void for_each_state(F&& f) {
    f(std::string("steps"), vector_view<std::int64_t>(&steps_, 1));
    for (const slot& s : slots_) {
      if (!has_state(s)) continue;
      if (s.rule.rule == update_rule::muon) {
        f("momentum." + s.name, vector_view<M, S>(momentum_.data() + s.offset, s.count));
      } else {
        f("first." + s.name, vector_view<T, S>(first_.data() + s.offset, s.count));
        f("second." + s.name, vector_view<T, S>(second_.data() + s.offset, s.count));
      }
    }
  }

  /// Bytes of state.
  std::int64_t bytes() const {
    return (first_.size() + second_.size()) * std::int64_t{sizeof(T)} +
           momentum_.size() * std::int64_t{sizeof(M)};
  }

 private:
  struct slot {
    std::string name;
    parameter_rule rule;
    std::int64_t offset, count;
  };
  static bool has_state(const slot& s) {
    return s.rule.rule == update_rule::muon || s.rule.rule == update_rule::adamw;
  }
  static constexpr std::int64_t padded(std::int64_t n) { return (n + 31) / 32 * 32; }

  /// Calls f(slot, weight, gradient) for the parameters in the scalar type.
  template <class F>
  void for_each_pair(store& weights, const store& gradients, const F& f) const {
    std::vector<T*> pointers;
    auto gradient_views = gradients.views();
    for_each_parameter<C>(gradient_views, [&]<class U, int R>(const parameter_info&, view<U, R, S>& v) {
      if constexpr (std::is_same_v<U, T>)
        pointers.push_back(v.data);
      else
        pointers.push_back(nullptr);
    });
    std::size_t i = 0;
    for_each_parameter<C>(weights.views(), [&]<class U, int R>(const parameter_info&, view<U, R, S>& weight) {
      if constexpr (std::is_same_v<U, T>) {
        view<T, R, S> gradient = weight;
        gradient.data = pointers[i];
        f(slots_[i], weight, gradient);
      }
      ++i;
    });
  }

  optimizer_options options_;
  std::vector<slot> slots_;
  buffer<T, S> first_, second_;
  buffer<M, S> momentum_;
  std::int64_t steps_ = 0;
};

}  // namespace dsv4
