// SPDX-License-Identifier: Apache-2.0
// Bugs that users of other DeepSeek-V4 ports reported, one op at a time: what the other tests of the ops do
// not catch. docs/reported-bugs.md lists all of them.
#include "support/catch.hpp"
#include "support/compare.hpp"
#include <dsv4/config/presets.hpp>
#include <dsv4/ops/embedding.hpp>

#include <algorithm>
#include <bit>
#include <cstring>
#include <functional>
#include <numeric>
#include <sys/mman.h>

using namespace dsv4;
using namespace dsv4::testing;

namespace {

template <class T>
constexpr double eps = double(std::numeric_limits<T>::epsilon());

/// Rounds to bfloat16, to nearest even.
float to_bf16(float v) {
  const auto bits = std::bit_cast<std::uint32_t>(v);
  return std::bit_cast<float>((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000u);
}

/// Address space for rows that lie more than 2^31 elements apart. Only pages that are written take memory.
class far_rows {
 public:
  static constexpr std::int64_t stride = (std::int64_t{1} << 31) + 64, rows = 3;

  far_rows() {
    void* p =
        mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p != MAP_FAILED) data_ = static_cast<float*>(p);
  }
  far_rows(const far_rows&) = delete;
  far_rows& operator=(const far_rows&) = delete;
  ~far_rows() {
    if (data_) munmap(data_, bytes);
  }

  explicit operator bool() const { return data_ != nullptr; }
  /// A copy of `dense` (at most 3 rows), its rows far apart.
  matrix_view<float> spread(const buffer<float>& dense, std::int64_t count) {
    const std::int64_t width = dense.size() / count;
    matrix_view<float> v(data_ + next_, count, width);
    v.stride[0] = stride;
    next_ += (width + 63) / 64 * 64;
    for (std::int64_t r = 0; r < count; ++r) std::copy_n(&dense[r * width], width, v[r].data);
    return v;
  }

 private:
  static constexpr std::size_t bytes = static_cast<std::size_t>(rows * stride) * sizeof(float);
  float* data_ = nullptr;
  std::int64_t next_ = 0;
};

bool same_rows(const matrix_view<float>& far, const buffer<float>& near) {
  for (std::int64_t r = 0; r < far.extent[0]; ++r)
    if (std::memcmp(far[r].data, &near[r * far.extent[1]],
                    static_cast<std::size_t>(far.extent[1]) * sizeof(float)) != 0)
      return false;
  return true;
}

tensor_view<float> as_heads(matrix_view<float> m, std::int64_t heads) {
  tensor_view<float> t(m.data, m.extent[0], heads, m.extent[1] / heads);
  t.stride[0] = m.stride[0];
  return t;
}

}  // namespace

TEMPLATE_TEST_CASE("first instead of last dims rotated: the first ones keep their bits", "", float, double) {
  using T = TestType;
  const auto f = layer_rope_frequencies(v4_flash.attention, attention_kind::csa);
  // Heads and widths of queries, the key-value head and the indexer, of V4.
  const std::int64_t shapes[][2] = {{64, 512}, {1, 512}, {64, 128}, {1, 128}};
  for (const auto& shape : shapes)
    for (const bool inverse : {false, true}) {
      const std::int64_t heads = shape[0], width = shape[1];
      const auto x = random<T>(3 * heads * width);
      const auto check = [&](const auto& p) {
        auto y = copy(x);
        rope<T>::forward(p, {f, 5, 1, inverse}, {y.as(3, heads, width)});
        for (std::int64_t head = 0; head < 3 * heads; ++head) {
          const std::int64_t at = head * width, turned = at + width - 64;
          REQUIRE(std::memcmp(&x[at], &y[at], static_cast<std::size_t>(width - 64) * sizeof(T)) == 0);
          REQUIRE(std::memcmp(&x[turned], &y[turned], 64 * sizeof(T)) != 0);
        }
      };
      check(exec::reference{});
      check(exec::cpu(2));
    }
}

