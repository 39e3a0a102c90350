// SPDX-License-Identifier: Apache-2.0
#include "support/device.cuh"
#include <dsv4/train/cuda/muon.cuh>

#include <span>
#include <vector>

using namespace dsv4;
using namespace dsv4::testing;

namespace {
/// `count` matrices with weights, gradients and momenta, on both sides.
template <class T, class M>
struct problem {
  std::int64_t count, rows, columns;
  twin<T> weight, gradient;
  twin<M> momentum;
  problem(std::int64_t n, std::int64_t r, std::int64_t c)
      : count(n),
        rows(r),
        columns(c),
        weight(random<T>(n * r * c, 1)),
        gradient(random<T>(n * r * c, 2)),
        momentum(random<M>(n * r * c, 3)) {}

  template <space S>
  std::vector<muon_matrix<T, M, S>> matrices() {
    const auto all = [&](auto& t) {
      if constexpr (S == D)
        return t.d(count, rows, columns);
      else
        return t.h(count, rows, columns);
    };
    std::vector<muon_matrix<T, M, S>> list;
    for (std::int64_t b = 0; b < count; ++b)
      list.push_back({all(weight)[b], all(gradient)[b], all(momentum)[b]});
    return list;
  }
};
}  // namespace

// Roundings: the momentum two products and a sum, u as many again. A bf16 momentum may be rounded the other
// way, which u then has too.
TEMPLATE_TEST_CASE("muon: momentum and weights, cuda equals reference", "", float, double, bf16) {
  using M = TestType;
  using T = std::conditional_t<std::is_same_v<M, bf16>, float, M>;
  struct shape {
    std::int64_t count, rows, columns;
  };
  for (const shape s : {shape{1, 1, 1}, shape{3, 7, 5}, shape{150, 4, 33}, shape{2, 130, 257}})
    for (const bool nesterov : {true, false}) {
      INFO(s.count << " x " << s.rows << " x " << s.columns << (nesterov ? ", nesterov" : ""));
      problem<T, M> a(s.count, s.rows, s.columns);
      const auto on_host = a.template matrices<space::host>();
      const auto on_device = a.template matrices<D>();
      const std::int64_t size = s.count * s.rows * s.columns;
      auto u = poison<T>(size), o = random<T>(size, 4);
      muon_momentum<T, M>::forward(exec::reference{}, {on_host, 0.95, nesterov, 0.5},
                                   {u.h(s.count, s.rows, s.columns)});
      const auto run = [&] {
        a.momentum.reset();
        muon_momentum<T, M, D>::forward(gpu(), {on_device, 0.95, nesterov, 0.5},
                                        {u.d(s.count, s.rows, s.columns)});
      };
      check_close(u, tolerance<M>(6), run);
      check_close(a.momentum, tolerance<M>(3), run);

      muon_apply<T, M>::forward(exec::reference{}, {on_host, o.h(s.count, s.rows, s.columns), 0.02, 0.1, 3},
                                {});
      check_close(a.weight, tolerance<T>(4), [&] {
        muon_apply<T, M, D>::forward(gpu(), {on_device, o.d(s.count, s.rows, s.columns), 0.02, 0.1, 3}, {});
      });
    }
}

// Random 20 x 33 matrices have condition numbers of about 10 (tests/train/muon.test.cpp): an update of
// 0.01 x 0.18 sqrt(33) times what Newton-Schulz may differ by.
TEMPLATE_TEST_CASE("muon: a step, cuda equals reference, in parts or at once", "", float, double) {
  using T = TestType;
  problem<T, T> a(5, 20, 33);
  const auto on_host = a.template matrices<space::host>();
  const auto on_device = a.template matrices<D>();
  muon<T, T>(exec::reference{}, host_work(), std::span<const muon_matrix<T, T>>(on_host), 0.01);
  muon_options parts;
  parts.batch_bytes = 2 * 20 * 33 * std::int64_t{sizeof(T)};
  for (const muon_options& options : {muon_options{}, parts}) {
    check_close(a.weight, tolerance<T>(0.0103 * 8 * 100 + 6), [&] {
      a.momentum.reset();
      muon<T, T, D>(gpu(), work(), std::span<const muon_matrix<T, T, D>>(on_device), 0.01, options);
    });
  }
}
