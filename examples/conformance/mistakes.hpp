// SPDX-License-Identifier: Apache-2.0
/// Which known mistake a wrong result shows.
#pragma once

#include "mistakes_attention.hpp"
#include "mistakes_formats.hpp"
#include "mistakes_softmax.hpp"
#include "mistakes_streams.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace conformance {

/// Rows of the list of reported bugs that speak of an op.
inline std::vector<std::string> rows_of(std::string op, const std::string& tensor_name) {
  if (const auto dot = op.find('.'); dot != std::string::npos) op.resize(dot);
  if (op == "rope") return {"1", "2", "3", "4", "6", "8", "10"};
  if (op == "rope_frequencies") return {"6", "7", "8", "9"};
  if (op == "compress_pool") return {"12", "13", "14", "17", "20"};
  if (op == "hadamard") return {"22"};
  if (op == "index_topk") return {"16", "22", "23", "24", "25", "26", "27"};
  if (op == "sparse_attention") return {"7", "15", "16", "32", "33", "34"};
  if (op == "round_trip" || op == "quantise") return {"19", "35"};
  if (op == "dequantise" || op == "recast" || op == "from_ggml_mxfp4") return {"50", "51", "51b", "52", "53"};
  if (op == "hyper_connection_gates") return {"39", "40", "42"};
  if (op == "hyper_connection_collapse" || op == "hyper_connection_expand") return {"38", "40", "41"};
  if (op == "swiglu") return {"43", "44"};
  if (op == "route") return {"45", "46", "47", "48", "49"};
  if (op == "rms_norm")
    return tensor_name.ends_with("q_head_norm") ? std::vector<std::string>{"35"}
                                                : std::vector<std::string>{"37"};
  if (op == "linear" && tensor_name.ends_with("ffn.gate")) return {"48"};
  if (op == "linear" || op == "batched_linear" || op == "grouped_linear") return {"50", "51", "56"};
  if (op == "cross_entropy" || op == "next_token_loss") return {"65"};
  if (op == "muon" || op == "adamw") return {"64"};
  if (op == "indexer_loss") return {"60", "62"};
  if (op == "training_step") {  // a gradient, by what its parameter does
    const auto of = [&](std::string_view part) { return tensor_name.find(part) != std::string::npos; };
    if (of("indexer")) return {"60", "61", "62"};
    if (of("hc_")) return {"42"};
    if (of("ffn.gate")) return {"49"};
    if (of("ffn.")) return {"43", "49"};
    if (of("attn.")) return {"5", "15", "63"};
    return {"65"};
  }
  if (op == "greedy") return {"58"};
  if (op == "embedding") return {"47"};
  if (op == "packed_model") return {"14", "15", "30", "66"};
  if (op == "broadcast_add") return {"59"};
  return {};
}

/// Mistakes that any op's result can show.
inline void general_mistakes(scene& s, const tensor& found) {
  const tensor* e = s.expected();
  if (!e || e->values.size() != found.values.size() || e->size() == 0) return;
  s.add_each("everything is 0", {}, *e, [](double) { return 0.0; });
  s.add_each("signs are turned", {}, *e, [](double x) { return -x; });
  if (found.type != dtype::bf16)
    s.add_each("values are rounded to bfloat16",
               {s.call.op == "route" || s.call.output(s.role).ends_with("ffn.gate") ? "48" : "40"}, *e,
               [](double x) { return to_bits(x, 8); });
  if (e->shape.size() >= 2 && e->shape[0] > 1)
    for (const int shift : {1, -1}) {
      tensor t = *e;
      const std::int64_t row = e->row();
      for (std::int64_t i = 0; i < t.size(); ++i) t[i] = (*e)[(i + shift * row + t.size()) % t.size()];
      s.add(shift > 0 ? "rows are those of the next token" : "rows are those of the token before", {},
            std::move(t));
    }
  if (const auto rank = e->shape.size(); rank >= 2 && e->shape[rank - 1] == e->shape[rank - 2]) {
    tensor t = *e;
    const std::int64_t n = e->shape.back();
    for (std::int64_t i = 0; i < t.size(); ++i) t[i] = (*e)[i / (n * n) * n * n + i % n * n + i / n % n];
    s.add("the last two axes are transposed", {s.role.ends_with("comb") ? "38" : "56"}, std::move(t));
  }
  double fe = 0, ee = 0;
  for (std::int64_t i = 0; i < e->size(); ++i)
    if (!std::isnan((*e)[i]) && std::isfinite(found[i])) fe += found[i] * (*e)[i], ee += (*e)[i] * (*e)[i];
  if (e->size() > 1 && ee > 0 && std::isfinite(fe / ee)) {
    char text[80];
    std::snprintf(text, sizeof text, "everything is multiplied by %.6g", fe / ee);
    s.add_each(text, {}, *e, [=](double x) { return x * fe / ee; });
  }
}

