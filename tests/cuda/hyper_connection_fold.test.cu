// SPDX-License-Identifier: Apache-2.0
#include "support/device.cuh"
#include <dsv4/ops/cuda/hyper_connection_fold.cuh>

using namespace dsv4;
using namespace dsv4::testing;

namespace {

/// The same numbers in double.
template <class T>
buffer<double> wide(const buffer<T>& from) {
  buffer<double> to(from.size());
  for (std::int64_t i = 0; i < from.size(); ++i) to[i] = double(from[i]);
  return to;
}
double largest(const buffer<double>& b) {
  double most = 0;
  for (const double v : b) most = std::max(most, std::abs(v));
  return most;
}
/// Largest |a - b| / (1 + |b|), b being in double.
template <class T>
double difference(const buffer<T>& a, const buffer<double>& b) {
  return dsv4::testing::difference(wide(a), b);
}

/// A fold's arguments on both sides: for the device in T, for the reference the same numbers in double.
template <class T>
struct fold_case {
  std::int64_t rows, n, width, segments, mixes;
  twin<T> x, fn, base, scale, norm, z, v, dnext, du, dpost, dcomb;
  buffer<double> wide_x, wide_fn, wide_base, wide_scale, wide_norm;

  fold_case(std::int64_t rows_, std::int64_t n_, std::int64_t width_, bool head = false)
      : rows(rows_),
        n(n_),
        width(width_),
        segments(head ? 1 : 3),
        mixes(head ? n : (2 + n) * n),
        x(random<T>(rows * n * width, 1)),
        fn(random<T>(mixes * n * width, 2, 1 / std::sqrt(double(width)))),
        base(random<T>(mixes, 3)),
        scale(random<T>(segments, 4)),
        norm(random<T>(width, 5)),
        z(random<T>(rows * mixes, 6, 2)),
        v(random<T>(rows * width, 7)),
        dnext(random<T>(rows * n * width, 8)),
        du(random<T>(rows * width, 9)),
        dpost(random<T>(rows * n, 10)),
        dcomb(random<T>(rows * n * n, 11)),
        wide_x(wide(x.host)),
        wide_fn(wide(fn.host)),
        wide_base(wide(base.host)),
        wide_scale(wide(scale.host)),
        wide_norm(wide(norm.host)) {}

  static constexpr double norm_eps = 1e-6, eps = 1e-6;
  int iterations() const { return segments == 3 ? 20 : 0; }
  typename hyper_connection_fold<T, D>::inputs d() {
    return {x.d(rows, n, width),
            fn.d(mixes, n * width),
            base.d(mixes),
            scale.d(segments),
            norm.d(width),
            norm_eps,
            eps,
            iterations()};
  }
  hyper_connection_fold<double>::inputs h() {
    return {wide_x.as(rows, n, width),
            wide_fn.as(mixes, n * width),
            wide_base.as(mixes),
            wide_scale.as(segments),
            wide_norm.as(width),
            norm_eps,
            eps,
            iterations()};
  }
};

/// rows, width: all paths of the kernels, several tokens and tiles per block, half-filled tiles and slices.
constexpr std::int64_t sizes[][2] = {{1, 8},      {3, 64},     {16, 128},   {33, 1000},
                                     {393, 4096}, {1500, 136}, {300, 7168}, {2, 8192}};

}  // namespace

