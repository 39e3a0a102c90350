// SPDX-License-Identifier: Apache-2.0
/// Group relative policy optimisation: the loss for specialists with rewards that can be checked.
#pragma once

#include <dsv4/core/expects.hpp>
#include <dsv4/tensor/view.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace dsv4 {

struct grpo_options {
  double clip_below = 0.2, clip_above = 0.2;  ///< ratios in [1 - below, 1 + above] have a gradient both ways
  double kl_weight = 1e-3;                    ///< beta; 0: no reference policy is needed
  /// delta: an answer of negative advantage whose mean log(old / new) exceeds it is left out.
  double off_policy_limit = 0.5;
};

/// advantages[i] = rewards[i] - mean over i's group; groups are `group` answers that follow one another.
/// DeepSeek-V3.2 dropped the division by the deviation.
inline void group_advantages(vector_view<const double> rewards, std::int64_t group,
                             vector_view<double> advantages) {
  expect_extent("group_advantages", "advantages", advantages.extent[0], rewards.extent[0]);
  expect(group >= 1 && rewards.extent[0] % group == 0, "group_advantages", "group",
         numbered{"a divisor of ", rewards.extent[0]}, group);
  for (std::int64_t begin = 0; begin < rewards.extent[0]; begin += group) {
    double sum = 0;
    for (std::int64_t i = begin; i < begin + group; ++i) sum += rewards(i);
    for (std::int64_t i = begin; i < begin + group; ++i) advantages(i) = rewards(i) - sum / double(group);
  }
}

/// For G answers o_i of sampled tokens t, with r = exp(logp - old), rho = exp(reference - logp):
///   J = 1/G sum_i 1/|o_i| sum_t (min(r A_i, clip(r) A_i) M_i - beta D_t),   D_t = r (rho - log rho - 1),
///   M_i = 0 if A_i < 0 and mean_t(old - logp) > delta, else 1;   loss = -J.
/// With dr = r dlogp the gradient of D_t is r (logp - reference) dlogp, of which the expectation is that of
/// the exact KL. `dlogp` is the loss's derivative by each token's log-probability: the upstream gradient of a
/// cross-entropy whose losses are -logp is -dlogp. An answer without tokens adds nothing but counts in G.
/// Source: DeepSeek-V3.2, which V4 follows.
template <class T>
struct grpo_loss {
  struct inputs {
    vector_view<const T> logp, old;           // (N): log pi of the sampled tokens, now and when sampled
    vector_view<const T> reference;           // (N), or empty when kl_weight is 0
    vector_view<const std::int64_t> offsets;  // (G + 1): answer i is tokens [offsets[i], offsets[i + 1])
    vector_view<const double> advantages;     // (G)
    grpo_options options = {};
  };
  struct outputs {
    vector_view<T> dlogp;  // (N), =; 0 for tokens of no answer
  };
  struct result {
    double loss = 0;
    double mean_kl = 0;        ///< of D_t over tokens
    double clipped_share = 0;  ///< of tokens whose clipped term counted
    std::int64_t masked = 0;   ///< answers with M_i = 0
  };

  static result forward(const inputs& in, const outputs& out) {
    const std::int64_t tokens = in.logp.extent[0], answers = in.offsets.extent[0] - 1;
    const grpo_options& o = in.options;
    expect_extent("grpo_loss", "old", in.old.extent[0], tokens);
    if (o.kl_weight != 0) expect_extent("grpo_loss", "reference", in.reference.extent[0], tokens);
    expect_extent("grpo_loss", "advantages", in.advantages.extent[0], answers);
    expect_extent("grpo_loss", "dlogp", out.dlogp.extent[0], tokens);
    result r;
    std::fill_n(out.dlogp.data, tokens, T(0));
    std::int64_t counted = 0, clipped = 0;
    for (std::int64_t i = 0; i < answers; ++i) {
      const std::int64_t begin = in.offsets(i), end = in.offsets(i + 1);
      expect(begin >= 0 && begin <= end && end <= tokens, "grpo_loss", numbered{"offsets[", i + 1, "]"},
             numbered{"rising offsets within ", tokens, " tokens"}, end);
      if (begin == end) continue;
      const double advantage = in.advantages(i), share = 1 / (double(answers) * double(end - begin));
      double drift = 0;
      for (std::int64_t t = begin; t < end; ++t) drift += double(in.old(t)) - double(in.logp(t));
      const bool masked = advantage < 0 && drift / double(end - begin) > o.off_policy_limit;
      r.masked += masked;
      for (std::int64_t t = begin; t < end; ++t) {
        const double ratio = std::exp(double(in.logp(t)) - double(in.old(t)));
        double slope = 0;  // of J by logp
        if (!masked) {
          const double bounded = std::clamp(ratio, 1 - o.clip_below, 1 + o.clip_above);
          r.loss -= share * std::min(ratio * advantage, bounded * advantage);
          if (ratio * advantage <= bounded * advantage)
            slope += ratio * advantage;
          else
            ++clipped;
        }
        if (o.kl_weight != 0) {
          const double log_rho = double(in.reference(t)) - double(in.logp(t));
          const double divergence = ratio * (std::expm1(log_rho) - log_rho);
          r.loss += share * o.kl_weight * divergence;
          r.mean_kl += divergence;
          slope += o.kl_weight * ratio * log_rho;
        }
        out.dlogp(t) = T(-share * slope);
      }
      counted += end - begin;
    }
    if (counted > 0) {
      r.mean_kl /= double(counted);
      r.clipped_share = double(clipped) / double(counted);
    }
    return r;
  }
};

}  // namespace dsv4
