// SPDX-License-Identifier: Apache-2.0
/// Vectors of positions, compression, selection and attention.
#pragma once

#include "workbench.hpp"
#include <dsv4/config/presets.hpp>

#include <cmath>

namespace conformance {

/// Without YaRN; and YaRN as the released models have it.
inline constexpr dsv4::rope_config no_yarn{10000, 160000, 1, 32, 1, 65536};
inline constexpr dsv4::rope_config released_rope = dsv4::v4_flash.attention.rope;

template <class F>
void for_each_rope_vector(const F& f) {
  f("rope.tables", "angular frequencies of the released layer kinds, 64 rotated channels", {"6", "8", "9"},
    [](auto& b) {
      b.table("window", 64, released_rope.rope_theta, no_yarn);
      b.table("compressed", 64, released_rope.compress_rope_theta, released_rope);
    });
  f("rope.pairs", "adjacent pairs of the last channels turn, the first channels stay", {"1", "2", "8"},
    [](auto& b) {
      using T = scalar_of<decltype(b)>;
      const auto table = b.table("window", 8, 10000, no_yarn);
      b.next("turned");
      dsv4::rope<T>::forward(b.policy, {table, 3}, {b.random("x", 1, 5, 2, 20)});
    });
  f("rope.inverse", "the turn back, by position, of attention outputs", {"3", "4"}, [](auto& b) {
    using T = scalar_of<decltype(b)>;
    const auto table = b.table("window", 8, 10000, no_yarn);
    b.next("turned_back");
    dsv4::rope<T>::forward(b.policy, {table, 3, 1, true}, {b.random("x", 1, 5, 2, 20)});
  });
  f("rope.entries", "entry j of a compressed cache turns by position j m: j = 0, 1 and 1000", {"10"},
    [](auto& b) {
      using T = scalar_of<decltype(b)>;
      const auto table = b.table("compressed", 8, 160000, no_yarn);
      b.next("first");
      dsv4::rope<T>::forward(b.policy, {table, 0, 4}, {b.random("first_entries", 1, 2, 1, 20)});
      b.next("far");
      dsv4::rope<T>::forward(b.policy, {table, 4000, 4}, {b.random("far_entry", 1, 1, 1, 20)});
    });
  f("rope.far", "positions beyond the original context, YaRN; lengths of pairs stay: there is no mscale",
    {"6", "7"}, [](auto& b) {
      using T = scalar_of<decltype(b)>;
      const auto table = b.table("compressed", 64, released_rope.compress_rope_theta, released_rope);
      b.next("turned");
      dsv4::rope<T>::forward(b.policy, {table, 65536, 50000}, {b.random("x", 1, 3, 1, 72)});
    });
}

template <class F>
void for_each_pool_vector(const F& f) {
  const auto pool = [](auto& b, const char* name, std::int64_t rows, std::int64_t width, std::int64_t m,
                       std::int64_t first_position, std::int64_t first_entry, bool overlap) {
    using T = scalar_of<decltype(b)>;
    const std::int64_t wide = overlap ? 2 * width : width;
    const std::int64_t entries = (first_position + rows) / m - first_entry;
    const auto kv = b.random("kv", 1, rows, wide);
    const auto gate = b.random("gate", 4, rows, wide);
    const auto bias = b.random("ape", 2, m, wide);
    b.next(name);
    dsv4::compress_pool<T>::forward(b.policy, {kv, gate, bias, first_position, first_entry, overlap},
                                    {b.out(entries, width)});
  };
  f("compress_pool.csa", "groups of 4 with overlap; the first entry pools 4 tokens, the others 8",
    {"12", "13", "16"}, [=](auto& b) { pool(b, "entries", 13, 6, 4, 0, 0, true); });
  f("compress_pool.continued", "entries 2 and 3 from the tokens that a state must still hold, 4 to 18",
    {"12", "17"}, [=](auto& b) { pool(b, "entries", 15, 6, 4, 4, 2, true); });
  f("compress_pool.hca", "disjoint groups of 8", {"13", "16"},
    [=](auto& b) { pool(b, "entries", 18, 5, 8, 0, 0, false); });
  f("compress_pool.ape", "gates of 0: the position bias alone weighs the tokens", {"20"}, [](auto& b) {
    using T = scalar_of<decltype(b)>;
    const auto kv = b.random("kv", 1, 9, 12);
    const auto bias = b.random("ape", 2, 4, 12);
    const auto gate = b.given(
        "gate", [](std::int64_t) { return 0.0; }, 9, 12);
    b.next("entries");
    dsv4::compress_pool<T>::forward(b.policy, {kv, gate, bias, 0, 0, true}, {b.out(2, 6)});
  });
}

template <class F>
void for_each_index_vector(const F& f) {
  f("hadamard.rows", "the orthonormal transform of rows of 128, in natural order", {"22"}, [](auto& b) {
    b.next("transformed");
    dsv4::hadamard<scalar_of<decltype(b)>>::forward(b.policy, {}, {b.random("x", 1, 2, 128)});
  });
  const auto select = [](auto& b, auto q, auto keys, auto weights, std::int64_t position, std::int64_t k) {
    using T = scalar_of<decltype(b)>;
    b.next("index");
    dsv4::index_topk<T>::forward(b.policy, {q, keys, weights, position, 4},
                                 {b.template array<std::int32_t>(q.extent[0], k)});
  };
  f("index_topk.hand", "two heads, a negative product: without its cut at 0 entry 2 would win", {"23"},
    [=](auto& b) {
      select(b, b.values("q", {1, 0, 0, 1}, 1, 2, 2), b.values("keys", {1, -4, -1, 2, 0.5, 0.5}, 3, 2),
             b.values("weights", {1, 0.25}, 1, 2), 11, 1);
    });
  f("index_topk.random", "scores of 10 entries, 4 of them kept", {"16", "23"}, [=](auto& b) {
    select(b, b.random("q", 1, 5, 3, 8), b.random("keys", 1, 10, 8), b.random("weights", 1, 5, 3), 36, 4);
  });
  f("index_topk.ties", "equal scores, of products above and below 0: the lowest entries win", {"24"},
    [=](auto& b) {
      b.to().steady = true;
      select(b, b.values("q", {1, 1, -1, -1}, 2, 1, 2),
             b.given(
                 "keys", [](std::int64_t) { return 0.5; }, 8, 2),
             b.values("weights", {1, 1}, 2, 1), 31, 3);
    });
  f("index_topk.short", "0 to 6 visible entries and 5 slots: no slot holds an entry that is not visible",
    {"16", "25", "34"}, [=](auto& b) {
      select(b, b.random("q", 1, 26, 2, 4), b.random("keys", 1, 6, 4), b.random("weights", 1, 26, 2), 0, 5);
    });
  f("index_topk.close", "64 scores from 1 to 1.016: bfloat16 tells four of them apart", {"26"}, [=](auto& b) {
    b.to().f32_only = true;
    select(b, b.values("q", {1}, 1, 1, 1),
           b.given(
               "keys", [](std::int64_t i) { return 1 + double(i * 37 % 64) * 0x1p-12; }, 64, 1),
           b.values("weights", {1}, 1, 1), 255, 8);
  });
  f("index_topk.empty", "a call without tokens", {"30"}, [=](auto& b) {
    select(b, b.random("q", 1, 0, 2, 4), b.random("keys", 1, 2, 4), b.random("weights", 1, 0, 2), 8, 2);
  });
}

template <class B>
void attend(B& b, std::int64_t rows, std::int64_t heads, std::int64_t dim, std::int64_t position,
            std::int64_t window, std::int64_t ratio, dsv4::matrix_view<const std::int32_t> selected,
            dsv4::vector_view<typename B::scalar> sinks) {
  using T = typename B::scalar;
  const std::int64_t oldest = std::max<std::int64_t>(0, position - window + 1);
  const auto q = b.random("q", 2, rows, heads, dim);
  const auto local = b.random("local", 2, position + rows - oldest, dim);
  dsv4::matrix_view<T> entries;
  if (ratio) entries = b.random("compressed", 2, (position + rows) / ratio, dim);
  b.next("attention");
  dsv4::sparse_attention<T>::forward(
      b.policy,
      {q, local, entries, selected, sinks, position, oldest, window, ratio, 1 / std::sqrt(double(dim))},
      {b.out(rows, heads, dim)}, {b.out(rows, heads), {}});
}

template <class F>
void for_each_softmax_vector(const F& f) {
  f("sparse_attention.window", "from the first token on, window 4, no entries", {"16", "33", "34"},
    [](auto& b) { attend(b, 9, 3, 12, 0, 4, 0, {}, b.random("sinks", 1, 3)); });
  f("sparse_attention.csa", "selected entries, some slots empty, one softmax with the window",
    {"16", "25", "33"}, [](auto& b) {
      const auto selected = b.integers(
          "selected",
          [](std::int64_t i) {
            constexpr int rows[21] = {0, 2, -1, 1, -1, -1, 0, 1, 3, 1, 2, 3, -1, -1, -1, 0, 3, -1, 2, 3, 4};
            return rows[i];
          },
          7, 3);
      attend(b, 7, 3, 12, 13, 5, 4, selected, b.random("sinks", 1, 3));
    });
  f("sparse_attention.hca", "every complete entry, ratio 8, from position 20", {"16", "33"},
    [](auto& b) { attend(b, 6, 2, 8, 20, 5, 8, {}, b.random("sinks", 1, 2)); });
  f("sparse_attention.sink", "sinks of 20, -20 and one that bfloat16 does not hold", {"32", "33"},
    [](auto& b) {
      b.to().f32_only = true;
      attend(b, 3, 3, 12, 5, 4, 0, {}, b.values("sinks", {20, -20, double(1.2345678f)}, 3));
    });
  f("sparse_attention.scale", "a head of 512: scores times 1 / sqrt(512), nothing else", {"7"},
    [](auto& b) { attend(b, 2, 1, 512, 2, 3, 0, {}, b.random("sinks", 1, 1)); });
  f("sparse_attention.edge", "the last of 1048576 tokens: 8192 entries of ratio 128", {"31"},
    [](auto& b) { attend(b, 1, 1, 2, 1048575, 1, 128, {}, b.random("sinks", 1, 1)); });
  f("sparse_attention.empty", "a call without tokens", {"30"},
    [](auto& b) { attend(b, 0, 2, 4, 8, 4, 0, {}, b.random("sinks", 1, 2)); });
}

template <class F>
void for_each_attention_vector(const F& f) {
  f("rms_norm.weighted", "with a weight, over a whole row", {"37"}, [](auto& b) {
    using T = scalar_of<decltype(b)>;
    const auto x = b.random("x", 2, 4, 18);
    const auto weight = b.random("weight", 1, 18);
    b.next("normed");
    dsv4::rms_norm<T>::forward(b.policy, {x, weight, 1e-6}, {b.out(4, 18)});
  });
  f("rms_norm.heads", "without a weight: each head of a query by itself, after wq_b", {"35"}, [](auto& b) {
    using T = scalar_of<decltype(b)>;
    const auto x = b.random("x", 2, 6, 10);
    b.next("normed");
    dsv4::rms_norm<T>::forward(b.policy, {x, {}, 1e-6}, {b.out(6, 10)});
  });
  for_each_rope_vector(f);
  for_each_pool_vector(f);
  for_each_index_vector(f);
  for_each_softmax_vector(f);
}

}  // namespace conformance