TEMPLATE_TEST_CASE("inverse RoPE missing: a single key comes back unrotated", "", float, double) {
  using T = TestType;
  const auto f = layer_rope_frequencies(v4_flash.attention, attention_kind::csa);
  const auto check = [&](const auto& p) {
    for (const std::int64_t position : {0, 1, 100, 65537, 1048575}) {
      const auto value = random<T>(512, 3);
      auto key = copy(value), q = random<T>(512, 4), o = poison<T>(512);
      const T sink[] = {T(-10000)};  // e^sink underflows: the key's weight is 1
      rope<T>::forward(p, {f, position}, {key.as(1, 1, 512)});
      rope<T>::forward(p, {f, position}, {q.as(1, 1, 512)});
      sparse_attention<T>::forward(
          p, {q.as(1, 1, 512), key.as(1, 512), {}, {}, {sink, 1}, position, position, 1, 0, 0.04},
          {o.as(1, 1, 512)});
      rope<T>::forward(p, {f, position, 1, true}, {o.as(1, 1, 512)});
      // A turned component e c - o s has roundings of c and s, of both products and of their difference:
      // 1.5 eps r, r being the pair's length. Twice that, the first carried through a rotation, is below
      // 4 eps r; the weight and its sum add 2 eps.
      double worst = 0;
      for (int i = 0; i < 512; ++i) {
        const double r = std::hypot(double(value[i & ~1]), double(value[i | 1]));
        worst = std::max(worst, std::abs(double(o[i]) - double(value[i])) / r);
      }
      CHECK(worst <= 6 * eps<T>);
    }
  };
  check(exec::reference{});
  check(exec::cpu(1));
}

TEST_CASE("inverse RoPE missing: shifting all positions leaves the attention output") {
  // Window keys and two of three selected entries: all that turns, turns by the same shift. Entries are
  // given by `selected`, as shifted queries would otherwise see more of them.
  constexpr std::int64_t n = 12, heads = 2, width = 24, window = 8, ratio = 4, entries = 5;
  const auto attend = [&](const auto& p, attention_kind kind, std::int64_t shift, bool turn_back) {
    const auto f = layer_rope_frequencies(v4_nano.attention, kind);
    const std::int64_t first = 40 + shift, before = window - 1;
    auto q = random<double>(n * heads * width, 1), keys = random<double>((before + n) * width, 2),
         pool = random<double>(entries * width, 3), sinks = random<double>(heads, 4),
         o = poison<double>(n * heads * width);
    buffer<std::int32_t> selected(n * 3);
    for (std::int64_t i = 0; i < n * 3; ++i) selected[i] = static_cast<std::int32_t>(i * 7 % entries);
    for (std::int64_t t = 0; t < n; ++t) selected[3 * t + 1] = -1;
    rope<double>::forward(p, {f, first}, {q.as(n, heads, width)});
    rope<double>::forward(p, {f, first - before}, {keys.as(before + n, 1, width)});
    rope<double>::forward(p, {f, shift, ratio}, {pool.as(entries, 1, width)});
    sparse_attention<double>::forward(
        p,
        {q.as(n, heads, width), keys.as(before + n, width), pool.as(entries, width), selected.as(n, 3),
         sinks.as(heads), first, first - before, window, ratio, 1 / std::sqrt(double(width))},
        {o.as(n, heads, width)});
    if (turn_back) rope<double>::forward(p, {f, first, 1, true}, {o.as(n, heads, width)});
    return o;
  };
  // An angle is position * frequency, rounded once: off by d = 1.1e5 * 2^-53 = 1.2e-11. A score is then off
  // by scale |q| |k| 2 d <= 24 / sqrt(24) * 2 d = 1.2e-10, an output by twice that and 2 d: below 1e-9.
  const auto check = [&](const auto& p) {
    for (const auto kind : {attention_kind::sliding, attention_kind::csa, attention_kind::hca})
      for (const std::int64_t shift : {1, 1000, 100000}) {
        CHECK(relative_error(attend(p, kind, shift, true), attend(p, kind, 0, true)) < 1e-9);
        CHECK(relative_error(attend(p, kind, shift, false), attend(p, kind, 0, false)) > 1e-3);
      }
  };
  check(exec::reference{});
  check(exec::cpu(2));
}

