// SPDX-License-Identifier: Apache-2.0
#include "support/catch.hpp"
#include <dsv4/core/error.hpp>
#include <dsv4/ops/cpu/sparse_attention.hpp>
#include <dsv4/ops/sparse_attention.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

namespace {

using dsv4::matrix_view;
using dsv4::sparse_attention;
using dsv4::tensor_view;
using dsv4::vector_view;
using dsv4::exec::cpu;
using dsv4::exec::reference;
using dsv4::testing::contains;

/// Random inputs of one call: all positions from 0 are in `local`.
template <class T>
struct attention_case {
  attention_case(std::int64_t n_, std::int64_t heads_, std::int64_t dim_, std::int64_t entries_,
                 unsigned seed)
      : n(n_), heads(heads_), dim(dim_), entries(entries_) {
    std::mt19937 random(seed);
    std::normal_distribution<double> normal;
    const auto fill = [&](std::vector<T>& v, std::int64_t size) {
      v.resize(static_cast<std::size_t>(size));
      for (T& a : v) a = T(normal(random));
    };
    fill(q, n * heads * dim), fill(local, n * dim), fill(compressed, entries * dim), fill(sinks, heads);
  }
  typename sparse_attention<T>::inputs inputs(std::int64_t window, std::int64_t ratio) {
    return {tensor_view<T>(q.data(), n, heads, dim),
            matrix_view<T>(local.data(), n, dim),
            matrix_view<T>(compressed.data(), entries, dim),
            {},
            vector_view<T>(sinks.data(), heads),
            0,
            0,
            window,
            ratio,
            1 / std::sqrt(double(dim))};
  }
  std::int64_t n, heads, dim, entries;
  std::vector<T> q, local, compressed, sinks;
};

template <class T, class P>
std::vector<T> attend(const P& p, const typename sparse_attention<T>::inputs& in) {
  std::vector<T> o(static_cast<std::size_t>(in.q.size()), T(99));
  sparse_attention<T>::forward(p, in,
                               {tensor_view<T>(o.data(), in.q.extent[0], in.q.extent[1], in.q.extent[2])});
  return o;
}

/// The same call for `count` queries from `first` on, their window keys cut out of `local`.
template <class T>
typename sparse_attention<T>::inputs part(typename sparse_attention<T>::inputs in, std::int64_t first,
                                          std::int64_t count) {
  in.q = in.q.rows(first, count);
  in.first_position += first;
  const std::int64_t oldest = std::max<std::int64_t>(0, in.first_position - in.window + 1);
  in.local = in.local.rows(oldest - in.first_local, in.first_position + count - oldest);
  in.first_local = oldest;
  if (in.selected.data) in.selected = in.selected.rows(first, count);
  return in;
}

/// |o - exact| <= this. A score is off by (D + 4) eps scale sum|q||k|, a weight relatively by twice that and
/// the roundings of the exponential and of the sum over n keys; values are weighted means of keys.
template <class T>
double tolerance(const typename sparse_attention<T>::inputs& in, std::int64_t n) {
  const double eps = double(std::numeric_limits<T>::epsilon());
  double q = 0, k = 0;
  for (std::int64_t i = 0; i < in.q.size(); ++i) q = std::max(q, std::abs(double(in.q.data[i])));
  for (const auto& keys : {in.local, in.compressed})
    for (std::int64_t i = 0; i < keys.extent[0]; ++i)
      for (std::int64_t c = 0; c < keys.extent[1]; ++c) k = std::max(k, std::abs(double(keys(i, c))));
  const double dim = double(in.q.extent[2]);
  return k * eps * (2 * (dim + 4) * in.scale * dim * q * k + 2 * double(n) + 16);
}

template <class T>
double difference(const std::vector<T>& a, const std::vector<T>& b) {
  double worst = a.size() == b.size() ? 0 : std::numeric_limits<double>::infinity();
  for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    const double d = std::abs(double(a[i]) - double(b[i]));
    worst = d <= worst ? worst : d;  // NaN stays
  }
  return worst;
}

template <class T>
bool same_bits(const T* a, const T* b, std::int64_t n) {
  return std::memcmp(a, b, static_cast<std::size_t>(n) * sizeof(T)) == 0;
}

}  // namespace

TEMPLATE_TEST_CASE("attention by hand: two keys, one compressed entry, a sink", "[sparse_attention]", float,
                   double) {
  using T = TestType;
  // Query 1 of two at position 1, window 2, one entry of two tokens. Scores ln 1, ln 2, ln 3; sink ln 4.
  std::vector<T> q{0, 0, T(std::log(2)), T(std::log(3))}, local{0, 0, 1, 0}, compressed{0, 1},
      sinks{T(std::log(4))};
  const typename sparse_attention<T>::inputs in{tensor_view<T>(q.data(), 2, 1, 2),
                                                matrix_view<T>(local.data(), 2, 2),
                                                matrix_view<T>(compressed.data(), 1, 2),
                                                {},
                                                vector_view<T>(sinks.data(), 1),
                                                0,
                                                0,
                                                2,
                                                2,
                                                1.0};
  const auto check = [&](const std::vector<T>& o) {
    CHECK(o[0] == T(0));
    CHECK(o[1] == T(0));
    CHECK(std::abs(double(o[2]) - 0.2) <= 1e-6);
    CHECK(std::abs(double(o[3]) - 0.3) <= 1e-6);
  };
  check(attend<T>(reference{}, in));
  check(attend<T>(cpu(1), in));
  check(attend<T>(cpu(4), in));
}

