// SPDX-License-Identifier: Apache-2.0
// Products with narrow weights at the shapes of an expert, beside what the machine can do: the yardstick runs
// in every iteration, right before the kernel, and the counter `share` is the median of the quotients.
//
// Few rows: the yardstick reads the same weights, and adds them up as vectors. Many rows: it is a loop of
// multiply-adds in registers, of floats or, where the kernel has them, of bf16 pairs.
#include <dsv4/ops/linear.hpp>
#include <dsv4/ops/quantise.hpp>
#include <dsv4/tensor/eigen.hpp>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>
#include <support/fixtures.hpp>
#include <type_traits>
#include <vector>

namespace {
using namespace dsv4;

using bench::seconds_of;
using bench::detail::chains, bench::detail::rounds;

double median(std::vector<double> v) {
  std::nth_element(v.begin(), v.begin() + static_cast<std::ptrdiff_t>(v.size() / 2), v.end());
  return v[v.size() / 2];
}

/// Times `body` in turn with `yardstick`. Work is what the two do, in the same unit; shares are of its rate.
void measure_beside(benchmark::State& state, const auto& yardstick, double yardstick_work, const auto& body,
                    double work) {
  std::vector<double> shares;
  for (auto _ : state) {
    const double reference = seconds_of(yardstick), seconds = seconds_of(body);
    benchmark::ClobberMemory();
    state.SetIterationTime(seconds);
    shares.push_back(work / seconds / (yardstick_work / reference));
  }
  state.counters["share"] = median(shares);
}

#if DSV4_X86_KERNELS
/// As bench::run_fma, with the instruction that multiplies pairs of bf16.
[[gnu::target("avx512f,avx512bf16,avx2,fma"), gnu::noinline]] float bf16_wide() {
  __m512 a[chains];
  const __m512i m = _mm512_set1_epi16(0x3f00), n = _mm512_set1_epi16(0x3c00);
  _Pragma("GCC unroll 12") for (int j = 0; j < chains; ++j) a[j] = _mm512_set1_ps(static_cast<float>(j));
  for (std::int64_t i = 0; i < rounds; ++i)
    _Pragma("GCC unroll 12") for (int j = 0; j < chains; ++j) a[j] =
        _mm512_dpbf16_ps(a[j], reinterpret_cast<__m512bh>(m), reinterpret_cast<__m512bh>(n));
  float out = 0;
  _Pragma("GCC unroll 12") for (int j = 0; j < chains; ++j) out += _mm512_cvtss_f32(a[j]);
  return out;
}
double run_bf16() {
  const int threads = bench::policy().threads();
  bench::policy().parallel_for(threads, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) benchmark::DoNotOptimize(bf16_wide());
  });
  return 2.0 * chains * double(rounds) * threads * 32;
}
/// Runs the register loop on every thread; returns what it did.
double run_peak(bool bf16) { return bf16 ? run_bf16() : bench::run_fma(); }

/// One stretch of memory that all weights lie in, far larger than the caches: what the yardstick reads too.
constexpr std::int64_t pool_bytes = std::int64_t{640} << 20;
std::uint8_t* pool() {
  static auto bytes = [] {
    buffer<std::uint8_t> p(pool_bytes);
    std::uint32_t state = 1;
    for (std::int64_t i = 0; i < pool_bytes; ++i) {
      state = state * 1664525u + 1013904223u;
      p[i] =
          // Below 2 in E4M3 and in bf16, and no subnormal in any format: those can be slow.
          static_cast<std::uint8_t>(((state >> 24) & 0xbf) | 0x20);
    }
    return p;
  }();
  return bytes.data();
}
void read(std::int64_t bytes) {
  constexpr std::int64_t part = 1 << 20;
  bench::policy().parallel_for(bytes / part, 1, [&](std::int64_t begin, std::int64_t end) {
    benchmark::DoNotOptimize(bench::sum_bytes(pool() + begin * part, (end - begin) * part));
  });
}

