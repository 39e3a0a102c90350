// SPDX-License-Identifier: Apache-2.0
// One definition for prefill, chunks and decode: whatever the split, the same numbers, bit for bit on either
// host policy; and states that can be copied, cut back, reset and batched. Named after the bugs that other
// ports had.
#include "support/catch.hpp"
#include "support/golden.hpp"
#include <dsv4/cpu.hpp>

#include <random>

using namespace dsv4;

namespace {

// Small groups and a small k, so that selection, rings and groups all turn over within 64 tokens.
constexpr model_config tiny = [] {
  model_config c = testing::golden(schedule({testing::S, testing::C, testing::H, testing::C}), 1);
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
  c.moe.moe_intermediate_size = 10;
  c.hyper_connection.hc_mult = 3;
  return c;
}();

template <class T, policy P>
struct world {
  using model = transformer<tiny, T>;
  using state = typename model::state;
  P p;
  typename model::parameters weights;
  workspace w;
  std::vector<std::int32_t> tokens;

  explicit world(P policy, std::int64_t length) : p(policy) {
    initialise_by_name(weights);
    std::mt19937 random(7);
    for (std::int64_t i = 0; i < length; ++i)
      tokens.push_back(static_cast<std::int32_t>(random() % tiny.vocab_size));
  }
  /// Logits of all rows of tokens [begin, begin + count), extending `s`.
  std::vector<T> extend(state& s, std::int64_t begin, std::int64_t count) {
    const typename model::segment segment{&s, count};
    std::vector<T> logits(static_cast<std::size_t>(count * tiny.vocab_size));
    model::forward(p, w, weights.views(),
                   {std::span(&segment, 1), {tokens.data() + begin, count}, logit_rows::all},
                   {{logits.data(), count, tiny.vocab_size}, {}});
    return logits;
  }
  std::vector<T> whole(std::int64_t count) {
    state s;
    return extend(s, 0, count);
  }
};

template <class T>
void append(std::vector<T>& to, const std::vector<T>& from) {
  to.insert(to.end(), from.begin(), from.end());
}

template <class T, policy P>
void chunks_equal_one_shot(const P& p) {
  world<T, P> here(p, 101);
  const auto want = here.whole(101);
  std::mt19937 random(11);
  for (int trial = 0; trial < 12; ++trial) {
    typename world<T, P>::state s;
    std::vector<T> got;
    for (std::int64_t at = 0; at < 101;) {
      const std::int64_t longest = trial == 0 ? 1 : trial == 1 ? 4 : trial == 2 ? 16 : 40;
      const std::int64_t count = std::min<std::int64_t>(
          101 - at, trial < 3 ? longest : 1 + static_cast<std::int64_t>(random() % 40));
      append(got, here.extend(s, at, count));
      at += count;
    }
    CHECK(got == want);
    CHECK(s.length() == 101);
  }
}

}  // namespace

TEST_CASE("decode lost the overlap, chunk borders: any split of the prompt gives the same bits") {
  SECTION("reference, double") { chunks_equal_one_shot<double>(exec::reference{}); }
  SECTION("cpu, float") { chunks_equal_one_shot<float>(exec::cpu(2)); }
  SECTION("cpu, double") { chunks_equal_one_shot<double>(exec::cpu(1)); }
}

TEST_CASE("first blocks: every short length is finite and a prefix of the longer one") {
  world<float, exec::cpu> here(exec::cpu(2), 40);
  const auto want = here.whole(40);
  for (std::int64_t n = 0; n <= 40; ++n) {
    const auto got = here.whole(n);
    CHECK(std::equal(got.begin(), got.end(), want.begin()));
    for (float v : got) CHECK(std::isfinite(v));
  }
}

TEST_CASE("causality: a later token changes nothing before it") {
  world<double, exec::cpu> here(exec::cpu(2), 60);
  const auto before = here.whole(60);
  for (std::size_t t : {3u, 17u, 31u, 32u, 59u}) {
    const std::int32_t kept = here.tokens[t];
    here.tokens[t] = (kept + 1) % tiny.vocab_size;
    const auto after = here.whole(60);
    const std::size_t border = t * tiny.vocab_size;
    CHECK(std::equal(after.begin(), after.begin() + static_cast<std::ptrdiff_t>(border), before.begin()));
    CHECK(!std::equal(after.begin() + static_cast<std::ptrdiff_t>(border), after.end(),
                      before.begin() + static_cast<std::ptrdiff_t>(border)));
    here.tokens[t] = kept;
  }
}

