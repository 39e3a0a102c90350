// SPDX-License-Identifier: Apache-2.0
#include "support/device.cuh"
#include <dsv4/ops/cuda/linear.cuh>
#include <dsv4/ops/cuda/quantise.cuh>

#include <algorithm>
#include <vector>

using namespace dsv4;
using namespace dsv4::testing;

namespace {

// Sums of products of numbers in [-1, 1), `inner` of them: the reference adds in double. The accumulator
// rounds each partial sum, of magnitude sqrt(inner) / 3: errors add up like a random walk of `inner` steps,
// times four for the worst element.
template <class T>
double sum_tolerance(std::int64_t inner) {
  return tolerance<T>(4 * double(inner) / 3);
}

template <class T, class W, class X>
void check_linear(std::int64_t rows, std::int64_t inner, std::int64_t columns) {
  INFO(rows << " x " << inner << " x " << columns);
  auto x = random<X>(rows * (inner + 8), 1);
  auto w = random<W>(columns * (inner + 16), 2);
  auto y = poison<T>(rows * columns);
  linear<T, space::host, W, X>::forward(
      exec::reference{}, {x.h(rows, inner + 8).columns(0, inner), w.h(columns, inner + 16).columns(8, inner)},
      {y.h(rows, columns)});
  check_close(y, sum_tolerance<T>(inner), [&] {
    linear<T, D, W, X>::forward(
        gpu(), {x.d(rows, inner + 8).columns(0, inner), w.d(columns, inner + 16).columns(8, inner)},
        {y.d(rows, columns)});
  });
}

/// A matrix in format F on both sides, or of scalars.
template <class F>
struct stored {
  std::int64_t rows, columns;
  twin<std::uint8_t> codes;
  twin<e8m0> scales;
  stored(std::int64_t r, std::int64_t c, std::uint64_t seed)
      : rows(r),
        columns(c),
        codes(buffer<std::uint8_t>(r * F::row_bytes(c))),
        scales(buffer<e8m0>(F::scale_rows(r) * F::scale_columns(c))) {
    auto x = random<float>(r * c, seed);
    quantise<F, float>::forward(exec::reference{}, {x.h(r, c)},
                                {block_scaled_matrix<F>(codes.host.data(), scales.host.data(), r, c)});
    codes.device = to_device(gpu().stream(), codes.host);
    scales.device = to_device(gpu().stream(), scales.host);
  }
  auto h() { return block_scaled_matrix<F>(codes.host.data(), scales.host.data(), rows, columns); }
  auto d() { return block_scaled_matrix<F, D>(codes.device.data(), scales.device.data(), rows, columns); }
};

// Where the FP8 matrix units multiply. Of a block of 128 channels they add 32 products and the sum so far at
// a time, all cut to 2^-13 of the largest. That is a sum of magnitude sqrt(128) / 3 < 4, whose place is
// 2^-11, or twice that at times: half of it lost on average is 2^-11. A product has 8 bits, so it loses some
// only where it is below 2^-5, as one in seven is, and the sum does: 4 (32 / 7 + 1) losses a block, 2^-13 of
// the channels' number in all.
template <class T, class W, class X>
double stored_tolerance(std::int64_t inner) {
  return sum_tolerance<T>(inner) + (detail::multiplies_fp8<T, W, X> ? double(inner) * 0x1p-13 : 0);
}

template <class T, class W, class X>
void check_stored(std::int64_t rows, std::int64_t inner, std::int64_t columns) {
  INFO(rows << " x " << inner << " x " << columns);
  stored<W> w(columns, inner, 2);
  auto y = poison<T>(rows * columns);
  const auto both = [&](auto hx, auto dx) {
    linear<T, space::host, W, X>::forward(exec::reference{}, {hx, w.h()}, {y.h(rows, columns)});
    check_close(y, stored_tolerance<T, W, X>(inner), [&] {
      linear<T, D, W, X>::forward(gpu(), {dx, w.d()}, {y.d(rows, columns)});
    });
  };
  if constexpr (block_format<X>) {
    stored<X> x(rows, inner, 1);
    both(x.h(), x.d());
  } else {
    auto x = random<X>(rows * inner, 1);
    both(x.h(rows, inner), x.d(rows, inner));
  }
}

template <class T>
void check_batched(std::int64_t rows, std::int64_t groups, std::int64_t inner, std::int64_t columns) {
  INFO(rows << " x " << groups << " x " << inner << " x " << columns);
  auto x = random<T>(rows * groups * inner, 1), w = random<T>(groups * columns * inner, 2);
  auto y = poison<T>(rows * groups * columns);
  batched_linear<T>::forward(exec::reference{}, {x.h(rows, groups, inner), w.h(groups, columns, inner)},
                             {y.h(rows, groups, columns)});
  check_close(y, sum_tolerance<T>(inner), [&] {
    batched_linear<T, D>::forward(gpu(), {x.d(rows, groups, inner), w.d(groups, columns, inner)},
                                  {y.d(rows, groups, columns)});
  });
}

twin<std::int64_t> make_offsets(std::int64_t rows, std::int64_t experts) {
  buffer<std::int64_t> b(experts + 1);
  for (std::int64_t e = 1; e < experts; ++e)  // uneven, some empty
    b[e] = std::min(rows, b[e - 1] + (e % 3 == 0 ? 0 : rows * 2 / experts * (e % 2)));
  b[experts] = rows;
  return twin<std::int64_t>(std::move(b));
}

/// Experts with `rows` rows each.
twin<std::int64_t> offsets_of(const std::vector<std::int64_t>& rows) {
  buffer<std::int64_t> b(std::int64_t(rows.size()) + 1);
  for (std::size_t e = 0; e < rows.size(); ++e) b[std::int64_t(e) + 1] = b[std::int64_t(e)] + rows[e];
  return twin<std::int64_t>(std::move(b));
}

template <class T>
void check_grouped(std::int64_t rows, std::int64_t experts, std::int64_t inner, std::int64_t columns) {
  INFO(rows << " rows, " << experts << " experts, " << inner << " x " << columns);
  auto offsets = make_offsets(rows, experts);
  auto x = random<T>(rows * inner, 1), w = random<T>(experts * columns * inner, 2),
       y = poison<T>(rows * columns);
  grouped_linear<T>::forward(exec::reference{},
                             {x.h(rows, inner), offsets.h(experts + 1), w.h(experts, columns, inner)},
                             {y.h(rows, columns)});
  check_close(y, sum_tolerance<T>(inner), [&] {
    grouped_linear<T, D>::forward(gpu(),
                                  {x.d(rows, inner), offsets.d(experts + 1), w.d(experts, columns, inner)},
                                  {y.d(rows, columns)});
  });
}

/// Block-scaled matrices as a stack, on both sides.
template <class W>
struct stack {
  std::vector<stored<W>> matrices;
  std::vector<block_scaled_matrix<const W>> host_table;
  device_buffer<block_scaled_matrix<const W, D>> device_table;
  block_scaled_stack<const W> h;
  block_scaled_stack<const W, D> d;
  stack(std::int64_t count, std::int64_t rows, std::int64_t columns) {
    for (std::int64_t e = 0; e < count; ++e) {
      matrices.emplace_back(rows, columns, std::uint64_t(e) + 2);
      host_table.push_back(matrices.back().h());
    }
    upload();
    h.matrices = host_table.data();
    h.extent[0] = d.extent[0] = count, h.extent[1] = d.extent[1] = rows, h.extent[2] = d.extent[2] = columns;
  }
  /// The matrices as they are now on the device.
  void upload() {
    buffer<block_scaled_matrix<const W, D>> table(std::int64_t(matrices.size()));
    for (std::size_t e = 0; e < matrices.size(); ++e) table[std::int64_t(e)] = matrices[e].d();
    device_table = to_device(gpu().stream(), table);
    d.matrices = device_table.data();
  }
};

template <class T, class W>
void check_batched_stored(std::int64_t rows, std::int64_t groups, std::int64_t inner, std::int64_t columns) {
  INFO(rows << " x " << groups << " x " << inner << " x " << columns);
  stack<W> w(groups, columns, inner);
  auto x = random<T>(rows * groups * inner, 1);
  auto y = poison<T>(rows * groups * columns);
  batched_linear<T, space::host, W>::forward(exec::reference{}, {x.h(rows, groups, inner), w.h},
                                             {y.h(rows, groups, columns)});
  check_close(y, sum_tolerance<T>(inner), [&] {
    batched_linear<T, D, W>::forward(gpu(), {x.d(rows, groups, inner), w.d}, {y.d(rows, groups, columns)});
  });
}

template <class T, class W, class X>
void check_grouped_stored(std::int64_t rows, std::int64_t experts, std::int64_t inner, std::int64_t columns) {
  INFO(rows << " rows, " << experts << " experts, " << inner << " x " << columns);
  auto offsets = make_offsets(rows, experts);
  stack<W> w(experts, columns, inner);
  auto y = poison<T>(rows * columns);
  const auto both = [&](auto hx, auto dx) {
    grouped_linear<T, space::host, W, X>::forward(exec::reference{}, {hx, offsets.h(experts + 1), w.h},
                                                  {y.h(rows, columns)});
    check_close(y, stored_tolerance<T, W, X>(inner), [&] {
      grouped_linear<T, D, W, X>::forward(gpu(), {dx, offsets.d(experts + 1), w.d}, {y.d(rows, columns)});
    });
  };
  if constexpr (block_format<X>) {
    stored<X> x(rows, inner, 1);
    both(x.h(), x.d());
  } else {
    auto x = random<X>(rows * inner, 1);
    both(x.h(rows, inner), x.d(rows, inner));
  }
}

}  // namespace