// The kernels keep everything in float and round once, to half a unit; the reference is in double. Terms are
// those of the ops: gates of 20 Sinkhorn iterations, and sums over rows.
TEST_CASE("hyper_connection_fold: four bf16 streams, cuda equals the ops in double") {
  for (const auto& [rows, width] : sizes)
    for (const bool head : {false, true}) {
      INFO(rows << " x " << width << (head ? ", head" : ""));
      fold_case<bf16> a(rows, 4, width, head);
      const std::int64_t n = 4, others = head ? 0 : rows;
      auto z = poison<bf16>(rows * a.mixes), u = poison<bf16>(rows * width), post = poison<bf16>(others * n),
           comb = poison<bf16>(others * n * n);
      const auto run = [&] {
        hyper_connection_fold<bf16, D>::forward(gpu(), work(), a.d(),
                                                {u.d(rows, width), post.d(others, n), comb.d(others, n, n)},
                                                {z.d(rows, a.mixes), {}, {}});
      };
      run_twice(u, run);
      buffer<double> wide_z(rows * a.mixes), wide_u(rows * width), wide_pre(rows * n), wide_post(others * n),
          wide_comb(others * n * n);
      linear<double>::forward(exec::reference{},
                              {a.wide_x.as(rows, n * width), a.wide_fn.as(a.mixes, n * width)},
                              {wide_z.as(rows, a.mixes)});
      CHECK(difference(z.fetch(), wide_z) <= tolerance<bf16>(double(n * width)));
      // All the rest follows from the z that was rounded.
      const buffer<double> rounded = wide(z.fetch());
      hyper_connection_gates<double>::forward(
          exec::reference{}, hyper_connection_fold<double>::gates(a.h(), rounded.as(rows, a.mixes)),
          {wide_pre.as(rows, n), wide_post.as(others, n), wide_comb.as(others, n, n)});
      hyper_connection_collapse<double>::forward(
          exec::reference{}, {a.wide_x.as(rows, n, width), wide_pre.as(rows, n)}, {wide_u.as(rows, width)});
      rms_norm<double>::forward(exec::reference{}, {wide_u.as(rows, width), a.wide_norm.as(width), 1e-6},
                                {wide_u.as(rows, width)});
      const double limit = unit<bf16> / 2 + (double(width) + 100) * unit<float>;
      CHECK(difference(u.fetch(), wide_u) <= limit);
      CHECK(difference(post.fetch(), wide_post) <= limit);
      CHECK(difference(comb.fetch(), wide_comb) <= limit);
    }
}

TEST_CASE("hyper_connection_reopen: four bf16 streams, cuda equals the ops in double") {
  for (const auto& [rows, width] : sizes) {
    INFO(rows << " x " << width);
    fold_case<bf16> a(rows, 4, width);
    auto u = poison<bf16>(rows * width), dv = poison<bf16>(rows * width), dpost = poison<bf16>(rows * 4),
         dcomb = poison<bf16>(rows * 16);
    const auto run = [&] {
      hyper_connection_reopen<bf16, D>::forward(
          gpu(), work(), {a.d(), a.z.d(rows, 24), a.v.d(rows, width), a.dnext.d(rows, 4, width)},
          {u.d(rows, width), dv.d(rows, width), dpost.d(rows, 4), dcomb.d(rows, 4, 4), {}, {}, {}});
    };
    run_twice(u, run);
    buffer<double> z = wide(a.z.host), v = wide(a.v.host), dnext = wide(a.dnext.host);
    buffer<double> wide_u(rows * width), wide_dv(rows * width), wide_dpost(rows * 4), wide_dcomb(rows * 16);
    hyper_connection_reopen<double>::forward(
        exec::reference{}, host_work(), {a.h(), z.as(rows, 24), v.as(rows, width), dnext.as(rows, 4, width)},
        {wide_u.as(rows, width),
         wide_dv.as(rows, width),
         wide_dpost.as(rows, 4),
         wide_dcomb.as(rows, 4, 4),
         {},
         {},
         {}});
    const double limit = unit<bf16> / 2 + (double(width) + 100) * unit<float>;
    CHECK(difference(u.fetch(), wide_u) <= limit);
    CHECK(difference(dv.fetch(), wide_dv) <= limit);
    CHECK(difference(dpost.fetch(), wide_dpost) <= limit);
    CHECK(difference(dcomb.fetch(), wide_dcomb) <= limit);
  }
}

