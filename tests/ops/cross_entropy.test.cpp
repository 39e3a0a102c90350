// SPDX-License-Identifier: Apache-2.0
// Cross-entropy from hidden states, and its gradients.
#include "support/gradient_case.hpp"
#include <dsv4/numeric/bf16.hpp>

#include <type_traits>

using namespace dsv4;
using namespace dsv4::testing;

namespace {

struct cross_entropy_case {
  std::int64_t n, vocabulary, width;
  double size = 1;

  std::vector<std::int32_t> targets() const {
    std::vector<std::int32_t> t;
    for (std::int64_t i = 0; i < n; ++i)
      t.push_back(i % 4 == 2 ? -1 : static_cast<std::int32_t>((i * 7 + vocabulary - 1) % vocabulary));
    return t;
  }
  template <class T>
  std::vector<operand<T>> inputs() const {
    std::vector<operand<T>> in;
    in.push_back(input<T>("hidden", role::overwritten, n * width, 1, 2 * size));
    in.push_back(input<T>("head", role::added, vocabulary * width, 2));
    return in;
  }
  std::vector<std::int64_t> outputs() const { return {n}; }
  template <class T, class P>
  void forward(const P& p, workspace& w, const pointers<const T>& in, const pointers<T>& out) const {
    const auto t = targets();
    cross_entropy<T>::forward(p, w, {as(in[0], n, width), as(in[1], vocabulary, width), {t.data(), n}},
                              {vector_view<T>(out[0], n)});
  }
  template <class T, class P>
  void backward(const P& p, workspace& w, const pointers<const T>& in, const pointers<const T>& dy,
                const pointers<T>& g) const {
    const auto t = targets();
    buffer<T> loss(n), lse = poison<T>(n);
    const typename cross_entropy<T>::inputs a{
        as(in[0], n, width), as(in[1], vocabulary, width), {t.data(), n}};
    const vector_view<T> sums(lse.data(), n);
    cross_entropy<T>::forward(p, w, a, {{loss.data(), n}}, {sums});
    cross_entropy<T>::backward(p, w, a, {sums}, {as(dy[0], n)},
                               {as(g[0], n, width), as(g[1], vocabulary, width)});
  }
};

}  // namespace

TEST_CASE("cross_entropy: backward") {
  for (std::int64_t n : {0, 1, 7})
    for (std::int64_t vocabulary : {1, 13}) check_backward(cross_entropy_case{n, vocabulary, 5}, 256);
  // Several tiles of rows and of the vocabulary.
  check_cpu<float>(cross_entropy_case{1100, 40, 6}, 2048);
  check_cpu<double>(cross_entropy_case{30, 2500, 9}, 4096);
  check_cpu<float>(cross_entropy_case{30, 2500, 9, 20}, 1 << 16);  // logits of size 100
}

TEMPLATE_TEST_CASE("cross_entropy: by hand; masked rows have neither loss nor gradient", "", float, double) {
  using T = TestType;
  T hidden[] = {1, 5}, head[] = {0, T(std::log(3))}, loss[2], lse[2], dloss[] = {2, 2}, dhidden[2],
    dhead[] = {10, 0};
  const std::int32_t targets[] = {1, -1};
  const auto check = [&](const auto& p) {
    workspace w;
    dhead[0] = 10, dhead[1] = 0;
    const typename cross_entropy<T>::inputs in{{hidden, 2, 1}, {head, 2, 1}, {targets, 2}};
    cross_entropy<T>::forward(p, w, in, {{loss, 2}}, {{lse, 2}});
    cross_entropy<T>::backward(p, w, in, {{lse, 2}}, {{dloss, 2}}, {{dhidden, 2, 1}, {dhead, 2, 1}});
    CHECK(double(loss[0]) == Catch::Approx(std::log(4.0 / 3)));
    CHECK(loss[1] == 0);
    CHECK(double(lse[0]) == Catch::Approx(std::log(4)));
    CHECK(double(dhidden[0]) == Catch::Approx(2 * (-0.25) * std::log(3)));
    CHECK(dhidden[1] == 0);
    CHECK(double(dhead[0]) == Catch::Approx(10 + 2 * 0.25));
    CHECK(double(dhead[1]) == Catch::Approx(-2 * 0.25));
  };
  check(exec::reference{});
  check(exec::cpu(2));
}

