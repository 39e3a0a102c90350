// SPDX-License-Identifier: Apache-2.0
#include "support/catch.hpp"
#include "support/compare.hpp"
#include <dsv4/cpu.hpp>
#include <dsv4/train/cpu/opd_loss.hpp>

#include <cmath>
#include <vector>

using namespace dsv4;
using namespace dsv4::testing;

namespace {
/// A student and teachers of different widths.
template <class T>
struct problem {
  std::int64_t rows, width, vocabulary;
  buffer<T> hidden, head;
  std::vector<buffer<T>> teacher_hidden, teacher_head, weights;

  problem(std::int64_t n, std::int64_t d, std::int64_t v, std::vector<std::int64_t> teachers, double size = 1)
      : rows(n), width(d), vocabulary(v), hidden(random<T>(n * d, 1, size)), head(random<T>(v * d, 2, size)) {
    for (std::size_t i = 0; i < teachers.size(); ++i) {
      teacher_hidden.push_back(random<T>(n * teachers[i], 10 + i, size));
      teacher_head.push_back(random<T>(v * teachers[i], 20 + i, size));
      weights.push_back(random<T>(n, 30 + i));
      for (T& w : weights.back()) w = T(0.5) + w / 2;
    }
  }
  std::vector<opd_teacher<T>> teachers() const {
    std::vector<opd_teacher<T>> all;
    for (std::size_t i = 0; i < weights.size(); ++i) {
      const std::int64_t d = teacher_hidden[i].size() / rows;
      all.push_back({teacher_hidden[i].as(rows, d), teacher_head[i].as(vocabulary, d), weights[i].as(rows)});
    }
    return all;
  }
  struct result {
    double loss;
    buffer<T> losses, dhidden, dhead;
  };
  template <class P>
  result run(const P& p, double scale = 1, std::int64_t tile = 1024, bool gradients = true) const {
    workspace w;
    const auto all = teachers();
    result r{0, poison<T>(rows), poison<T>(rows * width), buffer<T>(vocabulary * width)};
    r.loss =
        opd_loss<T>::forward(p, w, {hidden.as(rows, width), head.as(vocabulary, width), all, scale, tile},
                             {r.losses.as(rows), gradients ? r.dhidden.as(rows, width) : matrix_view<T>{},
                              gradients ? r.dhead.as(vocabulary, width) : matrix_view<T>{}});
    return r;
  }
};

std::vector<double> log_softmax(const std::vector<double>& z) {
  double top = z[0], sum = 0;
  for (double v : z) top = std::max(top, v);
  for (double v : z) sum += std::exp(v - top);
  std::vector<double> lp;
  for (double v : z) lp.push_back(v - top - std::log(sum));
  return lp;
}

/// One token; hidden states are the logits themselves, under an identity head.
struct logits_problem {
  std::vector<double> student;
  std::vector<std::vector<double>> teachers;
  std::vector<double> weights;

  double run(std::vector<double>& dz) const {
    const auto v = static_cast<std::int64_t>(student.size());
    buffer<double> identity(v * v), losses(1);
    for (std::int64_t i = 0; i < v; ++i) identity[i * v + i] = 1;
    std::vector<opd_teacher<double>> all;
    for (std::size_t i = 0; i < teachers.size(); ++i)
      all.push_back({{teachers[i].data(), 1, v}, identity.as(v, v), {&weights[i], 1}});
    dz.assign(student.size(), NAN);
    workspace w;
    return opd_loss<double>::forward(exec::reference{}, w, {{student.data(), 1, v}, identity.as(v, v), all},
                                     {losses.as(1), {dz.data(), 1, v}, {}});
  }
};

std::vector<double> numbers(std::int64_t count, std::uint64_t seed, double size) {
  const auto b = random<double>(count, seed, size);
  return {b.begin(), b.end()};
}
}  // namespace

