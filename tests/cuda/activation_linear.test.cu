// SPDX-License-Identifier: Apache-2.0
// Against the ops that these are rows of: on the host, and on the GPU, where a sum that is not split has one
// order and the bits must be the same.
#include "support/device.cuh"
#include <dsv4/ops/cuda/activation_linear.cuh>

#include <algorithm>
#include <vector>

using namespace dsv4;
using namespace dsv4::testing;

namespace {

/// `count` matrices in storage F on both sides, as a matrix or a stack. Scales begin `skipped` bytes late.
template <class F>
struct stored {
  std::int64_t count, rows, columns;
  twin<std::uint8_t> codes;
  twin<e8m0> scales;
  buffer<block_scaled_matrix<const F>> host_table;
  device_buffer<block_scaled_matrix<const F, D>> device_table;
  stored(std::int64_t n, std::int64_t r, std::int64_t c, std::uint64_t seed, std::int64_t skipped = 0)
      : count(n),
        rows(r),
        columns(c),
        codes(buffer<std::uint8_t>(n * r * F::row_bytes(c))),
        scales(buffer<e8m0>(n * F::scale_rows(r) * F::scale_columns(c) + skipped)),
        host_table(n) {
    auto x = random<float>(n * r * c, seed);
    buffer<block_scaled_matrix<const F, D>> table(n);
    for (std::int64_t i = 0; i < n; ++i) {
      const std::int64_t at = i * r * F::row_bytes(c),
                         scale_at = i * F::scale_rows(r) * F::scale_columns(c) + skipped;
      const block_scaled_matrix<F> m(codes.host.data() + at, scales.host.data() + scale_at, r, c);
      quantise<F, float>::forward(exec::reference{}, {x.h(n, r, c)[i]}, {m});
      host_table[i] = m;
      table[i] = block_scaled_matrix<F, D>(codes.device.data() + at, scales.device.data() + scale_at, r, c);
    }
    copy_elements(gpu().stream(), codes.host.data(), codes.device.data(), codes.size());
    copy_elements(gpu().stream(), scales.host.data(), scales.device.data(), scales.size());
    device_table = to_device(gpu().stream(), table);
    device_first = table[0];
  }
  auto h() const { return host_table[0]; }
  auto d() const { return device_first; }
  auto h_stack() const { return stack(block_scaled_stack<const F>{host_table.data(), {}}); }
  auto d_stack() const { return stack(block_scaled_stack<const F, D>{device_table.data(), {}}); }

