// SPDX-License-Identifier: Apache-2.0
/// The same tokens in other ways: in chunks, one at a time, after going back, packed with others.
#pragma once

#include "models.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace conformance {

inline constexpr std::int64_t mixed_length = 25, released_length = 21, packed_length = 13, greedy_prompt = 9,
                              greedy_length = 16;
inline constexpr std::uint64_t mixed_seed = 9, released_seed = 3, packed_seed = 102;

inline std::vector<std::int32_t> mixed_tokens() {
  return draw_tokens(mixed_seed, mixed_length, mixed_model.vocab_size);
}
inline std::vector<std::int32_t> packed_tokens() {
  return draw_tokens(packed_seed, packed_length, mixed_model.vocab_size);
}

/// `first` tokens at once, the others one at a time.
inline std::vector<std::int64_t> decode_chunks(std::int64_t first, std::int64_t length) {
  std::vector<std::int64_t> chunks(static_cast<std::size_t>(length - first + 1), 1);
  chunks[0] = first;
  return chunks;
}

inline std::vector<model_run> mixed_runs() {
  return {
      {"whole", "all tokens in one call, from an empty state", {mixed_length}, ""},
      {"decode", "11 tokens, then one at a time", decode_chunks(11, mixed_length), ""},
      {"chunks", "calls of these lengths", {3, 1, 8, 4, 5, 3, 1}, ""},
      {"short",
       "the first 3 tokens alone: no entry is complete; dumps hold the rows that there are",
       {3},
       ""},
      {"rollback",
       "all tokens; then back to 13, and the others again in one call: rows from 13 on are those of the "
       "second time",
       {},
       ""},
      {"packed",
       "sequences of packed.lengths in one call, one of them empty; rows follow one another",
       {},
       "packed."},
      {"padded_left",
       "the same sequences as a batch, padded on the left; dumps hold no padding rows",
       {},
       "packed."},
      {"padded_right", "the same, padded on the right", {}, "packed."},
  };
}
inline std::vector<model_run> released_runs() {
  return {
      {"whole", "all tokens in one call, from an empty state", {released_length}, ""},
      {"decode", "9 tokens, then one at a time", decode_chunks(9, released_length), ""},
  };
}

/// Rows of the list of reported bugs that a run of the model, or the comparison of two, shows.
inline std::vector<std::string> mixed_rows() {
  return {"1",  "2",  "3",  "4",  "6",  "7",  "9",  "10", "12", "13", "14", "15", "16",
          "17", "18", "20", "23", "27", "28", "30", "32", "33", "34", "37", "38", "39",
          "40", "41", "43", "44", "46", "47", "48", "55", "56", "58", "59", "65", "66"};
}
inline std::vector<std::string> released_rows() {
  return {"10", "19", "22", "27", "28", "32", "35", "50", "51", "51b", "56"};
}