TEST_CASE("linear: cuda equals reference, strided rows, every pair of types") {
  for (const std::int64_t rows : {1, 2, 7, 65})
    for (const std::int64_t inner : {1, 24, 33, 512})
      for (const std::int64_t columns : {1, 24, 96, 130}) {
        check_linear<float, float, float>(rows, inner, columns);
        check_linear<double, double, double>(rows, inner, columns);
        check_linear<bf16, bf16, bf16>(rows, inner, columns);
        check_linear<float, bf16, bf16>(rows, inner, columns);
        check_linear<float, bf16, float>(rows, inner, columns);
      }
}

TEST_CASE("linear: block-scaled weights and inputs, cuda equals reference") {
  for (const std::int64_t rows : {1, 5, 66})
    for (const std::int64_t inner : {32, 96, 300})
      for (const std::int64_t columns : {24, 130}) {
        check_stored<float, fp8_weight, float>(rows, inner, columns);
        check_stored<float, fp8_weight, fp8_activation>(rows, inner, columns);
        check_stored<float, mxfp4, fp8_activation>(rows, inner, columns);
        check_stored<double, mxfp4, double>(rows, inner, columns);
        check_stored<bf16, fp8_weight, fp8_activation>(rows, inner, columns);
        check_stored<bf16, mxfp4, fp8_activation>(rows, inner, columns);
        check_stored<bf16, mxfp4, bf16>(rows, inner, columns);
      }
  // More tiles than one in every direction.
  check_stored<bf16, fp8_weight, fp8_activation>(300, 1040, 520);
  check_stored<bf16, mxfp4, fp8_activation>(300, 1056, 520);
  check_stored<bf16, mxfp4, bf16>(300, 1056, 520);
}

