// SPDX-License-Identifier: Apache-2.0
/// The indexer on host threads: scores stream by in tiles, only the best entries seen so far are kept.
#pragma once

#include <dsv4/ops/cpu/gemm.hpp>
#include <dsv4/ops/index_topk.hpp>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

namespace dsv4 {
namespace detail {

template <class T>
struct scored_entry {
  T score;
  std::int32_t entry;
};

/// Keeps the k best of a stream of entries that comes in ascending order. Scores must not be NaN.
template <class T>
class best_entries {
 public:
  explicit best_entries(std::int64_t k) : k_(static_cast<std::size_t>(k)) { kept_.reserve(2 * k_ + 1); }

  void clear() {
    kept_.clear();
    full_ = false;
  }

  void push(T score, std::int32_t entry) {
    if (full_ && !(score > threshold_)) return;  // a tie goes to the lower entry, which is kept already
    kept_.push_back({score, entry});
    if (kept_.size() == 2 * k_) keep_best();
  }

  /// Takes in the best of others too.
  void join(best_entries& others) {
    const auto& more = others.finish();
    kept_.insert(kept_.end(), more.begin(), more.end());
  }

  /// The k best of what was pushed or joined, or all when fewer, in no fixed order.
  const std::vector<scored_entry<T>>& finish() {
    if (kept_.size() > k_) keep_best();
    return kept_;
  }

 private:
  void keep_best() {
    const auto last = kept_.begin() + static_cast<std::ptrdiff_t>(k_) - 1;
    std::nth_element(kept_.begin(), last, kept_.end(), [](const auto& a, const auto& b) {
      return a.score > b.score || (a.score == b.score && a.entry < b.entry);
    });
    threshold_ = last->score;
    full_ = true;
    kept_.resize(k_);
  }

  std::size_t k_;
  std::vector<scored_entry<T>> kept_;
  T threshold_ = T(0);
  bool full_ = false;
};

}  // namespace detail

template <class T>
struct kernel<index_topk<T>, exec::cpu> {
  using op = index_topk<T>;

  static void forward(const exec::cpu& p, const typename op::inputs& in, const typename op::outputs& out) {
    const std::int64_t n = in.q.extent[0], k = out.selected.extent[1];
    if (n == 0 || k == 0) return;
    if (n >= p.threads()) {
      p.parallel_for(n, 1, [&](std::int64_t begin, std::int64_t end) {
        detail::best_entries<T> best(k);
        std::vector<T> scratch(scratch_size(in));
        for (std::int64_t t = begin; t < end; ++t) {
          const std::int64_t visible = (in.first_position + t + 1) / in.ratio;
          if (take_all(out, t, visible)) continue;
          best.clear();
          score(in, t, 0, visible, scratch.data(), best);
          write(out, t, best);
        }
      });
      return;
    }
    for (std::int64_t t = 0; t < n; ++t) {
      const std::int64_t visible = (in.first_position + t + 1) / in.ratio;
      if (take_all(out, t, visible)) continue;
      // The order of entries is total, so the best of the pieces' best do not depend on the pieces.
      const std::int64_t pieces = std::clamp<std::int64_t>(visible / 1024, 1, p.threads());
      std::vector<detail::best_entries<T>> best(static_cast<std::size_t>(pieces), detail::best_entries<T>(k));
      p.parallel_for(pieces, 1, [&](std::int64_t begin, std::int64_t end) {
        std::vector<T> scratch(scratch_size(in));
        for (std::int64_t i = begin; i < end; ++i)
          score(in, t, visible * i / pieces, visible * (i + 1) / pieces, scratch.data(),
                best[static_cast<std::size_t>(i)]);
      });
      for (std::size_t i = 1; i < best.size(); ++i) best[0].join(best[i]);
      write(out, t, best[0]);
    }
  }

 private:
  static constexpr std::int64_t tile = 64;  ///< entries that are scored at once

  static std::size_t scratch_size(const typename op::inputs& in) {
    return static_cast<std::size_t>(tile * (in.q.extent[1] + 1));
  }

  /// With no more visible entries than places all are taken, unscored.
  static bool take_all(const typename op::outputs& out, std::int64_t t, std::int64_t visible) {
    const std::int64_t k = out.selected.extent[1];
    if (visible > k) return false;
    std::int32_t* row = &out.selected(t, 0);
    std::iota(row, row + visible, 0);
    std::fill(row + visible, row + k, -1);
    return true;
  }

  /// Scores the entries [begin, end) for query t and offers them to `best`.
  static void score(const typename op::inputs& in, std::int64_t t, std::int64_t begin, std::int64_t end,
                    T* scratch, detail::best_entries<T>& best) {
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
      for (std::int64_t i = 0; i < count; ++i) {
        const T value =
            scores[i] == scores[i] ? scores[i] : -std::numeric_limits<T>::infinity();  // NaN is last
        best.push(value, static_cast<std::int32_t>(s + i));
      }
    }
  }

  static void write(const typename op::outputs& out, std::int64_t t, detail::best_entries<T>& best) {
    std::int32_t* row = &out.selected(t, 0);
    for (const auto& kept : best.finish()) *row++ = kept.entry;
    std::sort(&out.selected(t, 0), row);
  }
};

}  // namespace dsv4