TEST_CASE("one RoPE profile for all layers: the tables of V4, beyond the original context too") {
  // theta^(-2i/64), and for CSA and HCA the same of theta 160000 with YaRN (low 15, high 25, factor 16):
  // computed with 40 digits.
  const struct {
    int pair;
    double sliding, compressed;
  } table[] = {{0, 1, 1},
               {1, 0.74989420933245587, 0.68765602193363207},
               {15, 0.013335214321633241, 0.0036355385836223842},
               {16, 0.01, 0.0022656249999999998},
               {20, 0.0031622776601683794, 0.0002969777782616908},
               {24, 0.001, 1.953125e-05},
               {25, 0.00074989420933245586, 5.372312671356501e-06},
               {31, 0.0001333521432163324, 5.6805290369099757e-07}};
  for (const attention_config& a : {v4_flash.attention, v4_pro.attention})
    for (const auto kind : {attention_kind::sliding, attention_kind::csa, attention_kind::hca}) {
      const auto f = layer_rope_frequencies(a, kind);
      REQUIRE(f.pairs == 32);
      for (const auto& row : table) {
        const double want = kind == attention_kind::sliding ? row.sliding : row.compressed;
        CHECK(f.value[row.pair] == Catch::Approx(want).epsilon(1e-13));
        // 65536 is the original context, 1048576 the extended one. A product of a position and a frequency
        // is rounded once; cos and sin add half an eps each, and are computed in double for float too.
        for (const std::int64_t position : {100, 65535, 65536, 70001, 1048575}) {
          const long double angle = (long double)(position)*want;
          const double off = double(angle) * (1e-13 + 0x1p-53);
          const auto check = [&]<class T>(const auto& p, T) {
            buffer<T> x(64);
            x[2 * row.pair] = 1;
            rope<T>::forward(p, {f, position}, {x.as(1, 1, 64)});
            CHECK(std::abs(double(x[2 * row.pair]) - double(std::cos(angle))) <= off + eps<T>);
            CHECK(std::abs(double(x[2 * row.pair + 1]) - double(std::sin(angle))) <= off + eps<T>);
          };
          check(exec::reference{}, double{});
          check(exec::cpu(1), double{});
          check(exec::cpu(1), float{});
        }
      }
    }
}

TEST_CASE("YaRN's mscale: rotation keeps lengths, so scores keep their size") {
  // Each pair has 1.5 sqrt(2) eps of error at most; see the single key above.
  for (const auto kind : {attention_kind::sliding, attention_kind::csa, attention_kind::hca}) {
    const auto f = layer_rope_frequencies(v4_flash.attention, kind);
    const auto x = random<double>(512);
    auto y = copy(x);
    rope<double>::forward(exec::cpu(1), {f, 123456}, {y.as(1, 1, 512)});
    for (int i = 0; i < 512; i += 2) {
      const double before = std::hypot(x[i], x[i + 1]), after = std::hypot(y[i], y[i + 1]);
      CHECK(std::abs(after - before) <= 3 * eps<double> * before);
    }
  }
}