TEMPLATE_TEST_CASE("batched_linear and grouped_linear: cuda equals reference", "", float, double, bf16) {
  for (const std::int64_t rows : {1, 3, 67}) {
    check_batched<TestType>(rows, 1, 64, 32);
    check_batched<TestType>(rows, 3, 33, 17);
    check_batched<TestType>(rows, 8, 128, 96);
    check_grouped<TestType>(rows, 1, 64, 32);
    check_grouped<TestType>(rows, 8, 64, 96);
    check_grouped<TestType>(4 * rows, 17, 33, 130);
  }
  check_grouped<TestType>(900, 9, 264, 520);
}

TEST_CASE("batched_linear and grouped_linear: block-scaled weights, cuda equals reference") {
  for (const std::int64_t rows : {1, 3, 150}) {
    check_grouped_stored<float, mxfp4, fp8_activation>(rows, 8, 96, 130);
    check_grouped_stored<float, fp8_weight, fp8_activation>(rows, 5, 300, 64);
    check_grouped_stored<bf16, mxfp4, fp8_activation>(rows, 8, 128, 64);
    check_grouped_stored<bf16, mxfp4, bf16>(rows, 8, 128, 64);
    check_batched_stored<float, fp8_weight>(rows, 3, 96, 130);
    check_batched_stored<bf16, fp8_weight>(rows, 3, 96, 130);
  }
  check_grouped_stored<bf16, mxfp4, bf16>(900, 9, 288, 520);
  check_grouped_stored<bf16, mxfp4, fp8_activation>(900, 9, 288, 520);
  check_grouped_stored<bf16, fp8_weight, fp8_activation>(900, 9, 416, 520);
  // Few rows of many experts, and few experts of many rows, in pieces that go several times around a block.
  check_grouped_stored<bf16, mxfp4, bf16>(6, 64, 5120, 72);
  check_grouped_stored<bf16, mxfp4, bf16>(30, 8, 1056, 130);
  check_grouped_stored<float, fp8_weight, fp8_activation>(19, 3, 1152, 40);
}

