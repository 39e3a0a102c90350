// SPDX-License-Identifier: Apache-2.0
/// A register of T, on the compilers' vector types: <immintrin.h> alone would be a sixth of what a program
/// that uses one block compiles. gemm_avx2.hpp and gemm_avx512.hpp each include this file inside their own
/// namespace, after defining DSV4_LANE and DSV4_VECTOR_BYTES; hence no include guard. Included alone it is
/// empty.
#if defined(DSV4_VECTOR_BYTES)

template <class T>
struct vector_lanes {
  static constexpr int width = DSV4_VECTOR_BYTES / static_cast<int>(sizeof(T));
  // Aliases would lose the attributes. These are the types of <immintrin.h>.
  typedef T vec __attribute__((vector_size(DSV4_VECTOR_BYTES), may_alias));
  using integer = std::conditional_t<sizeof(T) == 4, int, long long>;
  typedef integer integers __attribute__((vector_size(DSV4_VECTOR_BYTES)));
  typedef T part __attribute__((vector_size(16)));

  DSV4_LANE vec zero() { return vec{}; }
  DSV4_LANE vec fill(T a) { return a - vec{}; }  // not a sum: -0 stays
  DSV4_LANE vec load(const T* p) {
    vec v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
  DSV4_LANE void store(T* p, vec v) { std::memcpy(p, &v, sizeof v); }
  DSV4_LANE vec divide(vec a, vec b) { return a / b; }
  DSV4_LANE vec where_negative(vec x, vec a, vec b) { return integers(x) < 0 ? a : b; }  // by x's sign
  DSV4_LANE vec max(vec a, vec b) { return b > a ? b : a; }                              // a NaN in a stays

#if DSV4_VECTOR_BYTES == 64
  typedef T half __attribute__((vector_size(32)));
  using tail = std::conditional_t<sizeof(T) == 4, std::uint16_t, std::uint8_t>;
  DSV4_LANE tail first(std::int64_t n) { return static_cast<tail>((1u << n) - 1u); }
  DSV4_LANE void hold(vec& v) { asm("" : "+v"(v)); }
#else
  using tail = integers;
  DSV4_LANE tail first(std::int64_t n) {
    integers lane{};
    for (int i = 0; i < width; ++i) lane[i] = i;
    return lane < static_cast<integer>(n);
  }
  DSV4_LANE void hold(vec& v) { asm("" : "+x"(v)); }
#endif

  /// a b + c, rounded once.
  DSV4_LANE vec fma(vec a, vec b, vec c) {
#if __has_builtin(__builtin_elementwise_fma)
    return __builtin_elementwise_fma(a, b, c);
#elif DSV4_VECTOR_BYTES == 64
    constexpr int all = -1, current_rounding = 4;
    if constexpr (sizeof(T) == 4)
      return __builtin_ia32_vfmaddps512_mask(a, b, c, all, current_rounding);
    else
      return __builtin_ia32_vfmaddpd512_mask(a, b, c, all, current_rounding);
#else
    if constexpr (sizeof(T) == 4)
      return __builtin_ia32_vfmaddps256(a, b, c);
    else
      return __builtin_ia32_vfmaddpd256(a, b, c);
#endif
  }

  /// The first lanes; zeros behind them. Memory there is not touched.
  DSV4_LANE vec load(const T* p, tail t) {
#if DSV4_VECTOR_BYTES == 64 && DSV4_HAS_INSTRUCTION(__builtin_ia32_loadups512_mask)
    if constexpr (sizeof(T) == 4)
      return __builtin_ia32_loadups512_mask(p, vec{}, t);
    else
      return __builtin_ia32_loadupd512_mask(p, vec{}, t);
#elif DSV4_VECTOR_BYTES == 32 && DSV4_HAS_INSTRUCTION(__builtin_ia32_maskloadps256)
    const auto* from = reinterpret_cast<const vec*>(p);
    if constexpr (sizeof(T) == 4)
      return __builtin_ia32_maskloadps256(from, t);
    else
      return __builtin_ia32_maskloadpd256(from, t);
#else
    vec v{};
    for (int i = 0; i < width && has(t, i); ++i) v[i] = p[i];
    return v;
#endif
  }
  DSV4_LANE void store(T* p, vec v, tail t) {
#if DSV4_VECTOR_BYTES == 64 && DSV4_HAS_INSTRUCTION(__builtin_ia32_storeups512_mask)
    if constexpr (sizeof(T) == 4)
      __builtin_ia32_storeups512_mask(p, v, t);
    else
      __builtin_ia32_storeupd512_mask(p, v, t);
#elif DSV4_VECTOR_BYTES == 32 && DSV4_HAS_INSTRUCTION(__builtin_ia32_maskstoreps256)
    auto* to = reinterpret_cast<vec*>(p);
    if constexpr (sizeof(T) == 4)
      __builtin_ia32_maskstoreps256(to, t, v);
    else
      __builtin_ia32_maskstorepd256(to, t, v);
#else
    for (int i = 0; i < width && has(t, i); ++i) p[i] = v[i];
#endif
  }

  /// e^x for x <= 0: as float within 2 ulp, 0 below the normal range.
  DSV4_LANE vec exp(vec x) {
    if constexpr (sizeof(T) == 4) {
      const vec low = fill(-87.33654f), magic = fill(0x1.8p23f);  // adding it rounds to whole numbers
      const vec own = low > x ? low : x;                          // a NaN stays
      const vec n = fma(own, fill(1.44269504f), magic) - magic;
      const vec r = fma(n, fill(2.12194440e-4f), fma(n, fill(-0.693359375f), own));
      vec p = fill(1.9875691500e-4f);
      p = fma(p, r, fill(1.3981999507e-3f));
      p = fma(p, r, fill(8.3334519073e-3f));
      p = fma(p, r, fill(4.1665795894e-2f));
      p = fma(p, r, fill(1.6666665459e-1f));
      p = fma(p, r, fill(5.0000001201e-1f));
      p = fma(p, r * r, r) + 1.0f;
      const integers power = (__builtin_convertvector(n, integers) + 127) << 23;
      return x < low ? zero() : p * vec(power);
    } else {
      T lane[width];
      store(lane, x);
      for (T& a : lane) a = std::exp(a);
      return load(lane);
    }
  }

  /// The sum of all lanes: halves are added to each other down to a part, then neighbours.
  DSV4_LANE T reduce(vec v) {
    const part sum = fold(v);
    if constexpr (sizeof(T) == 4)
      return (sum[0] + sum[1]) + (sum[2] + sum[3]);
    else
      return sum[0] + sum[1];
  }
  /// Four such sums, to y or added to it.
  DSV4_LANE void reduce4(vec a, vec b, vec c, vec d, T* y, bool add) {
    if constexpr (sizeof(T) == 4) {
      put(add_neighbours(add_neighbours(fold(a), fold(b)), add_neighbours(fold(c), fold(d))), y, add);
    } else {
      put(add_neighbours(fold(a), fold(b)), y, add);
      put(add_neighbours(fold(c), fold(d)), y + 2, add);
    }
  }
  DSV4_LANE void put(part sum, T* y, bool add) {
    if (add) {
      part before;
      std::memcpy(&before, y, sizeof before);
      sum += before;
    }
    std::memcpy(y, &sum, sizeof sum);
  }

 private:
#if DSV4_VECTOR_BYTES == 64
  DSV4_LANE part fold(vec v) {
    if constexpr (sizeof(T) == 4) {
      const half sum = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
                       __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
      return __builtin_shufflevector(sum, sum, 0, 1, 2, 3) + __builtin_shufflevector(sum, sum, 4, 5, 6, 7);
    } else {
      const half sum = __builtin_shufflevector(v, v, 0, 1, 2, 3) + __builtin_shufflevector(v, v, 4, 5, 6, 7);
      return __builtin_shufflevector(sum, sum, 0, 1) + __builtin_shufflevector(sum, sum, 2, 3);
    }
  }
#else
  DSV4_LANE part fold(vec v) {
    if constexpr (sizeof(T) == 4)
      return __builtin_shufflevector(v, v, 0, 1, 2, 3) + __builtin_shufflevector(v, v, 4, 5, 6, 7);
    else
      return __builtin_shufflevector(v, v, 0, 1) + __builtin_shufflevector(v, v, 2, 3);
  }
#endif
  DSV4_LANE part add_neighbours(part a, part b) {
    if constexpr (sizeof(T) == 4)
      return __builtin_shufflevector(a, b, 0, 2, 4, 6) + __builtin_shufflevector(a, b, 1, 3, 5, 7);
    else
      return __builtin_shufflevector(a, b, 0, 2) + __builtin_shufflevector(a, b, 1, 3);
  }
  static bool has([[maybe_unused]] const tail& t, [[maybe_unused]] int i) {
#if DSV4_VECTOR_BYTES == 64
    return t >> i & 1;
#else
    return t[i] != 0;
#endif
  }
};

#endif  // DSV4_VECTOR_BYTES
