// SPDX-License-Identifier: Apache-2.0
#include "support/catch.hpp"
#include <dsv4/config/presets.hpp>
#include <dsv4/cost/cache.hpp>
#include <dsv4/cost/deepseek_v32.hpp>
#include <dsv4/model/sequence_state.hpp>

#include <cmath>
#include <cstdint>

using namespace dsv4;
using namespace dsv4::testing;

TEST_CASE("cost cache: bytes of entries") {
  const auto& a = v4_flash.attention;
  CHECK(cost::cache_formats::released.entry_bytes(a) == 584);
  CHECK(cost::cache_formats::released.index_bytes(a) == 68);
  CHECK(cost::cache_formats::fp8_index.index_bytes(a) == 132);
  CHECK(cost::cache_formats::bf16.entry_bytes(a) == 1024);
  CHECK(cost::cache_formats::float32.entry_bytes(a) == 2048);
}

TEST_CASE("cost cache: bytes per token at a million") {
  const std::int64_t n = 1'000'000;
  const auto check = [&](const model_config& c, double per_token, double gigabytes, double share,
                         double less) {
    const std::int64_t bytes = cost::cache_bytes(c, cost::cache_formats::released, n);
    const double base = double(cost::cache_bytes(cost::deepseek_v32, n));
    CHECK(std::abs(double(bytes) / double(n) - per_token) < 6);  // the table leaves some constants out
    CHECK(std::abs(double(bytes) * 1e-9 - gigabytes) < 0.006);
    CHECK(std::abs(100 * double(bytes) / base - share) < 0.015);
    CHECK(std::abs(base / double(bytes) - less) < 0.015);
  };
  check(v4_pro, 5036, 5.04, 10.48, 9.54);
  check(v4_flash, 3517, 3.52, 7.32, 13.67);
  CHECK(cost::cache_bytes(cost::deepseek_v32, 1) == 48068);
  // With FP8 indexer keys, 8.7 and 12.5 times.
  const double base = double(cost::cache_bytes(cost::deepseek_v32, n));
  CHECK(base / double(cost::cache_bytes(v4_pro, cost::cache_formats::fp8_index, n)) ==
        Catch::Approx(8.71).margin(0.01));
  CHECK(base / double(cost::cache_bytes(v4_flash, cost::cache_formats::fp8_index, n)) ==
        Catch::Approx(12.47).margin(0.01));
  // 2% of a BF16 cache of eight heads of 128 at the same depth.
  CHECK(100 * double(cost::cache_bytes(v4_flash, cost::cache_formats::released, n)) /
            (43.0 * 4096 * double(n)) ==
        Catch::Approx(2.00).margin(0.01));
}

TEST_CASE("cost cache: a constant and a slope") {
  const auto line = cost::cache_cost(v4_flash, cost::cache_formats::released);
  CHECK(line.constant == 43 * 128 * 584);
  CHECK(line.per_token == Catch::Approx(21 * (584 + 68) / 4.0 + 20 * 584 / 128.0));
  // At whole groups the line is exact.
  for (std::int64_t n : {128, 1280, 1 << 20})
    CHECK(double(cost::cache_bytes(v4_flash, cost::cache_formats::released, n)) ==
          Catch::Approx(double(line.constant) + line.per_token * double(n)).epsilon(1e-14));
}

TEST_CASE("cost cache: what a sequence state holds") {
  const auto check = [&]<model_config C>() {
    for (std::int64_t n : {0, 1, 31, 32, 100, 1000}) {
      sequence_state<C, float> state;
      state.set_lengths(n, 0);
      CHECK(state.bytes() == cost::cache_bytes(C, cost::cache_formats::float32, n));
    }
  };
  check.operator()<v4_nano>();
  check.operator()<v4_bench>();
}