inline void training_mistakes(scene& s) {
  const tensor* e = s.expected();
  if (!e) return;
  if (s.call.op == "muon" && s.role == "weight" && s.input("weight")) {
    const tensor& weight = *s.input("weight");
    const double keep = 1 - s.parameter("learning_rate") * s.parameter("weight_decay");
    const double rows = double(weight.shape[0]), columns = double(weight.shape[1]), rms = s.parameter("rms");
    const double jordan =
        std::sqrt(std::max(1.0, rows / columns)) / (rms * std::sqrt(std::max(rows, columns)));
    for (const auto& [what, factor] :
         {std::pair{"the update lacks its factor of 0.18", 1 / rms},
          std::pair{"the update has Jordan's factor, not an RMS of 0.18", jordan}}) {
      tensor t = *e;
      for (std::int64_t i = 0; i < t.size(); ++i)
        t[i] = keep * weight[i] + (t[i] - keep * weight[i]) * factor;
      s.add(what, {"64"}, std::move(t));
    }
    s.add("the weight is not updated", {"64"}, weight);
  }
  if (s.call.op == "next_token_loss") {
    const tensor *logits = s.input("logits"), *tokens = s.input("tokens");
    if (!logits || !tokens) return;
    for (const int shift : {0, 2}) {
      double sum = 0;
      const std::int64_t count = tokens->size() - shift, vocabulary = logits->row();
      for (std::int64_t t = 0; t < count; ++t) {
        double total = 0;
        for (std::int64_t v = 0; v < vocabulary; ++v) total += std::exp((*logits)[t * vocabulary + v]);
        sum += std::log(total) - (*logits)[t * vocabulary + std::int64_t((*tokens)[t + shift])];
      }
      s.add(shift ? "labels are shifted twice" : "labels are not shifted", {"65"},
            {dtype::f32, {1}, {sum / double(count)}});
    }
  }
}

/// Sorts the slots of every row: -1 last.
inline tensor in_order(tensor t) {
  const std::int64_t k = t.row();
  for (std::int64_t r = 0; k > 0 && r < t.size() / k; ++r)
    std::sort(t.values.begin() + r * k, t.values.begin() + (r + 1) * k,
              [](double a, double b) { return (a < 0) != (b < 0) ? b < 0 : a < b; });
  return t;
}

/// The mistake that `found` shows, if it is a known one: its result agrees with `found` to 16 times
/// `tolerance` (in units of `unit`) and differs from the right one by more.
/// `sets`: rows are sets of numbers.
inline std::optional<mistake> recognise(scene& s, const tensor& found, double tolerance, double unit,
                                        bool sets) {
  const std::string& op = s.call.op;
  if (op == "rope") rope_mistakes(s);
  if (op == "rope_frequencies") table_mistakes(s);
  if (op == "compress_pool") pool_mistakes(s);
  if (op == "hadamard") hadamard_mistakes(s);
  if (op == "index_topk") index_mistakes(s);
  if (op == "sparse_attention") attention_mistakes(s);
  if (op == "round_trip") rounding_mistakes(s);
  if (op == "dequantise") decoding_mistakes(s);
  if (op == "hyper_connection_gates") gate_mistakes(s);
  if (op == "hyper_connection_expand") expand_mistakes(s);
  if (op == "swiglu") swiglu_mistakes(s);
  if (op == "route") route_mistakes(s);
  if (op == "expert_combine") combine_mistakes(s);
  if (op == "rms_norm") norm_mistakes(s);
  if (op == "linear" || op == "batched_linear" || op == "grouped_linear") product_mistakes(s);
  training_mistakes(s);
  const std::size_t specific = s.found.size();
  general_mistakes(s, found);
  tensor expected = *s.expected();
  if (sets) {
    expected = in_order(std::move(expected));
    for (mistake& m : s.found) m.result = in_order(std::move(m.result));
  }
  const auto distance = [&](const tensor& a) {
    double worst = 0;
    for (std::int64_t i = 0; i < found.size(); ++i) {
      if (std::isnan(expected[i]) && !std::isnan(a[i])) continue;  // not compared
      if (std::isnan(a[i]) && std::isnan(found[i])) continue;
      const double d = a[i] == found[i] ? 0 : std::abs(a[i] - found[i]);
      worst = std::isnan(d) ? INFINITY : std::max(worst, d);
    }
    return worst;
  };
  const double wrong = distance(expected);
  const mistake* closest = nullptr;
  const double enough = std::min(16 * tolerance * unit, 0.1 * wrong);
  double least = enough;
  for (std::size_t i = 0; i < s.found.size(); ++i) {
    const mistake& m = s.found[i];
    if (i == specific && closest) break;  // what any op may show explains nothing better
    if (m.result.values.size() != found.values.size()) continue;
    if (const double d = distance(m.result); d <= enough && (!closest || d < least)) closest = &m, least = d;
  }
  return closest ? std::optional(*closest) : std::nullopt;
}

}  // namespace conformance
