// SPDX-License-Identifier: Apache-2.0
// Bugs that users of other DeepSeek-V4 ports reported, on the whole model: what the other tests do not catch.
// docs/reported-bugs.md lists all of them.
#include "support/catch.hpp"
#include "support/golden.hpp"
#include <dsv4/cpu.hpp>

#include <random>
#include <type_traits>

using namespace dsv4;

namespace {

// No two sizes are equal by accident; selection is active from the ninth token on.
constexpr model_config small = [] {
  model_config c = testing::golden(schedule({testing::C, testing::S, testing::H, testing::C}), 1);
  c.hidden_size = 20;
  c.vocab_size = 31;
  c.attention.num_attention_heads = 2;
  c.attention.head_dim = 12;
  c.attention.qk_rope_head_dim = 4;
  c.attention.q_lora_rank = 10;
  c.attention.o_groups = 1;
  c.attention.o_lora_rank = 6;
  c.attention.sliding_window = 9;
  c.attention.index_n_heads = 3;
  c.attention.index_head_dim = 8;
  c.attention.index_topk = 2;
  c.moe.n_routed_experts = 4;
  c.moe.moe_intermediate_size = 14;
  c.hyper_connection.hc_mult = 3;
  return c;
}();

/// The released window and group sizes.
constexpr model_config real_groups = [] {
  model_config c = small;
  c.attention.sliding_window = 128;
  c.attention.hca_compress_ratio = 128;
  c.attention.index_topk = 16;
  return c;
}();

/// The released head and its rotary constants, a layer of each kind, and the MTP block.
constexpr model_config real_head = [] {
  model_config c = real_groups;
  c.layers = schedule({testing::S, testing::C, testing::H});
  c.attention.head_dim = v4_flash.attention.head_dim;
  c.attention.qk_rope_head_dim = v4_flash.attention.qk_rope_head_dim;
  c.attention.index_head_dim = v4_flash.attention.index_head_dim;
  c.attention.rope = v4_flash.attention.rope;
  c.num_nextn_predict_layers = 1;
  return c;
}();

constexpr model_config two_windows = [] {
  model_config c = small;
  c.layers = schedule({testing::S, testing::S});
  c.moe.num_hash_layers = 0;
  return c;
}();

template <model_config C, class T, policy P, numerics_config Q = numerics::float32>
struct world {
  using model = transformer<C, T, Q>;
  using state = typename model::state;
  P p;
  typename model::parameters weights;
  workspace w;
  std::vector<std::int32_t> tokens;

  world(P policy, std::int64_t length) : p(policy) {
    initialise_by_name(weights);
    std::mt19937 random(5);
    for (std::int64_t i = 0; i < length; ++i)
      tokens.push_back(static_cast<std::int32_t>(random() % C.vocab_size));
  }
  /// Logits of all rows of `ids`, which extend the states of `segments`.
  std::vector<T> run(std::span<const typename model::segment> segments, std::span<const std::int32_t> ids) {
    const auto n = static_cast<std::int64_t>(ids.size());
    std::vector<T> logits(static_cast<std::size_t>(n * C.vocab_size));
    model::forward(p, w, weights.views(), {segments, {ids.data(), n}, logit_rows::all},
                   {{logits.data(), n, C.vocab_size}, {}});
    return logits;
  }
  std::vector<T> extend(state& s, std::span<const std::int32_t> ids) {
    const typename model::segment segment{&s, static_cast<std::int64_t>(ids.size())};
    return run(std::span(&segment, 1), ids);
  }
  /// Rows [begin, begin + count) of `tokens`.
  std::vector<T> extend(state& s, std::int64_t begin, std::int64_t count) {
    return extend(
        s, std::span(tokens).subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(count)));
  }
};

/// Everything that a state holds, layer by layer.
template <class State>
auto contents(const State& s) {
  using T = typename std::remove_cvref_t<decltype(s.cache(0).window.view())>::value_type;
  std::vector<T> all;
  for (int i = 0; i < State::layers; ++i)
    attention_cache<T>::for_each_array(s.cache(i), s.position(i),
                                       [&](matrix_view<const T> m, std::int64_t rows) {
                                         all.insert(all.end(), m.data, m.data + rows * m.extent[1]);
                                       });
  return all;
}

template <class T>
bool starts_with(const std::vector<T>& longer, const std::vector<T>& shorter) {
  return longer.size() >= shorter.size() && std::equal(shorter.begin(), shorter.end(), longer.begin());
}