TEST_CASE("32-bit offsets: rows that lie more than 2^31 elements apart") {
  far_rows far;
  if (!far) {
    WARN("no address space for rows 2^31 elements apart: not tested");
    return;
  }
  const auto both = [](const auto& run) { run(exec::reference{}), run(exec::cpu(2)); };
  const auto x = random<float>(3 * 40, 1), zero = buffer<float>(3 * 40);
  const auto far_x = far.spread(x, 3), far_y = far.spread(zero, 3);
  const auto near_x = x.as(3, 40);

  SECTION("arithmetic of views") {
    const auto distance = [](const float* a, const float* b) { return std::int64_t{a - b}; };
    CHECK(distance(&far_x(2, 5), far_x.data) == 2 * far_rows::stride + 5);
    CHECK(distance(far_x[2].data, far_x.data) == 2 * far_rows::stride);
    CHECK(distance(far_x.rows(1, 2).rows(1, 1).data, far_x.data) == 2 * far_rows::stride);
    CHECK(distance(&as_heads(far_x, 5)(2, 4, 7), far_x.data) == 2 * far_rows::stride + 39);
    // A table of 3,000,000 rows, and a stack of all experts of V4-Pro: never dereferenced.
    const matrix_view<const float> entries(static_cast<const float*>(nullptr), 3000000, 1024);
    CHECK(entries.stride[0] == 1024);
    CHECK(entries.size() == 3072000000);
    const tensor_view<const float> experts(static_cast<const float*>(nullptr), 384, 3072, 7168);
    CHECK(experts.stride[0] == 22020096);
    CHECK(experts.size() == 8455716864);
    static_assert(std::is_same_v<std::remove_cvref_t<decltype(experts.stride[0])>, std::int64_t>);
    static_assert(std::is_same_v<std::remove_cvref_t<decltype(experts.extent[0])>, std::int64_t>);
  }
  SECTION("copy_rows") {
    both([&](const auto& p) {
      copy_rows<float>::forward(p, {far_x, 1, 2, 3}, {far_y});
      for (std::int64_t r = 0; r < 3; ++r)
        CHECK(std::memcmp(far_y[(r + 1) % 3].data, near_x[r].data, 40 * sizeof(float)) == 0);
    });
  }
  SECTION("a row of a dense table, past 2^31 elements") {
    // Row 3,000,001 of a table of 1024 wide rows, in the same address space.
    matrix_view<float> table(far_x.data, 3000002, 1024);
    for (std::int64_t c = 0; c < 1024; ++c) table(3000001, c) = float(c) - 500;
    both([&](const auto& p) {
      auto y = poison<float>(2 * 1024);
      const std::int32_t token[] = {3000001};
      embedding<float>::forward(p, {{token, 1}, table}, {y.as(1, 2, 1024)});
      for (std::int64_t c = 0; c < 1024; ++c) CHECK((y[c] == float(c) - 500 && y[1024 + c] == y[c]));
      // As a selected entry: q is 0, so its weight is 1/3, beside its own key (0) and the sink.
      const buffer<float> q(1024), own(1024), sink(1);
      sparse_attention<float>::forward(
          p,
          {q.as(1, 1, 1024), own.as(1, 1024), table, {token, 1, 1}, sink.as(1), 12000007, 12000007, 1, 4, 1},
          {y.as(1, 1, 2048).columns(0, 1024)});
      for (std::int64_t c = 0; c < 1024; ++c)
        CHECK(std::abs(y[c] - (float(c) - 500) / 3) <= 4 * 200 * eps<float>);
    });
  }
  SECTION("rms_norm, rope, hadamard") {
    const auto weight = random<float>(40, 2);
    const auto f = make_rope_frequencies(8, 10000, v4_nano.attention.rope);
    both([&](const auto& p) {
      auto y = copy(zero);
      rms_norm<float>::forward(p, {near_x, weight.as(40), 1e-6}, {y.as(3, 40)});
      rms_norm<float>::forward(p, {far_x, weight.as(40), 1e-6}, {far_y});
      CHECK(same_rows(far_y, y));
      rope<float>::forward(p, {f, 7}, {y.as(3, 4, 10)});
      rope<float>::forward(p, {f, 7}, {as_heads(far_y, 4)});
      CHECK(same_rows(far_y, y));
      hadamard<float>::forward(p, {}, {y.as(3, 40).columns(3, 32)});
      hadamard<float>::forward(p, {}, {far_y.columns(3, 32)});
      CHECK(same_rows(far_y, y));
    });
  }
  SECTION("linear, and matrices of a stack") {
    const auto w = random<float>(3 * 40, 2);
    const auto far_w = far.spread(w, 3), far_z = far.spread(buffer<float>(9), 3);
    const auto far_v = far.spread(buffer<float>(3 * 4), 3);
    both([&](const auto& p) {
      auto y = poison<float>(9);
      linear<float>::forward(p, {near_x, w.as(3, 40)}, {y.as(3, 3)});
      linear<float>::forward(p, {far_x, far_w}, {far_z});
      CHECK(same_rows(far_z, y));
      // Three experts of 4 x 10.
      tensor_view<float> stack(far_w.data, 3, 4, 10);
      stack.stride[0] = far_rows::stride;
      const std::int64_t offsets[] = {0, 1, 1, 3};
      auto v = poison<float>(3 * 4);
      grouped_linear<float>::forward(p, {near_x.columns(0, 10), {offsets, 4}, w.as(3, 4, 10)}, {v.as(3, 4)});
      grouped_linear<float>::forward(p, {far_x.columns(0, 10), {offsets, 4}, stack}, {far_v});
      CHECK(same_rows(far_v, v));
    });
  }
  SECTION("attention, indexer and pooling") {
    const auto keys = random<float>(3 * 20, 2), pool = random<float>(20, 3), sinks = random<float>(2, 4);
    const auto far_keys = far.spread(keys, 3);
    both([&](const auto& p) {
      auto y = poison<float>(3 * 40);
      const auto attend = [&](auto q, auto local, auto o) {
        sparse_attention<float>::forward(p, {q, local, pool.as(1, 20), {}, sinks.as(2), 0, 0, 2, 3, 0.2},
                                         {o});
      };
      attend(x.as(3, 2, 20), keys.as(3, 20), y.as(3, 2, 20));
      attend(as_heads(far_x, 2), far_keys, as_heads(far_y, 2));
      CHECK(same_rows(far_y, y));

      buffer<std::int32_t> near_top(6), far_top(6);
      const auto select = [&](auto q, auto index_keys, auto& top) {
        index_topk<float>::forward(p, {q, index_keys, keys.as(3, 20).columns(0, 2), 0, 1}, {top.as(3, 2)});
      };
      select(x.as(3, 2, 20), keys.as(3, 20), near_top);
      select(as_heads(far_x, 2), far_keys, far_top);
      CHECK(same(near_top, far_top));

      const auto bias = random<float>(3 * 40, 5);
      auto z = poison<float>(40);
      const auto far_z = far_y.rows(2, 1);
      compress_pool<float>::forward(p, {near_x, near_x, bias.as(3, 40), 0, 0, false}, {z.as(1, 40)});
      compress_pool<float>::forward(p, {far_x, far_x, bias.as(3, 40), 0, 0, false}, {far_z});
      CHECK(same_rows(far_z, z));
    });
  }
}

