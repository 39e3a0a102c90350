// SPDX-License-Identifier: Apache-2.0
#include "support/catch.hpp"
#include <dsv4/core/error.hpp>
#include <dsv4/ops/cpu/index_topk.hpp>
#include <dsv4/ops/index_topk.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <random>
#include <vector>

namespace {

using dsv4::index_topk;
using dsv4::matrix_view;
using dsv4::tensor_view;
using dsv4::exec::cpu;
using dsv4::exec::reference;
using dsv4::testing::contains;
using entries = std::vector<std::int32_t>;

template <class T, class P>
entries select(const P& p, const typename index_topk<T>::inputs& in, std::int64_t k) {
  entries selected(static_cast<std::size_t>(in.q.extent[0] * k), 12345);
  index_topk<T>::forward(p, in, {matrix_view<std::int32_t>(selected.data(), in.q.extent[0], k)});
  return selected;
}

/// One query that sees all of `scores`: one head, one channel, q = weight = 1, so scores must not be
/// negative.
template <class T, class P>
entries select_scores(const P& p, std::vector<T> scores, std::int64_t k) {
  std::vector<T> one{T(1)};
  const auto visible = static_cast<std::int64_t>(scores.size());
  return select<T>(p,
                   {tensor_view<T>(one.data(), 1, 1, 1), matrix_view<T>(scores.data(), visible, 1),
                    matrix_view<T>(one.data(), 1, 1), visible - 1, 1},
                   k);
}

/// The k largest, ties to the lower index, ascending, -1 behind.
template <class T>
entries best_of(const std::vector<T>& scores, std::int64_t k) {
  entries order(scores.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<std::int32_t>(i);
  std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
    return scores[std::size_t(a)] > scores[std::size_t(b)];
  });
  order.resize(std::min(order.size(), static_cast<std::size_t>(k)));
  std::sort(order.begin(), order.end());
  order.resize(static_cast<std::size_t>(k), -1);
  return order;
}

/// Runs `check` with the reference and with several numbers of threads.
void with_policies(
    const std::function<void(const std::function<entries(std::vector<double>, std::int64_t)>&)>& check) {
  check([](std::vector<double> s, std::int64_t k) { return select_scores<double>(reference{}, s, k); });
  for (const int threads : {1, 2, 4}) {
    const cpu p(threads);
    check([&](std::vector<double> s, std::int64_t k) { return select_scores<double>(p, s, k); });
    check([&](std::vector<double> s, std::int64_t k) {
      return select_scores<float>(p, std::vector<float>(s.begin(), s.end()), k);
    });
  }
}

}  // namespace

TEMPLATE_TEST_CASE("two heads by hand: a negative dot product counts as nothing", "[index_topk]", float,
                   double) {
  using T = TestType;
  // Dots of head 0 with the keys: 1, 3, -2, 0; of head 1: 2, -5, 4, 0. Weights 1 and 0.5.
  // Scores 1 + 1 = 2, 3 + 0 = 3, 0 + 2 = 2, 0. Without the cut at zero entry 1 would score 0.5, entry 2 0.
  std::vector<T> q{1, 0, 0, 1}, keys{1, 2, 3, -5, -2, 4, 0, 0}, weights{T(1), T(0.5)};
  const typename index_topk<T>::inputs in{tensor_view<T>(q.data(), 1, 2, 2),
                                          matrix_view<T>(keys.data(), 4, 2),
                                          matrix_view<T>(weights.data(), 1, 2), 15, 4};
  const auto check = [&](const auto& p) {
    CHECK(select<T>(p, in, 1) == entries{1});
    CHECK(select<T>(p, in, 2) == entries{0, 1});  // 0 and 2 tie
    CHECK(select<T>(p, in, 3) == entries{0, 1, 2});
    CHECK(select<T>(p, in, 6) == entries{0, 1, 2, 3, -1, -1});
    auto earlier = in;
    earlier.first_position = 14;  // entry 3 is not complete
    CHECK(select<T>(p, earlier, 4) == entries{0, 1, 2, -1});
    earlier.first_position = 2;
    CHECK(select<T>(p, earlier, 2) == entries{-1, -1});
    auto negative = in;
    std::vector<T> minus{T(-1), T(-0.5)};
    negative.weights = matrix_view<T>(minus.data(), 1, 2);
    CHECK(select<T>(p, negative, 1) == entries{3});
  };
  check(reference{});
  check(cpu(1));
  check(cpu(4));
}

