// SPDX-License-Identifier: Apache-2.0
/// Newton-Schulz in bf16 on AVX-512's bf16 dot product: twice the multiply-adds of a float FMA.
///
/// The instruction multiplies pairs along the summed axis, so matrices lie in pairs of rows: word (p, j) of a
/// packed matrix holds elements (2p, j) and (2p + 1, j). For a symmetric matrix that is the layout of a left
/// and of a right operand alike; X is kept so both as it is and transposed. Sums are in float, in the order
/// of the summed axis, and the instruction flushes subnormals.
#pragma once

#include <dsv4/core/macros.hpp>
#include <dsv4/ops/cpu/gemm_kernels.hpp>
#include <dsv4/train/cpu/task_runner.hpp>
#include <dsv4/train/newton_schulz.hpp>

#include <algorithm>
#include <cstdint>
#include <utility>

#if DSV4_X86_KERNELS
#include <immintrin.h>

namespace dsv4::detail::newton_schulz_avx512 {

#define DSV4_TARGET [[gnu::target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]] inline
#define DSV4_LANE \
  [[gnu::target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma"), gnu::always_inline]] static inline

inline bool supported() {
  static const bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                          __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx2") &&
                          __builtin_cpu_supports("fma");
  return has;
}

inline constexpr std::int64_t block_rows = 48, block_columns = 64, depth = 512;

/// RX rows by RV vectors of c (+)= a^T b over `k` packed rows.
template <int RX, int RV>
DSV4_TARGET void product_tile(const std::uint32_t* a, std::int64_t lda, const std::uint32_t* b,
                              std::int64_t ldb, std::int64_t k, float* c, bool add) {
  __m512 acc[RX][RV];
  DSV4_UNROLL for (int i = 0; i < RX; ++i) {
    DSV4_UNROLL for (int v = 0; v < RV; ++v) acc[i][v] =
        add ? _mm512_loadu_ps(c + i * block_columns + 16 * v) : _mm512_setzero_ps();
  }
  for (std::int64_t p = 0; p < k; ++p) {
    __m512i row[RV];
    DSV4_UNROLL for (int v = 0; v < RV; ++v) row[v] = _mm512_loadu_si512(b + p * ldb + 16 * v);
    DSV4_UNROLL for (int i = 0; i < RX; ++i) {
      const __m512i pair = _mm512_set1_epi32(static_cast<int>(a[p * lda + i]));
      DSV4_UNROLL for (int v = 0; v < RV; ++v) acc[i][v] =
          _mm512_dpbf16_ps(acc[i][v], reinterpret_cast<__m512bh>(pair), reinterpret_cast<__m512bh>(row[v]));
    }
  }
  DSV4_UNROLL for (int i = 0; i < RX; ++i) {
    DSV4_UNROLL for (int v = 0; v < RV; ++v) _mm512_storeu_ps(c + i * block_columns + 16 * v, acc[i][v]);
  }
}

/// c = a^T b for a block: `rows` even, `columns` a multiple of 16. Rows of c are block_columns apart.
DSV4_TARGET void product(const std::uint32_t* a, std::int64_t lda, std::int64_t rows, const std::uint32_t* b,
                         std::int64_t ldb, std::int64_t columns, std::int64_t k, float* c) {
  for (std::int64_t p = 0; p < k; p += depth) {
    const std::int64_t some = std::min(depth, k - p);
    const std::uint32_t *const x = a + p * lda, *const y = b + p * ldb;
    std::int64_t i = 0;
    if (columns == 64) {
      for (; i + 6 <= rows; i += 6)
        product_tile<6, 4>(x + i, lda, y, ldb, some, c + i * block_columns, p > 0);
      for (; i < rows; i += 2) product_tile<2, 4>(x + i, lda, y, ldb, some, c + i * block_columns, p > 0);
    } else {
      for (std::int64_t j = 0; j < columns; j += 16) {
        for (i = 0; i + 6 <= rows; i += 6)
          product_tile<6, 1>(x + i, lda, y + j, ldb, some, c + i * block_columns + j, p > 0);
        for (; i < rows; i += 2)
          product_tile<2, 1>(x + i, lda, y + j, ldb, some, c + i * block_columns + j, p > 0);
      }
    }
  }
}

/// Both rows of a packed one as floats, and two rows of floats packed, rounded to nearest even.
DSV4_LANE __m512 upper_row(__m512i word) {
  return _mm512_castsi512_ps(_mm512_maskz_slli_epi32(0xffff, word, 16));
}
DSV4_LANE __m512 lower_row(__m512i word) {
  return _mm512_castsi512_ps(_mm512_and_si512(word, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
}
DSV4_LANE __m512i narrowed(__m512 v) {
  return _mm512_maskz_cvtepu16_epi32(0xffff, reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v)));
}
DSV4_LANE __m512i packed(__m512 upper, __m512 lower) {
  return _mm512_or_si512(narrowed(upper), _mm512_maskz_slli_epi32(0xffff, narrowed(lower), 16));
}

/// A block of packed rows: to = alpha c + beta from.
DSV4_TARGET void combine(const float* c, std::int64_t rows, std::int64_t columns, float alpha,
                         const std::uint32_t* from, float beta, std::int64_t ld, std::uint32_t* to) {
  const __m512 factor = _mm512_set1_ps(alpha), other = _mm512_set1_ps(beta);
  for (std::int64_t i = 0; i < rows; i += 2)
    for (std::int64_t j = 0; j < columns; j += 16) {
      __m512 upper = _mm512_mul_ps(factor, _mm512_loadu_ps(c + i * block_columns + j));
      __m512 lower = _mm512_mul_ps(factor, _mm512_loadu_ps(c + (i + 1) * block_columns + j));
      if (from) {
        const __m512i word = _mm512_loadu_si512(from + i / 2 * ld + j);
        upper = _mm512_fmadd_ps(other, upper_row(word), upper);
        lower = _mm512_fmadd_ps(other, lower_row(word), lower);
      }
      _mm512_storeu_si512(to + i / 2 * ld + j, packed(upper, lower));
    }
}

/// Two rows of floats times `factor` as one packed row; `lower` may be null. What is behind n stays.
DSV4_TARGET void pack_rows(const float* upper, const float* lower, std::int64_t n, float factor,
                           std::uint32_t* to) {
  const __m512 scale = _mm512_set1_ps(factor);
  for (std::int64_t j = 0; j < n; j += 16) {
    const auto there = static_cast<__mmask16>((1u << std::min<std::int64_t>(16, n - j)) - 1);
    const __m512 a = _mm512_maskz_loadu_ps(there, upper + j);
    const __m512 b = lower ? _mm512_maskz_loadu_ps(there, lower + j) : _mm512_setzero_ps();
    _mm512_mask_storeu_epi32(to + j, there, packed(_mm512_mul_ps(scale, a), _mm512_mul_ps(scale, b)));
  }
}
DSV4_TARGET void unpack_rows(const std::uint32_t* from, std::int64_t n, float* upper, float* lower) {
  for (std::int64_t j = 0; j < n; j += 16) {
    const auto there = static_cast<__mmask16>((1u << std::min<std::int64_t>(16, n - j)) - 1);
    const __m512i word = _mm512_maskz_loadu_epi32(there, from + j);
    _mm512_mask_storeu_ps(upper + j, there, upper_row(word));
    if (lower) _mm512_mask_storeu_ps(lower + j, there, lower_row(word));
  }
}

#undef DSV4_TARGET
#undef DSV4_LANE

/// Two words side by side are a block of 2 x 2 elements: the same block, transposed.
inline std::uint64_t transposed_block(std::uint64_t t) {
  return (t & 0xFFFF00000000FFFFu) | ((t >> 16) & 0x00000000FFFF0000u) | ((t & 0x00000000FFFF0000u) << 16);
}

/// Newton-Schulz in the standard form on one matrix.
class iteration {
 public:
  using inputs = newton_schulz<float>::inputs;

  iteration(const inputs& in, task_runner run, float* scratch)
      : in_(in),
        run_(run),
        n_(std::min(in.x.extent[1], in.x.extent[2])),
        m_(std::max(in.x.extent[1], in.x.extent[2])),
        ldn_(leading(n_)),
        ldm_(leading(m_)) {
    auto* words = reinterpret_cast<std::uint32_t*>(scratch);
    for (std::uint32_t*& x : x_) x = std::exchange(words, words + pairs(n_) * ldm_);
    across_ = std::exchange(words, words + pairs(m_) * ldn_);
    for (std::uint32_t*& a : a_) a = std::exchange(words, words + pairs(n_) * ldn_);
  }

  static std::int64_t scratch(const inputs& in) {
    const std::int64_t n = std::min(in.x.extent[1], in.x.extent[2]),
                       m = std::max(in.x.extent[1], in.x.extent[2]);
    return 2 * pairs(n) * leading(m) + (pairs(m) + 2 * pairs(n)) * leading(n);
  }

  void operator()(matrix_view<const float> from, matrix_view<float> to, float factor) {
    const bool tall = from.extent[0] > from.extent[1];
    // Zeros behind the last row and column take part in products and change nothing.
    std::fill_n(x_[0], pairs(n_) * ldm_, 0u);
    std::fill_n(x_[1], pairs(n_) * ldm_, 0u);
    std::fill_n(across_, pairs(m_) * ldn_, 0u);
    for (std::uint32_t* a : a_) std::fill_n(a, pairs(n_) * ldn_, 0u);
    for_pairs(from.extent[0], [&](std::int64_t p) {
      const float* const row = from.data + 2 * p * from.stride[0];
      newton_schulz_avx512::pack_rows(row, 2 * p + 1 < from.extent[0] ? row + from.stride[0] : nullptr,
                                      from.extent[1], factor, tall ? across_ + p * ldn_ : x_[0] + p * ldm_);
    });
    if (tall) transpose(across_, m_, n_, ldn_, x_[0], ldm_);
    for (std::size_t k = 0; k < in_.steps.size(); ++k) {
      const auto& [a, b, c] = in_.steps[k];
      if (k > 0 || !tall) transpose(x_[0], n_, m_, ldm_, across_, ldn_);
      symmetric(across_, pairs(m_), 1, nullptr, 0, a_[0]);
      symmetric(a_[0], pairs(n_), float(c), a_[0], float(b), a_[1]);
      apply(float(a));
    }
    if (tall) transpose(x_[0], n_, m_, ldm_, across_, ldn_);
    for_pairs(to.extent[0], [&](std::int64_t p) {
      float* const row = to.data + 2 * p * to.stride[0];
      newton_schulz_avx512::unpack_rows(tall ? across_ + p * ldn_ : x_[0] + p * ldm_, to.extent[1], row,
                                        2 * p + 1 < to.extent[0] ? row + to.stride[0] : nullptr);
    });
  }

 private:
  static std::int64_t pairs(std::int64_t n) { return (n + 1) / 2; }
  static std::int64_t vectors(std::int64_t n) { return (n + 15) / 16 * 16; }
  static std::int64_t leading(std::int64_t columns) { return vectors(columns) + 16; }

  template <class Body>
  void for_pairs(std::int64_t rows, const Body& body) const {
    constexpr std::int64_t strip = 8;
    run_((pairs(rows) + strip - 1) / strip, [&](std::int64_t s) {
      for (std::int64_t p = s * strip; p < std::min(pairs(rows), (s + 1) * strip); ++p) body(p);
    });
  }

  /// The transposed of a rows x columns matrix.
  void transpose(const std::uint32_t* from, std::int64_t rows, std::int64_t columns, std::int64_t ldf,
                 std::uint32_t* to, std::int64_t ldt) const {
    constexpr std::int64_t strip = 8;
    run_((pairs(columns) + strip - 1) / strip, [&](std::int64_t s) {
      const std::int64_t c0 = s * strip, c1 = std::min(pairs(columns), c0 + strip);
      for (std::int64_t r0 = 0; r0 < pairs(rows); r0 += strip)
        for (std::int64_t c = c0; c < c1; ++c)
          for (std::int64_t r = r0; r < std::min(pairs(rows), r0 + strip); ++r)
            move_block(from + r * ldf + 2 * c, to + c * ldt + 2 * r);
    });
  }
  static void move_block(const std::uint32_t* from, std::uint32_t* to) {
    const std::uint64_t t = transposed_block(from[0] | std::uint64_t{from[1]} << 32);
    to[0] = static_cast<std::uint32_t>(t);
    to[1] = static_cast<std::uint32_t>(t >> 32);
  }

  /// to = alpha p^T p + beta from: the lower triangle, then mirrored.
  void symmetric(const std::uint32_t* p, std::int64_t k, float alpha, const std::uint32_t* from, float beta,
                 std::uint32_t* to) const {
    const std::int64_t even = 2 * pairs(n_), width = vectors(n_);
    std::int64_t tasks = 0;
    for (std::int64_t i = 0; i < even; i += block_rows) tasks += blocks_to(std::min(even, i + block_rows));
    run_(tasks, [&](std::int64_t task) {
      std::int64_t i = 0;
      while (task >= blocks_to(std::min(even, i + block_rows))) {
        task -= blocks_to(std::min(even, i + block_rows));
        i += block_rows;
      }
      const std::int64_t j = task * block_columns, end = std::min(even, i + block_rows);
      const std::int64_t columns = std::min(block_columns, std::min(width, vectors(end)) - j);
      float c[block_rows * block_columns];
      product(p + i, ldn_, end - i, p + j, ldn_, columns, k, c);
      const std::int64_t at = i / 2 * ldn_ + j;
      combine(c, end - i, columns, alpha, from ? from + at : nullptr, beta, ldn_, to + at);
    });
    constexpr std::int64_t strip = 8;
    run_((pairs(n_) + strip - 1) / strip, [&](std::int64_t s) {
      const std::int64_t r0 = s * strip, r1 = std::min(pairs(n_), r0 + strip);
      for (std::int64_t c0 = 0; c0 < r1; c0 += strip)
        for (std::int64_t r = r0; r < r1; ++r)
          for (std::int64_t c = c0; c < std::min(r, c0 + strip); ++c)
            move_block(to + r * ldn_ + 2 * c, to + c * ldn_ + 2 * r);
      for (std::int64_t r = r0; r < r1; ++r) {  // on the diagonal, element (2r + 1, 2r) becomes (2r, 2r + 1)
        std::uint32_t* const block = to + r * ldn_ + 2 * r;
        block[1] = (block[1] & 0xFFFF0000u) | block[0] >> 16;
      }
    });
  }
  /// Blocks of columns that cover the lower triangle's rows up to `end`.
  static std::int64_t blocks_to(std::int64_t end) { return (end + block_columns - 1) / block_columns; }

  /// X = a X + B X.
  void apply(float a) {
    const std::int64_t even = 2 * pairs(n_), width = vectors(m_);
    const std::int64_t row_blocks = (even + block_rows - 1) / block_rows;
    run_(row_blocks * ((width + block_columns - 1) / block_columns), [&](std::int64_t task) {
      const std::int64_t i = task % row_blocks * block_rows, j = task / row_blocks * block_columns;
      const std::int64_t rows = std::min(block_rows, even - i), columns = std::min(block_columns, width - j);
      float c[block_rows * block_columns];
      product(a_[1] + i, ldn_, rows, x_[0] + j, ldm_, columns, pairs(n_), c);
      const std::int64_t at = i / 2 * ldm_ + j;
      combine(c, rows, columns, 1, x_[0] + at, a, ldm_, x_[1] + at);
    });
    std::swap(x_[0], x_[1]);
  }

  const inputs& in_;
  task_runner run_;
  std::int64_t n_, m_, ldn_, ldm_;
  std::uint32_t* x_[2];    // X and the next X
  std::uint32_t* across_;  // X transposed
  std::uint32_t* a_[2];    // A, then b A + c A^2
};

}  // namespace dsv4::detail::newton_schulz_avx512
#endif