TEST_CASE("batch invariance: sequences in one call equal each alone, for any number of threads") {
  using model = transformer<tiny, float>;
  world<float, exec::cpu> here(exec::cpu(1), 90);
  std::vector<std::vector<float>> alone;
  const std::int64_t starts[] = {0, 30, 31, 31}, counts[] = {30, 1, 0, 59};
  for (int i = 0; i < 4; ++i) {
    model::state s;
    alone.push_back(here.extend(s, starts[i], counts[i]));
  }
  for (int threads : {1, 2, 4}) {
    std::vector<model::state> states(4);
    std::vector<model::segment> segments;
    for (int i = 0; i < 4; ++i) segments.push_back({&states[static_cast<std::size_t>(i)], counts[i]});
    std::vector<float> logits(90 * tiny.vocab_size);
    model::forward(exec::cpu(threads), here.w, here.weights.views(),
                   {segments, {here.tokens.data(), 90}, logit_rows::all},
                   {{logits.data(), 90, tiny.vocab_size}, {}});
    std::vector<float> want;
    for (const auto& a : alone) append(want, a);
    CHECK(logits == want);
    // Only the last row of each: the empty segment has none.
    std::vector<float> last(3 * tiny.vocab_size);
    for (auto& s : states) s.reset();
    model::forward(exec::cpu(threads), here.w, here.weights.views(),
                   {segments, {here.tokens.data(), 90}, logit_rows::last},
                   {{last.data(), 3, tiny.vocab_size}, {}});
    CHECK(std::equal(last.begin(), last.begin() + tiny.vocab_size, want.begin() + 29 * tiny.vocab_size));
    CHECK(std::equal(last.end() - tiny.vocab_size, last.end(), want.end() - tiny.vocab_size));
  }
}

TEST_CASE("rollback: snapshot, decode, restore, decode is bitwise equal") {
  world<float, exec::cpu> here(exec::cpu(2), 80);
  world<float, exec::cpu>::state s;
  here.extend(s, 0, 37);
  const auto saved = s.snapshot();
  const auto first = here.extend(s, 37, 43);
  s.restore(saved);
  CHECK(s.length() == 37);
  CHECK(here.extend(s, 37, 43) == first);
}

TEST_CASE("rollback: truncate equals a fresh run, or says that it cannot") {
  for (std::int64_t rewind : {0, 5, 40}) {
    world<float, exec::cpu> here(exec::cpu(1), 90);
    const auto want = here.whole(90);
    int kept = 0;
    for (std::int64_t n = 0; n <= 70; ++n) {
      world<float, exec::cpu>::state s(rewind);
      here.extend(s, 0, 33);
      here.extend(s, 33, 37);
      if (n != 0 && n != 70 && n < s.shortest()) {
        CHECK_THROWS_AS(s.truncate(n), cannot_rewind);
        CHECK(s.length() == 70);
        continue;
      }
      ++kept;
      s.truncate(n);
      const auto rest = here.extend(s, n, 90 - n);
      CHECK(std::equal(rest.begin(), rest.end(), want.begin() + n * tiny.vocab_size));
    }
    CHECK(kept >= rewind + 2);
  }
  world<float, exec::cpu> here(exec::cpu(1), 9);
  world<float, exec::cpu>::state s;
  here.extend(s, 0, 9);
  CHECK_THROWS_AS(s.truncate(10), cannot_rewind);
  CHECK_THROWS_AS(s.truncate(-1), cannot_rewind);
}

TEST_CASE("rollback: a second truncate knows what the first one's tokens had overwritten") {
  world<float, exec::cpu> here(exec::cpu(1), 100);
  const auto want = here.whole(100);
  world<float, exec::cpu>::state s(8);
  here.extend(s, 0, 100);
  s.truncate(92);
  const std::int64_t shortest = s.shortest();
  CHECK(shortest >= 84);
  CHECK_THROWS_AS(s.truncate(shortest - 1), cannot_rewind);
  auto copy = s.snapshot();
  CHECK_THROWS_AS(copy.truncate(shortest - 1), cannot_rewind);
  s.truncate(shortest);
  const auto rest = here.extend(s, shortest, 100 - shortest);
  CHECK(std::equal(rest.begin(), rest.end(), want.begin() + shortest * tiny.vocab_size));
}