TEST_CASE("ties go to the lower entry", "[index_topk]") {
  with_policies([](const auto& run) {
    const std::vector<double> equal(3000, 1.5);
    CHECK(run(equal, 7) == entries{0, 1, 2, 3, 4, 5, 6});
    CHECK(run(equal, 1) == entries{0});
    std::vector<double> zeros(2500);  // +0 and -0 are one score
    for (std::size_t i = 0; i < zeros.size(); ++i) zeros[i] = i % 2 ? 0.0 : -0.0;
    CHECK(run(zeros, 3) == entries{0, 1, 2});
    std::vector<double> blocks;  // the same block again and again
    for (int i = 0; i < 4096; ++i) blocks.push_back(double(i * 37 % 64));
    CHECK(run(blocks, 100) == best_of(blocks, 100));
    CHECK(run(blocks, 64) == best_of(blocks, 64));
    CHECK(run(blocks, 65) == best_of(blocks, 65));
  });
}

TEST_CASE("scores that differ by less than half precision can show are told apart", "[index_topk]") {
  std::vector<double> scores;
  for (int i = 0; i < 4096; ++i) scores.push_back(1 + i * 0x1p-21);  // one bfloat16 value, distinct in float
  std::shuffle(scores.begin(), scores.end(), std::mt19937(1));
  with_policies([&](const auto& run) {
    for (const std::int64_t k : {1, 63, 64, 512, 4095}) CHECK(run(scores, k) == best_of(scores, k));
  });
}

TEST_CASE("rising, falling and infinite scores are kept right", "[index_topk]") {
  std::vector<double> rising, falling, few(3000, 0.0);
  for (int i = 0; i < 3000; ++i) rising.push_back(i), falling.push_back(3000 - i);
  few[5] = few[2900] = std::numeric_limits<double>::infinity();
  with_policies([&](const auto& run) {
    for (const std::int64_t k : {1, 5, 130}) {
      CHECK(run(rising, k) == best_of(rising, k));
      CHECK(run(falling, k) == best_of(falling, k));
      CHECK(run(few, k) == best_of(few, k));
    }
  });
}

TEMPLATE_TEST_CASE("of any stream of scores the best are kept", "[index_topk]", float, double) {
  using T = TestType;
  using limits = std::numeric_limits<T>;
  std::mt19937_64 random(3);
  const auto draw = [&](int kind) -> T {
    const auto bits = static_cast<dsv4::detail::ordered_key<T>>(random());
    switch (kind) {
      case 0:  // of any sign and size
        return __builtin_bit_cast(T, bits);
      case 1:  // close to each other, of both signs
        return (bits & 1 ? 1 : -1) * (1 + T(bits >> 1 & 63) * limits::epsilon());
      case 2:  // many equal
        return T(int(bits % 5) - 2);
      default:  // the ends of the range
        return bits % 4 == 0   ? -limits::infinity()
               : bits % 4 == 1 ? limits::quiet_NaN()
               : bits % 4 == 2 ? limits::lowest()
                               : limits::infinity();
    }
  };
  for (const int kind : {0, 1, 2, 3})
    for (const std::int64_t k : {1, 2, 7, 64, 500}) {
      INFO("kind " << kind << ", k " << k);
      dsv4::detail::best_entries<T> best(k);
      for (const std::size_t count :
           {std::size_t(1), std::size_t(k), std::size_t(k + 1), std::size_t(3000)}) {
        std::vector<T> scores(count);
        best.clear();
        for (std::size_t i = 0; i < count; ++i) {
          scores[i] = draw(kind);
          best.push(scores[i], static_cast<std::int32_t>(i));
          if (!(scores[i] == scores[i])) scores[i] = -limits::infinity();  // as it is taken
        }
        const auto* kept = best.best();
        entries selected;
        for (std::int64_t j = 0; j < best.size(); ++j) selected.push_back(kept[j].entry);
        selected.resize(static_cast<std::size_t>(k), -1);
        CHECK(selected == best_of(scores, k));
      }
    }
}