namespace {
/// A matrix of random codes and scales: codes as `code` makes them of random bits, scales from 2^lowest to
/// 2^highest, one in `nan` of them NaN.
template <class F, class Code>
void randomise(twin<std::uint8_t>& codes, twin<e8m0>& scales, std::uint64_t seed, const Code& code,
               int lowest, int highest, std::uint64_t nan) {
  const auto random = [&](std::uint64_t stream, std::int64_t i) {
    return detail::splitmix64((2 * seed + stream) * 7919u + static_cast<std::uint64_t>(i)) >> 20;
  };
  for (std::int64_t i = 0; i < codes.size(); ++i) codes.host[i] = code(random(0, i));
  for (std::int64_t i = 0; i < scales.size(); ++i) {
    const std::uint64_t r = random(1, i);
    const auto span = static_cast<std::uint64_t>(highest - lowest + 1);
    scales.host[i] = e8m0::from_bits(
        nan && r % nan == 0 ? 0xFF
                            : static_cast<std::uint8_t>(127 + lowest + static_cast<int>(r / 64 % span)));
  }
  codes.device = to_device(gpu().stream(), codes.host),
  scales.device = to_device(gpu().stream(), scales.host);
}

/// Positive integers up to 4 as inputs, and positive weights. Where scales of a block differ by no more than
/// 4, its sums are small multiples of the smallest product, and the matrix units lose nothing. Else each of
/// their four additions cuts 33 terms to 2^-13 of the largest, which is at most the sum.
template <class W>
void check_scales(const std::vector<std::int64_t>& rows, std::int64_t inner, std::int64_t columns, int lowest,
                  int highest, std::uint64_t nan, int x_scale = 0) {
  auto offsets = offsets_of(rows);
  const std::int64_t count = std::int64_t(rows.size()), all = offsets.host[count];
  INFO(all << " rows, " << inner << " x " << columns << ", 2^" << lowest << " to 2^" << highest);
  const auto small = [](std::uint64_t r) { return e4m3(float(1 + r % 4)).bits; };
  stored<fp8_activation> x(all, inner, 1);
  randomise<fp8_activation>(x.codes, x.scales, 1, small, x_scale - 3, x_scale + 3, 0);
  stack<W> w(count, columns, inner);
  for (std::int64_t e = 0; e < count; ++e) {
    auto& m = w.matrices[std::size_t(e)];
    const auto code = [&](std::uint64_t r) {
      return W::packed ? static_cast<std::uint8_t>(r & 0x77) : small(r);
    };
    randomise<W>(m.codes, m.scales, std::uint64_t(e) + 2, code, lowest, highest, nan);
  }
  w.upload();
  auto y = poison<bf16>(all * columns);
  grouped_linear<bf16, space::host, W, fp8_activation>::forward(
      exec::reference{}, {x.h(), offsets.h(count + 1), w.h}, {y.h(all, columns)});
  const buffer<bf16> got = run_twice(y, [&] {
    grouped_linear<bf16, D, W, fp8_activation>::forward(gpu(), {x.d(), offsets.d(count + 1), w.d},
                                                        {y.d(all, columns)});
  });
  // In float, a rounding of each block's sum and of each addition.
  const double cut = W::packed && highest - lowest > 2 ? 4 * 33 * 0x1p-13 : 0,
               limit = tolerance<bf16>(2 * double(inner) / 32 + 2) + cut;
  std::int64_t wrong = 0;
  for (std::int64_t i = 0; i < got.size(); ++i) {
    const double a = double(got[i]), b = double(y.host[i]);
    wrong += std::isnan(b) ? !std::isnan(a) : !(std::abs(a - b) <= limit * std::abs(b));
  }
  CHECK(wrong == 0);
}
}  // namespace