TEST_CASE("the edge at 1M tokens: attention counts every entry at and around powers of two") {
  // q is 0 and channel 0 of every key 1: the output is n / (n + 1) for n keys and a sink of 0. One key more
  // or less moves it by 1/n^2 > 1e-8. Sums of ones are exact; the quotient rounds once.
  for (const std::int64_t size : {64, 128, 256, 1024, 4096, 8192})
    for (const std::int64_t entries : {size - 1, size, size + 1})
      for (const std::int64_t more : {0, 1, 127}) {
        const std::int64_t window = 128, position = entries * 128 - 1 + more;
        const buffer<double> q(2 * 3), sinks(2);
        buffer<double> local(window * 3), pool((entries + 1) * 3), o(2 * 3);
        for (std::int64_t j = 0; j < window; ++j) local[3 * j] = 1;
        for (std::int64_t j = 0; j <= entries; ++j) pool[3 * j] = 1;
        const auto check = [&](const auto& p) {
          sparse_attention<double>::forward(p,
                                            {q.as(1, 2, 3),
                                             local.as(window, 3),
                                             pool.as(entries + 1, 3),
                                             {},
                                             sinks.as(2),
                                             position,
                                             position - window + 1,
                                             window,
                                             128,
                                             1},
                                            {o.as(1, 2, 3)});
          const double n = double(window + entries);
          for (int h = 0; h < 2; ++h) REQUIRE(std::abs(o[3 * h] - n / (n + 1)) <= 2 * eps<double>);
        };
        check(exec::reference{});
        check(exec::cpu(2));
      }
}

