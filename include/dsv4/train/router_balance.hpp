// SPDX-License-Identifier: Apache-2.0
/// Balance of experts: the sign rule for the router's bias, and the sequence-wise balance loss.
#pragma once

#include <dsv4/core/expects.hpp>
#include <dsv4/exec/cpu.hpp>
#include <dsv4/exec/reference.hpp>
#include <dsv4/exec/transfer.hpp>
#include <dsv4/exec/workspace.hpp>
#include <dsv4/model/parameters.hpp>
#include <dsv4/ops/route.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace dsv4 {

/// loads[e] += how often expert e occurs in `experts`; entries below 0 are nobody's. Counts of several
/// micro-batches, or of several machines, add up.
inline void count_loads(matrix_view<const std::int32_t> experts, vector_view<std::int64_t> loads) {
  for (std::int64_t t = 0; t < experts.extent[0]; ++t)
    for (std::int64_t j = 0; j < experts.extent[1]; ++j) {
      const std::int64_t e = experts(t, j);
      if (e < 0) continue;
      expect(e < loads.extent[0], "count_loads", numbered{"experts[", t, "]"}, "an expert", e);
      ++loads(e);
    }
}

/// bias[e] += speed sign(mean load - loads[e]), after an optimiser step, with the loads of its whole batch
/// (report, section 4.2, speed 1e-3 of V3 and V4). An expert at the mean keeps its bias. Hash layers have
/// none.
template <class T>
void update_router_bias(vector_view<T> bias, vector_view<const std::int64_t> loads, double speed = 1e-3) {
  expect_extent("update_router_bias", "loads", loads.extent[0], bias.extent[0]);
  std::int64_t total = 0;
  for (std::int64_t e = 0; e < loads.extent[0]; ++e) total += loads(e);
  for (std::int64_t e = 0; e < bias.extent[0]; ++e) {
    const std::int64_t missing = total - loads(e) * loads.extent[0];  // in units of 1 / experts: exact
    bias(e) = T(double(bias(e)) + (missing > 0 ? speed : missing < 0 ? -speed : 0.0));
  }
}

/// `count_loads` for any policy. On a device, which cannot throw, numbers that no expert has are nobody's.
template <space S = space::host>
struct expert_loads {
  static constexpr space memory = S;
  struct inputs {
    matrix_view<const std::int32_t, S> experts;  // (N, k); entries below 0 are not counted
  };
  struct outputs {
    vector_view<std::int64_t, S> loads;  // (E), +=
  };
  template <policy P>
  static void forward(const P& p, const inputs& in, const outputs& out) {
    detail::dispatch<expert_loads>(p, in, out);
  }
};

/// `update_router_bias` for any policy.
template <class T, space S = space::host>
struct router_bias {
  static constexpr space memory = S;
  struct inputs {
    vector_view<const std::int64_t, S> loads;  // (E)
    double speed;
  };
  struct outputs {
    vector_view<T, S> bias;  // (E), +=
  };
  template <policy P>
  static void forward(const P& p, const inputs& in, const outputs& out) {
    expect_extent("router_bias", "loads", in.loads.extent[0], out.bias.extent[0]);
    detail::dispatch<router_bias>(p, in, out);
  }
};

struct load_statistics {
  double max_over_mean = 0, min_over_mean = 0;  ///< 1 and 1 is perfect balance; 0 and 0 without any load
  std::int64_t unused = 0;                      ///< experts without a token
};

inline load_statistics balance_of(vector_view<const std::int64_t> loads) {
  std::int64_t total = 0, most = 0, least = loads.extent[0] ? loads(0) : 0;
  load_statistics result;
  for (std::int64_t e = 0; e < loads.extent[0]; ++e) {
    total += loads(e);
    most = std::max(most, loads(e));
    least = std::min(least, loads(e));
    result.unused += loads(e) == 0;
  }
  if (total == 0) return result;
  const double mean = double(total) / double(loads.extent[0]);
  result.max_over_mean = double(most) / mean;
  result.min_over_mean = double(least) / mean;
  return result;
}