 private:
  template <class S>
  S stack(S s) const {
    s.extent[0] = count, s.extent[1] = rows, s.extent[2] = columns;
    return s;
  }
  block_scaled_matrix<const F, D> device_first;
};

/// Plain matrices.
template <>
struct stored<bf16> {
  std::int64_t count, rows, columns;
  twin<bf16> all;
  stored(std::int64_t n, std::int64_t r, std::int64_t c, std::uint64_t seed, std::int64_t = 0)
      : count(n), rows(r), columns(c), all(random<bf16>(n * r * c, seed)) {}
  auto h() { return all.h(rows, columns); }
  auto d() { return all.d(rows, columns); }
  auto h_stack() { return all.h(count, rows, columns); }
  auto d_stack() { return all.d(count, rows, columns); }
};

// As in linear.test.cu; x is so small that products have a variance of 1 / 9, and 5 / 3 is five of their
// deviations. A product of the gate that falls the other way when it is rounded moves h by at most
// 1.1 |up| + |gate| of the unit of 5 / 3, which is unit / 2 here, twice that of 1.
double sum_tolerance(std::int64_t inner) { return tolerance<bf16>(4 * double(inner) / 3); }
double gate_tolerance(std::int64_t inner) { return (1 + 2.1 * 5 / 3) * sum_tolerance(inner); }
auto small_rows(std::int64_t rows, std::int64_t inner) {
  return random<bf16>(rows * inner, 1, 1 / std::sqrt(double(inner)));
}
constexpr double limit = 0.75;

/// What the reference rounds x to: it computes in float, from the same numbers.
template <class X>
using reference_input = std::conditional_t<std::is_same_v<X, bf16>, float, X>;
buffer<float> widened(const buffer<bf16>& from) {
  buffer<float> to(from.size());
  for (std::int64_t i = 0; i < from.size(); ++i) to[i] = float(from[i]);
  return to;
}
/// The reference's result becomes what `y` must be.
void expect_result(twin<bf16>& y, const buffer<float>& wanted) {
  for (std::int64_t i = 0; i < wanted.size(); ++i) y.host[i] = bf16(wanted[i]);
}

template <class W, class X>
void check_rows(std::int64_t rows, std::int64_t inner, std::int64_t columns, std::int64_t others,
                bool exact) {
  INFO(rows << " x " << inner << " x " << columns << " and " << others);
  using T = bf16;
  stored<W> first(1, columns, inner, 2), second(1, others, inner, 3), up(1, columns, inner, 4);
  auto x = small_rows(rows, inner);
  auto y = poison<T>(rows * columns), z = poison<T>(rows * others), h = poison<T>(rows * columns);
  const auto dx = x.d(rows, inner);
  {
    const auto wide = widened(x.host);
    const auto hx = wide.as(rows, inner);
    buffer<float> ry(rows * columns), rz(rows * others), rh(rows * columns);
    activation_linear_pair<float, space::host, W, reference_input<X>>::forward(
        exec::reference{}, host_work(), {hx, first.h(), second.h()},
        {ry.as(rows, columns), rz.as(rows, others)});
    gated_linear<float, space::host, W, reference_input<X>>::forward(
        exec::reference{}, host_work(), {hx, first.h(), up.h(), limit}, {rh.as(rows, columns)});
    expect_result(y, ry), expect_result(z, rz), expect_result(h, rh);
  }
  check_close(y, sum_tolerance(inner), [&] {
    activation_linear<T, D, W, X>::forward(gpu(), work(), {dx, first.d()}, {y.d(rows, columns)});
  });
  const auto pair = [&] {
    activation_linear_pair<T, D, W, X>::forward(gpu(), work(), {dx, first.d(), second.d()},
                                                {y.d(rows, columns), z.d(rows, others)});
  };
  check_close(y, sum_tolerance(inner), pair);
  check_close(z, sum_tolerance(inner), pair);
  check_close(h, gate_tolerance(inner), [&] {
    gated_linear<T, D, W, X>::forward(gpu(), work(), {dx, first.d(), up.d(), limit}, {h.d(rows, columns)});
  });
  if (!exact) return;
  const auto got_y = y.fetch(), got_z = z.fetch(), got_h = h.fetch();
  activation_linear_pair<T, D, W, X>::by_ops(gpu(), work(), {dx, first.d(), second.d()},
                                             {y.d(rows, columns), z.d(rows, others)});
  gated_linear<T, D, W, X>::by_ops(gpu(), work(), {dx, first.d(), up.d(), limit}, {h.d(rows, columns)});
  CHECK(same_bytes(got_y, y.fetch()));
  CHECK(same_bytes(got_z, z.fetch()));
  CHECK(same_bytes(got_h, h.fetch()));
}

template <class W, class X>
void check_grouped(std::int64_t rows, std::int64_t experts, std::int64_t inner, std::int64_t columns,
                   bool exact, std::int64_t skipped = 0) {
  INFO(rows << " rows of " << experts << ", " << inner << " x " << columns << ", " << skipped << " skipped");
  using T = bf16;
  stored<W> gate(experts, columns, inner, 2, skipped), up(experts, columns, inner, 3, skipped);
  auto x = small_rows(rows, inner);
  auto weight = random<T>(rows, 5);
  auto y = poison<T>(rows * columns), h = poison<T>(rows * columns);
  buffer<std::int64_t> ends(experts + 1);  // all rows go to every other expert
  for (std::int64_t e = 0; e < experts; ++e)
    ends[e + 1] = std::min(rows, ends[e] + (e % 2 ? (2 * rows + experts - 1) / experts : 0));
  ends[experts] = rows;
  twin<std::int64_t> offsets(std::move(ends));
  const auto dx = x.d(rows, inner);
  {
    const auto wide = widened(x.host), wide_weight = widened(weight.host);
    const auto hx = wide.as(rows, inner);
    buffer<float> ry(rows * columns), rh(rows * columns);
    grouped_activation_linear<float, space::host, W, reference_input<X>>::forward(
        exec::reference{}, host_work(), {hx, offsets.h(experts + 1), gate.h_stack()}, {ry.as(rows, columns)});
    grouped_gated_linear<float, space::host, W, reference_input<X>>::forward(
        exec::reference{}, host_work(),
        {hx, offsets.h(experts + 1), gate.h_stack(), up.h_stack(), wide_weight.as(rows), limit},
        {rh.as(rows, columns)});
    expect_result(y, ry), expect_result(h, rh);
  }
  check_close(y, sum_tolerance(inner), [&] {
    grouped_activation_linear<T, D, W, X>::forward(
        gpu(), work(), {dx, offsets.d(experts + 1), gate.d_stack()}, {y.d(rows, columns)});
  });
  check_close(h, gate_tolerance(inner), [&] {
    grouped_gated_linear<T, D, W, X>::forward(
        gpu(), work(), {dx, offsets.d(experts + 1), gate.d_stack(), up.d_stack(), weight.d(rows), limit},
        {h.d(rows, columns)});
  });
  if (!exact) return;
  const auto got_y = y.fetch(), got_h = h.fetch();
  grouped_activation_linear<T, D, W, X>::by_ops(gpu(), work(), {dx, offsets.d(experts + 1), gate.d_stack()},
                                                {y.d(rows, columns)});
  grouped_gated_linear<T, D, W, X>::by_ops(
      gpu(), work(), {dx, offsets.d(experts + 1), gate.d_stack(), up.d_stack(), weight.d(rows), limit},
      {h.d(rows, columns)});
  CHECK(same_bytes(got_y, y.fetch()));
  CHECK(same_bytes(got_h, h.fetch()));
}

/// Weights and rows of x whose scales are far from 1, together or against each other; sums in double decide.
void check_scales(std::int64_t rows, std::int64_t experts, std::int64_t inner, std::int64_t columns) {
  INFO(rows << " rows of " << experts << ", " << inner << " x " << columns);
  constexpr std::int64_t block = mxfp4::block_columns;
  constexpr std::uint8_t far[] = {0, 1, 20, 127, 200, 252, 255};
  stored<mxfp4> w(experts, columns, inner, 2);
  for (std::int64_t i = 0; i < w.scales.size(); ++i) {
    const std::int64_t row = i / (inner / block), at = i % (inner / block);
    std::uint8_t code = far[row % 6];                     // of all of a row,
    if (row % 7 == 3 && at % 2) code = far[row / 7 % 6];  // of every other block,
    if (row % 5 == 4 && at == row % 3) code = far[6];     // NaN
    w.scales.host[i] = e8m0::from_bits(code);
  }
  copy_elements(gpu().stream(), w.scales.host.data(), w.scales.device.data(), w.scales.size());
  auto x = random<bf16>(rows * inner, 1);
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t i = 0; i < inner; ++i)
      x.host[r * inner + i] = bf16(float(x.host[r * inner + i]) * (r % 3 == 1   ? 0x1p100f
                                                                   : r % 3 == 2 ? 0x1p-20f
                                                                                : 1.f));
  copy_elements(gpu().stream(), x.host.data(), x.device.data(), x.size());
  buffer<std::int64_t> ends(experts + 1);
  for (std::int64_t e = 0; e <= experts; ++e) ends[e] = rows * e / experts;
  twin<std::int64_t> offsets(std::move(ends));
  auto y = poison<bf16>(rows * columns);
  const auto got = run_twice(y, [&] {
    grouped_activation_linear<bf16, D, mxfp4, fp8_activation>::forward(
        gpu(), work(), {x.d(rows, inner), offsets.d(experts + 1), w.d_stack()}, {y.d(rows, columns)});
  });

