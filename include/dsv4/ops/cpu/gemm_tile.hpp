// SPDX-License-Identifier: Apache-2.0
/// The matrix micro-kernels, written once for every vector instruction set. gemm_portable.hpp, gemm_avx2.hpp
/// and gemm_avx512.hpp each include this file inside their own namespace, after defining `lanes<T>` there,
/// DSV4_TARGET and DSV4_LANE; hence no include guard. Included alone it is empty.
///
/// Every output element is computed by the same operations in the same order wherever it lies in a tile, a
/// block or a batch: one vector accumulator steps over the summed axis with fused multiply-adds, a masked
/// step takes the tail, and one fixed tree adds the lanes. Tiles of other shapes differ only in how many
/// elements they compute side by side. There are few of them: each is compiled three times and more in every
/// program.
#if defined(DSV4_TARGET)

/// Rows of a dense matrix as dot_tile reads them: `vectors` vectors at a time. Nothing is fetched ahead: the
/// hardware follows rows of floats by itself, and to ask costs a third where they are in a cache.
template <class T>
struct dense_rows {
  static constexpr int vectors = 1;
  const T* data;
  std::int64_t stride;

  DSV4_LANE void prefetch(int, std::int64_t, const dense_rows&) {}
  DSV4_LANE void load(std::int64_t j, std::int64_t c, const dense_rows& w, typename lanes<T>::vec (&to)[1]) {
    to[0] = lanes<T>::load(w.data + j * w.stride + c);
  }
  /// The last n columns; zeros behind them.
  DSV4_LANE void load(std::int64_t j, std::int64_t c, std::int64_t n, const dense_rows& w,
                      typename lanes<T>::vec (&to)[1]) {
    to[0] = lanes<T>::load(w.data + j * w.stride + c, lanes<T>::first(n));
  }
};

/// The same while half as many columns of something else, from `next` on, are brought near: evenly, for lines
/// asked for in bursts wait for each other.
template <class T>
struct fetching_rows : dense_rows<T> {
  static constexpr std::int64_t step = lanes<T>::width;
  const T* next;

  DSV4_LANE void prefetch(int j, std::int64_t c, const fetching_rows& w) {
    if (j == 0) __builtin_prefetch(w.next + c / 2, 0, 2);
    asm volatile("");  // else GCC drops calls of what seems to have no effect
  }
};

/// What is read next, `rows` of `columns` elements: every tile has a few lines of it fetched.
template <class T>
struct rows_ahead {
  static constexpr std::int64_t line = 64 / std::int64_t{sizeof(T)};
  const T* at = nullptr;
  std::int64_t stride = 0, rows = 0, columns = 0, lines_each = 0, column = 0;

  /// Spread over so many tiles.
  DSV4_LANE rows_ahead over(rows_ahead r, std::int64_t tiles) {
    r.lines_each = (r.rows * ((r.columns + line - 1) / line) + tiles - 1) / std::max<std::int64_t>(tiles, 1);
    return r;
  }
  DSV4_LANE void fetch(rows_ahead& r) {
    for (std::int64_t i = 0; i < r.lines_each && r.rows > 0; ++i) {
      __builtin_prefetch(r.at + r.column, 0, 2);
      r.column += line;
      if (r.column >= r.columns) r.column = 0, r.at += r.stride, --r.rows;
    }
  }
};