TEST_CASE("reset: a short prompt after a long one reads no stale rows") {
  world<float, exec::cpu> here(exec::cpu(1), 50);
  world<float, exec::cpu>::state s;
  here.extend(s, 0, 50);
  s.reset();
  CHECK(here.extend(s, 0, 3) == here.whole(3));
}

TEST_CASE("cache bytes are those of the formulas") {
  // Section 10: the window's rows, an entry per complete group, an index key per CSA entry.
  world<double, exec::cpu> here(exec::cpu(1), 50);
  world<double, exec::cpu>::state s;
  here.extend(s, 0, 50);
  const std::int64_t window = 9 * 12, csa = 12 * (12 + 8), hca = 3 * 12;
  CHECK(s.bytes() == static_cast<std::int64_t>(sizeof(double)) * (4 * window + 2 * csa + hca));
  s.truncate(0);
  CHECK(s.bytes() == 0);
}

TEST_CASE("memory is linear in the number of tokens, and a repeated call takes none") {
  world<float, exec::cpu> here(exec::cpu(1), 2048);
  const auto high_water = [&](std::int64_t count) {
    workspace w;
    world<float, exec::cpu>::state s;
    const transformer<tiny, float>::segment segment{&s, count};
    transformer<tiny, float>::forward(here.p, w, here.weights.views(),
                                      {std::span(&segment, 1), {here.tokens.data(), count}, logit_rows::none},
                                      {});
    const std::size_t capacity = w.capacity();
    s.reset();
    transformer<tiny, float>::forward(here.p, w, here.weights.views(),
                                      {std::span(&segment, 1), {here.tokens.data(), count}, logit_rows::none},
                                      {});
    CHECK(w.capacity() == capacity);
    return double(w.high_water());
  };
  // Twice the tokens, at most twice the scratch memory: a [T, T / 4] matrix would show.
  CHECK(high_water(2048) < 2.01 * high_water(1024));
  CHECK(high_water(1024) < 2.01 * high_water(512));
}

TEST_CASE("zero-length rows: nothing in, nothing out") {
  world<float, exec::reference> here(exec::reference{}, 1);
  world<float, exec::reference>::state s;
  CHECK(here.extend(s, 0, 0).empty());
  CHECK(s.length() == 0);
}

TEST_CASE("bad tokens are refused before the state changes") {
  world<float, exec::cpu> here(exec::cpu(1), 20);
  world<float, exec::cpu>::state s;
  here.extend(s, 0, 10);
  for (std::int32_t bad : {-1, tiny.vocab_size}) {
    here.tokens[12] = bad;
    CHECK_THROWS_WITH(here.extend(s, 10, 10),
                      testing::contains("tokens[2]") && testing::contains(std::to_string(bad)));
    CHECK(s.length() == 10);
  }
  here.tokens[12] = 3;
  const auto want = here.whole(20);
  const auto rest = here.extend(s, 10, 10);
  CHECK(std::equal(rest.begin(), rest.end(), want.begin() + 10 * tiny.vocab_size));
}

TEST_CASE("wrong extents are refused with the op, the argument and both numbers") {
  using model = transformer<tiny, float>;
  world<float, exec::cpu> here(exec::cpu(1), 4);
  model::state s;
  const model::segment segment{&s, 4};
  std::vector<float> logits(4 * tiny.vocab_size);
  CHECK_THROWS_WITH(model::forward(here.p, here.w, here.weights.views(),
                                   {std::span(&segment, 1), {here.tokens.data(), 3}, logit_rows::all},
                                   {{logits.data(), 4, tiny.vocab_size}, {}}),
                    testing::contains("tokens") && testing::contains("expected 4, found 3"));
  CHECK_THROWS_WITH(model::forward(here.p, here.w, here.weights.views(),
                                   {std::span(&segment, 1), {here.tokens.data(), 4}, logit_rows::last},
                                   {{logits.data(), 4, tiny.vocab_size}, {}}),
                    testing::contains("logits rows") && testing::contains("expected 1, found 4"));
}
