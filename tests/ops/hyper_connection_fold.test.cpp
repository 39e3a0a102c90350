// SPDX-License-Identifier: Apache-2.0
#include "support/catch.hpp"
#include "support/compare.hpp"
#include <dsv4/ops/hyper_connection_fold.hpp>
#include <dsv4/train/grad_check.hpp>

using namespace dsv4;
using namespace dsv4::testing;

namespace {

template <class T>
struct fold_case {
  std::int64_t rows, n, width, mixes = (2 + n) * n;
  buffer<T> x = random<T>(rows * n * width, 1), fn = random<T>(mixes * n * width, 2, 0.3),
            base = random<T>(mixes, 3), scale = random<T>(3, 4), norm = random<T>(width, 5),
            v = random<T>(rows * width, 6), du = random<T>(rows * width, 7),
            dnext = random<T>(rows * n * width, 8);

  typename hyper_connection_fold<T>::inputs in() const {
    return {x.as(rows, n, width),
            fn.as(mixes, n * width),
            base.as(mixes),
            scale.as(3),
            norm.as(width),
            1e-6,
            1e-4,
            20};
  }
};

}  // namespace

TEMPLATE_TEST_CASE("hyper_connection_fold and _reopen: the bits of the ops they are made of", "", float,
                   double) {
  using T = TestType;
  const std::int64_t rows = 7, n = 4, width = 33;
  const fold_case<T> a{rows, n, width};
  const auto bits = [&](const auto& p) {
    workspace w;
    auto z = poison<T>(rows * a.mixes), pre = poison<T>(rows * n), post = poison<T>(rows * n),
         comb = poison<T>(rows * n * n), u = poison<T>(rows * width);
    linear<T>::forward(p, {a.x.as(rows, n * width), a.fn.as(a.mixes, n * width)}, {z.as(rows, a.mixes)});
    hyper_connection_gates<T>::forward(
        p, {a.x.as(rows, n, width), z.as(rows, a.mixes), a.base.as(a.mixes), a.scale.as(3), 1e-6, 1e-4, 20},
        {pre.as(rows, n), post.as(rows, n), comb.as(rows, n, n)});
    hyper_connection_collapse<T>::forward(p, {a.x.as(rows, n, width), pre.as(rows, n)}, {u.as(rows, width)});
    rms_norm<T>::forward(p, {u.as(rows, width), a.norm.as(width), 1e-6}, {u.as(rows, width)});

    auto own_z = poison<T>(z.size()), own_u = poison<T>(u.size()), own_post = poison<T>(post.size()),
         own_comb = poison<T>(comb.size());
    hyper_connection_fold<T>::forward(p, w, a.in(),
                                      {own_u.as(rows, width), own_post.as(rows, n), own_comb.as(rows, n, n)},
                                      {own_z.as(rows, a.mixes), {}, {}});
    CHECK(same(own_z, z));
    CHECK(same(own_u, u));
    CHECK(same(own_post, post));
    CHECK(same(own_comb, comb));

    auto dx = poison<T>(a.x.size()), dv = poison<T>(u.size()), dpost = poison<T>(post.size()),
         dcomb = poison<T>(comb.size());
    hyper_connection_expand<T>::backward(
        p, w, {a.x.as(rows, n, width), a.v.as(rows, width), post.as(rows, n), comb.as(rows, n, n)},
        {a.dnext.as(rows, n, width)},
        {dx.as(rows, n, width), dv.as(rows, width), dpost.as(rows, n), dcomb.as(rows, n, n)});
    auto own_dx = copy(a.dnext), own_dv = poison<T>(u.size()), own_dpost = poison<T>(post.size()),
         own_dcomb = poison<T>(comb.size());
    hyper_connection_reopen<T>::forward(
        p, w, {a.in(), z.as(rows, a.mixes), a.v.as(rows, width), own_dx.as(rows, n, width)},
        {own_u.as(rows, width),
         own_dv.as(rows, width),
         own_dpost.as(rows, n),
         own_dcomb.as(rows, n, n),
         own_dx.as(rows, n, width),
         {},
         {}});
    CHECK(same(own_u, u));
    CHECK(same(own_dx, dx));
    CHECK(same(own_dv, dv));
    CHECK(same(own_dpost, dpost));
    CHECK(same(own_dcomb, dcomb));
  };
  bits(exec::reference{});
  bits(exec::cpu{3});
}