/// One chunk of dot products: RX rows of x against RW rows of w. Writes y, or adds to it.
template <class T, int RX, int RW, class Rows>
[[gnu::noinline]] DSV4_TARGET void dot_tile(const T* x, std::int64_t ldx, const Rows& w, std::int64_t k, T* y,
                                            std::int64_t ldy, bool add) {
  using L = lanes<T>;
  constexpr int vectors = Rows::vectors;
  constexpr std::int64_t step = std::int64_t{vectors} * L::width;
  const Rows own = w;  // whose members the compiler keeps in registers
  typename L::vec acc[RX][RW];
  DSV4_UNROLL for (int i = 0; i < RX; ++i) { DSV4_UNROLL for (int j = 0; j < RW; ++j) acc[i][j] = L::zero(); }
  std::int64_t c = 0;
  for (; c + step <= k; c += step) {
    typename L::vec row[RX][vectors];
    DSV4_UNROLL for (int i = 0; i < RX; ++i) {
      DSV4_UNROLL for (int v = 0; v < vectors; ++v) row[i][v] = L::load(x + i * ldx + c + v * L::width);
    }
    DSV4_UNROLL for (int j = 0; j < RW; ++j) {
      Rows::prefetch(j, c, own);
      typename L::vec column[vectors];
      Rows::load(j, c, own, column);
      DSV4_UNROLL for (int v = 0; v < vectors; ++v) {
        DSV4_UNROLL for (int i = 0; i < RX; ++i) acc[i][j] = L::fma(row[i][v], column[v], acc[i][j]);
      }
    }
  }
  if (c < k) {
    DSV4_UNROLL for (int j = 0; j < RW; ++j) {
      typename L::vec column[vectors];
      Rows::load(j, c, k - c, own, column);
      DSV4_UNROLL for (int v = 0; v < vectors; ++v) {
        const std::int64_t left = k - c - v * L::width;
        if (left <= 0) break;
        const typename L::tail tail = L::first(std::min<std::int64_t>(left, L::width));
        DSV4_UNROLL for (int i = 0; i < RX; ++i) acc[i][j] =
            L::fma(L::load(x + i * ldx + c + v * L::width, tail), column[v], acc[i][j]);
      }
    }
  }
  if constexpr (RX % 2 == 0 && requires { L::reduce4(acc[0], acc[0], y, ldy, add); }) {
    DSV4_UNROLL for (int i = 0; i + 4 <= RX; i += 4)
        L::reduce4(acc[i], acc[i + 1], acc[i + 2], acc[i + 3], y + i * ldy, ldy, add);
    if constexpr (RX % 4 == 2) L::reduce4(acc[RX - 2], acc[RX - 1], y + (RX - 2) * ldy, ldy, add);
    return;
  }
  DSV4_UNROLL for (int i = 0; i < RX; ++i) {
    T* out = y + i * ldy;
    if constexpr (RW % 4 == 0) {
      DSV4_UNROLL for (int j = 0; j < RW; j += 4)
          L::reduce4(acc[i][j], acc[i][j + 1], acc[i][j + 2], acc[i][j + 3], out + j, add);
    } else {
      DSV4_UNROLL for (int j = 0; j < RW; ++j) {
        const T sum = L::reduce(acc[i][j]);
        out[j] = add ? out[j] + sum : sum;
      }
    }
  }
}

/// One row of y, eight rows of w at a time.
template <class T>
[[gnu::noinline]] DSV4_TARGET void dot_row(const T* x, const T* w, std::int64_t ldw, std::int64_t o,
                                           std::int64_t k, T* y, bool add) {
  std::int64_t j = 0;
  for (; j + 8 <= o; j += 8) dot_tile<T, 1, 8>(x, 0, dense_rows<T>{w + j * ldw, ldw}, k, y + j, 0, add);
  for (; j < o; ++j) dot_tile<T, 1, 1>(x, 0, dense_rows<T>{w + j * ldw, ldw}, k, y + j, 0, add);
}

/// One chunk of y[n, o] = x[n, k] w[o, k]^T. Writes y, or adds to it. The first tiles of some rows bring the
/// rows of x near that come next.
template <class T>
DSV4_TARGET void chunk_nt(const T* x, std::int64_t ldx, std::int64_t n, const T* w, std::int64_t ldw,
                          std::int64_t o, std::int64_t k, T* y, std::int64_t ldy, bool add,
                          rows_ahead<T> ahead = {}) {
  constexpr int most = lanes<T>::tile_rows;
  ahead = rows_ahead<T>::over(ahead, (n / most + n % most / 2) * (o / 4));
  while (n > 0) {
    const int rows = n >= most ? most : n >= 2 ? 2 : 1;
    std::int64_t j = 0;
    if constexpr (most > 1) {
      const auto tile =
          rows == most ? &dot_tile<T, most, 4, fetching_rows<T>> : &dot_tile<T, 2, 4, fetching_rows<T>>;
      for (; j + 4 <= o && rows > 1; j += 4) {
        rows_ahead<T>::fetch(ahead);
        const T* const next = j < 8 * rows ? x + (rows + j / 8) * ldx + j / 4 % 2 * (k / 2) : x;
        tile(x, ldx, fetching_rows<T>{{w + j * ldw, ldw}, next}, k, y + j, ldy, add);
      }
    }
    for (int i = 0; i < rows && j < o; ++i)
      dot_row(x + i * ldx, w + j * ldw, ldw, o - j, k, y + i * ldy + j, add);
    n -= rows, x += rows * ldx, y += rows * ldy;
  }
}