  buffer<std::uint8_t> x_codes(rows * inner);
  buffer<e8m0> x_scales(rows * fp8_activation::scale_columns(inner));
  const block_scaled_matrix<fp8_activation> rounded(x_codes.data(), x_scales.data(), rows, inner);
  const auto wide = widened(x.host);
  quantise<fp8_activation, float>::forward(exec::reference{}, {wide.as(rows, inner)}, {rounded});
  std::int64_t wrong = 0, numbers = 0;
  for (std::int64_t e = 0; e < experts; ++e)
    for (std::int64_t r = offsets.host[e]; r < offsets.host[e + 1]; ++r)
      for (std::int64_t c = 0; c < columns; ++c) {
        const auto& m = w.host_table[e];
        double sum = 0, all = 0, largest = 0;  // of all terms; the largest of every block
        for (std::int64_t b = 0; b < inner; b += block) {
          double most = 0;
          for (std::int64_t i = b; i < b + block; ++i) {
            const double term = double(float(mxfp4::get(m.row(c), i))) * float(m.row_scales(c)[i / block]) *
                                float(rounded(r, i));
            sum += term, all += std::abs(term), most = std::fmax(most, std::abs(term));
          }
          largest += most;
        }
        const double is = double(got[r * columns + c]);
        if (std::isnan(sum)) {
          wrong += !std::isnan(is);
        } else if (all < 0x1p126) {  // no partial sum overflows
          // A product of 32 channels keeps 13 bits below its largest term. The smallest step of bf16 is
          // 2^-133, of float 2^-149.
          const double limit = tolerance<bf16>(double(inner)) * std::abs(sum) +
                               0x1p-23 * double(inner) * all + double(block) * 0x1p-13 * largest + 0x1p-133;
          wrong += !(std::abs(is - sum) <= limit);
          ++numbers;
        }
      }
  CHECK(wrong == 0);
  CHECK(numbers > rows * columns / 3);
}

}  // namespace

