// SPDX-License-Identifier: Apache-2.0
/// What the machine can do at most, measured when it is first asked for: multiply-adds, reading, copying.
#pragma once

#include <dsv4/cpu.hpp>
#include <dsv4/ops/cpu/instruction_set.hpp>
#include <dsv4/tensor/buffer.hpp>

#include <benchmark/benchmark.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <support/benchmark.hpp>

namespace dsv4::bench {

/// The policy under test, on DSV4_BENCH_THREADS threads or as many as the machine has.
inline const exec::cpu& policy() {
  static const exec::cpu p = [] {
    const char* threads = std::getenv("DSV4_BENCH_THREADS");
    return threads ? exec::cpu(std::atoi(threads)) : exec::cpu();
  }();
  return p;
}

inline double seconds_of(const auto& body) {
  const auto begin = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

namespace detail {
constexpr std::int64_t rounds = 1 << 18;
constexpr int chains = 12;  // latency 4 to 6, two a cycle

/// `chains` independent chains of multiply-adds of vectors of floats, in registers.
template <class vec>
[[gnu::always_inline]] inline float fma_chains() {
  vec a[chains];
  const vec m = vec{} + 0.5f;
  // Not 1, which 1 * m + m leaves as it is: a compiler drops such a chain.
  _Pragma("GCC unroll 12") for (int j = 0; j < chains; ++j) a[j] = vec{} + static_cast<float>(j + 2);
  for (std::int64_t i = 0; i < rounds; ++i)
    _Pragma("GCC unroll 12") for (int j = 0; j < chains; ++j) a[j] = a[j] * m + m;
  float out = 0;
  _Pragma("GCC unroll 12") for (int j = 0; j < chains; ++j) out += a[j][0];
  return out;
}

/// The sum of `n` bytes, a multiple of 256, as 32-bit numbers.
template <class vec>
[[gnu::always_inline]] inline std::int64_t sum_bytes(const std::uint8_t* p, std::int64_t n) {
  vec total[4] = {};
  for (std::int64_t i = 0; i + std::int64_t{sizeof total} <= n; i += std::int64_t{sizeof total})
    _Pragma("GCC unroll 4") for (int j = 0; j < 4; ++j) {
      vec v;
      std::memcpy(&v, p + i + j * static_cast<int>(sizeof v), sizeof v);
      total[j] += v;
    }
  std::int64_t out = 0;
  for (const vec& v : total) out += v[0] + v[1];
  return out;
}

#if DSV4_X86_KERNELS
[[gnu::target("avx512f,avx2,fma"), gnu::noinline]] inline float fma_avx512() {
  return fma_chains<float __attribute__((vector_size(64)))>();
}
[[gnu::target("avx2,fma"), gnu::noinline]] inline float fma_avx2() {
  return fma_chains<float __attribute__((vector_size(32)))>();
}
[[gnu::target("avx512f,avx2,fma"), gnu::noinline]] inline std::int64_t sum_avx512(const std::uint8_t* p,
                                                                                  std::int64_t n) {
  return sum_bytes<std::int32_t __attribute__((vector_size(64)))>(p, n);
}
[[gnu::target("avx2,fma"), gnu::noinline]] inline std::int64_t sum_avx2(const std::uint8_t* p,
                                                                        std::int64_t n) {
  return sum_bytes<std::int32_t __attribute__((vector_size(32)))>(p, n);
}
#endif
[[gnu::noinline]] inline float fma_portable() { return fma_chains<float __attribute__((vector_size(16)))>(); }
[[gnu::noinline]] inline std::int64_t sum_portable(const std::uint8_t* p, std::int64_t n) {
  return sum_bytes<std::int32_t __attribute__((vector_size(16)))>(p, n);
}

/// Bytes of a vector of the best instruction set.
inline int vector_bytes() {
  using dsv4::detail::instruction_set;
  const instruction_set set = dsv4::detail::best_set();
  return set == instruction_set::avx512 ? 64 : set == instruction_set::avx2 ? 32 : 16;
}
}  // namespace detail

/// The sum of `n` bytes, a multiple of 256, at the speed of reading them.
inline std::int64_t sum_bytes(const std::uint8_t* p, std::int64_t n) {
#if DSV4_X86_KERNELS
  if (detail::vector_bytes() == 64) return detail::sum_avx512(p, n);
  if (detail::vector_bytes() == 32) return detail::sum_avx2(p, n);
#endif
  return detail::sum_portable(p, n);
}

/// Runs multiply-adds of floats in registers on every thread; returns how many operations.
inline double run_fma() {
  const int threads = policy().threads();
  policy().parallel_for(threads, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
#if DSV4_X86_KERNELS
      if (detail::vector_bytes() == 64)
        benchmark::DoNotOptimize(detail::fma_avx512());
      else if (detail::vector_bytes() == 32)
        benchmark::DoNotOptimize(detail::fma_avx2());
      else
#endif
        benchmark::DoNotOptimize(detail::fma_portable());
    }
  });
  return 2.0 * detail::chains * double(detail::rounds) * threads * (detail::vector_bytes() / 4);
}

/// Of all threads together.
inline double peak_flops() {
  static const double peak = [] {
    double best = 0;
    for (int i = 0; i < 8; ++i) {
      double work = 0;
      const double seconds = seconds_of([&] { work = run_fma(); });
      best = std::max(best, work / seconds);
    }
    return best;
  }();
  return peak;
}

/// Of all threads together. Small working sets stay in the caches.
inline double bandwidth(std::int64_t bytes, traffic kind) {
  constexpr std::int64_t part = 1 << 12, least = 1 << 14, most = std::int64_t{1} << 28;
  static std::map<std::pair<std::int64_t, traffic>, double> known;
  const auto size =
      static_cast<std::int64_t>(std::bit_ceil(static_cast<std::uint64_t>(std::clamp(bytes, least, most))));
  double& best = known[{size, kind}];
  if (best > 0) return best;
  buffer<std::uint8_t> memory(size);
  const std::int64_t half = size / 2;
  const auto pass = [&] {
    policy().parallel_for((kind == traffic::read ? size : half) / part, 16,
                          [&](std::int64_t begin, std::int64_t end) {
                            std::uint8_t* at = memory.data() + begin * part;
                            if (kind == traffic::read)
                              benchmark::DoNotOptimize(sum_bytes(at, (end - begin) * part));
                            else
                              std::memcpy(at + half, at, static_cast<std::size_t>((end - begin) * part));
                          });
  };
  pass();
  for (double total = 0; total < 0.03;) {  // passes of a tenth of a millisecond or more, the best counts
    const auto repeats = std::max<std::int64_t>(1, (1 << 22) / size);
    const double seconds = seconds_of([&] {
      for (std::int64_t i = 0; i < repeats; ++i) pass();
    });
    best = std::max(best, double(repeats * size) / seconds);
    total += seconds;
  }
  return best;
}

}  // namespace dsv4::bench