TEMPLATE_TEST_CASE("attention agrees with the reference for odd shapes and strided views",
                   "[sparse_attention]", float, double) {
  using T = TestType;
  const cpu p(2);
  for (const std::int64_t n : {0, 1, 2, 3, 5, 64, 150})
    for (const std::int64_t heads : {1, 2, 7})
      for (const std::int64_t dim : {1, 7, 8, 31, 64, 100})
        for (const std::int64_t ratio : {0, 1, 4}) {
          if (n > 5 && dim > 64) continue;
          attention_case<T> c(n, heads, dim, ratio ? n / ratio : 0, 1);
          const auto in = c.inputs(70, ratio);
          INFO("n " << n << ", heads " << heads << ", dim " << dim << ", ratio " << ratio);
          CHECK(difference(attend<T>(reference{}, in), attend<T>(p, in)) <= tolerance<T>(in, 70 + n));
        }

  // Heads, keys and outputs that are cut out of wider arrays.
  attention_case<T> c(9, 3, 20, 4, 2);
  auto in = c.inputs(4, 2);
  in.q = in.q.columns(3, 10), in.local = in.local.columns(1, 10),
  in.compressed = in.compressed.columns(7, 10);
  std::vector<T> wide(9 * 3 * 16, T(5)), dense(9 * 3 * 10);
  const auto o = tensor_view<T>(wide.data(), 9, 3, 16).columns(2, 10);
  sparse_attention<T>::forward(p, in, {o});
  sparse_attention<T>::forward(reference{}, in, {tensor_view<T>(dense.data(), 9, 3, 10)});
  for (std::int64_t i = 0; i < 27; ++i)
    for (std::int64_t j = 0; j < 16; ++j) {
      const T found = wide[std::size_t(i * 16 + j)];
      if (j < 2 || j >= 12)
        CHECK(found == T(5));
      else
        CHECK(std::abs(double(found) - double(dense[std::size_t(i * 10 + j - 2)])) <= tolerance<T>(in, 8));
    }
}

TEMPLATE_TEST_CASE("each query sees exactly its window and the complete entries", "[sparse_attention]", float,
                   double) {
  using T = TestType;
  const std::int64_t n = 3 * 128;
  for (const std::int64_t ratio : {4, 128})
    for (const std::int64_t window : {1, 8, 128, 500}) {
      // One-hot keys and equal scores: output channel j is positive exactly where key j was attended.
      const std::int64_t entries = n / ratio, dim = n + entries;
      attention_case<T> c(n, 1, dim, entries, 1);
      std::fill(c.q.begin(), c.q.end(), T(0));
      std::fill(c.local.begin(), c.local.end(), T(0));
      std::fill(c.compressed.begin(), c.compressed.end(), T(0));
      for (std::int64_t j = 0; j < n; ++j) c.local[std::size_t(j * dim + j)] = T(1);
      for (std::int64_t j = 0; j < entries; ++j) c.compressed[std::size_t(j * dim + n + j)] = T(1);
      const auto o = attend<T>(cpu(2), c.inputs(window, ratio));
      std::int64_t wrong = 0;
      for (std::int64_t p = 0; p < n; ++p)
        for (std::int64_t j = 0; j < dim; ++j) {
          const bool visible = j < n ? j <= p && j > p - window : (j - n + 1) * ratio <= p + 1;
          wrong += visible != (o[std::size_t(p * dim + j)] > T(0));
        }
      INFO("ratio " << ratio << ", window " << window);
      CHECK(wrong == 0);
    }
}

TEMPLATE_TEST_CASE("attention weights and the sink's share sum to one", "[sparse_attention]", float, double) {
  using T = TestType;
  for (const double sink : {-20.0, 0.0, 20.0}) {
    // Channel 0 of every key is 1 and of every query 0: output channel 0 is the sum of the weights.
    attention_case<T> c(200, 3, 16, 50, 3);
    for (std::size_t i = 0; i < c.local.size(); i += 16) c.local[i] = T(1);
    for (std::size_t i = 0; i < c.compressed.size(); i += 16) c.compressed[i] = T(1);
    for (std::size_t i = 0; i < c.q.size(); i += 16) c.q[i] = T(0);
    std::fill(c.sinks.begin(), c.sinks.end(), T(sink));
    const auto in = c.inputs(128, 4);
    const auto o = attend<T>(cpu(2), in), exact = attend<T>(reference{}, in);
    INFO("sink " << sink);
    CHECK(difference(o, exact) <= tolerance<T>(in, 178));
    for (std::int64_t t = 0; t < 200; ++t)
      for (std::int64_t h = 0; h < 3; ++h) {
        double sum = 0;  // of e^score, directly
        const auto add = [&](const T* key) {
          double dot = 0;
          for (std::int64_t i = 0; i < 16; ++i) dot += double(in.q(t, h, i)) * double(key[i]);
          sum += std::exp(dot * in.scale);
        };
        for (std::int64_t j = std::max<std::int64_t>(0, t - 127); j <= t; ++j) add(&in.local(j, 0));
        for (std::int64_t j = 0; (j + 1) * 4 <= t + 1; ++j) add(&in.compressed(j, 0));
        const double share = std::exp(sink) / (sum + std::exp(sink));
        const double weights = double(o[std::size_t((t * 3 + h) * 16)]);
        CHECK(std::abs(weights + share - 1) <= 1e-5);
      }
  }
}