TEST_CASE(
    "grouped_linear: FP8 inputs, weights of close, far, extreme and NaN scales, cuda equals reference") {
  const std::vector<std::vector<std::int64_t>> splits{{40}, {0, 129, 1, 0, 70, 300}};
  for (const auto& rows : splits)
    for (const std::int64_t inner : {32, 320, 1056})
      for (const std::int64_t columns : {24, 271, 520}) {
        check_scales<mxfp4>(rows, inner, columns, 0, 2, 0);
        check_scales<mxfp4>(rows, inner, columns, -9, 5, 0);     // as far as E4M3 reaches
        check_scales<mxfp4>(rows, inner, columns, -20, 20, 90);  // several passes
        check_scales<fp8_weight>(rows, inner, columns, -20, 20, 9);
      }
  check_scales<mxfp4>({130}, 288, 136, 90, 105, 0);
  check_scales<fp8_weight>({130}, 288, 136, 90, 105, 0);
  // The product of two scales is no float.
  check_scales<mxfp4>({130}, 288, 136, -119, -117, 0, -20);
  check_scales<fp8_weight>({130}, 288, 136, -119, -117, 0, -20);
}

TEST_CASE("linear: FP8 products of weights that begin within a row of blocks, cuda equals reference") {
  const std::int64_t rows = 150, inner = 272, columns = 300;
  for (const std::int64_t skipped : {1, 40, 127}) {
    stored<fp8_weight> w(columns + skipped, inner, 2);
    stored<fp8_activation> x(rows, inner, 1);
    w.scales.host[2] = e8m0::from_bits(0xFF);
    w.scales.device = to_device(gpu().stream(), w.scales.host);
    auto y = poison<bf16>(rows * columns);
    using op = linear<bf16, space::host, fp8_weight, fp8_activation>;
    op::forward(exec::reference{}, {x.h(), w.h().rows(skipped, columns)}, {y.h(rows, columns)});
    const buffer<bf16> got = run_twice(y, [&] {
      linear<bf16, D, fp8_weight, fp8_activation>::forward(gpu(), {x.d(), w.d().rows(skipped, columns)},
                                                           {y.d(rows, columns)});
    });
    std::int64_t wrong = 0;
    for (std::int64_t i = 0; i < got.size(); ++i) {
      const double a = double(got[i]), b = double(y.host[i]);
      const double limit = stored_tolerance<bf16, fp8_weight, fp8_activation>(inner);
      wrong += std::isnan(b) ? !std::isnan(a) : !(std::abs(a - b) <= limit * (1 + std::abs(b)));
    }
    CHECK(wrong == 0);
  }
}

TEST_CASE("linear, batched_linear: many rows of bf16 by decoded weights, cuda equals reference") {
  check_stored<bf16, fp8_weight, bf16>(600, 272, 200);
  check_stored<float, mxfp4, bf16>(513, 96, 130);
  check_batched_stored<bf16, fp8_weight>(520, 3, 160, 72);
  // With little scratch memory, in several parts of uneven size.
  const exec::cuda small(exec::cuda::options{.scratch_bytes = std::size_t{1} << 19});
  const std::int64_t rows = 520, inner = 384, columns = 600;
  stored<fp8_weight> w(columns, inner, 2);
  auto x = random<bf16>(rows * inner, 1), y = poison<bf16>(rows * columns);
  linear<bf16, space::host, fp8_weight>::forward(exec::reference{}, {x.h(rows, inner), w.h()},
                                                 {y.h(rows, columns)});
  check_close(y, sum_tolerance<bf16>(inner), [&] {
    linear<bf16, D, fp8_weight>::forward(small, {x.d(rows, inner), w.d()}, {y.d(rows, columns)});
    small.synchronise();
  });
  auto dy = random<bf16>(rows * columns, 3), dx = random<bf16>(rows * inner, 4);
  linear<bf16, space::host, fp8_weight>::backward(exec::reference{}, host_work(), {x.h(rows, inner), w.h()},
                                                  {dy.h(rows, columns)}, {dx.h(rows, inner), {}, true});
  check_close(dx, sum_tolerance<bf16>(columns + 3), [&] {
    linear<bf16, D, fp8_weight>::backward(small, work(), {x.d(rows, inner), w.d()}, {dy.d(rows, columns)},
                                          {dx.d(rows, inner), {}, true});
    small.synchronise();
  });
}