/// y[n, o] = x[n, k] w[o, k]^T. The sum over k is taken in chunks of `chunk_bytes`, the chunks' sums are
/// added in order. `next` rows of w behind these are needed soon.
template <class T>
DSV4_TARGET void gemm_nt(const T* x, std::int64_t ldx, std::int64_t n, const T* w, std::int64_t ldw,
                         std::int64_t o, std::int64_t k, T* y, std::int64_t ldy, std::int64_t next) {
  constexpr std::int64_t chunk = chunk_bytes / std::int64_t{sizeof(T)};
  // Weights are read once for one row of x: whole rows in order suit the prefetcher.
  const std::int64_t width = n == 1 && k > chunk ? 8 : o;
  for (std::int64_t j = 0; j < o; j += width)
    for (std::int64_t c = 0; c < std::max<std::int64_t>(k, 1); c += chunk) {
      const T* const from = w + j * ldw + c;
      const std::int64_t rows = std::min(width, o - j), depth = std::min(chunk, k - c);
      if (n == 1) {
        dot_row(x + c, from, ldw, rows, depth, y + j, c > 0);
        continue;
      }
      const bool last = c + chunk >= k;  // else the next chunk of the same rows follows
      const rows_ahead<T> ahead{last ? w + o * ldw : from + chunk, ldw, last ? next : o,
                                std::min(chunk, last ? k : k - c - chunk)};
      chunk_nt(x + c, ldx, n, from, ldw, o, depth, y, ldy, c > 0, ahead);
    }
}

/// RM rows by RV vectors of columns of c = op(a) b, or c += it; the last vector is masked when `Partial`. a
/// is [m, k] or, when `Transposed`, [k, m]. Unless `copy` is null, it gets the rows of b, one after the
/// other.
template <class T, int RM, int RV, bool Partial, bool Transposed>
[[gnu::noinline]] DSV4_TARGET void outer_tile(const T* a, std::int64_t lda, const T* b, std::int64_t ldb,
                                              std::int64_t k, T* c, std::int64_t ldc, bool add,
                                              std::int64_t last, T* copy) {
  using L = lanes<T>;
  constexpr int whole = Partial ? RV - 1 : RV;
  [[maybe_unused]] const typename L::tail tail = L::first(Partial ? last : 0);
  typename L::vec acc[RM][RV];
  // Both ends of each row of c, a line or two in a place of its own that no prefetcher foresees.
  DSV4_UNROLL for (int i = 0; i < RM; ++i) {
    __builtin_prefetch(c + i * ldc, 1);
    if constexpr (!Partial) __builtin_prefetch(c + i * ldc + RV * L::width - 1, 1);
  }
  DSV4_UNROLL for (int i = 0; i < RM; ++i) { DSV4_UNROLL for (int j = 0; j < RV; ++j) acc[i][j] = L::zero(); }
  for (std::int64_t p = 0; p < k; ++p) {
    typename L::vec row[RV];
    DSV4_UNROLL for (int j = 0; j < whole; ++j) row[j] = L::load(b + p * ldb + j * L::width);
    if constexpr (Partial) row[RV - 1] = L::load(b + p * ldb + (RV - 1) * L::width, tail);
    if constexpr (RM > 1) {
      DSV4_UNROLL for (int j = 0; j < RV; ++j) L::hold(row[j]);
    }
    if constexpr (RM == L::outer_rows && !Partial)
      if (copy) {
        const T* const soon = b + std::min(p + 8, k - 1) * ldb;
        DSV4_UNROLL for (int j = 0; j < RV; ++j) {
          L::store(copy + j * L::width, row[j]);
          __builtin_prefetch(soon + j * L::width);
        }
        copy += RV * L::width;
      }
    DSV4_UNROLL for (int i = 0; i < RM; ++i) {
      const typename L::vec scale = L::fill(Transposed ? a[p * lda + i] : a[i * lda + p]);
      DSV4_UNROLL for (int j = 0; j < RV; ++j) acc[i][j] = L::fma(scale, row[j], acc[i][j]);
    }
  }
  const typename L::vec one = L::fill(T(1));
  DSV4_UNROLL for (int i = 0; i < RM; ++i) {
    if (add) {
      DSV4_UNROLL for (int j = 0; j < whole; ++j) acc[i][j] =
          L::fma(one, L::load(c + i * ldc + j * L::width), acc[i][j]);
      if constexpr (Partial)
        acc[i][RV - 1] = L::fma(one, L::load(c + i * ldc + (RV - 1) * L::width, tail), acc[i][RV - 1]);
    }
    DSV4_UNROLL for (int j = 0; j < whole; ++j) L::store(c + i * ldc + j * L::width, acc[i][j]);
    if constexpr (Partial) L::store(c + i * ldc + (RV - 1) * L::width, acc[i][RV - 1], tail);
  }
}