TEMPLATE_TEST_CASE("cross_entropy: huge logits neither overflow nor lose the gradient", "", float, double) {
  using T = TestType;
  // Logits 1000, 999 and -1000: the target is the second.
  T hidden[] = {1000}, head[] = {1, T(0.999), -1}, loss[1], lse[1], dloss[] = {T(1e30)}, dhead[3] = {};
  const std::int32_t targets[] = {1};
  workspace w;
  const typename cross_entropy<T>::inputs in{{hidden, 1, 1}, {head, 3, 1}, {targets, 1}};
  cross_entropy<T>::forward(exec::cpu(1), w, in, {{loss, 1}}, {{lse, 1}});
  cross_entropy<T>::backward(exec::cpu(1), w, in, {{lse, 1}}, {{dloss, 1}}, {{}, {dhead, 3, 1}});
  const double p = 1 / (1 + std::exp(-1.0));  // of the first; float logits of 1000 are off by 1e-4
  CHECK(double(loss[0]) == Catch::Approx(-std::log(1 - p)).epsilon(1e-3));
  CHECK(double(dhead[0]) == Catch::Approx(1e33 * p).epsilon(1e-3));
  CHECK(double(dhead[1]) == Catch::Approx(-1e33 * p).epsilon(1e-3));
  CHECK(dhead[2] == 0);
}

TEST_CASE("cross_entropy: a head in bf16 has the loss and gradients of its exact values") {
  const std::int64_t n = 9, vocabulary = 30, width = 11;
  const auto hidden = random<float>(n * width, 1), raw = random<float>(vocabulary * width, 2);
  buffer<bf16> head(raw.size());
  buffer<float> exact(raw.size());
  for (std::int64_t i = 0; i < raw.size(); ++i)
    head[i] = bf16(raw[i]), exact[i] = static_cast<float>(head[i]);
  std::vector<std::int32_t> targets(9, 5);
  const auto dloss = random<float>(n, 3);
  workspace w;
  buffer<float> loss[2] = {buffer<float>(n), buffer<float>(n)}, lse[2] = {buffer<float>(n), buffer<float>(n)},
                dhidden[2] = {buffer<float>(n * width), buffer<float>(n * width)},
                dhead[2] = {buffer<float>(raw.size()), buffer<float>(raw.size())};
  const auto run = [&]<class W>(const buffer<W>& weights, int i) {
    const typename cross_entropy<float, space::host, W>::inputs in{
        hidden.as(n, width), weights.as(vocabulary, width), {targets.data(), n}};
    using op = cross_entropy<float, space::host, W>;
    op::forward(exec::cpu(2), w, in, {loss[i].as(n)}, {lse[i].as(n)});
    op::backward(exec::cpu(2), w, in, {lse[i].as(n)}, {dloss.as(n)},
                 {dhidden[i].as(n, width), dhead[i].as(vocabulary, width)});
  };
  run(head, 0);
  run(exact, 1);
  CHECK(same(loss[0], loss[1]));
  CHECK(same(dhidden[0], dhidden[1]));
  CHECK(same(dhead[0], dhead[1]));
}

