// SPDX-License-Identifier: Apache-2.0
/// Known mistakes of positions, compression, selection and attention.
#pragma once

#include "scene.hpp"
#include <dsv4/ops/rope.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

namespace conformance {

// ---- rotary embedding
// --------------------------------------------------------------------------------------

struct rope_options {
  std::vector<double> frequencies;
  double first = 0, step = 1, sign = 1, factor = 1;
  bool half_split = false, first_channels = false;
};

/// x: rows of heads, the first axis is the token.
inline tensor rotate(tensor x, const rope_options& o) {
  const auto pairs = static_cast<std::int64_t>(o.frequencies.size());
  const std::int64_t channels = x.shape.back(), vectors = x.size() / channels,
                     heads = vectors / std::max<std::int64_t>(x.shape[0], 1);
  const std::int64_t skip = o.first_channels ? 0 : channels - 2 * pairs;
  for (std::int64_t v = 0; v < vectors; ++v)
    for (std::int64_t i = 0; i < pairs; ++i) {
      const double angle =
          (o.first + double(v / heads) * o.step) * o.frequencies[static_cast<std::size_t>(i)];
      const double c = std::cos(angle) * o.factor, s = std::sin(angle) * o.sign * o.factor;
      double& even = x[v * channels + skip + (o.half_split ? i : 2 * i)];
      double& odd = x[v * channels + skip + (o.half_split ? i + pairs : 2 * i + 1)];
      const double e = even;
      even = e * c - odd * s, odd = e * s + odd * c;
    }
  return x;
}

/// The table that a rope_frequencies node describes, not rounded; `factor`: of YaRN.
inline std::vector<double> described_frequencies(const node& n, double theta, double factor) {
  const auto f = dsv4::make_rope_frequencies(
      n.parameters.at("dim"), theta,
      {theta, theta, factor, n.parameters.at("beta_fast"), n.parameters.at("beta_slow"),
       n.parameters.at("original_max_position_embeddings")});
  return {f.value, f.value + f.pairs};
}

inline void rope_mistakes(scene& s) {
  const tensor *given = s.input("x"), *expected = s.expected();
  const auto table = std::find_if(s.vector.nodes.begin(), s.vector.nodes.end(), [&](const node& n) {
    return n.op == "rope_frequencies" && n.output("frequencies") == s.call.input("frequencies");
  });
  if (!given || !expected || table == s.vector.nodes.end()) return;
  tensor rows = *given;
  rows.shape = expected->shape;  // heads are not always told apart before
  const tensor* x = &rows;
  const double theta = table->parameters.at("theta"), factor = table->parameters.at("factor");
  rope_options right{described_frequencies(*table, theta, factor), s.parameter("first_position"),
                     s.parameter("position_step"), s.parameter<bool>("inverse") ? -1.0 : 1.0};
  const bool inverse = right.sign < 0, entries = right.step != 1;
  const auto with = [&](auto change) {
    rope_options o = right;
    change(o);
    return rotate(*x, o);
  };
  s.add(inverse ? "outputs are not rotated back" : "nothing is rotated",
        {inverse   ? "3"
         : entries ? "10"
                   : "2"},
        *x);
  s.add("channels i and i + d/2 turn together, not neighbours", {"1"},
        with([](auto& o) { o.half_split = true; }));
  s.add("the first channels turn, not the last", {"2"}, with([](auto& o) { o.first_channels = true; }));
  s.add(inverse ? "the turn goes forwards: the inverse flag is lost" : "the turn goes backwards",
        {inverse ? "4" : "3"}, with([](auto& o) { o.sign = -o.sign; }));
  if (entries)
    s.add("entry j turns by position j, not by that of its first token", {"10"},
          with([](auto& o) { o.first /= o.step, o.step = 1; }));
  s.add("positions are one too high", {"10"}, with([](auto& o) { o.first += 1; }));
  if (entries)
    s.add("entries turn by the position of their last token", {"10"},
          with([](auto& o) { o.first += o.step - 1; }));
  for (const node& n : s.vector.nodes)
    if (n.op == "rope_frequencies" && n.output("frequencies") != s.call.input("frequencies"))
      s.add("the frequencies of the other kind of layer", {"6"}, with([&](auto& o) {
              o.frequencies = described_frequencies(n, n.parameters.at("theta"), n.parameters.at("factor"));
            }));
  if (factor != 1) {
    s.add("YaRN is left out", {"6"},
          with([&](auto& o) { o.frequencies = described_frequencies(*table, theta, 1); }));
    s.add("YaRN's mscale multiplies the rotated channels", {"7"},
          with([&](auto& o) { o.factor = 0.1 * std::log(factor) + 1; }));
  }
  for (const double other : {10000.0, 40000.0, 160000.0})
    if (other != theta)
      s.add("theta is " + std::to_string(int(other)) + ", a default of some code", {"6", "9"},
            with([&](auto& o) { o.frequencies = described_frequencies(*table, other, factor); }));
  s.add("wavelengths are taken for frequencies", {"8"}, with([](auto& o) {
          for (double& f : o.frequencies) f = 1 / f;
        }));
}

inline void table_mistakes(scene& s) {
  const tensor* e = s.expected();
  if (!e) return;
  const double theta = s.parameter("theta"), factor = s.parameter("factor");
  const auto add = [&](std::string what, std::vector<std::string> rows, double t, double f) {
    s.add(std::move(what), std::move(rows), {dtype::f32, e->shape, described_frequencies(s.call, t, f)});
  };
  if (factor != 1) add("YaRN is left out", {"6"}, theta, 1);
  for (const double other : {10000.0, 40000.0, 160000.0})
    if (other != theta) {
      add("theta is " + std::to_string(int(other)), {"6", "9"}, other, factor);
      if (factor != 1) add("theta is " + std::to_string(int(other)) + ", without YaRN", {"6", "9"}, other, 1);
    }
  s.add_each("the table holds wavelengths", {"8"}, *e, [](double f) { return 1 / f; });
}

// ---- compressor
// --------------------------------------------------------------------------------------------

struct pool_options {
  double bias = 1;              ///< how often the position bias is added
  std::int64_t bias_shift = 0;  ///< row (t + shift) mod m of it
  bool previous = true;         ///< whether the group before takes part
  bool zero_before = false;     ///< the group before entry 0 is there, of zeros
  bool halves_swapped = false;
};

inline tensor pool(const tensor& kv, const tensor& gate, const tensor& bias, std::int64_t first_position,
                   std::int64_t first_entry, std::int64_t entries, bool overlap, const pool_options& o) {
  const std::int64_t m = bias.shape[0], wide = bias.shape[1], width = overlap ? wide / 2 : wide;
  tensor y{dtype::f32, {entries, width}, {}};
  for (std::int64_t e = 0; e < entries; ++e)
    for (std::int64_t f = 0; f < width; ++f) {
      const std::int64_t start = (first_entry + e) * m;
      const std::int64_t begin = overlap && o.previous && start > 0 ? start - m : start;
      std::vector<double> logit, value;
      for (std::int64_t t = begin; t < start + m; ++t) {
        const bool own = (t >= start) != o.halves_swapped;
        const std::int64_t c = overlap && own ? width + f : f, at = (t - first_position) * wide + c;
        logit.push_back(gate[at] + o.bias * bias[(t + o.bias_shift) % m * wide + c]);
        value.push_back(kv[at]);
      }
      if (overlap && start == 0 && o.zero_before)
        for (std::int64_t t = 0; t < m; ++t) logit.push_back(0), value.push_back(0);
      const double top = *std::max_element(logit.begin(), logit.end());
      double sum = 0, mean = 0;
      for (std::size_t i = 0; i < logit.size(); ++i)
        sum += std::exp(logit[i] - top), mean += std::exp(logit[i] - top) * value[i];
      y.values.push_back(mean / sum);
    }
  return y;
}

inline void pool_mistakes(scene& s) {
  const tensor *kv = s.input("kv"), *gate = s.input("gate"), *bias = s.input("bias"),
               *expected = s.expected();
  if (!kv || !gate || !bias || !expected || expected->size() == 0) return;
  const bool overlap = s.parameter<bool>("overlap");
  const auto with = [&](auto change) {
    pool_options o;
    change(o);
    return pool(*kv, *gate, *bias, s.parameter<std::int64_t>("first_position"),
                s.parameter<std::int64_t>("first_entry"), expected->shape[0], overlap, o);
  };
  s.add("the position bias is left out", {"20"}, with([](auto& o) { o.bias = 0; }));
  s.add("the position bias is added twice", {"20"}, with([](auto& o) { o.bias = 2; }));
  s.add("the position bias is taken one row off", {"20"}, with([](auto& o) { o.bias_shift = 1; }));
  if (!overlap) return;
  s.add("the previous group is lost: entries pool m tokens, not 2 m", {"12"},
        with([](auto& o) { o.previous = false; }));
  s.add("entry 0 pools a previous group of zeros", {"13"}, with([](auto& o) { o.zero_before = true; }));
  s.add("the halves of previous and own group are swapped", {"12"},
        with([](auto& o) { o.halves_swapped = true; }));
}

// ---- indexer
// -----------------------------------------------------------------------------------------------

enum class score_rule { right, without_relu, sigmoid_mean, without_weights };

inline tensor index_scores(const scene& s, score_rule rule, std::int64_t shift) {
  const tensor &q = *s.input("q"), &keys = *s.input("keys"), &weights = *s.input("weights");
  const std::int64_t rows = q.shape[0], heads = q.shape[1], dim = q.shape[2];
  const std::int64_t ratio = s.parameter<std::int64_t>("ratio"),
                     first = s.parameter<std::int64_t>("first_position");
  const std::int64_t entries = (first + rows) / ratio;
  tensor t{dtype::f32, {rows, entries}, {}};
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t e = 0; e < entries; ++e) {
      double score = 0;
      for (std::int64_t h = 0; h < heads; ++h) {
        double dot = 0;
        for (std::int64_t c = 0; c < dim; ++c) dot += q[(r * heads + h) * dim + c] * keys[e * dim + c];
        const double w = weights[r * heads + h];
        score += rule == score_rule::without_relu      ? w * dot
                 : rule == score_rule::sigmoid_mean    ? logistic(dot) / double(heads)
                 : rule == score_rule::without_weights ? std::max(dot, 0.0)
                                                       : w * std::max(dot, 0.0);
      }
      t.values.push_back((e + 1) * ratio <= first + r + 1 + shift ? score : NAN);
    }
  return t;
}