TEST_CASE("hyper_connection_fold: gradients of a whole site, dx given before or at the end") {
  const std::int64_t rows = 3, n = 4, width = 6;
  fold_case<double> a{rows, n, width};
  workspace w;
  const exec::reference p;
  auto z = poison<double>(rows * a.mixes), u = poison<double>(rows * width), post = poison<double>(rows * n),
       comb = poison<double>(rows * n * n), next = poison<double>(a.x.size());
  const auto loss = [&] {  // sum(u du) + sum(X' dX')
    hyper_connection_fold<double>::forward(p, w, a.in(),
                                           {u.as(rows, width), post.as(rows, n), comb.as(rows, n, n)},
                                           {z.as(rows, a.mixes), {}, {}});
    hyper_connection_expand<double>::forward(
        p, {a.x.as(rows, n, width), a.v.as(rows, width), post.as(rows, n), comb.as(rows, n, n)},
        {next.as(rows, n, width)});
    double sum = 0;
    for (std::int64_t i = 0; i < u.size(); ++i) sum += u[i] * a.du[i];
    for (std::int64_t i = 0; i < next.size(); ++i) sum += next[i] * a.dnext[i];
    return sum;
  };
  loss();
  buffer<double> first;
  for (const bool at_once : {true, false}) {
    buffer<double> dx = copy(a.dnext), dfn(a.fn.size()), dbase(a.mixes), dscale(3), dnorm(width),
                   dv(rows * width), dpost(rows * n), dcomb(rows * n * n), pre(rows * n), sum(rows * width);
    for (auto* b : {&dfn, &dbase, &dscale, &dnorm}) std::fill(b->begin(), b->end(), 0.0);
    const tensor_view<double> all = dx.as(rows, n, width), none;
    hyper_connection_reopen<double>::forward(
        p, w, {a.in(), z.as(rows, a.mixes), a.v.as(rows, width), all},
        {u.as(rows, width), dv.as(rows, width), dpost.as(rows, n), dcomb.as(rows, n, n), at_once ? none : all,
         at_once ? matrix_view<double>() : pre.as(rows, n),
         at_once ? matrix_view<double>() : sum.as(rows, width)});
    hyper_connection_fold<double>::backward(
        p, w, a.in(),
        {z.as(rows, a.mixes), at_once ? matrix_view<double>() : pre.as(rows, n),
         at_once ? matrix_view<double>() : sum.as(rows, width)},
        {a.du.as(rows, width), dpost.as(rows, n), dcomb.as(rows, n, n), at_once ? all : none},
        {all, dfn.as(a.mixes, n * width), dbase.as(a.mixes), dscale.as(3), dnorm.as(width), !at_once});
    const auto worst = grad_check(loss, {{"x", a.x, dx},
                                         {"fn", a.fn, dfn},
                                         {"base", a.base, dbase},
                                         {"scale", a.scale, dscale},
                                         {"norm", a.norm, dnorm}});
    INFO(worst.text());
    CHECK(worst.error < 1e-7);
    if (at_once)
      first = copy(dx);
    else
      CHECK(same(first, dx));
  }
}

TEST_CASE("hyper_connection_fold: extents that do not fit") {
  const std::int64_t rows = 2, n = 4, width = 6;
  const fold_case<double> a{rows, n, width};
  workspace w;
  auto z = poison<double>(rows * a.mixes), u = poison<double>(rows * width);
  auto in = a.in();
  in.norm = in.norm.rows(0, width - 1);
  CHECK_THROWS_WITH(hyper_connection_fold<double>::forward(
                        exec::reference{}, w, in, {u.as(rows, width), {}, {}}, {z.as(rows, a.mixes), {}, {}}),
                    contains("hyper_connection_fold") && contains("norm"));
  in = a.in();
  in.fn = in.fn.rows(0, 23);
  CHECK_THROWS_WITH(hyper_connection_fold<double>::forward(
                        exec::reference{}, w, in, {u.as(rows, width), {}, {}}, {z.as(rows, a.mixes), {}, {}}),
                    contains("hyper_connection_fold") && contains("fn rows"));
  const auto du = a.du.as(rows, width);
  const auto dnext = a.dnext.as(rows, n, width);
  CHECK_THROWS_WITH(
      hyper_connection_fold<double>::backward(exec::reference{}, w, a.in(), {z.as(rows, a.mixes), {}, {}},
                                              {du, {}, {}, dnext}, {{}, {}, {}, {}, {}, true}),
      contains("add_to_dx"));
}