TEST_CASE("cross_entropy: memory does not grow with rows times vocabulary") {
  const std::int64_t n = 3000, vocabulary = 5000, width = 4;
  const auto hidden = random<float>(n * width, 1), head = random<float>(vocabulary * width, 2);
  std::vector<std::int32_t> targets(static_cast<std::size_t>(n), 1);
  buffer<float> loss(n), lse(n), dhidden(n * width), dhead(vocabulary * width);
  const auto dloss = random<float>(n, 3);
  workspace w;
  const cross_entropy<float>::inputs in{hidden.as(n, width), head.as(vocabulary, width), {targets.data(), n}};
  cross_entropy<float>::forward(exec::cpu(2), w, in, {loss.as(n)}, {lse.as(n)});
  cross_entropy<float>::backward(exec::cpu(2), w, in, {lse.as(n)}, {dloss.as(n)},
                                 {dhidden.as(n, width), dhead.as(vocabulary, width)});
  CHECK(w.high_water() < 5 << 20);  // a tile of 1024 x 1024, and three numbers per row
}

TEMPLATE_TEST_CASE("cross_entropy: both passes at once have the bits of one after the other", "", float,
                   double) {
  using T = TestType;
  // One tile, several of rows and of the vocabulary, and more logits than are kept; exponentials in double
  // take their time.
  for (const auto& c :
       {cross_entropy_case{0, 5, 3}, {7, 13, 5}, {1100, 1300, 3}, {30, 2500, 9}, {1024, 17000, 1}}) {
    const std::int64_t n = c.n, vocabulary = c.vocabulary, width = c.width;
    CAPTURE(n, vocabulary);
    const std::int64_t size = n * vocabulary;
    if (std::is_same_v<T, double> && size > 100'000) continue;
    const auto targets = c.targets();
    const auto hidden = random<T>(n * width, 1), head = random<T>(vocabulary * width, 2),
               dloss = random<T>(n, 3);
    const typename cross_entropy<T>::inputs in{
        hidden.as(n, width), head.as(vocabulary, width), {targets.data(), n}};
    const auto compare = [&](const auto& p) {
      const auto before = [&] { return random<T>(vocabulary * width, 4); };
      buffer<T> loss[2] = {poison<T>(n), poison<T>(n)},
                dhidden[2] = {poison<T>(n * width), poison<T>(n * width)}, dhead[2] = {before(), before()},
                lse(n);
      workspace w;
      cross_entropy<T>::forward(p, w, in, {loss[0].as(n)}, {lse.as(n)});
      cross_entropy<T>::backward(p, w, in, {lse.as(n)}, {dloss.as(n)},
                                 {dhidden[0].as(n, width), dhead[0].as(vocabulary, width)});
      cross_entropy<T>::forward_backward(p, w, in, {loss[1].as(n)}, {dloss.as(n)},
                                         {dhidden[1].as(n, width), dhead[1].as(vocabulary, width)});
      CHECK(same(loss[0], loss[1]));
      CHECK(same(dhidden[0], dhidden[1]));
      CHECK(same(dhead[0], dhead[1]));
      // Each gradient alone.
      dhead[1] = before();
      cross_entropy<T>::forward_backward(p, w, in, {loss[1].as(n)}, {dloss.as(n)},
                                         {{}, dhead[1].as(vocabulary, width)});
      CHECK(same(dhead[0], dhead[1]));
      dhidden[1] = poison<T>(n * width);
      cross_entropy<T>::forward_backward(p, w, in, {loss[1].as(n)}, {dloss.as(n)},
                                         {dhidden[1].as(n, width), {}});
      CHECK(same(dhidden[0], dhidden[1]));
      CHECK(w.high_water() < (std::size_t{64} << 20) + (std::size_t{12} << 20));  // logits; tiles
    };
    if (size < 1000) compare(exec::reference{});
    compare(exec::cpu(2));
    if (size < 10'000'000)
      for (int threads : {1, 4}) compare(exec::cpu(threads));
  }
}

TEST_CASE("cross_entropy: a target outside of the vocabulary is refused") {
  workspace w;
  double hidden[] = {1}, head[] = {1, 2}, loss[1];
  const std::int32_t targets[] = {2};
  CHECK_THROWS_WITH(cross_entropy<double>::forward(exec::cpu(1), w,
                                                   {{hidden, 1, 1}, {head, 2, 1}, {targets, 1}}, {{loss, 1}}),
                    contains("cross_entropy: targets[0]: expected below 2, found 2"));
}