/// As many weights of O x I in storage W as the pool has room for, and an input.
template <class W, class X>
struct operands {
  std::int64_t bytes = 0;  ///< of one weight
  std::vector<storage_matrix<const W>> weights;
  std::vector<e8m0> scales;
  buffer<float> values, y;
  std::vector<std::uint8_t> codes;
  std::vector<e8m0> input_scales;
  storage_matrix<const X> x;

  operands(std::int64_t n, std::int64_t o, std::int64_t k) : values(n * k), y(n * o) {
    if constexpr (block_format<W>) {
      bytes = o * W::row_bytes(k);
      scales.assign(static_cast<std::size_t>(W::scale_rows(o) * W::scale_columns(k)), e8m0::from_bits(120));
    } else {
      bytes = o * k * std::int64_t{sizeof(W)};
    }
    for (std::int64_t at = 0; at + bytes <= pool_bytes; at += bytes)
      if constexpr (block_format<W>)
        weights.emplace_back(pool() + at, scales.data(), o, k);
      else
        weights.emplace_back(reinterpret_cast<const W*>(pool() + at), o, k);
    for (std::int64_t i = 0; i < n * k; ++i) values[i] = static_cast<float>(i % 17 - 8) / 8;
    if constexpr (block_format<X>) {
      codes.resize(static_cast<std::size_t>(n * X::row_bytes(k)));
      input_scales.resize(static_cast<std::size_t>(n * X::scale_columns(k)));
      const block_scaled_matrix<X> quantised(codes.data(), input_scales.data(), n, k);
      quantise<X, float>::forward(bench::policy(), {matrix_view<const float>(values.data(), n, k)},
                                  {quantised});
      x = quantised;
    } else {
      x = matrix_view<const float>(values.data(), n, k);
    }
  }
};

/// One pass over all weights.
template <class W, class X>
void few_rows(benchmark::State& state) {
  const std::int64_t n = state.range(0), o = state.range(1), k = state.range(2);
  operands<W, X> of(n, o, k);
  const double bytes = double(of.bytes) * double(of.weights.size());
  measure_beside(
      state, [&] { read(static_cast<std::int64_t>(bytes)); }, bytes,
      [&] {
        for (const auto& w : of.weights)
          linear<float, space::host, W, X>::forward(bench::policy(), {of.x, w},
                                                    {matrix_view<float>(of.y.data(), n, o)});
      },
      bytes);
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(bytes));
  state.SetItemsProcessed(state.iterations() * static_cast<std::int64_t>(of.weights.size()));
}

template <class W, class X>
void many_rows(benchmark::State& state) {
  const std::int64_t n = state.range(0), o = state.range(1), k = state.range(2);
  operands<W, X> of(n, o, k);
  const bool bf16 = detail::bf16_products<float, W, X>();
  const double peak = run_peak(bf16), flops = 2.0 * double(n) * double(o) * double(k);
  std::size_t next = 0;
  measure_beside(
      state, [&] { run_peak(bf16); }, peak,
      [&] {
        linear<float, space::host, W, X>::forward(bench::policy(),
                                                  {of.x, of.weights[next++ % of.weights.size()]},
                                                  {matrix_view<float>(of.y.data(), n, o)});
      },
      flops);
  state.SetLabel(bf16 ? "of the bf16 peak" : "of the FMA peak");
  state.counters["FLOP/s"] =
      benchmark::Counter(flops, benchmark::Counter::kIsIterationInvariantRate, benchmark::Counter::kIs1000);
  state.SetItemsProcessed(state.iterations());
}

