// SPDX-License-Identifier: Apache-2.0
/// The indexer on host threads: scores stream by in tiles, only the best entries seen so far are kept.
#pragma once

#include <dsv4/numeric/ordered_key.hpp>
#include <dsv4/ops/cpu/gemm.hpp>
#include <dsv4/ops/index_topk.hpp>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

namespace dsv4 {
namespace detail {

/// The k best of a stream of entries that comes in ascending order, and stays in it: ties go to the lower.
template <class T>
class best_entries {
 public:
  using key = ordered_key<T>;
  struct scored {
    key score;
    std::int32_t entry;
  };

  explicit best_entries(std::int64_t k) : k_(k), kept_(new scored[static_cast<std::size_t>(2 * k)]) {}

  void clear() { count_ = 0, full_ = false; }

  /// NaN comes last.
  void push(T score, std::int32_t entry) {
    if (full_ && score <= threshold_) return;
    push({to_ordered(score == score ? score : -std::numeric_limits<T>::infinity()), entry});
  }
  void push(const scored& s) {
    kept_[count_++] = s;
    if (count_ == 2 * k_) shrink();
  }

  /// The k best, or all when fewer, in ascending order of entries: `size()` of them.
  const scored* best() {
    if (count_ > k_) shrink();
    return kept_.get();
  }
  std::int64_t size() const { return std::min(count_, k_); }

 private:
  /// Drops all but the k best. Six bits at a time the k-th largest score is found: `found` has those that are
  /// `known`, and of the scores that begin so `wanted` are among the k.
  void shrink() {
    constexpr int digit_bits = 6;
    constexpr key digits = (key{1} << digit_bits) - 1;
    key differ = 0;
    for (std::int64_t i = 1; i < count_; ++i) differ |= kept_[i].score ^ kept_[0].score;
    int left = std::bit_width(differ);  // behind what all have in common
    key known = differ >> (8 * sizeof(key) - 1) ? 0 : ~key{0} << left, found = kept_[0].score & known;
    std::int64_t wanted = k_;
    for (bool all = false; left > 0 && !all;) {
      left = std::max(left - digit_bits, 0);
      std::int64_t with[digits + 1] = {};
      for (std::int64_t i = 0; i < count_; ++i)
        if ((kept_[i].score & known) == found) ++with[kept_[i].score >> left & digits];
      key digit = digits;
      while (with[digit] < wanted) wanted -= with[digit--];
      found |= digit << left, known |= digits << left, all = with[digit] == wanted;
    }
    std::int64_t stay = 0;
    for (std::int64_t i = 0; i < count_; ++i) {
      const key score = kept_[i].score & known;
      if (score > found || (score == found && wanted-- > 0)) kept_[stay++] = kept_[i];
    }
    // At most the k-th largest, or NaN, which keeps nothing out: what is let in needlessly is dropped next
    // time.
    count_ = stay, threshold_ = from_ordered<T>(found), full_ = true;
  }

  std::int64_t k_, count_ = 0;
  std::unique_ptr<scored[]> kept_;
  T threshold_ = T(0);
  bool full_ = false;
};

}  // namespace detail

template <class T>
struct kernel<index_topk<T>, exec::cpu> {
  using op = index_topk<T>;
  using topk = detail::best_entries<T>;

  static void forward(const exec::cpu& p, const typename op::inputs& in, const typename op::outputs& out) {
    const std::int64_t n = in.q.extent[0], k = out.selected.extent[1];
    if (n == 0 || k == 0) return;
    const auto visible_to = [&](std::int64_t t) { return (in.first_position + t + 1) / in.ratio; };
    // Few queries are shared among the threads in pieces. The order of entries is total, so the best of the
    // pieces' best do not depend on the pieces.
    const std::int64_t threads = p.threads(),
                       pieces = std::clamp<std::int64_t>(visible_to(n - 1) / 1024, 1, (threads + n - 1) / n);
    std::vector<topk> parts;
    if (pieces > 1)
      for (std::int64_t i = 0; i < n * pieces; ++i) parts.emplace_back(k);
    p.parallel_for(n * pieces, 1, [&](std::int64_t begin, std::int64_t end) {
      topk own(pieces > 1 ? 0 : k);
      std::vector<T> scratch(static_cast<std::size_t>(tile * (in.q.extent[1] + 1)));
      for (std::int64_t task = begin; task < end; ++task) {
        const std::int64_t t = task / pieces, piece = task % pieces, visible = visible_to(t);
        topk& best = pieces > 1 ? parts[static_cast<std::size_t>(task)] : own;
        best.clear();
        if (visible > k)
          score(in, t, visible * piece / pieces, visible * (piece + 1) / pieces, scratch.data(), best);
        if (pieces == 1) write(out, t, visible, best);
      }
    });
    for (std::int64_t t = 0; t < n && pieces > 1; ++t) {
      topk* const of = &parts[static_cast<std::size_t>(t * pieces)];
      for (std::int64_t piece = 1; piece < pieces; ++piece)
        for (const auto *s = of[piece].best(), *end = s + of[piece].size(); s < end; ++s) of->push(*s);
      write(out, t, visible_to(t), *of);
    }
  }

 private:
  static constexpr std::int64_t tile = 64;  ///< entries that are scored at once

  /// Scores the entries [begin, end) for query t and offers them to `best`.
  static void score(const typename op::inputs& in, std::int64_t t, std::int64_t begin, std::int64_t end,
                    T* scratch, topk& best) {
    const auto& kernels = detail::best_kernels<T>();
    const std::int64_t heads = in.q.extent[1];
    T* scores = scratch;
    T* dots = scratch + tile;
    for (std::int64_t s = begin; s < end; s += tile) {
      const std::int64_t count = std::min(tile, end - s);
      kernels.gemm_nt(in.q.data + t * in.q.stride[0], in.q.stride[1], heads,
                      in.keys.data + s * in.keys.stride[0], in.keys.stride[0], count, in.q.extent[2], dots,
                      tile);
      kernels.weighted_relu(in.weights.data + t * in.weights.stride[0], heads, dots, tile, count, scores);
      for (std::int64_t i = 0; i < count; ++i) best.push(scores[i], static_cast<std::int32_t>(s + i));
    }
  }

  /// With no more visible entries than places all are taken, unscored.
  static void write(const typename op::outputs& out, std::int64_t t, std::int64_t visible, topk& best) {
    const std::int64_t k = out.selected.extent[1];
    const auto* kept = visible > k ? best.best() : nullptr;
    for (std::int64_t j = 0; j < k; ++j)
      out.selected(t, j) = kept ? kept[j].entry : j < visible ? static_cast<std::int32_t>(j) : -1;
  }
};

}  // namespace dsv4