/// How the rows of an a lie: that of a tile at row i, of whole tiles, begins at a + i step, and `within`
/// apart are rows of the last tiles.
struct row_steps {
  std::int64_t step, within;
};

/// A panel of columns, or a vector of them or fewer.
template <class T, bool Transposed>
DSV4_TARGET void outer_columns(const T* a, std::int64_t lda, row_steps steps, std::int64_t m, const T* b,
                               std::int64_t ldb, std::int64_t k, std::int64_t columns, T* c, std::int64_t ldc,
                               bool add, rows_ahead<T>* ahead, T* copy = nullptr) {
  using L = lanes<T>;
  constexpr int most = L::outer_rows, few = std::min(most, 2), vectors = L::outer_vectors;
  constexpr bool partial = vectors * L::width > 1;  // else there are none
  using tile = void (*)(const T*, std::int64_t, const T*, std::int64_t, std::int64_t, T*, std::int64_t, bool,
                        std::int64_t, T*);
  constexpr tile wide[] = {&outer_tile<T, 1, vectors, false, Transposed>,
                           &outer_tile<T, few, vectors, false, Transposed>,
                           &outer_tile<T, most, vectors, false, Transposed>};
  constexpr tile narrow[] = {&outer_tile<T, 1, 1, partial, Transposed>,
                             &outer_tile<T, few, 1, partial, Transposed>,
                             &outer_tile<T, most, 1, partial, Transposed>};
  while (m > 0) {
    const int size = m >= most ? 2 : m >= few ? 1 : 0, rows = size == 2 ? most : size == 1 ? few : 1;
    if (size == 2 && ahead) rows_ahead<T>::fetch(ahead[0]), rows_ahead<T>::fetch(ahead[1]);
    (columns == vectors * L::width ? wide : narrow)[size](a, lda, b, ldb, k, c, ldc, add, columns, copy);
    if (copy) b = copy, ldb = columns, copy = nullptr;
    a += rows * (size == 2 ? steps.step : steps.within), c += rows * ldc, m -= rows;
  }
}

template <class T, bool Transposed>
DSV4_TARGET void outer_panels(const T* a, std::int64_t lda, row_steps steps, std::int64_t m, const T* b,
                              std::int64_t ldb, std::int64_t k, std::int64_t n, T* c, std::int64_t ldc,
                              bool add, rows_ahead<T>* ahead) {
  constexpr std::int64_t width = lanes<T>::width, panel = lanes<T>::outer_vectors * width;
  for (std::int64_t j = 0, columns; j < n; j += columns) {
    columns = n - j >= panel ? panel : std::min(width, n - j);
    outer_columns<T, Transposed>(a, lda, steps, m, b + j, ldb, k, columns, c + j, ldc, add, ahead);
  }
}

/// c[m, n] = op(a)[m, k] b[k, n], or c += it: every element is a sequential chain of fused multiply-adds over
/// k, then added to c.
template <class T, bool Transposed>
DSV4_TARGET void gemm_outer(const T* a, std::int64_t lda, std::int64_t m, const T* b, std::int64_t ldb,
                            std::int64_t k, std::int64_t n, T* c, std::int64_t ldc, bool add) {
  const std::int64_t step = Transposed ? 1 : lda;
  outer_panels<T, Transposed>(a, lda, {step, step}, m, b, ldb, k, n, c, ldc, add, nullptr);
}

/// The columns of a, k long, by tiles: what a step of the sum over k reads lies together. A few rows at a
/// time, so that lines are written whole.
template <class T>
DSV4_TARGET void pack_columns(const T* a, std::int64_t lda, std::int64_t m, std::int64_t k, T* to) {
  constexpr std::int64_t rm = lanes<T>::outer_rows, most = 8;
  for (std::int64_t p = 0; p < k; p += most, a += most * lda, to += most * rm) {
    const std::int64_t rows = std::min(most, k - p), next = std::min(most, k - p - rows);
    std::int64_t i = 0;
    for (; i + rm <= m; i += rm)
      for (std::int64_t r = 0; r < rows; ++r) {
        std::memcpy(to + i * (k + outer_gap) + r * rm, a + r * lda + i, rm * sizeof(T));
        if (r < next) __builtin_prefetch(a + (r + most) * lda + i);
      }
    for (std::int64_t r = 0; i < m && r < rows; ++r)
      std::copy_n(a + r * lda + i, m - i, to + i * (k + outer_gap) + r * rm);
  }
}