// dz is rounded before it is multiplied, by at most 2^-9 of itself or a little more at a power of two, as the
// product of matrices of bf16 needs it: dx has 24 such terms, dfn as many as rows.
TEST_CASE("hyper_connection_fold: gradients, four bf16 streams, cuda equals the ops in double") {
  for (const auto& [rows, width] : sizes) {
    INFO(rows << " x " << width);
    const std::int64_t n = 4;
    fold_case<bf16> a(rows, n, width);
    auto dx = poison<bf16>(rows * n * width), dfn = random<bf16>(24 * n * width, 21),
         dbase = random<bf16>(24, 22), dscale = random<bf16>(3, 23), dnorm = random<bf16>(width, 24);
    buffer<double> z = wide(a.z.host), du = wide(a.du.host), dpost = wide(a.dpost.host),
                   dcomb = wide(a.dcomb.host), dnext = wide(a.dnext.host);
    buffer<double> wide_dx(rows * n * width), wide_dfn = wide(dfn.host), wide_dbase = wide(dbase.host),
                                              wide_dscale = wide(dscale.host), wide_dnorm = wide(dnorm.host);
    hyper_connection_fold<double>::backward(
        exec::reference{}, host_work(), a.h(), {z.as(rows, 24), {}, {}},
        {du.as(rows, width), dpost.as(rows, n), dcomb.as(rows, n, n), dnext.as(rows, n, width)},
        {wide_dx.as(rows, n, width), wide_dfn.as(24, n * width), wide_dbase.as(24), wide_dscale.as(3),
         wide_dnorm.as(width)});
    // How large dz is: the gradient of a product with ones.
    buffer<double> dz(rows * 24), pre(rows * n), sum(rows * width), dsum(rows * width), dpre(rows * n);
    const auto gates = hyper_connection_fold<double>::gates(a.h(), z.as(rows, 24));
    {
      buffer<double> post(rows * n), comb(rows * n * n);
      hyper_connection_gates<double>::forward(exec::reference{}, gates,
                                              {pre.as(rows, n), post.as(rows, n), comb.as(rows, n, n)});
    }
    hyper_connection_collapse<double>::forward(
        exec::reference{}, {a.wide_x.as(rows, n, width), pre.as(rows, n)}, {sum.as(rows, width)});
    rms_norm<double>::backward(exec::reference{}, host_work(),
                               {sum.as(rows, width), a.wide_norm.as(width), 1e-6}, {du.as(rows, width)},
                               {dsum.as(rows, width), {}});
    hyper_connection_collapse<double>::backward(exec::reference{}, host_work(),
                                                {a.wide_x.as(rows, n, width), pre.as(rows, n)},
                                                {dsum.as(rows, width)}, {{}, dpre.as(rows, n)});
    hyper_connection_gates<double>::backward(exec::reference{}, host_work(), gates,
                                             {dpre.as(rows, n), dpost.as(rows, n), dcomb.as(rows, n, n)},
                                             {{}, dz.as(rows, 24), {}, {}});
    const double rounding = unit<bf16> / 2 * largest(dz), most_fn = largest(a.wide_fn),
                 terms = (double(n * width) + 300) * unit<float> * std::max(1.0, largest(dz));

    const auto backward = [&](tensor_view<const bf16, D> from, tensor_view<bf16, D> to) {
      hyper_connection_fold<bf16, D>::backward(
          gpu(), work(), a.d(), {a.z.d(rows, 24), {}, {}},
          {a.du.d(rows, width), a.dpost.d(rows, n), a.dcomb.d(rows, n, n), from},
          {to, dfn.d(24, n * width), dbase.d(24), dscale.d(3), dnorm.d(width)});
    };
    const auto run = [&] { backward(a.dnext.d(rows, n, width), dx.d(rows, n, width)); };
    const auto close = [&](twin<bf16>& y, const buffer<double>& expected, double limit) {
      CHECK(difference(run_twice(y, run), expected) <= limit);
    };
    close(dx, wide_dx, unit<bf16> / 2 + 24 * rounding * most_fn + terms);
    close(dfn, wide_dfn, unit<bf16> / 2 + double(rows) * (rounding + unit<float>)+terms);
    close(dbase, wide_dbase, unit<bf16> / 2 + double(rows) * terms);
    close(dscale, wide_dscale, unit<bf16> / 2 + double(rows) * terms);
    close(dnorm, wide_dnorm, unit<bf16> / 2 + double(rows) * terms);
    const buffer<bf16> own = run_twice(dx, run);
    const buffer<bf16> same =
        run_twice(a.dnext, [&] { backward(a.dnext.d(rows, n, width), a.dnext.d(rows, n, width)); });
    CHECK(same_bytes(own, same));  // dx may be dnext
    a.dnext.reset();
  }
}