TEST_CASE("the edge at 1M tokens: the indexer ranks every entry at and around powers of two") {
  // Distinct whole scores, exact in float (262147 is a prime); the first and the last entry are the best.
  for (const std::int64_t size : {64, 512, 4096, 262144})
    for (const std::int64_t visible : {size - 1, size, size + 1})
      for (const std::int64_t k : {std::int64_t{1}, std::int64_t{512}, size - 1, size}) {
        if (k > 4096) continue;
        const float one[] = {1};
        buffer<float> keys(visible);
        for (std::int64_t s = 0; s < visible; ++s)
          keys[s] = float(262146 - (visible - 1 - s) * 193939 % 262147);
        keys[0] = 262147;
        buffer<std::int32_t> want(visible), found(k);
        std::iota(want.begin(), want.end(), 0);
        std::sort(want.begin(), want.end(), [&](auto a, auto b) { return keys[a] > keys[b]; });
        const std::int64_t kept = std::min(k, visible);
        std::sort(want.begin(), want.begin() + kept);
        index_topk<float>::forward(exec::cpu(2),
                                   {{one, 1, 1, 1}, keys.as(visible, 1), {one, 1, 1}, 4 * visible - 1, 4},
                                   {found.as(1, k)});
        REQUIRE(std::equal(want.begin(), want.begin() + kept, found.begin()));
        REQUIRE(std::all_of(found.begin() + kept, found.end(), [](auto s) { return s == -1; }));
      }
}

TEMPLATE_TEST_CASE("sink semantics: partial softmaxes, merged with one sink, are the op", "", float, double) {
  using T = TestType;
  // Three heads, one sink that does nothing, one that joins in, one that takes nearly all.
  constexpr std::int64_t n = 150, heads = 3, width = 16, window = 70, ratio = 4, entries = n / ratio;
  const auto q = random<T>(n * heads * width, 1, 3), local = random<T>(n * width, 2),
             pool = random<T>(entries * width, 3);
  const T sinks[] = {-20, T(0.25), 20};
  const double scale = 0.25;
  auto o = poison<T>(n * heads * width);
  sparse_attention<T>::forward(exec::cpu(2),
                               {q.as(n, heads, width),
                                local.as(n, width),
                                pool.as(entries, width),
                                {},
                                {sinks, 3},
                                0,
                                0,
                                window,
                                ratio,
                                scale},
                               {o.as(n, heads, width)});
  // Scores reach 12: a dot product of 16 terms is off by 16 eps of that, a weight relatively by as much; the
  // softmax adds a rounding per key, the exponential a few.
  const double tolerance = eps<T> * (2 * 16 * 12 + 2 * double(window + entries) + 16);
  for (const std::int64_t t : {0, 2, 3, 69, 70, 149})
    for (std::int64_t h = 0; h < heads; ++h) {
      std::vector<const T*> keys;
      for (std::int64_t j = std::max<std::int64_t>(0, t - window + 1); j <= t; ++j)
        keys.push_back(&local[j * width]);
      for (std::int64_t j = 0; (j + 1) * ratio <= t + 1; ++j) keys.push_back(&pool[j * width]);
      for (std::size_t parts = 1; parts <= 8; ++parts) {
        // Every part has a mean of its own and the log of its sum; the sink is a part without a value.
        std::vector<double> lse{double(sinks[h])};
        std::vector<std::vector<double>> means(1, std::vector<double>(width, 0));
        for (std::size_t part = 0; part < parts; ++part) {
          double sum = 0;
          std::vector<double> mean(width, 0);
          for (std::size_t j = keys.size() * part / parts; j < keys.size() * (part + 1) / parts; ++j) {
            double score = 0;
            for (std::int64_t c = 0; c < width; ++c)
              score += double(q[(t * heads + h) * width + c]) * double(keys[j][c]) * scale;
            sum += std::exp(score);
            for (std::size_t c = 0; c < width; ++c) mean[c] += std::exp(score) * double(keys[j][c]);
          }
          if (sum == 0) continue;
          for (double& m : mean) m /= sum;
          lse.push_back(std::log(sum)), means.push_back(mean);
        }
        const double top = *std::max_element(lse.begin(), lse.end());
        double sum = 0;
        std::vector<double> merged(width, 0);
        for (std::size_t part = 0; part < lse.size(); ++part) {
          sum += std::exp(lse[part] - top);
          for (std::size_t c = 0; c < width; ++c) merged[c] += std::exp(lse[part] - top) * means[part][c];
        }
        for (std::int64_t c = 0; c < width; ++c)
          REQUIRE(std::abs(double(o[(t * heads + h) * width + c]) - merged[std::size_t(c)] / sum) <=
                  tolerance);
      }
    }
}