/// What a model asked of RoPE and attention.
struct journal {
  struct turn {
    int layer;
    rope_frequencies frequencies;
    std::int64_t rows, heads, width, position, step;
    bool inverse;
  };
  struct product {
    int layer;
    double scale;
  };
  int layer = 0;
  std::vector<turn> turns;
  std::vector<product> products;
};

/// The reference policy, which also writes down those calls.
struct watching {
  static constexpr space memory = space::host;
  static constexpr std::string_view name = "watching";
  journal* to;
};

}  // namespace

namespace dsv4 {
template <class Op>
struct kernel<Op, watching> {
  static void forward(const watching&, const auto& in, const auto& out, const auto&... saved) {
    kernel<Op, exec::reference>::forward(exec::reference{}, in, out, saved...);
  }
};
template <class T>
struct kernel<rope<T>, watching> {
  static void forward(const watching& p, const auto& in, const auto& out, const auto&... saved) {
    p.to->turns.push_back({p.to->layer, in.frequencies, out.x.extent[0], out.x.extent[1], out.x.extent[2],
                           in.first_position, in.position_step, in.inverse});
    kernel<rope<T>, exec::reference>::forward(exec::reference{}, in, out, saved...);
  }
};
template <class T>
struct kernel<sparse_attention<T>, watching> {
  static void forward(const watching& p, const auto& in, const auto& out, const auto&... saved) {
    p.to->products.push_back({p.to->layer, in.scale});
    kernel<sparse_attention<T>, exec::reference>::forward(exec::reference{}, in, out, saved...);
  }
};
}  // namespace dsv4

TEST_CASE("one RoPE profile, entries at pool index j, mscale in the scale: what each layer asks for") {
  journal log;
  world<real_head, double, watching> here({&log}, 261);
  decltype(here)::state s;
  using model = decltype(here)::model;
  constexpr std::int64_t width = real_head.hidden_size, n = real_head.hyper_connection.hc_mult;
  constexpr std::int64_t heads = real_head.attention.num_attention_heads,
                         index_heads = real_head.attention.index_n_heads;
  for (const std::int64_t count : {127, 1, 131}) {
    const std::int64_t position = s.length(), end = position + count;
    log.turns.clear(), log.products.clear();
    buffer<double> streams(count * n * width);
    const model::segment segment{&s, count};
    const vector_view<const std::int32_t> ids(here.tokens.data() + position, count);
    model::forward(here.p, here.w, here.weights.views(), {std::span(&segment, 1), ids, logit_rows::none},
                   {{}, streams.as(count, n, width)}, [&](int layer, auto) { log.layer = layer; });
    log.layer = 3;  // the MTP block, which is a sliding layer
    model::draft(here.p, here.w, here.weights.views(), {std::span(&segment, 1), ids, logit_rows::none},
                 streams.as(count, n, width), {});

    REQUIRE(log.products.size() == 4);
    for (int layer = 0; layer < 4; ++layer) {
      CHECK(log.products[static_cast<std::size_t>(layer)].layer == layer);
      // No mscale of YaRN, 1 + 0.1 ln 16, once or squared: 1.28 or 1.63 times as large.
      CHECK(log.products[static_cast<std::size_t>(layer)].scale ==
            Catch::Approx(1 / std::sqrt(512.0)).epsilon(1e-15));
    }
    // How many calls turn what, and where.
    std::vector<int> queries(4), outputs(4), window_keys(4), entries(4), index_queries(4), index_entries(4);
    for (const auto& t : log.turns) {
      const auto layer = static_cast<std::size_t>(t.layer);
      const bool sliding = t.layer == 0 || t.layer == 3;
      const std::int64_t ratio = t.layer == 1 ? 4 : 128;
      REQUIRE(t.frequencies.pairs == 32);
      for (int i = 0; i < 32; ++i) {
        const double plain = std::pow(sliding ? 10000.0 : 160000.0, -i / 32.0);
        const double ramp = sliding ? 0 : std::clamp((i - 15) / 10.0, 0.0, 1.0);
        CHECK(t.frequencies.value[i] == Catch::Approx(plain * (1 - ramp) + plain / 16 * ramp).epsilon(1e-13));
      }
      const bool tokens = t.rows == count && t.position == position && t.step == 1;
      const bool groups = !sliding && t.rows == end / ratio - position / ratio &&
                          t.position == position / ratio * ratio && t.step == ratio && !t.inverse;
      if (t.heads == heads && t.width == 512 && tokens)
        ++(t.inverse ? outputs : queries)[layer];
      else if (t.heads == index_heads && t.width == 128 && tokens && !t.inverse)
        ++index_queries[layer];
      else if (t.heads == 1 && t.width == 512 && tokens && !t.inverse)
        ++window_keys[layer];
      else if (t.heads == 1 && t.width == 512 && groups)
        ++entries[layer];
      else if (t.heads == 1 && t.width == 128 && groups)
        ++index_entries[layer];
      else
        FAIL_CHECK("unexpected rotation in layer " << t.layer << ": " << t.rows << " rows of " << t.heads
                                                   << " x " << t.width << " from position " << t.position
                                                   << " by " << t.step);
    }
    const int csa = end / 4 > position / 4, hca = end / 128 > position / 128;
    CHECK(queries == std::vector<int>{1, 1, 1, 1});
    CHECK(outputs == std::vector<int>{1, 1, 1, 1});
    CHECK(window_keys == std::vector<int>{1, 1, 1, 1});
    CHECK(entries == std::vector<int>{0, csa, hca, 0});
    CHECK(index_queries == std::vector<int>{0, 1, 0, 0});
    CHECK(index_entries == std::vector<int>{0, csa, 0, 0});
  }
}