/// For each sequence of T tokens, with s = sqrt(softplus(logits)) and s'[t, e] = s[t, e] / sum_j s[t, j]:
///   f[e] = E / (k T) times e's occurrences among `experts` (a constant),  P[e] = mean_t s'[t, e],
///   loss = scale sum_e f[e] P[e], summed over the sequences,
///   dlogits[t, e] += scale / T (f[e] - sum_j f[j] s'[t, j]) / sum_j s[t, j] ds/dlogit.
/// Perfect balance has loss `scale` a sequence and gradient 0. V3's equations 17 to 20; weight 1e-4 in V4:
/// scale = 1e-4 / the number of sequences in the whole batch. Not for hash layers.
template <class T, space S = space::host>
struct sequence_balance {
  static constexpr space memory = S;
  struct inputs {
    matrix_view<const T, S> logits;              // (N, E)
    matrix_view<const std::int32_t, S> experts;  // (N, k); entries below 0 are not counted
    vector_view<const std::int64_t, S> offsets;  // (B + 1): sequence b is rows [offsets[b], offsets[b + 1])
    double scale;
  };
  struct outputs {
    vector_view<double, S> loss;  // (1), =
    matrix_view<T, S> dlogits;    // (N, E), +=, or empty
  };

  template <policy P>
  static void forward(const P& p, basic_workspace<S>& w, const inputs& in, const outputs& out) {
    expect_extent("sequence_balance", "experts rows", in.experts.extent[0], in.logits.extent[0]);
    expect_extent("sequence_balance", "loss", out.loss.extent[0], 1);
    if (out.dlogits.data) {
      expect_extent("sequence_balance", "dlogits rows", out.dlogits.extent[0], in.logits.extent[0]);
      expect_extent("sequence_balance", "dlogits columns", out.dlogits.extent[1], in.logits.extent[1]);
    }
    expect(in.offsets.extent[0] >= 1, "sequence_balance", "offsets", "at least one", in.offsets.extent[0]);
    workspace_scope<S> scope(w);
    const auto scratch = take<double>(w, kernel<sequence_balance, P>::scratch(in));
    detail::dispatch<sequence_balance>(p, in, out, scratch);
  }

  /// d sqrt(softplus(x)) / dx = sigmoid(x) / (2 s), which tends to s / 2 where both underflow.
  static double score_slope(double x) {
    const double s = route<T>::score(x);
    return x < -30 ? s / 2 : 1 / (1 + std::exp(-x)) / (2 * s);
  }
};

/// The balance of all of a model's routers in one step: what a trainer counts, adds to their gradients, and
/// does to their biases.
template <model_config C, class T, space S = space::host>
class step_balance {
  static constexpr int blocks = C.num_hidden_layers() + C.num_nextn_predict_layers;

 public:
  /// Loads zero, in memory of `w`, whose scope must outlive this.
  template <policy P>
  step_balance(const P& p, basic_workspace<S>& w)
      : loads_(take<std::int64_t>(w, blocks, C.moe.n_routed_experts)) {
    fill(p, loads_, 0);
  }

  /// The router_loss of a backward pass over sequences at `offsets`: counts who was chosen, and adds the
  /// gradient of `scale` times each sequence's balance loss. All arguments must outlive what is returned.
  template <policy P>
  auto router_loss(const P& p, basic_workspace<S>& w, vector_view<const std::int64_t, S> offsets,
                   double scale) const {
    return [loads = loads_, &p, &w, offsets, scale](int layer, matrix_view<const T, S> logits,
                                                    matrix_view<const std::int32_t, S> chosen,
                                                    matrix_view<T, S> dlogits) {
      expert_loads<S>::forward(p, {chosen}, {loads[layer]});
      if (C.hashed(layer) || scale == 0) return;
      const workspace_scope<S> scope(w);
      sequence_balance<T, S>::forward(p, w, {logits, chosen, offsets, scale}, {take<double>(w, 1), dlogits});
    };
  }