TEST_CASE("router in low precision: experts that only float32 tells apart") {
  const auto check = [](const auto& p) {
    const auto best = [&](const buffer<float>& x, const buffer<float>& w) {
      float logits[2], weight[1];
      const float bias[2] = {};
      std::int32_t expert[1];
      linear<float>::forward(p, {x.as(1, 256), w.as(2, 256)}, {{logits, 1, 2}});
      route<float>::forward(p, {{logits, 1, 2}, {bias, 2}, {}, {}, 1}, {{expert, 1, 1}, {weight, 1, 1}});
      return expert[0];
    };
    // Expert 1 is ahead by 2^-12, below bfloat16's step at 1; as a tie it would lose to expert 0.
    buffer<float> x(256), w(512);
    x[0] = 1, x[1] = 1 + 0x1p-12f;  // in the input
    w[0] = w[256 + 1] = 1;
    CHECK(to_bf16(x[0]) == to_bf16(x[1]));
    CHECK(best(x, w) == 1);
    std::fill(x.begin(), x.end(), 1.0f);  // in the sum: every factor is exact in bfloat16
    std::fill(w.begin(), w.end(), 0x1p-8f);
    w[256 + 200] += 0x1p-12f;
    CHECK(to_bf16(w[256 + 200]) == w[256 + 200]);
    CHECK(best(x, w) == 1);
    std::fill(w.begin(), w.end(), 0x1p-8f);  // in the weight
    w[256] += 0x1p-20f;
    CHECK(to_bf16(w[256]) == w[0]);
    CHECK(best(x, w) == 1);
  };
  check(exec::reference{});
  check(exec::cpu(2));
}

TEST_CASE("sqrt-softplus underflow in a hash layer: weights stay finite") {
  const float logits[] = {-5000, -5000, -5000};
  const std::int32_t table[] = {2, 0}, token[] = {0};
  float weights[2];
  std::int32_t experts[2];
  const auto check = [&](const auto& p) {
    route<float>::forward(p, {{logits, 1, 3}, {}, {table, 1, 2}, {token, 1}, 1.5},
                          {{experts, 1, 2}, {weights, 1, 2}});
    CHECK((experts[0] == 2 && experts[1] == 0));
    CHECK((weights[0] == 0 && weights[1] == 0));
  };
  check(exec::reference{});
  check(exec::cpu(1));
}

