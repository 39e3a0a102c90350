// SPDX-License-Identifier: Apache-2.0
// The backward of sparse attention: against central differences, cpu against reference, threads, the rule of
// docs/notation.md, and what a query must not see.
#include "support/gradient_case.hpp"

#include <cstring>

using namespace dsv4;
using namespace dsv4::testing;

namespace {

struct attention_case {
  std::int64_t n, heads, dim, window, ratio, first_position = 0;
  std::int64_t k = 0;  ///< selected entries per query; 0: all visible ones
  double size = 1;

  std::int64_t first_local() const { return std::max<std::int64_t>(0, first_position - window + 1); }
  std::int64_t locals() const { return first_position + n - first_local(); }
  std::int64_t entries() const { return ratio ? (first_position + n) / ratio + 1 : 0; }  // one is never seen

  /// Visible entries, each at most once per query, some places empty.
  std::vector<std::int32_t> selection() const {
    std::vector<std::int32_t> s;
    for (std::int64_t t = 0; t < n; ++t) {
      const std::int64_t visible = (first_position + t + 1) / ratio;
      for (std::int64_t j = 0; j < k; ++j) {
        const std::int64_t e = visible - 1 - j - (j + t) % 3 * k;
        s.push_back(e >= 0 && (t + j) % 5 != 0 ? static_cast<std::int32_t>(e) : -1);
      }
    }
    return s;
  }
  template <class T>
  std::vector<operand<T>> inputs() const {
    std::vector<operand<T>> in;
    in.push_back(input<T>("q", role::overwritten, n * heads * dim, 1, 2 * size));
    in.push_back(input<T>("local", role::overwritten, locals() * dim, 2, 2));
    in.push_back(input<T>("sinks", role::added, heads, 3, 2));
    if (ratio) in.push_back(input<T>("compressed", role::overwritten, entries() * dim, 4, 2));
    return in;
  }
  std::vector<std::int64_t> outputs() const { return {n * heads * dim}; }
  template <class T>
  typename sparse_attention<T>::inputs arguments(const pointers<const T>& in,
                                                 const std::vector<std::int32_t>& selected) const {
    typename sparse_attention<T>::inputs a{as(in[0], n, heads, dim),
                                           as(in[1], locals(), dim),
                                           {},
                                           {},
                                           as(in[2], heads),
                                           first_position,
                                           first_local(),
                                           window,
                                           ratio,
                                           0.7 / std::sqrt(double(dim))};
    if (ratio) a.compressed = as(in[3], entries(), dim);
    if (k) a.selected = {selected.data(), n, k};
    return a;
  }
  template <class T, class P>
  void forward(const P& p, workspace&, const pointers<const T>& in, const pointers<T>& out) const {
    const auto s = k ? selection() : std::vector<std::int32_t>();
    sparse_attention<T>::forward(p, arguments<T>(in, s), {as(out[0], n, heads, dim)});
  }
  template <class T, class P>
  void backward(const P& p, workspace& w, const pointers<const T>& in, const pointers<const T>& dy,
                const pointers<T>& g) const {
    const auto s = k ? selection() : std::vector<std::int32_t>();
    buffer<T> o(n * heads * dim), lse = poison<T>(n * heads);
    const auto a = arguments<T>(in, s);
    const tensor_view<T> output(o.data(), n, heads, dim);
    const matrix_view<T> sums(lse.data(), n, heads);
    sparse_attention<T>::forward(p, a, {output}, {sums, {}});
    sparse_attention<T>::backward(p, w, a, {sums, output}, {as(dy[0], n, heads, dim)},
                                  {as(g[0], n, heads, dim), as(g[1], locals(), dim),
                                   ratio ? as(g[3], entries(), dim) : matrix_view<T>(), as(g[2], heads)});
  }
};

}  // namespace

TEST_CASE("attention: backward, every kind of candidate set") {
  for (std::int64_t n : {1, 2, 3, 7}) {
    check_backward(attention_case{n, 3, 5, 4, 0}, 512);
    check_backward(attention_case{n, 2, 6, 3, 2}, 512);
    check_backward(attention_case{n, 2, 6, 3, 2, 0, 2}, 512);
  }
  check_backward(attention_case{0, 2, 6, 3, 2}, 1);
  check_backward(attention_case{5, 2, 7, 3, 2, 9}, 512);  // a chunk in the middle of a sequence
  check_backward(attention_case{5, 2, 7, 3, 2, 9, 3}, 512);
  check_backward(attention_case{6, 1, 1, 1, 1}, 512);
}

TEST_CASE("attention: backward of several groups, blocks and tiles") {
  // Roundings: float scores of size 10 or so enter exponents, hence the large number of terms.
  check_cpu<float>(attention_case{300, 8, 33, 100, 4}, 4096);
  check_cpu<double>(attention_case{300, 8, 33, 100, 4}, 4096);
  check_cpu<float>(attention_case{300, 3, 40, 70, 4, 0, 66}, 4096);
  check_cpu<double>(attention_case{300, 3, 40, 70, 4, 0, 66}, 4096);
  check_cpu<double>(attention_case{70, 130, 8, 9, 16, 200}, 4096);
  check_cpu<float>(attention_case{600, 1, 12, 700, 0}, 4096);
}