TEST_CASE("opd_loss: the loss and its gradient by definition") {
  const logits_problem p{
      numbers(9, 1, 2), {numbers(9, 2, 2), numbers(9, 3, 3), numbers(9, 4, 1)}, {0.5, 0.2, 1.1}};
  std::vector<double> dz;
  const double loss = p.run(dz);
  const auto lp = log_softmax(p.student);
  double want = 0;
  std::vector<double> m(9);
  for (std::size_t i = 0; i < 3; ++i) {
    const auto lq = log_softmax(p.teachers[i]);
    for (std::size_t v = 0; v < 9; ++v) {
      want += p.weights[i] * std::exp(lp[v]) * (lp[v] - lq[v]);
      m[v] += p.weights[i] * lq[v];
    }
  }
  CHECK(loss == Catch::Approx(want).epsilon(1e-13));
  double sum = 0;
  for (std::size_t v = 0; v < 9; ++v) {
    CHECK(std::abs(dz[v] - std::exp(lp[v]) * (1.8 * lp[v] - m[v] - want)) < 1e-14);
    sum += dz[v];
  }
  CHECK(std::abs(sum) < 1e-14);  // logits may shift freely
}

TEST_CASE("opd_loss: the expectation of the token-level estimator is the full-vocabulary gradient") {
  const logits_problem p{numbers(16, 5, 3), {numbers(16, 6, 3)}, {1}};
  std::vector<double> dz, expected(16);
  p.run(dz);
  const auto lp = log_softmax(p.student), lq = log_softmax(p.teachers[0]);
  for (std::size_t y = 0; y < 16; ++y)  // a sampled token y pushes by its advantage
    for (std::size_t v = 0; v < 16; ++v)
      expected[v] += std::exp(lp[y]) * (lp[y] - lq[y]) * ((v == y ? 1.0 : 0.0) - std::exp(lp[v]));
  for (std::size_t v = 0; v < 16; ++v) CHECK(std::abs(dz[v] - expected[v]) < 1e-14);
}

TEST_CASE("opd_loss: many teachers are one, the geometric mean") {
  const std::vector<double> weights{0.3, 0.9, 0.4};
  const double total = 1.6;
  const logits_problem many{
      numbers(12, 7, 2), {numbers(12, 8, 2), numbers(12, 9, 2), numbers(12, 10, 2)}, weights};
  std::vector<double> mean(12), a, b;
  for (std::size_t i = 0; i < 3; ++i) {
    const auto lq = log_softmax(many.teachers[i]);
    for (std::size_t v = 0; v < 12; ++v) mean[v] += weights[i] * lq[v] / total;
  }
  const logits_problem one{many.student, {mean}, {total}};
  const double loss = many.run(a);
  double rest = 0;
  for (double v : mean) rest += std::exp(v);
  CHECK(loss == Catch::Approx(one.run(b) - total * std::log(rest)).epsilon(1e-13));
  for (std::size_t v = 0; v < 12; ++v) CHECK(std::abs(a[v] - b[v]) < 1e-14);
}

TEST_CASE("opd_loss: a student that is its teacher has nothing to learn") {
  const auto z = numbers(20, 11, 5);
  auto shifted = z;
  for (double& v : shifted) v += 100;  // the same distribution
  std::vector<double> dz;
  CHECK(std::abs(logits_problem{z, {shifted, z}, {0.4, 0.6}}.run(dz)) < 1e-12);
  for (double g : dz) CHECK(std::abs(g) < 1e-13);
}

TEST_CASE("opd_loss: gradients of hidden states and head, by differences") {
  problem<double> p(3, 4, 11, {5, 3});
  p.weights[1][2] = 0;                    // a token that only one teacher knows
  p.weights[0][1] = p.weights[1][1] = 0;  // and one that is masked
  const double scale = 0.7;
  const auto r = p.run(exec::reference{}, scale, 4);
  const auto check = [&](buffer<double>& x, const buffer<double>& dx) {
    for (std::int64_t i = 0; i < x.size(); ++i) {
      const double at = x[i], h = 1e-5;
      x[i] = at + h;
      const double above = p.run(exec::reference{}, scale, 1024, false).loss;
      x[i] = at - h;
      const double below = p.run(exec::reference{}, scale, 1024, false).loss;
      x[i] = at;
      CHECK(std::abs(dx[i] - (above - below) / (2 * h)) < 1e-9);  // h^2, and rounding over h
    }
  };
  check(p.hidden, r.dhidden);
  check(p.head, r.dhead);
  CHECK(r.losses[1] == 0);
  for (std::int64_t i = 0; i < 4; ++i) CHECK(r.dhidden[4 + i] == 0);
}

