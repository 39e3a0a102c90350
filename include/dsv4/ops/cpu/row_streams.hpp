// SPDX-License-Identifier: Apache-2.0
/// In which order kernels read rows of weights that come from memory, and what they fetch meanwhile.
#pragma once

#include <dsv4/tensor/block_scaled_view.hpp>

#include <algorithm>
#include <cstdint>

namespace dsv4::detail {

/// Rows of weights that are read side by side, `first`, `first + step`, ..., and those that are read next:
/// `next`, `next + next_step`, ...
struct rows_abreast {
  std::int64_t first = 0, count = 0, step = 1, next = 0, next_step = 1;
};

/// Goes through rows of weights, so many abreast at most.
///
/// The hardware follows one stream in a page of 4096 bytes. So short rows that lie behind each other make one
/// stream of somewhat more than a page; streams a page apart would share few sets of the cache. After the
/// last rows come others, it is assumed, that are gone through alike.
class row_streams : public rows_abreast {
 public:
  static constexpr std::int64_t stream_bytes = 5120;

  row_streams(std::int64_t rows, std::int64_t most, std::int64_t stream_rows)
      : rows_(rows), most_(most), stream_rows_(stream_rows) {
    begin(0);
  }
  bool done() const { return count == 0; }
  void advance() {
    if (left_ == 1) return begin(end());
    ++first, --left_;
    tell_next();
  }
  /// In the order of addresses, the rows behind these streams of which as many are fetched meanwhile.
  std::int64_t behind() const { return end() + most_ * (step - left_); }

 private:
  std::int64_t rows_, most_, stream_rows_;
  std::int64_t left_ = 0;  ///< rows of a stream from `first` on

  /// Rows of a stream that begins at row `at`: about as many as those behind it have.
  std::int64_t step_at(std::int64_t at) const {
    const std::int64_t tiles = (rows_ - at) / most_, streams = (tiles + stream_rows_ - 1) / stream_rows_;
    return tiles == 0 ? 1 : (tiles + streams - 1) / streams;
  }
  std::int64_t end() const { return first + left_ + (count - 1) * step; }
  void begin(std::int64_t at) {
    first = at, count = std::min(most_, rows_ - at), step = left_ = step_at(at);
    tell_next();
  }
  void tell_next() {
    next = left_ > 1 ? first + 1 : end();
    next_step = left_ > 1 ? step : step_at(next < rows_ ? next : 0);
  }
};
/// All rows of w. Those that share scales are read as they lie.
template <class W>
row_streams streams_of(const storage_matrix<const W>& w, std::int64_t most) {
  const std::int64_t bytes = W::row_bytes(w.extent[1]);
  return {w.extent[0], most, W::block_rows > 1 ? 1 : (row_streams::stream_bytes + bytes - 1) / bytes};
}
/// These rows of w.
template <class W>
storage_matrix<const W> rows_at(const storage_matrix<const W>& w, const rows_abreast& at) {
  storage_matrix<const W> rows = w.rows(at.first, at.count);
  rows.row_stride *= at.step, rows.scale_row_stride *= at.step;
  return rows;
}
/// y[i, row] = sums[i, j] for n rows of inputs and the j-th of these rows of weights.
inline void write_sums(const rows_abreast& at, std::int64_t n, const float* sums, std::int64_t ld, float* y,
                       std::int64_t ldy) {
  for (std::int64_t i = 0; i < n; ++i)
    for (std::int64_t j = 0; j < at.count; ++j) y[i * ldy + at.first + j * at.step] = sums[i * ld + j];
}
/// Bytes of the first of rows, and from each to the next one.
struct strided_bytes {
  const std::uint8_t* first;
  std::int64_t stride;
};
/// What is fetched, into the first-level cache, while byte `at` of the rows is read: some way ahead of
/// itself. The hardware follows so many streams by itself when it is shown the way; at their ends it needs to
/// be told of the next.
template <class W>
strided_bytes fetched_at(const storage_matrix<const W>& w, const rows_abreast& rows, std::int64_t at) {
  constexpr std::int64_t ahead = 512;
  const std::int64_t left = W::row_bytes(w.extent[1]) - at;
  if (ahead < left) return {w.row(rows.first) + at + ahead, rows.step * w.row_stride};
  return {w.row(rows.next) + ahead - left, rows.next_step * w.row_stride};
}

}  // namespace dsv4::detail