TEST_CASE("hyper_connection_fold: a gradient that is not wanted changes no other") {
  const std::int64_t rows = 33, n = 4, width = 136;
  fold_case<bf16> a(rows, n, width);
  auto dx = poison<bf16>(rows * n * width), dfn = random<bf16>(24 * n * width, 21),
       dnorm = random<bf16>(width, 24);
  const auto run = [&](matrix_view<bf16, D> fn, vector_view<bf16, D> norm) {
    hyper_connection_fold<bf16, D>::backward(
        gpu(), work(), a.d(), {a.z.d(rows, 24), {}, {}},
        {a.du.d(rows, width), a.dpost.d(rows, n), a.dcomb.d(rows, n, n), a.dnext.d(rows, n, width)},
        {dx.d(rows, n, width), fn, {}, {}, norm});
  };
  const buffer<bf16> all = run_twice(dx, [&] { run(dfn.d(24, n * width), dnorm.d(width)); });
  CHECK(same_bytes(all, run_twice(dx, [&] { run({}, {}); })));
}

// Other numbers of streams, widths and types: the ops one by one, with the bits that these have.
TEMPLATE_TEST_CASE("hyper_connection_fold: where no kernel fits, the device's ops", "", float, double, bf16) {
  using T = TestType;
  for (const std::int64_t n : {1, 2, 4, 6, 16})
    for (const std::int64_t width : {5, 64}) {
      if (std::is_same_v<T, bf16> && n == 4 && width == 64) continue;  // one does
      const std::int64_t rows = 9, mixes = (2 + n) * n;
      INFO("n = " << n << ", " << rows << " x " << width);
      using op = hyper_connection_fold<T, D>;
      fold_case<T> a(rows, n, width);
      auto z = poison<T>(rows * mixes), u = poison<T>(rows * width), post = poison<T>(rows * n),
           comb = poison<T>(rows * n * n), dx = poison<T>(rows * n * width);
      const typename op::outputs out{u.d(rows, width), post.d(rows, n), comb.d(rows, n, n)};
      const auto one = run_twice(u, [&] {
        op::forward(gpu(), work(), a.d(), out, {z.d(rows, mixes), {}, {}});
      });
      const auto other = run_twice(u, [&] {
        op::by_ops(gpu(), work(), a.d(), out, {z.d(rows, mixes), {}, {}});
      });
      CHECK(same_bytes(one, other));
      const typename op::upstream up{a.du.d(rows, width), a.dpost.d(rows, n), a.dcomb.d(rows, n, n),
                                     a.dnext.d(rows, n, width)};
      const typename op::gradients g{dx.d(rows, n, width), {}, {}, {}, {}};
      const auto back = run_twice(dx, [&] {
        op::backward(gpu(), work(), a.d(), {z.d(rows, mixes), {}, {}}, up, g);
      });
      const auto by_ops = run_twice(dx, [&] {
        op::backward_by_ops(gpu(), work(), a.d(), {z.d(rows, mixes), {}, {}}, up, g);
      });
      CHECK(same_bytes(back, by_ops));
    }
}
