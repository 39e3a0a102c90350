// SPDX-License-Identifier: Apache-2.0
// The indexer's loss and its gradients, dense and sparse.
#include "support/gradient_case.hpp"

using namespace dsv4;
using namespace dsv4::testing;

namespace {

struct indexer_case {
  std::int64_t n, heads, dim, index_heads, index_dim, ratio, k = 0, first_position = 0;
  bool sink = false;

  std::int64_t entries() const { return (first_position + n) / ratio + 1; }
  std::vector<std::int32_t> selection() const {
    std::vector<std::int32_t> s;
    for (std::int64_t t = 0; t < n; ++t)
      for (std::int64_t j = 0; j < k; ++j) {
        const std::int64_t e = (first_position + t + 1) / ratio - 1 - j - t % 3;
        s.push_back(e >= 0 && (t + j) % 5 != 0 ? static_cast<std::int32_t>(e) : -1);
      }
    return s;
  }
  template <class T>
  std::vector<operand<T>> inputs() const {
    std::vector<operand<T>> in;
    in.push_back(input<T>("q", role::none, n * heads * dim, 1, 2));
    in.push_back(input<T>("compressed", role::none, entries() * dim, 2, 2));
    in.push_back(input<T>("sinks", role::none, heads, 3));
    in.push_back(input<T>("index_q", role::overwritten, n * index_heads * index_dim, 4));
    in.push_back(input<T>("index_keys", role::overwritten, entries() * index_dim, 5));
    in.push_back(input<T>("index_weights", role::overwritten, n * index_heads, 6));
    return in;
  }
  std::vector<std::int64_t> outputs() const { return {n}; }
  template <class T>
  typename indexer_loss<T>::inputs arguments(const pointers<const T>& in,
                                             const std::vector<std::int32_t>& selected) const {
    typename indexer_loss<T>::inputs a{as(in[0], n, heads, dim),
                                       as(in[1], entries(), dim),
                                       as(in[2], heads),
                                       as(in[3], n, index_heads, index_dim),
                                       as(in[4], entries(), index_dim),
                                       as(in[5], n, index_heads),
                                       {},
                                       first_position,
                                       ratio,
                                       0.8,
                                       1.7,
                                       sink};
    if (k) a.selected = {selected.data(), n, k};
    return a;
  }
  template <class T, class P>
  void forward(const P& p, workspace&, const pointers<const T>& in, const pointers<T>& out) const {
    const auto s = selection();
    indexer_loss<T>::forward(p, arguments<T>(in, s), {vector_view<T>(out[0], n)});
  }
  template <class T, class P>
  void backward(const P& p, workspace& w, const pointers<const T>& in, const pointers<const T>& dy,
                const pointers<T>& g) const {
    const auto s = selection();
    indexer_loss<T>::backward(
        p, w, arguments<T>(in, s), {as(dy[0], n)},
        {as(g[3], n, index_heads, index_dim), as(g[4], entries(), index_dim), as(g[5], n, index_heads)});
  }
};

}  // namespace

TEST_CASE("indexer_loss: backward, dense and sparse, with and without the sink") {
  for (bool sink : {false, true}) {
    // Small steps: a ReLU may be near. T < ratio: no entry is complete, all gradients are zero.
    for (std::int64_t n : {1, 3, 11}) check_backward(indexer_case{n, 3, 4, 2, 5, 4, 0, 0, sink}, 1024);
    check_backward(indexer_case{9, 2, 4, 3, 5, 2, 3, 7, sink}, 1024);
  }
  check_cpu<float>(indexer_case{200, 3, 20, 5, 16, 2}, 4096);
  check_cpu<double>(indexer_case{200, 3, 20, 5, 16, 2, 70}, 4096);
}

TEMPLATE_TEST_CASE("indexer_loss: cpu equals reference", "", float, double) {
  using T = TestType;
  for (std::int64_t k : {0, 66})
    for (bool sink : {false, true}) {
      const indexer_case c{150, 3, 9, 4, 7, 1, k, 20, sink};
      auto in = c.inputs<T>();
      pointers<const T> p;
      for (auto& o : in) p.push_back(o.values.data());
      auto a = poison<T>(c.n), b = poison<T>(c.n);
      workspace w;
      c.forward<T>(exec::reference{}, w, p, {a.data()});
      c.forward<T>(exec::cpu(2), w, p, {b.data()});
      CHECK(relative_error(b, a) <= rounding<T>(256));
      for (T v : a) CHECK(v > 0);
    }
}