namespace {
template <class T, class W, class X>
void check_linear_gradients(std::int64_t rows, std::int64_t inner, std::int64_t columns, bool add) {
  INFO(rows << " x " << inner << " x " << columns);
  auto dy = random<T>(rows * columns, 3), dx = random<T>(rows * inner, 4),
       dweight = random<T>(columns * inner, 5);
  const auto both = [&](auto hx, auto dvx, auto hw, auto dw) {
    linear<T, space::host, W, X>::backward(exec::reference{}, host_work(), {hx, hw}, {dy.h(rows, columns)},
                                           {dx.h(rows, inner), dweight.h(columns, inner), add});
    const auto run = [&] {
      linear<T, D, W, X>::backward(gpu(), work(), {dvx, dw}, {dy.d(rows, columns)},
                                   {dx.d(rows, inner), dweight.d(columns, inner), add});
    };
    check_close(dx, sum_tolerance<T>(columns + 3), run);
    check_close(dweight, sum_tolerance<T>(rows + 3), run);
  };
  if constexpr (block_format<W>) {
    stored<W> w(columns, inner, 2);
    stored<X> x(rows, inner, 1);
    both(x.h(), x.d(), w.h(), w.d());
  } else {
    auto w = random<W>(columns * inner, 2);
    auto x = random<X>(rows * inner, 1);
    both(x.h(rows, inner), x.d(rows, inner), w.h(columns, inner), w.d(columns, inner));
  }
}
}  // namespace

TEST_CASE("linear: gradients, cuda equals reference") {
  for (const std::int64_t rows : {1, 7, 66})
    for (const std::int64_t inner : {24, 33, 130})
      for (const bool add : {false, true}) {
        check_linear_gradients<float, float, float>(rows, inner, 96, add);
        check_linear_gradients<double, double, double>(rows, inner, 96, add);
        check_linear_gradients<bf16, bf16, bf16>(rows, inner, 96, add);
        check_linear_gradients<float, bf16, float>(rows, inner, 96, add);
      }
  check_linear_gradients<float, fp8_weight, fp8_activation>(66, 160, 130, true);
  check_linear_gradients<float, mxfp4, fp8_activation>(66, 160, 130, false);
}

TEMPLATE_TEST_CASE("batched_linear and grouped_linear: gradients, cuda equals reference", "", float, double,
                   bf16) {
  using T = TestType;
  for (const std::int64_t rows : {1, 3, 67})
    for (const std::int64_t inner : {33, 64}) {
      const std::int64_t groups = 5, columns = 24;
      INFO(rows << " x " << inner);
      auto x = random<T>(rows * groups * inner, 1), w = random<T>(groups * columns * inner, 2),
           dy = random<T>(rows * groups * columns, 3), dx = poison<T>(rows * groups * inner),
           dw = random<T>(groups * columns * inner, 4);
      batched_linear<T>::backward(
          exec::reference{}, host_work(), {x.h(rows, groups, inner), w.h(groups, columns, inner)},
          {dy.h(rows, groups, columns)}, {dx.h(rows, groups, inner), dw.h(groups, columns, inner)});
      const auto batched = [&] {
        batched_linear<T, D>::backward(gpu(), work(), {x.d(rows, groups, inner), w.d(groups, columns, inner)},
                                       {dy.d(rows, groups, columns)},
                                       {dx.d(rows, groups, inner), dw.d(groups, columns, inner)});
      };
      check_close(dx, sum_tolerance<T>(columns + 3), batched);
      check_close(dw, sum_tolerance<T>(rows + 3), batched);

      const std::int64_t all = rows * groups;
      auto offsets = make_offsets(all, groups);
      dx.host = buffer<T>(all * inner);
      for (std::int64_t i = 0; i < dw.size(); ++i) dw.host[i] = T(noise(4, i));
      grouped_linear<T>::backward(exec::reference{}, host_work(),
                                  {x.h(all, inner), offsets.h(groups + 1), w.h(groups, columns, inner)},
                                  {dy.h(all, columns)}, {dx.h(all, inner), dw.h(groups, columns, inner)});
      const auto grouped = [&] {
        grouped_linear<T, D>::backward(
            gpu(), work(), {x.d(all, inner), offsets.d(groups + 1), w.d(groups, columns, inner)},
            {dy.d(all, columns)}, {dx.d(all, inner), dw.d(groups, columns, inner)});
      };
      check_close(dx, sum_tolerance<T>(columns + 3), grouped);
      check_close(dw, sum_tolerance<T>(all + 3), grouped);
    }
}