TEMPLATE_TEST_CASE("attention: the saved log-sum-exp includes the sink", "", float, double) {
  using T = TestType;
  // Scores ln 1 and ln 2, sink ln 4: log 7.
  T q[] = {1}, local[] = {0, T(std::log(2))}, sink[] = {T(std::log(4))}, o[1], lse[1];
  const auto check = [&](const auto& p) {
    sparse_attention<T>::forward(p, {{q, 1, 1, 1}, {local, 2, 1}, {}, {}, {sink, 1}, 1, 0, 2, 0, 1.0},
                                 {{o, 1, 1, 1}}, {{lse, 1, 1}, {}});
    CHECK(double(lse[0]) == Catch::Approx(std::log(7)));
  };
  check(exec::reference{});
  check(exec::cpu(2));
}

TEMPLATE_TEST_CASE("attention: backward by hand: one key, one sink", "", float, double) {
  using T = TestType;
  // s = q k = 2, weight p = e^2 / (e^2 + e); do = 3: o = p k, do . k = 6, delta = 6 p.
  T q[] = {1}, local[] = {2}, sink[] = {1}, d[] = {3}, o[1], lse[1], dq[1], dk[1], dsink[] = {100};
  const double p = 1 / (1 + std::exp(-1.0));
  const auto check = [&](const auto& policy) {
    workspace w;
    dsink[0] = 100;
    const typename sparse_attention<T>::inputs in{{q, 1, 1, 1}, {local, 1, 1}, {}, {}, {sink, 1}, 0, 0, 1, 0,
                                                  1.0};
    sparse_attention<T>::forward(policy, in, {{o, 1, 1, 1}}, {{lse, 1, 1}, {}});
    sparse_attention<T>::backward(policy, w, in, {{lse, 1, 1}, {o, 1, 1, 1}}, {{d, 1, 1, 1}},
                                  {{dq, 1, 1, 1}, {dk, 1, 1}, {}, {dsink, 1}});
    const double ds = p * (6 - 6 * p);
    CHECK(double(dq[0]) == Catch::Approx(2 * ds));
    CHECK(double(dk[0]) == Catch::Approx(p * 3 + ds * 1));
    CHECK(double(dsink[0]) == Catch::Approx(100 - (1 - p) * 6 * p));
  };
  check(exec::reference{});
  check(exec::cpu(1));
}

TEMPLATE_TEST_CASE("attention: what no query sees gets exactly zero, from any later gradient", "", float,
                   double) {
  using T = TestType;
  const attention_case c{64, 3, 16, 10, 4};
  auto in = c.inputs<T>();
  buffer<T> dy(64 * 3 * 16);
  const std::int64_t last = 39;  // only queries up to here have a gradient
  for (std::int64_t i = 0; i < (last + 1) * 3 * 16; ++i) dy[i] = T(i % 7) - 3;
  std::vector<buffer<T>> up;
  up.push_back(std::move(dy));
  const auto check = [&](const auto& p) {
    const auto g = testing::detail::gradients_of<T>(c, p, in, up);
    for (std::int64_t i = (last + 1) * 16; i < g[1].size(); ++i) CHECK(g[1][i] == 0);
    for (std::int64_t i = (last + 1) / 4 * 16; i < g[3].size(); ++i) CHECK(g[3][i] == 0);
    CHECK(g[1][last * 16] != 0);
    CHECK(g[3][((last + 1) / 4 - 1) * 16] != 0);
  };
  check(exec::reference{});
  check(exec::cpu(2));
}

TEST_CASE("attention: large upstream gradients and scores stay finite and right") {
  const attention_case sharp{40, 2, 16, 20, 4, 0, 0, 30};  // scores of size 100: nearly one key each
  // Scores of size 100 in float are off by 1e-5, and so are weights, relatively.
  auto in = sharp.inputs<float>();
  const auto dy = testing::detail::upstream_of<float>(sharp, 1e20);
  const auto a = testing::detail::gradients_of<float>(sharp, exec::reference{}, in, dy);
  const auto b = testing::detail::gradients_of<float>(sharp, exec::cpu(2), in, dy);
  for (std::size_t i = 0; i < a.size(); ++i) CHECK(testing::detail::array_error(b[i], a[i]) < 1e-3);
  check_cpu<double>(sharp, 1 << 16);
}

TEST_CASE("attention: backward refuses what does not fit") {
  workspace w;
  double x[8] = {};
  const sparse_attention<double>::inputs in{{x, 2, 1, 2}, {x, 2, 2}, {}, {}, {x, 1}, 0, 0, 2, 0, 1.0};
  CHECK_THROWS_WITH(sparse_attention<double>::backward(exec::cpu(1), w, in, {}, {{x, 2, 1, 2}}, {}),
                    contains("sparse_attention: lse rows: expected 2, found 0"));
  CHECK_THROWS_WITH(sparse_attention<double>::backward(exec::cpu(1), w, in, {{x, 2, 1}, {x, 2, 1, 2}},
                                                       {{x, 2, 1, 2}}, {{}, {x, 1, 2}, {}, {}}),
                    contains("sparse_attention: dlocal extent 0: expected 2, found 1"));
}