namespace {

constexpr hyper_connection_config four_streams = v4_pro.hyper_connection;
constexpr std::int64_t sites = 2 * 61, token_rows = 3, hidden = 16;

/// Runs all residual sites of a 61-layer model in T. With `coupled`, gates come from the streams and the
/// sublayer from its input; without, both are random. `between(site, streams, largest)` may change them.
template <class T>
buffer<T> residual_sites(bool coupled, const std::function<void(std::int64_t, buffer<T>&, double)>& between) {
  const exec::cpu p(1);
  workspace w;
  auto x = random<T>(token_rows * 4 * hidden, 1);
  for (std::int64_t site = 0; site < sites; ++site) {
    const auto seed = static_cast<std::uint64_t>(100 + 8 * site);
    auto fn = coupled ? random<T>(24 * 4 * hidden, seed, 0.25) : buffer<T>(24 * 4 * hidden);
    auto base = random<T>(24, seed + 1, 0.5), scale = random<T>(3, seed + 2, 0.25), norm = buffer<T>(hidden);
    for (T& s : scale) s += T(1);
    for (T& s : norm) s = T(1);
    const auto v = random<T>(token_rows * hidden, seed + 3), gain = random<T>(hidden, seed + 4);
    hyper_connection_site<four_streams, T, space::host>(
        p, w, {fn.as(24, 4 * hidden), base.as(24), scale.as(3)}, norm.as(hidden), 1e-6,
        x.as(token_rows, 4, hidden), [&](auto in, auto out) {
          for (std::int64_t t = 0; t < token_rows; ++t)
            for (std::int64_t c = 0; c < hidden; ++c)
              out(t, c) = coupled ? gain[c] * in(t, (5 * c + 3) % hidden) : v[t * hidden + c];
        });
    double largest = 0;
    for (T s : x) largest = std::max(largest, std::abs(double(s)));
    between(site, x, largest);
  }
  return x;
}

template <class A, class B>
double drift(const buffer<A>& a, const buffer<B>& b) {
  double worst = 0;
  for (std::int64_t i = 0; i < a.size(); ++i) {
    const double d = std::abs(double(a[i]) - double(b[i]));
    if (!(d <= worst)) worst = std::isfinite(d) ? d : INFINITY;
  }
  return worst;
}

void round_streams(std::int64_t, buffer<float>& x, double) {
  for (float& s : x) s = to_bf16(s);
}

}  // namespace

// What one site may add to the error in float, M being the largest stream value: the combination's entries
// are off relatively by 8 eps from the first softmax and 24 eps from the passes after it (6 eps each; logits
// within 1/2 make a pass shrink earlier errors at least by tanh(1/2), Birkhoff's bound, so at most 1/(1 -
// 0.46) of two passes' worth remains), post by 8 eps, and the 5 terms add 5 eps: 40 eps (M + 2).
constexpr double site_error = 40 * eps<float>;

TEST_CASE("61 layers of hyper-connections with given gates: the float error only adds up") {
  // Columns of the combination sum to 1 and its entries are not negative, so a site never enlarges the error
  // that came with the streams: the sum over the sites is a bound.
  double bound = 0;
  const auto exact = residual_sites<double>(
      false, [&](auto, auto&, double largest) { bound += site_error * (largest + 2); });
  const auto found = residual_sites<float>(false, [](auto, auto&, double) {});
  CAPTURE(bound, drift(found, exact));
  CHECK(drift(found, exact) <= bound);
  CHECK(drift(residual_sites<float>(false, round_streams), exact) > bound);  // bfloat16 streams would show
}

TEST_CASE("61 layers of hyper-connections with gates from the streams: float drifts as its rounding allows") {
  // Gates and sublayers now pass errors on, by a factor that depends on the weights. It is measured: the
  // double run with a random error of that size at every site. Float's own errors are of the same kind and
  // smaller, so its drift is at most the measured one.
  const auto exact = residual_sites<double>(true, [](auto, auto&, double) {});
  double bound = 0;
  for (const std::uint64_t trial : {1u, 2u, 3u}) {
    const auto disturbed = residual_sites<double>(true, [&](std::int64_t site, auto& x, double largest) {
      const auto r = random<double>(x.size(), 100000 * trial + static_cast<std::uint64_t>(site));
      for (std::int64_t i = 0; i < x.size(); ++i) x[i] += site_error * (largest + 2) * r[i];
    });
    bound = std::max(bound, drift(disturbed, exact));
  }
  const auto found = residual_sites<float>(true, [](auto, auto&, double) {});
  CAPTURE(bound, drift(found, exact));
  CHECK(drift(found, exact) <= bound);
  CHECK(drift(residual_sites<float>(true, round_streams), exact) > bound);
}