namespace {
/// Gradients of experts with `rows` rows each. dy and x go on with NaN after the last row, the gradients with
/// what must stay.
template <class T, class W, class X>
void check_grouped_gradients(const std::vector<std::int64_t>& rows, std::int64_t inner, std::int64_t columns,
                             bool add) {
  auto offsets = offsets_of(rows);
  const std::int64_t count = std::int64_t(rows.size()), all = offsets.host[count], more = all + 40;
  INFO(all << " rows, " << count << " experts, " << inner << " x " << columns << (add ? ", added" : ""));
  const auto followed_by_nan = [&](std::int64_t width, std::uint64_t seed) {
    buffer<T> b(more * width);
    for (std::int64_t i = 0; i < b.size(); ++i) b[i] = T(i < all * width ? noise(seed, i) : double(NAN));
    return twin<T>(std::move(b));
  };
  auto dy = followed_by_nan(columns, 3), dx = random<T>(more * inner, 4),
       dweight = random<T>(count * columns * inner, 5);
  const auto both = [&](auto hx, auto dvx, auto hw, auto dw) {
    using host = grouped_linear<T, space::host, W, X>;
    using device = grouped_linear<T, D, W, X>;
    host::backward(exec::reference{}, host_work(), {hx, offsets.h(count + 1), hw}, {dy.h(all, columns)},
                   {dx.h(all, inner), dweight.h(count, columns, inner), add});
    const auto run = [&] {
      device::backward(gpu(), work(), {dvx, offsets.d(count + 1), dw}, {dy.d(all, columns)},
                       {dx.d(all, inner), dweight.d(count, columns, inner), add});
    };
    check_close(dx, sum_tolerance<T>(columns + 3), run);
    check_close(dweight, sum_tolerance<T>(*std::max_element(rows.begin(), rows.end()) + 3), run);
    // One without the other.
    check_close(dweight, sum_tolerance<T>(*std::max_element(rows.begin(), rows.end()) + 3), [&] {
      device::backward(gpu(), work(), {dvx, offsets.d(count + 1), dw}, {dy.d(all, columns)},
                       {{}, dweight.d(count, columns, inner), add});
    });
  };
  const auto with_x = [&](auto hw, auto dw) {
    if constexpr (block_format<X>) {
      stored<X> x(all, inner, 1);
      both(x.h(), x.d(), hw, dw);
    } else {
      auto x = followed_by_nan(inner, 1);
      both(x.h(more, inner).rows(0, all), x.d(more, inner).rows(0, all), hw, dw);
    }
  };
  if constexpr (block_format<W>) {
    stack<W> w(count, columns, inner);
    with_x(w.h, w.d);
  } else {
    auto w = random<W>(count * columns * inner, 2);
    with_x(w.h(count, columns, inner), w.d(count, columns, inner));
  }
}
}  // namespace