TEMPLATE_TEST_CASE("opd_loss: cpu equals reference; tiles and threads", "", float, double) {
  using T = TestType;
  const problem<T> p(13, 24, 700, {24, 40}, 0.7);
  const auto want = p.run(exec::reference{}, 0.5, 700), got = p.run(exec::cpu(1), 0.5, 256);
  // Logits of up to 20 products, each below 1/2, and their differences; sums over 700 in lanes of eight.
  const double tolerance = rounding<T>(64);
  CHECK(std::abs(got.loss - want.loss) <= tolerance * (1 + std::abs(want.loss)));
  CHECK(relative_error(got.losses, want.losses) <= tolerance);
  CHECK(relative_error(got.dhidden, want.dhidden) <= tolerance);
  CHECK(relative_error(got.dhead, want.dhead) <= tolerance);
  for (std::int64_t tile : {1, 100, 699, 700, 5000})
    CHECK(relative_error(p.run(exec::cpu(2), 0.5, tile).dhidden, want.dhidden) <= tolerance);
  for (int threads : {2, 3, 8}) {
    const auto many = p.run(exec::cpu(threads), 0.5, 256);
    CHECK(many.loss == got.loss);
    CHECK(same(many.losses, got.losses));
    CHECK(same(many.dhidden, got.dhidden));
    CHECK(same(many.dhead, got.dhead));
  }
}

TEST_CASE(
    "opd_loss: gradients of the head are added to, those of hidden states are not; both may be absent") {
  const problem<double> p(2, 3, 5, {3});
  const auto once = p.run(exec::cpu(1));
  workspace w;
  const auto all = p.teachers();
  buffer<double> losses(2), dhead(15);
  for (double& v : dhead) v = 1;
  const opd_loss<double>::inputs in{p.hidden.as(2, 3), p.head.as(5, 3), all};
  CHECK(opd_loss<double>::forward(exec::cpu(1), w, in, {losses.as(2), {}, dhead.as(5, 3)}) == once.loss);
  for (std::int64_t i = 0; i < 15; ++i) CHECK(dhead[i] == Catch::Approx(1 + once.dhead[i]).epsilon(1e-14));
  auto dhidden = poison<double>(6);
  opd_loss<double>::forward(exec::cpu(1), w, in, {losses.as(2), dhidden.as(2, 3), {}});
  CHECK(same(dhidden, once.dhidden));
}

TEST_CASE("opd_loss: memory does not grow with the vocabulary") {
  const auto needed = [](std::int64_t vocabulary, std::vector<std::int64_t> teachers) {
    const problem<float> p(4, 8, vocabulary, std::move(teachers));
    workspace w;
    const auto all = p.teachers();
    buffer<float> losses(4), dhidden(32);
    opd_loss<float>::forward(exec::cpu(1), w, {p.hidden.as(4, 8), p.head.as(vocabulary, 8), all, 1, 128},
                             {losses.as(4), dhidden.as(4, 8), {}});
    return w.high_water();
  };
  CHECK(needed(2000, {8}) == needed(200, {8}));
  CHECK(needed(2000, {8, 8, 8, 8, 8}) < needed(2000, {8}) + 1024);
}

TEST_CASE("opd_loss: what it refuses") {
  problem<float> p(2, 3, 5, {4});
  auto all = p.teachers();
  workspace w;
  buffer<float> losses(2);
  all[0].head = matrix_view<const float>(p.teacher_head[0].data(), 4, 4);
  CHECK_THROWS_WITH(opd_loss<float>::forward(exec::cpu(1), w, {p.hidden.as(2, 3), p.head.as(5, 3), all},
                                             {losses.as(2), {}, {}}),
                    contains("opd_loss: teacher head rows: expected 5, found 4"));
}