TEST_CASE("activation_linear, pairs and gates: cuda equals the ops they are rows of") {
  for (const std::int64_t rows : {1, 3, 6, 16, 40})
    for (const std::int64_t inner : {96, 128, 1280}) {
      check_rows<fp8_weight, fp8_activation>(rows, inner, 24, 130, false);
      check_rows<mxfp4, fp8_activation>(rows, inner, 72, 8, false);
      check_rows<bf16, bf16>(rows, inner, 40, 9, false);
    }
  check_rows<fp8_weight, fp8_activation>(1, 1280, 4096, 4098, true);
  check_rows<fp8_weight, fp8_activation>(5, 640, 16384, 8192, true);
  check_rows<mxfp4, fp8_activation>(1, 128, 4096, 4096, true);
  check_rows<mxfp4, fp8_activation>(1, 256, 26000, 8, false);  // several times 64 rows of weights a warpgroup
}

TEST_CASE("grouped_activation_linear and grouped_gated_linear: cuda equals the ops they are rows of") {
  for (const std::int64_t rows : {1, 6, 40, 1100})
    for (const std::int64_t experts : {1, 8, 64}) {
      check_grouped<mxfp4, fp8_activation>(rows, experts, 256, 48, false);
      check_grouped<bf16, bf16>(rows, experts, 72, 24, false);
    }
  check_grouped<fp8_weight, fp8_activation>(6, 12, 384, 40, false);
  check_grouped<mxfp4, fp8_activation>(6, 256, 128, 1024, true);
  // So many columns that a warpgroup has 64 rows of weights at a time.
  check_grouped<mxfp4, fp8_activation>(6, 48, 512, 1500, true);
  check_grouped<mxfp4, fp8_activation>(6, 48, 768, 1476, true, 1);
}

TEST_CASE("grouped_activation_linear: scales at the ends of their range") {
  check_scales(6, 12, 512, 1500);  // rows on their own
  check_scales(40, 2, 512, 300);   // tiles of rows
}