TEST_CASE("grouped_linear: gradients of experts with few, many and no rows, cuda equals reference") {
  const std::vector<std::vector<std::int64_t>> splits{
      {1}, {0, 33, 0, 0, 1, 95}, {64, 128, 16, 0}, {0, 230, 0}, {129, 31, 65, 1, 0, 7}};
  for (const auto& rows : splits)
    for (const bool add : {false, true}) {
      check_grouped_gradients<bf16, bf16, bf16>(rows, 64, 72, add);
      check_grouped_gradients<bf16, bf16, bf16>(rows, 264, 136, add);  // just more than a tile
      check_grouped_gradients<bf16, bf16, bf16>(rows, 33, 24, add);    // not in 16 bytes
    }
  // As many steps as go around all stages, in both products, and tiles in every direction.
  check_grouped_gradients<bf16, bf16, bf16>({3, 500, 0, 20}, 520, 392, true);
  check_grouped_gradients<bf16, bf16, bf16>({0, 700}, 72, 640, false);
}

TEST_CASE("grouped_linear: gradients through block-scaled weights and inputs, cuda equals reference") {
  for (const bool add : {false, true}) {
    check_grouped_gradients<bf16, mxfp4, bf16>({0, 33, 0, 100}, 288, 136, add);
    check_grouped_gradients<bf16, mxfp4, fp8_activation>({70, 0, 5}, 384, 328, add);
    check_grouped_gradients<bf16, fp8_weight, fp8_activation>({129, 1, 40}, 272, 200, add);
    check_grouped_gradients<bf16, fp8_weight, bf16>({30}, 16, 8, add);
    check_linear_gradients<bf16, fp8_weight, fp8_activation>(66, 272, 136, add);
  }
}

TEST_CASE("batched_linear: gradients through block-scaled weights, cuda equals reference") {
  for (const std::int64_t rows : {3, 150}) {
    const std::int64_t groups = 3, inner = 272, columns = 136;
    stack<fp8_weight> w(groups, columns, inner);
    auto x = random<bf16>(rows * groups * inner, 1), dy = random<bf16>(rows * groups * columns, 3),
         dx = poison<bf16>(rows * groups * inner), dw = random<bf16>(groups * columns * inner, 4);
    batched_linear<bf16, space::host, fp8_weight>::backward(
        exec::reference{}, host_work(), {x.h(rows, groups, inner), w.h}, {dy.h(rows, groups, columns)},
        {dx.h(rows, groups, inner), dw.h(groups, columns, inner)});
    const auto run = [&] {
      batched_linear<bf16, D, fp8_weight>::backward(
          gpu(), work(), {x.d(rows, groups, inner), w.d}, {dy.d(rows, groups, columns)},
          {dx.d(rows, groups, inner), dw.d(groups, columns, inner)});
    };
    check_close(dx, sum_tolerance<bf16>(columns), run);
    check_close(dw, sum_tolerance<bf16>(rows), run);
  }
}

TEST_CASE("grouped_linear: Hopper's matrix units take what lies in 16 bytes, and only that") {
  const bool hopper = gpu().device().major == 9;
  auto offsets = offsets_of({20, 0, 12});
  auto x = random<bf16>(32 * 64, 1), w = random<bf16>(3 * 72 * 64, 2), dy = random<bf16>(32 * 72, 3),
       dx = poison<bf16>(32 * 64), dweight = random<bf16>(3 * 72 * 64, 4);
  const auto dx_by = [&](std::int64_t columns) {
    return detail::launch_gemm_sm90(
        gpu(), "test",
        detail::gemm_problem<bf16, matrix_view<const bf16, D>, tensor_view<const bf16, D>, true>{
            dy.d(32, 72).columns(0, columns), w.d(3, 72, 64), dx.d(32, 64), offsets.device.data(), 0, 0, 3});
  };
  const auto dweight_by = [&](std::int64_t inner) {
    return detail::launch_dweight_sm90(gpu(), "test",
                                       detail::dweight_problem<matrix_view<const bf16, D>>{
                                           dy.d(32, 72), x.d(32, 64).columns(0, inner), offsets.device.data(),
                                           dweight.d(3, 72, 64).columns(0, inner)});
  };
  CHECK(dx_by(72) == hopper);
  CHECK_FALSE(dx_by(70));
  CHECK(dweight_by(64) == hopper);
  CHECK_FALSE(dweight_by(62));
}
