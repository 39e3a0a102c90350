// SPDX-License-Identifier: Apache-2.0
/// What one attention layer remembers of one sequence: window ring, compressed entries, compressor tails.
#pragma once

#include <dsv4/config/model_config.hpp>
#include <dsv4/ops/copy_rows.hpp>
#include <dsv4/tensor/buffer.hpp>

#include <algorithm>
#include <cstdint>
#include <utility>

namespace dsv4 {

/// Rows of a growing table; row i is entry i. Growing is amortised, shrinking is free.
template <class T, space S = space::host>
class row_table {
 public:
  row_table() = default;
  explicit row_table(std::int64_t width) : width_(width) {}

  std::int64_t width() const { return width_; }
  std::int64_t capacity() const { return capacity_; }
  /// Makes room for `rows`, keeping the first `used`.
  template <policy P>
  void reserve(const P& p, std::int64_t rows, std::int64_t used) {
    if (rows <= capacity_) return;
    const std::int64_t grown = std::max(rows, capacity_ + capacity_ / 2);
    buffer<T, S> next(grown * width_);
    if (used > 0)
      copy_rows<T, S>::forward(p, {view(), 0, 0, used}, {matrix_view<T, S>(next.data(), grown, width_)});
    data_ = std::move(next);
    capacity_ = grown;
  }
  matrix_view<T, S> view() { return {data_.data(), capacity_, width_}; }
  matrix_view<const T, S> view() const { return {data_.data(), capacity_, width_}; }

 private:
  buffer<T, S> data_;
  std::int64_t width_ = 0, capacity_ = 0;
};

/// A ring keeps the newest rows of a stream: position t sits in row t mod capacity.
template <class T, space S = space::host>
class row_ring {
 public:
  row_ring() = default;
  row_ring(std::int64_t rows, std::int64_t width) : data_(rows * width), rows_(rows), width_(width) {}

  std::int64_t capacity() const { return rows_; }
  matrix_view<T, S> view() { return {data_.data(), rows_, width_}; }
  matrix_view<const T, S> view() const { return {data_.data(), rows_, width_}; }

  /// Remembers `rows`, the first of which is at `position`.
  template <policy P>
  void store(const P& p, matrix_view<const T, S> rows, std::int64_t position) {
    const std::int64_t count = std::min(rows.extent[0], rows_), skip = rows.extent[0] - count;
    copy_rows<T, S>::forward(p, {rows, skip, position + skip, count}, {view()});
  }
  /// The rows at [begin, end), which the ring must still hold.
  template <policy P>
  void load(const P& p, std::int64_t begin, std::int64_t end, matrix_view<T, S> rows) const {
    copy_rows<T, S>::forward(p, {view(), begin, 0, end - begin}, {rows});
  }

 private:
  buffer<T, S> data_;
  std::int64_t rows_ = 0, width_ = 0;
};

/// The unpooled projections of the newest tokens, and the entries pooled so far
/// (docs/blocks/kv-compressor.md).
template <class T, space S = space::host>
struct compressor_cache {
  row_ring<T, S> kv, gate;  // (m or 2m with overlap, D or 2D); the gate without its position bias
  row_table<T, S> entries;  // (length / m, D)

  compressor_cache() = default;
  compressor_cache(std::int64_t ratio, bool overlap, std::int64_t width, std::int64_t rewind)
      : kv(ratio * (overlap ? 2 : 1) + rewind, width * (overlap ? 2 : 1)),
        gate(kv.capacity(), width * (overlap ? 2 : 1)),
        entries(width) {}
};

template <class T, space S = space::host>
class attention_cache {
 public:
  /// `rewind`: how many tokens beyond the necessary are kept, so that `truncate` can always drop that many.
  attention_cache(const attention_config& a, attention_kind kind, std::int64_t rewind)
      : kind_(kind),
        ratio_(a.compress_ratio(kind)),
        window_size_(a.sliding_window),
        window(a.sliding_window + rewind, a.head_dim) {
    if (kind != attention_kind::sliding) main = {ratio_, kind == attention_kind::csa, a.head_dim, rewind};
    if (kind == attention_kind::csa) index = {ratio_, true, a.index_head_dim, rewind};
  }

  /// The shortest length that a sequence of `length` tokens can go back to; 0 is always possible by
  /// forgetting all.
  std::int64_t shortest(std::int64_t length) const {
    // A query at n needs the window - 1 tokens before it, and the compressor its group (and the previous
    // one).
    std::int64_t n = length > window.capacity() ? length - window.capacity() + window_size_ - 1 : 0;
    if (kind_ == attention_kind::sliding || length <= main.kv.capacity()) return n;
    const std::int64_t oldest = length - main.kv.capacity();  // oldest row still in the tail
    std::int64_t group = (oldest + ratio_ - 1) / ratio_;      // first group that is whole
    if (kind_ == attention_kind::csa) ++group;                // and whose predecessor is
    return std::max(n, group * ratio_);
  }

  /// Bytes of what a sequence of `length` tokens has stored: window rows and entries, without compressor
  /// tails.
  static std::int64_t bytes(const attention_config& a, attention_kind kind, std::int64_t length) {
    const std::int64_t ratio = a.compress_ratio(kind);
    std::int64_t elements = std::min<std::int64_t>(length, a.sliding_window) * a.head_dim;
    if (ratio) elements += length / ratio * a.head_dim;
    if (kind == attention_kind::csa) elements += length / ratio * a.index_head_dim;
    return elements * static_cast<std::int64_t>(sizeof(T));
  }

  attention_kind kind() const { return kind_; }

  /// Calls f(matrix, rows) for every array with the rows that are in use at `length`; for saving and copying.
  template <class Self, class F>
  static void for_each_array(Self& self, std::int64_t length, const F& f) {
    const auto ring = [&](auto& r) { f(r.view(), std::min(length, r.capacity())); };
    ring(self.window);
    for (auto* c : {&self.main, &self.index}) {
      if (c->kv.capacity() == 0) continue;
      ring(c->kv);
      ring(c->gate);
      f(c->entries.view(), length / self.ratio_);
    }
  }
  /// Makes room for the entries of a sequence of `length` tokens that now has `used` tokens.
  template <policy P>
  void reserve(const P& p, std::int64_t length, std::int64_t used) {
    if (kind_ == attention_kind::sliding) return;
    main.entries.reserve(p, length / ratio_, used / ratio_);
    if (kind_ == attention_kind::csa) index.entries.reserve(p, length / ratio_, used / ratio_);
  }

 private:
  attention_kind kind_;
  std::int64_t ratio_, window_size_;

 public:
  row_ring<T, S> window;  // (sliding_window + rewind, head_dim)
  compressor_cache<T, S> main, index;
};

}  // namespace dsv4
