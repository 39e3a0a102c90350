// SPDX-License-Identifier: Apache-2.0
/// Known mistakes of residual streams, routing and experts.
#pragma once

#include "choices.hpp"
#include "scene.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

namespace conformance {

// ---- hyper-connections
// -------------------------------------------------------------------------------------

struct gate_options {
  int iterations;
  double eps, post = 2;
  bool rows_last = false, transposed = false, softmax_over_source = false;
};

inline tensor gates_with(const scene& s, const gate_options& o) {
  const tensor &x = *s.input("x"), &z = *s.input("z"), &base = *s.input("base"), &scale = *s.input("scale");
  const std::int64_t rows = x.shape[0], n = x.shape[1], wide = z.row();
  tensor out = *s.expected();
  for (std::int64_t t = 0; t < rows; ++t) {
    double squares = 0;
    for (std::int64_t i = 0; i < x.row(); ++i) squares += x[t * x.row() + i] * x[t * x.row() + i];
    const double rho = 1 / std::sqrt(squares / double(x.row()) + s.parameter("norm_eps"));
    const auto h = [&](std::int64_t i, int segment) {
      return z[t * wide + i] * rho * scale[segment] + base[i];
    };
    if (s.role == "pre")
      for (std::int64_t i = 0; i < n; ++i) out[t * n + i] = logistic(h(i, 0)) + o.eps;
    if (s.role == "post")
      for (std::int64_t i = 0; i < n; ++i) out[t * n + i] = o.post * logistic(h(n + i, 1));
    if (s.role != "comb") continue;
    std::vector<double> m(static_cast<std::size_t>(n * n));
    const auto at = [&](std::int64_t j, std::int64_t k) -> double& {
      return m[static_cast<std::size_t>(j * n + k)];
    };
    const auto normalise = [&](bool over_rows, double eps) {  // over destinations k, or over sources j
      for (std::int64_t a = 0; a < n; ++a) {
        double sum = eps;
        for (std::int64_t b = 0; b < n; ++b) sum += over_rows ? at(a, b) : at(b, a);
        for (std::int64_t b = 0; b < n; ++b) (over_rows ? at(a, b) : at(b, a)) /= sum;
      }
    };
    for (std::int64_t j = 0; j < n; ++j)
      for (std::int64_t k = 0; k < n; ++k) at(j, k) = std::exp(h(2 * n + j * n + k, 2));
    normalise(!o.softmax_over_source, 0);
    for (double& v : m) v += o.eps;
    for (int i = 0; i < o.iterations; ++i) {
      if (i > 0 || o.rows_last) normalise(o.rows_last ? false : true, o.eps);
      normalise(o.rows_last, o.eps);
    }
    for (std::int64_t j = 0; j < n; ++j)
      for (std::int64_t k = 0; k < n; ++k) out[(t * n + j) * n + k] = o.transposed ? at(k, j) : at(j, k);
  }
  return out;
}

inline void gate_mistakes(scene& s) {
  if (!s.has("x", "z", "base", "scale") || !s.expected()) return;
  const gate_options right{s.parameter<int>("sinkhorn_iters"), s.parameter("eps")};
  const auto add = [&](const char* what, std::vector<std::string> rows, auto change) {
    gate_options o = right;
    change(o);
    s.add(what, std::move(rows), gates_with(s, o));
  };
  add("epsilon is left out", {"39"}, [](auto& o) { o.eps = 0; });
  if (s.role == "post") {
    add("output gates lack their factor 2", {"39"}, [](auto& o) { o.post = 1; });
    s.add_each("output gates have an epsilon", {"39"}, *s.expected(),
               [&](double x) { return x + right.eps; });
  }
  if (s.role != "comb") return;
  add("comb is transposed", {"38"}, [](auto& o) { o.transposed = true; });
  add("one Sinkhorn pass too few", {"39"}, [](auto& o) { --o.iterations; });
  add("one Sinkhorn pass too many", {"39"}, [](auto& o) { ++o.iterations; });
  add("Sinkhorn ends with rows, not with columns", {"39"}, [](auto& o) { o.rows_last = true; });
  add("the softmax runs over sources", {"39"}, [](auto& o) { o.softmax_over_source = true; });
  add("no Sinkhorn passes at all", {"39"}, [](auto& o) { o.iterations = 0; });
}

inline void expand_mistakes(scene& s) {
  if (!s.has("x", "v", "post", "comb")) return;
  const tensor &x = *s.input("x"), &v = *s.input("v"), &post = *s.input("post"), &comb = *s.input("comb");
  const std::int64_t n = x.shape[1], width = x.shape[2];
  const auto expand = [&](bool transposed, bool sublayer, bool mixing) {
    tensor y = x;
    for (std::int64_t t = 0; t < x.shape[0]; ++t)
      for (std::int64_t k = 0; k < n; ++k)
        for (std::int64_t c = 0; c < width; ++c) {
          double sum = sublayer ? post[t * n + k] * v[t * width + c] : 0;
          for (std::int64_t j = 0; j < n; ++j)
            sum +=
                (mixing ? comb[(t * n + (transposed ? k : j)) * n + (transposed ? j : k)] : double(j == k)) *
                x[(t * n + j) * width + c];
          y[(t * n + k) * width + c] = sum;
        }
    return y;
  };
  s.add("comb is used transposed: [destination, source]", {"38"}, expand(true, true, true));
  s.add("streams are not mixed", {"38"}, expand(false, true, false));
  s.add("the sublayer's output is lost", {"41"}, expand(false, false, true));
}

// ---- experts
// -----------------------------------------------------------------------------------------------

inline void swiglu_mistakes(scene& s) {
  if (!s.has("gate", "up")) return;
  const tensor &gate = *s.input("gate"), &up = *s.input("up"), *weight = s.input("row_weight");
  const double limit = s.parameter("limit");
  const auto add = [&](const char* what, std::vector<std::string> rows, const auto& f) {
    tensor h = gate;
    for (std::int64_t i = 0; i < h.size(); ++i)
      h[i] = f(gate[i], up[i], weight ? (*weight)[i / gate.row()] : 1.0);
    s.add(what, std::move(rows), std::move(h));
  };
  const auto silu = [](double x) { return x * logistic(x); };
  const auto clip = [&](double x) { return std::clamp(x, -limit, limit); };
  add("nothing is clamped", {"43"}, [&](double g, double u, double w) { return silu(g) * u * w; });
  add("the product is clamped, not its factors", {"44"},
      [&](double g, double u, double w) { return clip(silu(g) * u) * w; });
  add("silu(gate) is clamped, not the gate", {"44"},
      [&](double g, double u, double w) { return std::min(silu(g), limit) * clip(u) * w; });
  add("the gate is clamped from below too", {"43"},
      [&](double g, double u, double w) { return silu(clip(g)) * clip(u) * w; });
  add("up is clamped from above only", {"43"},
      [&](double g, double u, double w) { return silu(std::min(g, limit)) * std::min(u, limit) * w; });
  add("up is not clamped", {"43"},
      [&](double g, double u, double w) { return silu(std::min(g, limit)) * u * w; });
  add("the gate is not clamped", {"43"}, [&](double g, double u, double w) { return silu(g) * clip(u) * w; });
  add("gate and up are swapped", {},
      [&](double g, double u, double w) { return silu(std::min(u, limit)) * clip(g) * w; });
  if (weight) {
    add("the routing weight is missing", {"46"},
        [&](double g, double u, double) { return silu(std::min(g, limit)) * clip(u); });
    add("the routing weight counts twice", {"46"},
        [&](double g, double u, double w) { return silu(std::min(g, limit)) * clip(u) * w * w; });
  }
}

/// Rows of the k experts with the highest keys, best first.
inline tensor top_experts(const tensor& keys, std::int64_t k) {
  tensor chosen{dtype::i32, {keys.shape[0], k}, {}};
  for (std::int64_t t = 0; t < keys.shape[0]; ++t) {
    std::vector<std::int64_t> order(static_cast<std::size_t>(keys.row()));
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](auto a, auto b) { return keys[t * keys.row() + a] > keys[t * keys.row() + b]; });
    for (std::int64_t j = 0; j < k; ++j) chosen.values.push_back(double(order[static_cast<std::size_t>(j)]));
  }
  return chosen;
}