TEST_CASE("inverse RoPE missing: shifting all positions leaves the logits") {
  // Two window layers of 9: a row depends on the 16 tokens before it and on no position. After a common
  // suffix of 17 tokens, what stood before it only shifts it.
  const auto check = [](const auto& p) {
    world<two_windows, double, std::remove_cvref_t<decltype(p)>> here(p, 2000);
    const std::vector<std::int32_t> suffix(here.tokens.end() - 40, here.tokens.end());
    const auto last = [&](std::int64_t shift) {
      std::vector<std::int32_t> ids(here.tokens.begin(), here.tokens.begin() + shift);
      ids.insert(ids.end(), suffix.begin(), suffix.end());
      typename decltype(here)::state s;
      const auto logits = here.extend(s, ids);
      return std::vector<double>(logits.end() - 24 * two_windows.vocab_size, logits.end());
    };
    // Angles up to 1040 are off by 1040 * 2^-53 = 1.2e-13; 1e-9 leaves two layers and the head a factor of
    // 1e4. Turned by a position, attention would move the logits by about 0.1.
    const auto want = last(0);
    for (const std::int64_t shift : {1, 5, 16, 1000})
      CHECK(testing::largest_difference(last(shift), want) < 1e-9);
  };
  check(exec::reference{});
  check(exec::cpu(2));
}

namespace {
template <numerics_config Q>
void same_bits_every_time() {
  world<small, float, exec::cpu, Q> here(exec::cpu(1), 70);
  using state = typename decltype(here)::state;
  state first;
  const auto want = here.extend(first, 0, 70);
  const auto held = contents(first);
  for (int trial = 0; trial < 100; ++trial) {
    if (trial % 25 == 0) here.p = exec::cpu(1 + trial / 25);
    state s;
    REQUIRE(here.extend(s, 0, 70) == want);
    REQUIRE(contents(s) == held);
  }
}
}  // namespace

TEST_CASE("write race: a hundred runs of one input have the same bits, with 1 to 4 threads") {
  SECTION("float32") { same_bits_every_time<numerics::float32>(); }
  SECTION("FP8 entries, FP4 index keys") { same_bits_every_time<numerics::kv_fp8_index_fp4>(); }
}

TEST_CASE("decode lost the overlap: real group sizes, one token at a time, from every remainder") {
  world<real_groups, float, exec::cpu> here(exec::cpu(2), 400);
  decltype(here)::state whole;
  const auto want = here.extend(whole, 0, 390);
  const auto held = contents(whole);
  for (std::int64_t remainder = 0; remainder < 4; ++remainder) {
    decltype(here)::state s;
    auto got = here.extend(s, 0, 128 + remainder);
    while (s.length() < 390) {
      const auto row = here.extend(s, s.length(), 1);
      got.insert(got.end(), row.begin(), row.end());
    }
    CHECK(got == want);
    CHECK(contents(s) == held);
  }
}

TEST_CASE("chunk border: what the caches hold does not depend on how the prompt was cut") {
  world<real_groups, float, exec::cpu> here(exec::cpu(2), 400);
  decltype(here)::state whole;
  here.extend(whole, 0, 400);
  const auto held = contents(whole);
  const std::vector<std::vector<std::int64_t>> cuts = {{64},       {128},    {127, 1, 2, 129}, {3, 5, 7, 1},
                                                       {130, 126}, {255, 1}, {257, 3},         {399, 1}};
  for (const auto& cut : cuts) {
    decltype(here)::state s;
    for (std::size_t i = 0; s.length() < 400; ++i)
      here.extend(s, s.length(), std::min<std::int64_t>(cut[i % cut.size()], 400 - s.length()));
    CHECK(contents(s) == held);
  }
}