/// Feeds `ids` in calls of `chunks` tokens; with `back_to`, goes back to that length after all, and feeds the
/// rest again. Logits, streams after each layer and drafts of all tokens.
template <dsv4::model_config C, class T, dsv4::numerics_config Q, class P>
tensor_map run_in_chunks(const P& p, const dsv4::parameter_store<C, T, Q>& weights,
                         std::vector<std::int32_t> ids, std::vector<std::int64_t> chunks,
                         std::int64_t back_to = -1) {
  using model = dsv4::transformer<C, T, Q>;
  const auto length = std::accumulate(chunks.begin(), chunks.end(), std::int64_t{0});
  constexpr std::int64_t n = C.hyper_connection.hc_mult, width = C.hidden_size, vocabulary = C.vocab_size;
  dsv4::workspace w;
  typename model::state state(back_to >= 0 ? length : 0);
  dsv4::buffer<T> logits(length * vocabulary), streams(length * n * width), drafts(length * vocabulary);
  tensor_map out;
  const auto put = [&](const std::string& name, std::int64_t first, auto view) {
    tensor& t = out[name];
    if (t.values.empty()) {
      t.shape.assign(view.extent, view.extent + view.rank);
      t.shape[0] = length;
      t.values.resize(static_cast<std::size_t>(length * (view.size() / view.extent[0])));
    }
    const std::int64_t row = t.row();
    for (std::int64_t i = 0; i < view.size(); ++i) t[first * row + i] = double(view.data[i]);
  };
  const auto feed = [&](std::int64_t begin, std::int64_t count) {
    const typename model::segment part{&state, count};
    const dsv4::vector_view<const std::int32_t> tokens(ids.data() + begin, count);
    model::forward(
        p, w, weights.views(), {{&part, 1}, tokens, dsv4::logit_rows::all},
        {logits.as(length, vocabulary).rows(begin, count), streams.as(length, n, width).rows(begin, count)},
        [&](int layer, auto view) {
          put(layer == 0 ? "embed" : "layers." + std::to_string(layer - 1) + ".hc_ffn.streams", begin, view);
        });
    put("logits", begin, logits.as(length, vocabulary).rows(begin, count));
    if constexpr (C.num_nextn_predict_layers > 0) {
      const std::int64_t from = state.mtp_length(), rows = begin + count - 1 - from;
      if (rows <= 0) return;
      const typename model::segment draft{&state, rows};
      model::draft(p, w, weights.views(),
                   {{&draft, 1},
                    dsv4::vector_view<const std::int32_t>(ids.data() + from + 1, rows),
                    dsv4::logit_rows::all},
                   streams.as(length, n, width).rows(from, rows),
                   {drafts.as(length, vocabulary).rows(from, rows), {}});
      put("mtp.0.logits", from, drafts.as(length, vocabulary).rows(from, rows));
    }
  };
  std::int64_t begin = 0;
  for (const std::int64_t count : chunks) feed(begin, count), begin += count;
  if (back_to >= 0) state.truncate(back_to), feed(back_to, length - back_to);
  if (const auto at = out.find("mtp.0.logits"); at != out.end()) {  // the last token has no draft
    at->second.shape[0] = length - 1;
    at->second.values.resize(static_cast<std::size_t>((length - 1) * vocabulary));
  }
  return out;
}

/// Sequences in one call: their logits, one after the other.
template <dsv4::model_config C, class T, dsv4::numerics_config Q, class P>
tensor run_packed(const P& p, const dsv4::parameter_store<C, T, Q>& weights,
                  const std::vector<std::vector<std::int32_t>>& texts) {
  using model = dsv4::transformer<C, T, Q>;
  std::vector<typename model::state> states(texts.size());
  std::vector<typename model::segment> segments;
  std::vector<std::int32_t> ids;
  for (std::size_t i = 0; i < texts.size(); ++i) {
    segments.push_back({&states[i], static_cast<std::int64_t>(texts[i].size())});
    ids.insert(ids.end(), texts[i].begin(), texts[i].end());
  }
  const auto rows = static_cast<std::int64_t>(ids.size());
  dsv4::workspace w;
  dsv4::buffer<T> logits(rows * C.vocab_size);
  model::forward(p, w, weights.views(), {segments, {ids.data(), rows}, dsv4::logit_rows::all},
                 {logits.as(rows, std::int64_t{C.vocab_size}), {}});
  tensor t{dtype::f32, {rows, C.vocab_size}, {}};
  for (const T& x : logits) t.values.push_back(double(x));
  return t;
}