inline void route_mistakes(scene& s) {
  const tensor *logits = s.input("logits"), *bias = s.input("bias"), *right = s.at(s.call.output("experts"));
  if (!logits || !right) return;
  const std::int64_t k = s.parameter<std::int64_t>("k"), count = logits->row();
  const double factor = s.parameter("factor");
  const auto score = [&](double x) {
    return std::sqrt(x > 0 ? x + std::log1p(std::exp(-x)) : std::log1p(std::exp(x)));
  };
  if (s.role == "experts") {
    tensor keys = *logits;
    for (double& x : keys.values) x = score(x);
    s.add(bias ? "the bias takes no part in the choice" : "the table is ignored: experts are chosen by score",
          {bias ? "46" : "47"}, top_experts(keys, k));
    tensor rounded = *logits;
    for (std::int64_t i = 0; i < rounded.size(); ++i)
      rounded[i] = to_bits(to_bits(score(to_bits(rounded[i], 8)), 8) + (bias ? (*bias)[i % count] : 0.0), 8);
    if (bias) s.add("scores are compared in bfloat16", {"48"}, top_experts(rounded, k));
    return;
  }
  const auto add = [&](const char* what, std::vector<std::string> rows, const auto& of, bool renormalise,
                       double scale) {
    tensor w = *right;
    for (std::int64_t t = 0; t < w.shape[0]; ++t) {
      double sum = 0;
      for (std::int64_t j = 0; j < k; ++j) {
        const auto e = static_cast<std::int64_t>((*right)[t * k + j]);
        sum += w[t * k + j] = of((*logits)[t * count + e], bias ? (*bias)[e] : 0.0);
      }
      for (std::int64_t j = 0; j < k; ++j) w[t * k + j] *= scale / (renormalise ? sum : 1);
    }
    w.type = dtype::f32;
    s.add(what, std::move(rows), std::move(w));
  };
  const auto plain = [&](double x, double) { return score(x); };
  if (bias)
    add(
        "the bias enters the weights", {"46"}, [&](double x, double b) { return score(x) + b; }, true,
        factor);
  add("weights are not divided by their sum", {"46"}, plain, false, factor);
  add("the scaling factor is missing", {"9", "46"}, plain, true, 1);
  add("weights are neither divided by their sum nor scaled", {"46"}, plain, false, 1);
  add(
      "scores are sigmoids", {"45"}, [&](double x, double) { return logistic(x); }, true, factor);
  add(
      "scores are softplus without its root", {"45"}, [&](double x, double) { return score(x) * score(x); },
      true, factor);
  add(
      "scores are exponentials: a softmax", {"45"}, [&](double x, double) { return std::exp(x); }, true,
      factor);
  add(
      "weights are all equal: taken from the table, not from the gate", {"47"},
      [](double, double) { return 1.0; }, true, factor);
  add(
      "log(1 + exp(x)) underflows to 0 or overflows", {"45"},
      [](double x, double) { return std::sqrt(std::log(1 + double(float(std::exp(x))))); }, true, factor);
}

inline void combine_mistakes(scene& s) {
  const tensor *shared = s.input("shared"), *expected = s.expected();
  if (!shared || !expected) return;
  s.add("routed experts are lost", {}, *shared);
  tensor routed = *expected;
  for (std::int64_t i = 0; i < routed.size(); ++i) routed[i] -= (*shared)[i];
  s.add("the shared expert is lost", {}, std::move(routed));
}

}  // namespace conformance