/// The same for large k and matrices far apart in memory: the sum over k is taken in equal chunks of at most
/// outer_depth, the chunks' sums are added in order. m at most outer_block. Where m is more than a few
/// rows, b passes through `scratch`, as does a if `Transposed`: what a tile reads lies together there. b is
/// copied by the first tile that reads it.
template <class T, bool Transposed>
DSV4_TARGET void gemm_outer_block(const T* a, std::int64_t lda, std::int64_t m, const T* b, std::int64_t ldb,
                                  std::int64_t k, std::int64_t n, T* c, std::int64_t ldc, bool add,
                                  T* scratch, const outer_next<T>& next) {
  using L = lanes<T>;
  constexpr int vectors = L::outer_vectors;
  constexpr std::int64_t panel = vectors * L::width;
  static_assert(panel <= outer_width);
  const std::int64_t chunks = std::max<std::int64_t>((k + L::outer_depth - 1) / L::outer_depth, 1),
                     chunk = std::max<std::int64_t>((k + chunks - 1) / chunks, 1);
  T* const packed_b = scratch;
  T* const packed_a = scratch + panel * (outer_depth + outer_gap);
  for (std::int64_t p = 0; p == 0 || p < k; p += chunk) {
    const std::int64_t depth = std::min(chunk, k - p);
    const T* own_a = Transposed ? a + p * lda : a + p;
    if (m <= 2 * L::outer_rows) {  // fewer rows do not pay for copies
      const std::int64_t step = Transposed ? 1 : lda;
      outer_panels<T, Transposed>(own_a, lda, {step, step}, m, b + p * ldb, ldb, depth, n, c, ldc,
                                  add || p > 0, nullptr);
      continue;
    }
    if constexpr (Transposed) pack_columns(own_a, lda, m, depth, packed_a);
    const T* const tiles_a = Transposed ? packed_a : own_a;
    const std::int64_t tiles_lda = Transposed ? L::outer_rows : lda;
    const row_steps steps = Transposed ? row_steps{depth + outer_gap, 1} : row_steps{lda, lda};
    for (std::int64_t j = 0; j < n; j += panel) {
      const std::int64_t columns = std::min(panel, n - j);
      const T* const own_b = b + p * ldb + j;
      // What is read next of b and of c is fetched meanwhile.
      const bool more = j + columns < n, same = more || p + depth < k;
      const std::int64_t row = more ? p : p + depth, column = more ? j + columns : 0;
      rows_ahead<T> ahead[2];
      if (same)
        ahead[0] = {b + row * ldb + column, ldb, std::min(chunk, k - row), std::min(panel, n - column)};
      else
        ahead[0] = {next.b, next.ldb, std::min(chunk, next.k), panel};
      if (more && p == 0)
        ahead[1] = {c + column, ldc, m, std::min(panel, n - column)};
      else if (!same)
        ahead[1] = {next.c, next.ldc, next.m, panel};
      for (auto& rows : ahead)
        rows = rows_ahead<T>::over(
            rows, m / L::outer_rows * (columns < panel ? (columns + L::width - 1) / L::width : 1));
      if (columns == panel) {  // the first tile makes the copy
        outer_columns<T, Transposed>(tiles_a, tiles_lda, steps, m, own_b, ldb, depth, columns, c + j, ldc,
                                     add || p > 0, ahead, packed_b);
      } else {
        for (std::int64_t i = 0; i < depth; ++i) std::copy_n(own_b + i * ldb, columns, packed_b + i * panel);
        outer_panels<T, Transposed>(tiles_a, tiles_lda, steps, m, packed_b, panel, depth, columns, c + j, ldc,
                                    add || p > 0, ahead);
      }
    }
  }
}

/// c[n] = sum_m a[m] max(0, b[m, n]), in the order of m.
template <class T>
DSV4_TARGET void weighted_relu(const T* a, std::int64_t m, const T* b, std::int64_t ldb, std::int64_t n,
                               T* c) {
  using L = lanes<T>;
  for (std::int64_t j = 0; j < n; j += L::width) {
    const typename L::tail tail = L::first(std::min<std::int64_t>(n - j, L::width));
    typename L::vec acc = L::zero();
    for (std::int64_t i = 0; i < m; ++i)
      acc = L::fma(L::fill(a[i]), L::max(L::load(b + i * ldb + j, tail), L::zero()), acc);
    L::store(c + j, acc, tail);
  }
}

#endif  // DSV4_TARGET