/// What greedy decoding appends to the first `prompt` tokens, and the smallest distance of a best logit from
/// the next, in units of the largest.
struct greedy_text {
  std::vector<std::int32_t> tokens;
  double clear = INFINITY;
};
template <dsv4::model_config C, class T, dsv4::numerics_config Q, class P>
greedy_text run_greedy(const P& p, const dsv4::parameter_store<C, T, Q>& weights,
                       std::vector<std::int32_t> ids, std::int64_t count) {
  using model = dsv4::transformer<C, T, Q>;
  dsv4::workspace w;
  typename model::state state;
  dsv4::buffer<T> logits(C.vocab_size);
  greedy_text text;
  for (std::int64_t i = 0; i < count; ++i) {
    const auto rows = static_cast<std::int64_t>(ids.size());
    const typename model::segment part{&state, rows};
    model::forward(p, w, weights.views(), {{&part, 1}, {ids.data(), rows}},
                   {logits.as(1, std::int64_t{C.vocab_size}), {}});
    const auto best = std::max_element(logits.begin(), logits.end());
    ids = {static_cast<std::int32_t>(best - logits.begin())};
    text.tokens.push_back(ids[0]);
    double largest = 0, second = -INFINITY;
    for (const T& x : logits) {
      largest = std::max(largest, std::abs(double(x)));
      if (&x != best) second = std::max(second, double(x));
    }
    text.clear = std::min(text.clear, (double(*best) - second) / largest);
  }
  return text;
}

/// Mean cross-entropy of logits[t] against tokens[t + 1].
inline double next_token_loss(const tensor& logits, const std::vector<std::int32_t>& ids) {
  double sum = 0;
  const std::int64_t count = std::int64_t(ids.size()) - 1, vocabulary = logits.row();
  for (std::int64_t t = 0; t < count; ++t) {
    double top = -INFINITY, total = 0;
    for (std::int64_t v = 0; v < vocabulary; ++v) top = std::max(top, logits[t * vocabulary + v]);
    for (std::int64_t v = 0; v < vocabulary; ++v) total += std::exp(logits[t * vocabulary + v] - top);
    sum += top + std::log(total) - logits[t * vocabulary + ids[static_cast<std::size_t>(t + 1)]];
  }
  return sum / double(count);
}

/// Records `mixed_model` in all ways that have results of their own.
template <class T, dsv4::numerics_config Q, class P>
void record_mixed(const P& p, recorder& to, dsv4::parameter_store<mixed_model, T, Q>& weights) {
  const auto ids = mixed_tokens(), others = packed_tokens();
  record_model<mixed_model, T, Q>(p, to, weights, ids);
  const auto given = [&](const std::string& name, std::vector<double> values) {
    const auto count = static_cast<std::int64_t>(values.size());
    to.tensors.emplace(name, tensor{dtype::i32, {count}, std::move(values)});
  };
  const auto record = [&](node n, const char* role, const std::string& name, tensor t, const char* axes,
                          comparison how) {
    to.name_of = [&](const node&, const std::string&) { return name; };
    to.computed(n, role, std::move(t), axes, how);
    to.nodes.push_back(std::move(n));
  };
  record({"next_token_loss", {{"logits", "logits"}, {"tokens", "tokens"}}, {}, json::object()}, "loss",
         "loss", {dtype::f32, {1}, {next_token_loss(to.tensors.at("logits"), ids)}}, "mean",
         comparison::scaled);

  recorder aside;  // rounds as `to` does, and writes nothing down
  aside.bits = to.bits, aside.watching = false;
  const recording<P> policy{p, &aside};
  auto text = run_greedy<mixed_model, T, Q>(policy, weights, {ids.begin(), ids.begin() + greedy_prompt},
                                            greedy_length);
  if (to.bits == 53 && text.clear < 0x1p-12)
    throw dsv4::contract_error("make", "greedy", "clear choices: choose another prompt",
                               std::to_string(text.clear));
  record({"greedy", {{"tokens", "tokens"}}, {}, {{"prompt", greedy_prompt}}}, "generated", "greedy",
         {dtype::i32, {greedy_length}, {text.tokens.begin(), text.tokens.end()}}, "token", comparison::exact);

  std::vector<double> packed(ids.begin(), ids.end());
  packed.insert(packed.end(), others.begin(), others.end());
  given("packed.tokens", std::move(packed));
  given("packed.lengths", {double(mixed_length), 0, double(packed_length)});
  record({"packed_model", {{"tokens", "packed.tokens"}, {"lengths", "packed.lengths"}}, {}, json::object()},
         "logits", "packed.logits", run_packed<mixed_model, T, Q>(policy, weights, {ids, {}, others}),
         "token channel", comparison::scaled);
}

}  // namespace conformance
