// SPDX-License-Identifier: Apache-2.0
/// Products with narrow weights, written once for every vector instruction set, in terms of gemm_tile.hpp.
/// stored_portable.hpp, stored_avx2.hpp and stored_avx512.hpp each include this file inside the namespace of
/// their matrix kernels, after defining `stored_rows<W, R>` there, DSV4_TARGET and DSV4_LANE; hence no
/// include guard. Included alone it is empty.
///
/// Few rows of x: weights are decoded in registers. More: a chunk of a block of weight rows is decoded to
/// scratch, and the dense tiles take it from there. Decoding is exact and the order of columns is kept, so
/// both ways have the bits of the dense product with the decoded weights.
#if defined(DSV4_TARGET)

/// Columns [c, c + n) of all rows of w, c a multiple of a chunk, n at most one.
template <class T, class W>
DSV4_TARGET void stored_decode(const storage_matrix<const W>& w, std::int64_t c, std::int64_t n, T* to,
                               std::int64_t ldt) {
  using L = lanes<float>;
  constexpr int vectors = stored_rows<W, 1>::vectors;
  constexpr std::int64_t step = std::int64_t{vectors} * L::width;
  float wide[step];
  for (std::int64_t r = 0; r < w.extent[0]; ++r) {
    stored_rows<W, 1> row;
    stored_rows<W, 1>::open(w, r, c, n, row);
    T* out = to + r * ldt;
    std::int64_t i = 0;
    for (; i + step <= n; i += step) {
      typename L::vec v[vectors];
      stored_rows<W, 1>::load(0, i, row, v);
      if constexpr (std::is_same_v<T, float>) {
        DSV4_UNROLL for (int a = 0; a < vectors; ++a) L::store(out + i + a * L::width, v[a]);
      } else {
        DSV4_UNROLL for (int a = 0; a < vectors; ++a) L::store(wide + a * L::width, v[a]);
        for (std::int64_t a = 0; a < step; ++a) out[i + a] = T(wide[a]);
      }
    }
    if (i < n) {
      typename L::vec v[vectors];
      stored_rows<W, 1>::load(0, i, n - i, row, v);
      DSV4_UNROLL for (int a = 0; a < vectors; ++a) L::store(wide + a * L::width, v[a]);
      for (std::int64_t a = 0; a < n - i; ++a) out[i + a] = T(wide[a]);
    }
  }
}

/// One chunk, from column c on, of y[RX, R] = x[RX, k] w^T for weight rows from j on.
template <class W, int RX, int R>
DSV4_TARGET void stored_rows_chunk(const float* x, std::int64_t ldx, const storage_matrix<const W>& w,
                                   std::int64_t j, std::int64_t c, float* y, std::int64_t ldy) {
  const std::int64_t depth = std::min(chunk_bytes / std::int64_t{sizeof(float)}, w.extent[1] - c);
  stored_rows<W, R> rows;
  stored_rows<W, R>::open(w, j, c, depth, rows);
  dot_tile<float, RX, R>(x + c, ldx, rows, depth, y + j, ldy, c > 0);
}

/// y[RX, w rows from j] = x[RX, k] w^T, R weight rows at a time.
template <class W, int RX, int R>
DSV4_TARGET void stored_rows_product(const float* x, std::int64_t ldx, const storage_matrix<const W>& w,
                                     std::int64_t& j, float* y, std::int64_t ldy) {
  constexpr std::int64_t chunk = chunk_bytes / std::int64_t{sizeof(float)};
  for (; j + R <= w.extent[0]; j += R)
    for (std::int64_t c = 0; c < std::max<std::int64_t>(w.extent[1], 1); c += chunk)
      stored_rows_chunk<W, RX, R>(x, ldx, w, j, c, y, ldy);
}