TEMPLATE_TEST_CASE("scores far apart neither overflow nor lose the largest", "[sparse_attention]", float,
                   double) {
  using T = TestType;
  attention_case<T> c(200, 2, 8, 0, 4);
  for (T& a : c.q) a *= T(200);  // the running maximum grows by hundreds from tile to tile
  const auto in = c.inputs(200, 0);
  CHECK(difference(attend<T>(reference{}, in), attend<T>(cpu(1), in)) <= tolerance<T>(in, 200));
}

TEMPLATE_TEST_CASE("a query's attention has the same bits in any chunk, with any threads",
                   "[sparse_attention]", float, double) {
  using T = TestType;
  const std::int64_t n = 150, heads = 13, dim = 40, row = heads * dim;
  attention_case<T> c(n, heads, dim, n / 2, 5);
  const auto in = c.inputs(66, 2);
  const auto all = attend<T>(cpu(1), in);
  for (const int threads : {1, 2, 4, 7}) {
    const cpu p(threads);
    for (const std::int64_t count : {1, 2, 3, 64, 150})
      for (std::int64_t first = 0; first + count <= n; first += count == 1 ? 7 : count) {
        const auto some = attend<T>(p, part<T>(in, first, count));
        INFO("threads " << threads << ", queries " << count << " from " << first);
        CHECK(same_bits(some.data(), all.data() + first * row, count * row));
      }
  }

  // The list of all visible entries is the same candidate list, wherever its -1 are.
  std::vector<std::int32_t> selected(static_cast<std::size_t>(n * 100), -1);
  for (std::int64_t t = 0; t < n; ++t)
    for (std::int64_t j = 0; j < (t + 1) / 2; ++j)
      selected[std::size_t(t * 100 + j + (j > 10 ? 20 : 0))] = static_cast<std::int32_t>(j);
  auto listed = in;
  listed.selected = matrix_view<const std::int32_t>(selected.data(), n, 100);
  const auto found = attend<T>(cpu(2), listed);
  CHECK(same_bits(found.data(), all.data(), n * row));
}

TEMPLATE_TEST_CASE("selected entries are attended, the others are not", "[sparse_attention]", float, double) {
  using T = TestType;
  const std::int64_t n = 20, k = 70;
  attention_case<T> c(n, 2, 24, 400, 6);
  std::vector<std::int32_t> selected(static_cast<std::size_t>(n * k));
  std::mt19937 random(7);
  for (auto& s : selected) s = random() % 3 == 0 ? -1 : static_cast<std::int32_t>(random() % 400);
  auto in = c.inputs(5, 4);
  in.selected = matrix_view<const std::int32_t>(selected.data(), n, k);
  CHECK(difference(attend<T>(reference{}, in), attend<T>(cpu(2), in)) <= tolerance<T>(in, 5 + k));
}

TEMPLATE_TEST_CASE("a later key or entry changes no earlier output", "[sparse_attention]", float, double) {
  using T = TestType;
  const std::int64_t n = 64, row = 3 * 16;
  attention_case<T> c(n, 3, 16, n / 4, 8);
  const auto before = attend<T>(cpu(2), c.inputs(10, 4));
  const std::int64_t changed = 40;
  for (std::int64_t i = changed * 16; i < n * 16; ++i)
    c.local[std::size_t(i)] = std::numeric_limits<T>::quiet_NaN();
  for (std::int64_t i = changed / 4 * 16; i < n / 4 * 16; ++i)
    c.compressed[std::size_t(i)] = std::numeric_limits<T>::quiet_NaN();
  const auto after = attend<T>(cpu(2), c.inputs(10, 4));
  CHECK(same_bits(before.data(), after.data(), changed * row));
  CHECK(std::isnan(after[std::size_t(changed * row)]));
}

TEMPLATE_TEST_CASE("attention refuses a window that local does not hold", "[sparse_attention]", float,
                   double) {
  using T = TestType;
  attention_case<T> c(8, 1, 4, 1, 9);
  auto in = c.inputs(4, 0);
  in.local = in.local.rows(0, 7);
  CHECK_THROWS_WITH(attend<T>(cpu(1), in), contains("local rows"));
  in = c.inputs(4, 4);
  CHECK_THROWS_WITH(attend<T>(reference{}, in), contains("every visible entry"));
  in = c.inputs(4, 0);
  in.first_local = 1, in.first_position = 1;
  CHECK_THROWS_AS(attend<T>(cpu(1), in), dsv4::contract_error);
}