  /// Moves the routers' biases by the loads of the step.
  template <policy P, numerics_config Q>
  void update(const P& p, const model_parameters<T, Q, S>& m, double speed) const {
    for (int i = 0; i < blocks; ++i) {
      if (C.hashed(i)) continue;
      auto& ffn = i < C.num_hidden_layers() ? m.layers[static_cast<std::size_t>(i)].ffn : m.mtp.layer.ffn;
      router_bias<T, S>::forward(p, {loads_[i], speed}, {ffn.gate_bias});
    }
  }

  /// Of the worst layer; 1 is perfect balance. The host's: on a device this waits.
  template <policy P>
  double max_over_mean_load(const P& p) const {
    const std::vector<std::int64_t> counts = fetched(p, loads_);
    const matrix_view<const std::int64_t> counted(counts.data(), blocks, C.moe.n_routed_experts);
    double most = 0;
    for (int i = 0; i < blocks; ++i)
      if (!C.hashed(i)) most = std::max(most, balance_of(counted[i]).max_over_mean);
    return most;
  }

 private:
  matrix_view<std::int64_t, S> loads_;
};

template <class T>
struct kernel<sequence_balance<T>, exec::reference> {
  using op = sequence_balance<T>;
  static std::int64_t scratch(const typename op::inputs&) { return 0; }
  static void forward(const auto&, const typename op::inputs& in, const typename op::outputs& out,
                      const vector_view<double>&) {
    const std::int64_t experts = in.logits.extent[1], k = in.experts.extent[1];
    const auto count = static_cast<std::size_t>(experts);
    out.loss(0) = 0;
    for (std::int64_t b = 0; b + 1 < in.offsets.extent[0]; ++b) {
      const std::int64_t begin = in.offsets(b), length = in.offsets(b + 1) - begin;
      if (length == 0) continue;
      std::vector<std::int64_t> loads(count);
      count_loads(in.experts.rows(begin, length), {loads.data(), experts});
      std::vector<double> f(count), mean(count);
      for (std::size_t e = 0; e < count; ++e)
        f[e] = double(experts) / (double(k) * double(length)) * double(loads[e]);
      for (std::int64_t t = begin; t < begin + length; ++t) {
        double sum = 0, expected = 0;
        for (std::int64_t e = 0; e < experts; ++e) sum += route<T>::score(double(in.logits(t, e)));
        if (sum == 0) continue;  // no score is left to share
        for (std::int64_t e = 0; e < experts; ++e) {
          const double share = route<T>::score(double(in.logits(t, e))) / sum;
          mean[static_cast<std::size_t>(e)] += share / double(length);
          expected += f[static_cast<std::size_t>(e)] * share;
        }
        if (out.dlogits.data)
          for (std::int64_t e = 0; e < experts; ++e)
            out.dlogits(t, e) = T(double(out.dlogits(t, e)) +
                                  in.scale / double(length) * (f[static_cast<std::size_t>(e)] - expected) /
                                      sum * op::score_slope(double(in.logits(t, e))));
      }
      for (std::size_t e = 0; e < count; ++e) out.loss(0) += in.scale * f[e] * mean[e];
    }
  }
};

template <class T>
struct kernel<sequence_balance<T>, exec::cpu>;  // in train/cpu/router_balance.hpp

template <>
struct kernel<expert_loads<>, exec::reference> {
  static void forward(const auto&, const expert_loads<>::inputs& in, const expert_loads<>::outputs& out) {
    count_loads(in.experts, out.loads);
  }
};
template <>
struct kernel<expert_loads<>, exec::cpu> : kernel<expert_loads<>, exec::reference> {};

template <class T>
struct kernel<router_bias<T>, exec::reference> {
  using op = router_bias<T>;
  static void forward(const auto&, const typename op::inputs& in, const typename op::outputs& out) {
    update_router_bias(out.bias, in.loads, in.speed);
  }
};
template <class T>
struct kernel<router_bias<T>, exec::cpu> : kernel<router_bias<T>, exec::reference> {};

}  // namespace dsv4