/// Eigen's product of one row of x and a block of rows per thread.
void eigen_few_rows(benchmark::State& state) {
  const std::int64_t o = state.range(1), k = state.range(2);
  operands<float, float> of(1, o, k);
  const double bytes = double(of.bytes) * double(of.weights.size());
  const auto x = as_eigen(of.x);
  const matrix_view<float> y(of.y.data(), 1, o);
  measure_beside(
      state, [&] { read(static_cast<std::int64_t>(bytes)); }, bytes,
      [&] {
        for (const auto& w : of.weights)
          bench::policy().parallel_for(o, 64, [&](std::int64_t begin, std::int64_t end) {
            as_eigen(y.columns(begin, end - begin)).transpose().noalias() =
                as_eigen(w.rows(begin, end - begin)) * x.transpose();
          });
      },
      bytes);
  state.SetLabel(Eigen::SimdInstructionSetsInUse());
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(bytes));
  state.SetItemsProcessed(state.iterations() * static_cast<std::int64_t>(of.weights.size()));
}

/// Eigen's product, rows of x spread over the threads.
void eigen_many_rows(benchmark::State& state) {
  const std::int64_t n = state.range(0), o = state.range(1), k = state.range(2);
  operands<float, float> of(n, o, k);
  const double peak = run_peak(false), flops = 2.0 * double(n) * double(o) * double(k);
  const int threads = bench::policy().threads();
  const matrix_view<float> y(of.y.data(), n, o);
  measure_beside(
      state, [&] { run_peak(false); }, peak,
      [&] {
        bench::policy().parallel_for(threads, 1, [&](std::int64_t begin, std::int64_t end) {
          for (std::int64_t i = begin; i < end; ++i) {
            const std::int64_t r = n * i / threads, count = n * (i + 1) / threads - r;
            as_eigen(y.rows(r, count)).noalias() =
                as_eigen(of.x.rows(r, count)) * as_eigen(of.weights[0]).transpose();
          }
        });
      },
      flops);
  state.SetLabel(Eigen::SimdInstructionSetsInUse());
  state.counters["FLOP/s"] =
      benchmark::Counter(flops, benchmark::Counter::kIsIterationInvariantRate, benchmark::Counter::kIs1000);
  state.SetItemsProcessed(state.iterations());
}

void expert_shapes(benchmark::internal::Benchmark* b, std::initializer_list<std::int64_t> rows) {
  b->ArgNames({"N", "O", "I"})->UseManualTime()->Unit(benchmark::kMillisecond);
  for (const std::int64_t n : rows)
    for (const auto& [o, k] :
         {std::pair<std::int64_t, std::int64_t>{7168, 3072}, {3072, 7168}, {4096, 2048}, {2048, 4096}})
      b->Args({n, o, k});
}
void one_row(benchmark::internal::Benchmark* b) { expert_shapes(b, {1}); }
void rows_1_to_4(benchmark::internal::Benchmark* b) { expert_shapes(b, {1, 2, 4}); }
void rows_512(benchmark::internal::Benchmark* b) { expert_shapes(b, {512}); }

BENCHMARK(few_rows<mxfp4, fp8_activation>)->Apply(rows_1_to_4);
BENCHMARK(few_rows<fp8_weight, fp8_activation>)->Apply(rows_1_to_4);
BENCHMARK(few_rows<mxfp4, float>)->Apply(one_row);
BENCHMARK(few_rows<fp8_weight, float>)->Apply(one_row);
BENCHMARK(few_rows<bf16, float>)->Apply(one_row);
BENCHMARK(few_rows<float, float>)->Apply(one_row);
BENCHMARK(eigen_few_rows)->Apply(one_row);
BENCHMARK(many_rows<mxfp4, fp8_activation>)->Apply(rows_512);
BENCHMARK(many_rows<fp8_weight, fp8_activation>)->Apply(rows_512);
BENCHMARK(many_rows<mxfp4, float>)->Apply(rows_512);
BENCHMARK(many_rows<fp8_weight, float>)->Apply(rows_512);
BENCHMARK(many_rows<bf16, float>)->Apply(rows_512);
BENCHMARK(many_rows<float, float>)->Apply(rows_512);
BENCHMARK(eigen_many_rows)->Apply(rows_512);
#endif
}  // namespace