TEST_CASE("first block: prompts around one group and two, against the reference policy") {
  // Two double programs that sum in different orders, logits below 100: 1e-9, as for the oracle.
  world<real_groups, double, exec::cpu> here(exec::cpu(2), 260);
  world<real_groups, double, exec::reference> reference({}, 260);
  decltype(reference)::state all;
  const auto want = reference.extend(all, 0, 257);
  for (const std::int64_t n : {1, 2, 3, 4, 5, 6, 7, 8, 9, 127, 128, 129, 255, 256, 257}) {
    decltype(here)::state s;
    const auto got = here.extend(s, 0, n);
    CHECK(testing::largest_difference(got, std::span(want).first(got.size())) < 1e-9);
  }
}

TEST_CASE("padding tokens pooled into entries: padding that is cut off again leaves no trace") {
  // Right padding: the longest of a batch decides how many tokens every sequence gets, and each goes back to
  // its own length. Sequences of unequal lengths in one call are the next test.
  world<small, float, exec::cpu> here(exec::cpu(2), 60);
  constexpr std::int64_t longest = 37;
  for (const std::int64_t length : {1, 3, 4, 5, 15, 16, 17, 36, 37}) {
    decltype(here)::state alone(longest), padded(longest);
    const auto want = here.extend(alone, 0, length);
    std::vector<std::int32_t> ids(here.tokens.begin(), here.tokens.begin() + length);
    ids.resize(longest, 0);
    CHECK(starts_with(here.extend(padded, ids), want));
    padded.truncate(length);
    for (std::int64_t t = length; t < length + 18; ++t)
      CHECK(here.extend(padded, t, 1) == here.extend(alone, t, 1));
  }
}

TEST_CASE(
    "packed documents leak into each other: a call with several equals separate calls, and goes on so") {
  world<small, float, exec::cpu> here(exec::cpu(2), 200);
  using model = decltype(here)::model;
  const std::vector<std::int64_t> lengths = {5, 1, 23, 4, 16, 3}, starts = {0, 5, 6, 29, 33, 49};
  const auto pack = [&] {
    std::vector<model::state> states(6);
    std::vector<model::segment> segments;
    for (std::size_t i = 0; i < 6; ++i) segments.push_back({&states[i], lengths[i]});
    std::vector<std::vector<float>> rows(6);
    const auto add = [&](const std::vector<float>& logits) {
      auto at = logits.begin();
      for (std::size_t i = 0; i < 6; ++i) {
        const auto next = at + segments[i].tokens * small.vocab_size;
        rows[i].insert(rows[i].end(), at, next);
        at = next;
      }
    };
    add(here.run(segments, std::span(here.tokens).first(52)));
    for (auto& s : segments) s.tokens = 1;
    for (std::size_t step = 0; step < 20; ++step)
      add(here.run(segments, std::span(here.tokens).subspan(60 + 6 * step, 6)));
    for (std::size_t i = 0; i < 6; ++i) rows[i].push_back(float(states[i].length()));
    for (std::size_t i = 0; i < 6; ++i) {
      const auto held = contents(states[i]);
      rows[i].insert(rows[i].end(), held.begin(), held.end());
    }
    return rows;
  };
  const auto packed = pack();
  for (std::size_t i = 0; i < 6; ++i) {
    model::state s;
    auto rows = here.extend(s, starts[i], lengths[i]);
    for (std::int64_t step = 0; step < 20; ++step) {
      const auto row = here.extend(s, 60 + 6 * step + static_cast<std::int64_t>(i), 1);
      rows.insert(rows.end(), row.begin(), row.end());
    }
    rows.push_back(float(s.length()));
    const auto held = contents(s);
    rows.insert(rows.end(), held.begin(), held.end());
    CHECK(packed[i] == rows);
  }
  // Another third document changes nothing but itself.
  for (std::size_t t = 6; t < 29; ++t) here.tokens[t] = (here.tokens[t] + 1) % small.vocab_size;
  const auto other = pack();
  for (std::size_t i = 0; i < 6; ++i) CHECK((other[i] == packed[i]) == (i != 2));
}

namespace {
/// The unpooled projections that the first layer, a CSA layer, keeps of 9 tokens; then its entries.
template <numerics_config Q>
std::pair<std::vector<float>, std::vector<float>> first_compressor() {
  world<small, float, exec::cpu, Q> here(exec::cpu(1), 9);
  typename decltype(here)::state s;
  here.extend(s, 0, 9);
  std::pair<std::vector<float>, std::vector<float>> result;
  for (const auto* c : {&s.cache(0).main, &s.cache(0).index}) {
    for (const auto* ring : {&c->kv, &c->gate}) {
      const auto v = ring->view();
      result.first.insert(result.first.end(), v.data, v.data + v.size());
    }
    const auto v = c->entries.view().rows(0, 2);
    result.second.insert(result.second.end(), v.data, v.data + v.size());
  }
  return result;
}
}  // namespace