TEMPLATE_TEST_CASE("indexer_loss: by hand", "", float, double) {
  using T = TestType;
  // Two entries; scores ln 1 and ln 3 in one head, sink ln 4; index scores 0 and ln 2.
  T q[] = {T(std::log(3))}, compressed[] = {0, 1}, sink[] = {T(std::log(4))}, iq[] = {T(std::log(2))},
    keys[] = {-1, 1}, weight[] = {1}, loss[1];
  const auto at = [&](const auto& p, bool with_sink) {
    indexer_loss<T>::forward(p,
                             {{q, 1, 1, 1},
                              {compressed, 2, 1},
                              {sink, 1},
                              {iq, 1, 1, 1},
                              {keys, 2, 1},
                              {weight, 1, 1},
                              {},
                              1,
                              1,
                              1.0,
                              1.0,
                              with_sink},
                             {{loss, 1}});
    return double(loss[0]);
  };
  // p = (1/4, 3/4) whether or not a single head's sink takes a part; softmax(I) = (1/3, 2/3).
  const double want = 0.25 * std::log(0.25 * 3) + 0.75 * std::log(0.75 * 1.5);
  for (bool with_sink : {false, true}) {
    CHECK(at(exec::reference{}, with_sink) == Catch::Approx(want));
    CHECK(at(exec::cpu(1), with_sink) == Catch::Approx(want));
  }
}

TEST_CASE("indexer_loss: with the sink, heads that look at it weigh less") {
  // Head 0 prefers entry 0, head 1 entry 1 and has a huge sink: the target is head 0's.
  double q[] = {5, -5}, compressed[] = {1, -1}, sink[] = {-50, 60}, iq[] = {1}, keys[] = {1, 2},
         weight[] = {1}, dloss[] = {1}, dkeys[2];
  workspace w;
  indexer_loss<double>::backward(exec::reference{}, w,
                                 {{q, 1, 2, 1},
                                  {compressed, 2, 1},
                                  {sink, 2},
                                  {iq, 1, 1, 1},
                                  {keys, 2, 1},
                                  {weight, 1, 1},
                                  {},
                                  1,
                                  1,
                                  1.0,
                                  1.0,
                                  true},
                                 {{dloss, 1}}, {{}, {dkeys, 2, 1}, {}});
  const double estimate = 1 / (1 + std::exp(1.0));  // of entry 0
  CHECK(dkeys[0] == Catch::Approx(estimate - 1).margin(1e-4));
  CHECK(dkeys[1] == Catch::Approx(1 - estimate).margin(1e-4));
}

TEST_CASE("indexer_loss: an indexer that agrees has neither loss nor gradient") {
  // The index scores are the attention's scores: one head, positive dot products, equal scales.
  const auto q = random<double>(8, 1), k = random<double>(6 * 8, 2);
  buffer<double> up(8), keys(6 * 8), dq(8), loss(1);
  for (int i = 0; i < 8; ++i) up[i] = std::abs(q[i]);
  for (int i = 0; i < 48; ++i) keys[i] = std::abs(k[i]);
  double weight[] = {1}, dloss[] = {1};
  workspace w;
  const indexer_loss<double>::inputs in{
      up.as(1, 1, 8), keys.as(6, 8), {}, up.as(1, 1, 8), keys.as(6, 8), {weight, 1, 1}, {}, 5, 1, 1.3, 1.3};
  indexer_loss<double>::forward(exec::cpu(1), in, {loss.as(1)});
  indexer_loss<double>::backward(exec::cpu(1), w, in, {{dloss, 1}}, {dq.as(1, 1, 8), {}, {}});
  CHECK(std::abs(loss[0]) < 1e-15);
  for (double d : dq) CHECK(std::abs(d) < 1e-15);
}