/// The same from j on for the rows that tiles leave: few or none.
template <class W>
DSV4_TARGET void stored_rest(const float* x, std::int64_t ldx, int rows, const storage_matrix<const W>& w,
                             std::int64_t j, float* y, std::int64_t ldy) {
  for (int i = 0; i < rows; ++i) {
    std::int64_t from = j;
    stored_rows_product<W, 1, 1>(x + i * ldx, ldx, w, from, y + i * ldy, ldy);
  }
}

/// stored_rows_product for one row of x, by the kernels of `Row`; what these refuse goes the way of other
/// rows.
template <class W, class Row>
DSV4_TARGET void stored_one_row(const float* x, const storage_matrix<const W>& w, std::int64_t& j,
                                float* scratch, float* y) {
  constexpr std::int64_t chunk = chunk_bytes / std::int64_t{sizeof(float)}, line = 64 / sizeof(float);
  const std::int64_t k = w.extent[1];
  if (k == 0 || 2 * k + line > stored_scratch<float>) return;
  scratch += -(reinterpret_cast<std::uintptr_t>(scratch) / sizeof(float)) % line;
  if (!Row::order(x, k, scratch)) return;
  for (row_streams at = streams_of<W>(w, 8); at.count == 8; at.advance()) {
    float sums[8];
    for (std::int64_t c = 0; c < k; c += chunk) {
      const std::int64_t depth = std::min(chunk, k - c);
      if (depth % 32 != 0 || !Row::tile(scratch + 2 * c, w, at, c, depth, sums, c > 0))
        stored_rows_chunk<W, 1, 8>(x, 0, rows_at<W>(w, at), 0, c, sums, 0);
    }
    write_sums(at, 1, sums, 0, y, 0);
  }
  j = w.extent[0] / 8 * 8;
}

template <class W, int RX>
DSV4_TARGET void stored_few(const float* x, std::int64_t ldx, const storage_matrix<const W>& w,
                            [[maybe_unused]] float* scratch, float* y, std::int64_t ldy) {
  std::int64_t j = 0;
  if constexpr (RX == 1 && requires { typename stored_rows<W, 1>::one_row; })
    stored_one_row<W, typename stored_rows<W, 1>::one_row>(x, w, j, scratch, y);
  stored_rows_product<W, RX, (RX <= lanes<float>::tile_rows / 3 ? 8 : 4)>(x, ldx, w, j, y, ldy);
  stored_rest<W>(x, ldx, RX, w, j, y, ldy);
}

/// y[n, o] = x[n, k] w[o, k]^T, o at most stored_block_rows.
template <class T, class W>
DSV4_TARGET void stored_nt(const T* x, std::int64_t ldx, std::int64_t n, const storage_matrix<const W>& w,
                           T* scratch, T* y, std::int64_t ldy) {
  if constexpr (std::is_same_v<T, float> && stored_rows<W, 1>::in_registers) {
    constexpr int most = lanes<T>::tile_rows > 3 ? 4 : 3;
    if (n <= 2 * most) {
      for (; n >= most; n -= most, x += most * ldx, y += most * ldy)
        stored_few<W, most>(x, ldx, w, scratch, y, ldy);
      if constexpr (most > 3)
        if (n == 3) stored_few<W, 3>(x, ldx, w, scratch, y, ldy);
      if (n == 2) stored_few<W, 2>(x, ldx, w, scratch, y, ldy);
      if (n == 1) stored_few<W, 1>(x, ldx, w, scratch, y, ldy);
      return;
    }
  }
  constexpr std::int64_t chunk = chunk_bytes / std::int64_t{sizeof(T)};
  const std::int64_t o = w.extent[0], k = w.extent[1];
  for (std::int64_t c = 0; c < std::max<std::int64_t>(k, 1); c += chunk) {
    const std::int64_t depth = std::min(chunk, k - c);
    stored_decode<T, W>(w, c, depth, scratch, scratch_stride<T>);
    chunk_nt(x + c, ldx, n, scratch, scratch_stride<T>, o, depth, y, ldy, c > 0);
  }
}

#endif  // DSV4_TARGET