TEST_CASE("KV rounded in all channels or with an exact scale: 448 in groups of 64, powers of two, no more") {
  // The first layer sees the same input under both numerics, so its window ring has the exact value of each
  // rounded one.
  static constexpr std::int64_t rows = 100, width = 512, kept = 448;
  const auto window = []<numerics_config Q>(std::integral_constant<numerics_config, Q>) {
    world<real_head, float, exec::cpu, Q> here(exec::cpu(2), rows);
    typename decltype(here)::state s;
    here.extend(s, 0, rows);
    const auto v = s.cache(0).window.view();
    return std::vector<float>(v.data, v.data + rows * width);
  };
  const auto exact = window(std::integral_constant<numerics_config, numerics::float32>{}),
             rounded = window(std::integral_constant<numerics_config, numerics::kv_fp8_index_fp4>{});
  int changed = 0;
  for (std::size_t row = 0; row < rows; ++row) {
    for (std::size_t c = 0; c < kept; c += 64) {
      const float *x = &exact[row * width + c], *y = &rounded[row * width + c];
      double largest = 1e-4;
      for (int i = 0; i < 64; ++i) largest = std::max(largest, std::abs(double(x[i])));
      const double scale = std::exp2(std::ceil(std::log2(largest / 448)));
      for (int i = 0; i < 64; ++i) {
        // E4M3: three bits behind the leading one, subnormal below 2^-6; half a step of it at most.
        const double size = std::abs(double(x[i])) / scale;
        const double step = size < 0x1p-6 ? 0x1p-9 : std::ldexp(1.0, std::ilogb(size) - 3);
        REQUIRE(std::abs(double(x[i]) - double(y[i])) <= scale * step / 2);
        const double code = double(y[i]) / scale;  // a multiple of the step: the scale is the stored one
        REQUIRE(code / step == std::round(code / step));
        changed += x[i] != y[i];
      }
    }
    // Rotated channels are stored as they are.
    REQUIRE(
        std::equal(&exact[row * width + kept], &exact[row * width] + width, &rounded[row * width + kept]));
  }
  CHECK(changed > rows * kept / 2);
}

TEST_CASE("compressor in FP8: only what it puts out is rounded, its state and position bias are not") {
  const auto plain = first_compressor<numerics::float32>(),
             rounded = first_compressor<numerics::kv_fp8_index_fp4>();
  CHECK(plain.first == rounded.first);
  CHECK(plain.second != rounded.second);
  static_assert(std::is_same_v<decltype(compressor_parameters<float>::position_bias), matrix_view<float>>);
}

TEST_CASE("32-bit offsets: cache sizes at and far above 1M tokens") {
  // Of V4-Pro in float: 31 HCA and 30 CSA layers and the MTP block. Elements by hand, for a multiple of 128:
  // a window of 128 x 512; 512 per HCA entry; 512 + 128 per CSA entry.
  for (const std::int64_t tokens :
       {std::int64_t{1} << 20, std::int64_t{12000000} / 128 * 128, std::int64_t{1} << 34}) {
    std::int64_t sum = 0;
    for (int i = 0; i < v4_pro.num_hidden_layers() + 1; ++i)
      sum += attention_cache<float>::bytes(v4_pro.attention, v4_pro.kind(i), tokens);
    const std::int64_t elements = 62 * 65536 + 31 * (tokens / 128 * 512) + 30 * (tokens / 4 * 640);
    CHECK(sum == 4 * elements);
    CHECK(attention_cache<float>::bytes(v4_pro.attention, attention_kind::csa, tokens + 3) ==
          4 * (65536 + tokens / 4 * 640));
  }
  // 1M tokens have exactly 8192 HCA entries; one token less has 8191.
  const auto hca = [](std::int64_t tokens) {
    return attention_cache<float>::bytes(v4_pro.attention, attention_kind::hca, tokens) / (4 * 512) - 128;
  };
  CHECK(hca(1048575) == 8191);
  CHECK(hca(1048576) == 8192);
  CHECK(hca(1048577) == 8192);
  CHECK(hca(1048704) == 8193);
  static_assert(std::is_same_v<decltype(row_table<float>{}.capacity()), std::int64_t>);
  static_assert(std::is_same_v<decltype(sequence_state<small, float>{}.length()), std::int64_t>);
}