TEST_CASE("few queries in pieces, some with nothing to choose", "[index_topk]") {
  constexpr std::int64_t n = 3, ratio = 1, k = 2998;
  std::vector<float> keys(3000);
  for (std::size_t i = 0; i < keys.size(); ++i) keys[i] = static_cast<float>(i * 7919 % 3001);
  std::vector<float> q(n, 1.0f), weights(n, 1.0f);
  const index_topk<float>::inputs in{tensor_view<float>(q.data(), n, 1, 1),
                                     matrix_view<float>(keys.data(), 3000, 1),
                                     matrix_view<float>(weights.data(), n, 1), 2997, ratio};
  const auto expected = select<float>(reference{}, in, k);
  for (const int threads : {1, 2, 3, 4, 8}) CHECK(select<float>(cpu(threads), in, k) == expected);
}

TEST_CASE("a row of -inf scores, or of NaN, still gives k different entries", "[index_topk]") {
  for (const float weight :
       {-std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    std::vector<float> one{1.0f}, w{weight}, keys(3000, 1.0f);
    for (const int threads : {1, 4})
      CHECK(select<float>(cpu(threads),
                          {tensor_view<float>(one.data(), 1, 1, 1), matrix_view<float>(keys.data(), 3000, 1),
                           matrix_view<float>(w.data(), 1, 1), 2999, 1},
                          4) == entries{0, 1, 2, 3});
  }
}

TEST_CASE("every visible length around k: no gap, no repeat, nothing invisible", "[index_topk]") {
  std::mt19937 random(2);
  for (const std::int64_t k : {1, 8, 64, 70})
    for (std::int64_t visible = 1; visible <= k + 5; ++visible) {
      std::vector<double> scores;
      for (std::int64_t i = 0; i < visible; ++i) scores.push_back(double(random() % 10));
      with_policies([&](const auto& run) { CHECK(run(scores, k) == best_of(scores, k)); });
    }
}

TEMPLATE_TEST_CASE("queries of one call see their own number of entries", "[index_topk]", float, double) {
  using T = TestType;
  // Small integers: every sum is exact, so the reference's choice is the only right one.
  const std::int64_t n = 300, heads = 5, width = 9, ratio = 3;
  std::mt19937 random(3);
  const auto integers = [&](std::int64_t size) {
    std::vector<T> v(static_cast<std::size_t>(size));
    for (T& a : v) a = T(static_cast<int>(random() % 7) - 3);
    return v;
  };
  auto q = integers(n * heads * (width + 2)), keys = integers(n / ratio * (width + 1)),
       weights = integers(n * heads);
  const typename index_topk<T>::inputs in{tensor_view<T>(q.data(), n, heads, width + 2).columns(1, width),
                                          matrix_view<T>(keys.data(), n / ratio, width + 1).columns(1, width),
                                          matrix_view<T>(weights.data(), n, heads), 0, ratio};
  for (const std::int64_t k : {1, 4, 33, 100, 120}) {
    const entries expected = select<T>(reference{}, in, k);
    for (const int threads : {1, 2, 4}) {
      CHECK(select<T>(cpu(threads), in, k) == expected);
      for (const std::int64_t t : {0, 2, 100, 299}) {
        auto alone = in;
        alone.q = in.q.rows(t, 1), alone.weights = in.weights.rows(t, 1), alone.first_position = t;
        CHECK(select<T>(cpu(threads), alone, k) ==
              entries(expected.begin() + t * k, expected.begin() + (t + 1) * k));
      }
    }
    for (std::int64_t t = 0; t < n; ++t)
      for (std::int64_t j = 0; j < k; ++j) {
        const std::int32_t entry = expected[std::size_t(t * k + j)];
        const std::int64_t visible = (t + 1) / ratio;
        if (j < std::min(k, visible)) {
          REQUIRE(entry >= 0);
          REQUIRE(entry < visible);
          if (j > 0) REQUIRE(entry > expected[std::size_t(t * k + j - 1)]);
        } else {
          REQUIRE(entry == -1);
        }
      }
  }
  auto none = in;
  none.q = in.q.rows(0, 0), none.weights = in.weights.rows(0, 0);
  CHECK(select<T>(cpu(2), none, 4).empty());
}

TEST_CASE("random float scores: nothing left out beats anything kept by more than rounding", "[index_topk]") {
  const std::int64_t n = 3, heads = 8, width = 64, visible = 5000, k = 200;
  std::mt19937 random(4);
  std::normal_distribution<float> normal;
  const auto fill = [&](std::int64_t size) {
    std::vector<float> v(static_cast<std::size_t>(size));
    for (float& a : v) a = normal(random);
    return v;
  };
  auto q = fill(n * heads * width), keys = fill(visible * width), weights = fill(n * heads);
  const index_topk<float>::inputs in{tensor_view<float>(q.data(), n, heads, width),
                                     matrix_view<float>(keys.data(), visible, width),
                                     matrix_view<float>(weights.data(), n, heads), visible - n, 1};
  const entries chosen = select<float>(cpu(1), in, k);
  for (const int threads : {2, 4, 5}) CHECK(select<float>(cpu(threads), in, k) == chosen);
  for (std::int64_t t = 0; t < n; ++t) {
    double lowest_kept = 1e30, highest_left = -1e30, size = 0;
    for (std::int64_t s = 0; s < visible - n + 1 + t; ++s) {
      double score = 0, magnitude = 0;
      for (std::int64_t h = 0; h < heads; ++h) {
        double dot = 0, sum = 0;
        for (std::int64_t c = 0; c < width; ++c) {
          dot += double(in.q(t, h, c)) * double(in.keys(s, c));
          sum += std::abs(double(in.q(t, h, c)) * double(in.keys(s, c)));
        }
        score += double(in.weights(t, h)) * std::max(0.0, dot);
        magnitude += std::abs(double(in.weights(t, h))) * sum;
      }
      size = std::max(size, magnitude);
      const bool kept = std::binary_search(chosen.begin() + t * k, chosen.begin() + (t + 1) * k,
                                           static_cast<std::int32_t>(s));
      if (kept)
        lowest_kept = std::min(lowest_kept, score);
      else
        highest_left = std::max(highest_left, score);
    }
    // Two scores are each off by (width + heads) eps times the sum of the terms' sizes at most.
    CHECK(highest_left - lowest_kept <=
          2 * double(width + heads) * double(std::numeric_limits<float>::epsilon()) * size);
  }
}

TEMPLATE_TEST_CASE("a later key changes no earlier selection", "[index_topk]", float, double) {
  using T = TestType;
  std::mt19937 random(5);
  std::vector<T> q(40 * 2 * 4), keys(40 * 4), weights(40 * 2);
  for (auto* v : {&q, &keys, &weights})
    for (T& a : *v) a = T(static_cast<int>(random() % 9) - 4);
  const typename index_topk<T>::inputs in{tensor_view<T>(q.data(), 40, 2, 4),
                                          matrix_view<T>(keys.data(), 40, 4),
                                          matrix_view<T>(weights.data(), 40, 2), 0, 1};
  const auto before = select<T>(cpu(2), in, 6);
  std::fill(keys.begin() + 30 * 4, keys.end(), T(1000));
  const auto after = select<T>(cpu(2), in, 6);
  CHECK(std::equal(before.begin(), before.begin() + 30 * 6, after.begin()));
  CHECK(before != after);
}

TEMPLATE_TEST_CASE("the indexer refuses fewer keys than are visible", "[index_topk]", float, double) {
  using T = TestType;
  std::vector<T> a(64);
  std::vector<std::int32_t> selected(8);
  const auto call = [&](std::int64_t keys) {
    index_topk<T>::forward(cpu(1),
                           {tensor_view<T>(a.data(), 2, 1, 4), matrix_view<T>(a.data(), keys, 4),
                            matrix_view<T>(a.data(), 2, 1), 6, 4},
                           {matrix_view<std::int32_t>(selected.data(), 2, 4)});
  };
  CHECK_NOTHROW(call(2));
  CHECK_THROWS_WITH(call(1), contains("every visible entry"));
  CHECK_THROWS_AS(call(1), dsv4::contract_error);
}