/// The k best of every row, ascending, -1 beyond them.
inline tensor best(const tensor& scores, std::int64_t k, bool high_ties = false) {
  tensor t{dtype::i32, {scores.shape[0], k}, {}};
  for (std::int64_t r = 0; r < scores.shape[0]; ++r) {
    std::vector<std::int64_t> order;
    for (std::int64_t e = 0; e < scores.row(); ++e)
      if (!std::isnan(scores[r * scores.row() + e])) order.push_back(e);
    std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
      const double x = scores[r * scores.row() + a], y = scores[r * scores.row() + b];
      return x != y ? x > y : high_ties ? a > b : a < b;
    });
    order.resize(std::min(order.size(), static_cast<std::size_t>(k)));
    std::sort(order.begin(), order.end());
    for (std::int64_t j = 0; j < k; ++j)
      t.values.push_back(j < std::int64_t(order.size()) ? double(order[static_cast<std::size_t>(j)]) : -1);
  }
  return t;
}

inline void index_mistakes(scene& s) {
  if (!s.has("q", "keys", "weights") || s.input("q")->size() == 0) return;
  const std::int64_t k = s.parameter<std::int64_t>("k"), ratio = s.parameter<std::int64_t>("ratio");
  const bool chosen = s.role == "selected";
  const auto add = [&](const char* what, std::vector<std::string> rows, const tensor& scores) {
    s.add(what, std::move(rows), chosen ? best(scores, k) : scores);
  };
  add("products are not cut at 0", {"23"}, index_scores(s, score_rule::without_relu, 0));
  add("the score is a mean of sigmoids", {"23"}, index_scores(s, score_rule::sigmoid_mean, 0));
  add("head weights are left out", {"23"}, index_scores(s, score_rule::without_weights, 0));
  const tensor right = index_scores(s, score_rule::right, 0);
  if (!chosen) {
    const double scale = 1 / std::sqrt(double(s.input("q")->shape[1] * s.input("q")->shape[2]));
    s.add_each("scores are multiplied by (heads dim)^-1/2, which changes no choice: dump them without", {},
               right, [&](double x) { return x * scale; });
    return;
  }
  s.add("equal scores go to the higher entry", {"24"}, best(right, k, true));
  add("an entry is visible one token late", {"16"}, index_scores(s, score_rule::right, -1));
  add("an entry is visible one token early", {"16"}, index_scores(s, score_rule::right, 1));
  add("an entry is visible from its first token on", {"16"}, index_scores(s, score_rule::right, ratio - 1));
  tensor rounded = right;
  for (double& x : rounded.values) x = to_bits(x, 8);
  add("scores are compared in bfloat16", {"26"}, rounded);
  tensor all = right;
  for (double& x : all.values) x = std::isnan(x) ? -std::numeric_limits<double>::max() : x;
  add("entries that are not visible fill the free slots", {"25"}, all);
}

}  // namespace conformance
