// SPDX-License-Identifier: Apache-2.0
// The order in which kernels read rows of weights.
#include "support/catch.hpp"
#include <dsv4/ops/cpu/row_streams.hpp>

#include <cstdint>
#include <vector>

namespace {
using namespace dsv4::detail;

TEST_CASE("Streams of rows have every row once, and tell what comes next") {
  const auto rows = GENERATE(as<std::int64_t>{}, 0, 1, 15, 16, 17, 33, 128, 200, 2048);
  const auto stream_rows = GENERATE(as<std::int64_t>{}, 1, 2, 3, 5, 80);
  CAPTURE(rows, stream_rows);
  std::vector<int> seen(static_cast<std::size_t>(rows));
  rows_abreast before{0, 0, 0, 0, row_streams(rows, 16, stream_rows).step};
  for (row_streams at(rows, 16, stream_rows); !at.done(); at.advance()) {
    CHECK(at.first == before.next);
    CHECK(at.step == before.next_step);
    CHECK(at.step <= stream_rows);
    REQUIRE(at.first + (at.count - 1) * at.step < rows);
    for (std::int64_t i = 0; i < at.count; ++i) ++seen[static_cast<std::size_t>(at.first + i * at.step)];
    before = at;
  }
  for (const int times : seen) CHECK(times == 1);
  CHECK(before.next == rows);
  CHECK(before.next_step == row_streams(rows, 16, stream_rows).step);
}

TEST_CASE("While streams of rows are read, as many rows behind them are named once, in order") {
  const std::int64_t rows = 200, most = 16;
  std::int64_t behind = most * 4;  // twelve tiles: streams of four rows each
  int full = 0;
  for (row_streams at(rows, most, 5); !at.done() && at.count == most; at.advance(), behind += most, ++full)
    CHECK(at.behind() == behind);
  CHECK(full == 12);
}

TEST_CASE("Rows of weights are fetched half a KB ahead of themselves, and at their ends the next ones") {
  using W = dsv4::mxfp4;
  const std::int64_t o = 128, k = 2048;
  std::vector<std::uint8_t> codes(static_cast<std::size_t>(o * W::row_bytes(k)));
  std::vector<dsv4::e8m0> scales(static_cast<std::size_t>(o * W::scale_columns(k)));
  const dsv4::storage_matrix<const W> w(codes.data(), scales.data(), o, k);
  row_streams at = streams_of<W>(w, 16);
  CHECK(at.step == 4);  // 128 rows of 1 KB: of streams of five at most, two of four
  CHECK(fetched_at<W>(w, at, 0).first == w.row(0) + 512);
  CHECK(fetched_at<W>(w, at, 0).stride == 4 * w.row_stride);
  CHECK(fetched_at<W>(w, at, 512).first == w.row(1));
  for (int i = 0; i < 3; ++i) at.advance();
  CHECK(fetched_at<W>(w, at, 960).first == w.row(4 * 16) + 448);
  CHECK(rows_at<W>(w, at).row(2) == w.row(11));
  CHECK(rows_at<W>(w, at).row_scales(2) == w.row_scales(11));
}

TEST_CASE("Rows that share scales are read as they lie") {
  using W = dsv4::fp8_weight;
  std::vector<std::uint8_t> codes(256 * 128);
  std::vector<dsv4::e8m0> scales(2);
  CHECK(streams_of<W>({codes.data(), scales.data(), 256, 128}, 16).step == 1);
}
}  // namespace
