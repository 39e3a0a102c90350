// SPDX-License-Identifier: Apache-2.0
#include "support/catch.hpp"
#include <dsv4/config/presets.hpp>
#include <dsv4/cost/announced.hpp>
#include <dsv4/cost/flops.hpp>

#include <cmath>
#include <cstdint>

using namespace dsv4;
using namespace dsv4::testing;

namespace {
double giga(std::int64_t n) { return double(n) * 1e-9; }
}  // namespace

TEST_CASE("cost flops: one token at 2^20, by arithmetic") {
  const auto check = [](const cost::flop_count& f, double fp4, double fp8, double bf16, double index,
                        double core, double raw) {
    // The table has one digit behind the point.
    CHECK(std::abs(giga(f.fp4_fp8) - fp4) < 0.051);
    CHECK(std::abs(giga(f.fp8) - fp8) < 0.051);
    CHECK(std::abs(giga(f.bf16) - bf16) < 0.051);
    CHECK(std::abs(giga(f.index) - index) < 0.051);
    CHECK(std::abs(giga(f.core) - core) < 0.051);
    CHECK(std::abs(giga(f.raw()) - raw) < 0.051);
  };
  check(cost::decode_flops(cost::deepseek_v32, 1 << 20), 0, 72.8, 2.1, 1048.0, 34.8, 1157.7);
  check(cost::decode_flops(v4_pro, 1 << 20).total(), 48.4, 45.4, 3.9, 128.8, 76.7, 303.2);
  check(cost::decode_flops(v4_flash, 1 << 20).total(), 13.0, 11.7, 1.8, 90.2, 23.6, 140.3);
}

TEST_CASE("cost flops: the announced accounting, and those that do not fit") {
  const auto share = [](const model_config& c, int bf16, int core, int index) {
    const auto weigh = [&](const cost::flop_count& f, double idx) {
      return double(f.fp4_fp8 + f.fp8) + bf16 * double(f.bf16) + core * double(f.core) +
             idx * double(f.index);
    };
    return 100 * weigh(cost::decode_flops(c, 1'000'000).total(), index / 2.0) /
           weigh(cost::decode_flops(cost::deepseek_v32, 1'000'000), 1);
  };
  CHECK(share(v4_pro, 1, 1, 2) == Catch::Approx(26.52).margin(0.005));  // raw
  CHECK(share(v4_flash, 1, 1, 2) == Catch::Approx(12.19).margin(0.005));
  CHECK(share(v4_pro, 2, 2, 1) == Catch::Approx(27.07).margin(0.005));  // FP8 equivalents
  CHECK(share(v4_flash, 2, 2, 1) == Catch::Approx(10.17).margin(0.005));
  CHECK(100 * cost::compare_with_v32(v4_pro, 1'000'000).flops == Catch::Approx(27.07).margin(0.005));
  CHECK(cost::compare_with_v32(v4_flash, 1 << 20).flops_times_less == Catch::Approx(9.90).margin(0.005));
}

TEST_CASE("cost flops: a prompt is the sum of its tokens") {
  for (const model_config& c : {v4_nano, v4_bench})
    for (std::int64_t n : {1, 3, 4, 31, 32, 33, 64, 127, 128, 200, 1000}) {
      auto sum = cost::per_component<cost::flop_count>{};
      for (std::int64_t t = 1; t <= n; ++t) sum = sum + cost::decode_flops(c, t);
      const auto whole = cost::prefill_flops(c, n, n);
      for (std::size_t i = 0; i < cost::components; ++i) REQUIRE(whole.values[i] == sum.values[i]);
      const auto last = cost::prefill_flops(c, n);
      CHECK(whole.total().raw() - last.total().raw() ==
            (n - 1) * cost::detail::outer_products(c).total().raw());
    }
}

TEST_CASE("cost flops: what grows with the context, and what a training step takes") {
  const auto at = [](std::int64_t n) { return cost::decode_flops(v4_flash, n); };
  for (const auto part : {cost::component::router, cost::component::routed_experts, cost::component::head})
    CHECK(at(10)[part] == at(1'000'000)[part]);
  CHECK(at(2048)[cost::component::indexer].index * 2 == at(4096)[cost::component::indexer].index);
  // From 512 entries on, CSA attends to no more; HCA does.
  const auto csa = [](std::int64_t n) {
    return cost::decode_flops(v4_flash, attention_kind::csa, n).total().core;
  };
  CHECK(csa(2048) == csa(1 << 20));
  CHECK(csa(2044) < csa(2048));
  const auto plain = cost::training_flops(v4_nano, 100),
             again = cost::training_flops(v4_nano, 100, recompute::sublayers);
  const auto forward = cost::prefill_flops(v4_nano, 100, 100);
  CHECK(plain.total().raw() == 3 * forward.total().raw());
  CHECK(again[cost::component::attention] == forward[cost::component::attention] * 4);
  CHECK(again[cost::component::head] == forward[cost::component::head] * 3);
}

TEST_CASE("cost flops: DeepSeek-V3.2's size") {
  CHECK(std::round(giga(cost::parameters(cost::deepseek_v32)) * 100) == 67188);
  CHECK(std::round(giga(cost::active_parameters(cost::deepseek_v32)) * 100) == 3748);
}
