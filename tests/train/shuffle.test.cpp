// SPDX-License-Identifier: Apache-2.0
#include "support/catch.hpp"
#include <dsv4/train/shuffle.hpp>

#include <cmath>
#include <vector>

using namespace dsv4;
using namespace dsv4::testing;

TEST_CASE("shuffle: every index once, whatever the count") {
  for (std::int64_t count : {1, 2, 3, 4, 5, 15, 16, 17, 63, 64, 65, 1000, 4097})
    for (std::uint64_t key : {0u, 1u, 77u}) {
      std::vector<int> seen(static_cast<std::size_t>(count));
      for (std::int64_t i = 0; i < count; ++i)
        ++seen[static_cast<std::size_t>(shuffled_index(count, i, key))];
      for (int s : seen) REQUIRE(s == 1);
    }
}

TEST_CASE("shuffle: keys give different orders that have no pattern left") {
  const std::int64_t count = 1000;
  int fixed = 0, neighbours = 0, same = 0;
  double correlation = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t a = shuffled_index(count, i, 5), b = shuffled_index(count, i, 6);
    fixed += a == i;
    same += a == b;
    if (i) neighbours += std::abs(a - shuffled_index(count, i - 1, 5)) == 1;
    correlation += (double(i) - 499.5) * (double(a) - 499.5);
  }
  CHECK(fixed < 10);  // 1 is expected
  CHECK(same < 10);
  CHECK(neighbours < 12);  // 2 are expected
  CHECK(std::abs(correlation) / (1000 * (1e6 - 1) / 12) <
        4 / std::sqrt(1000.0));  // four deviations of chance
  // First places of many keys are spread evenly: 20 keys to each of 10 indices, within five deviations.
  std::vector<int> first(10);
  for (std::uint64_t key = 0; key < 200; ++key) ++first[static_cast<std::size_t>(shuffled_index(10, 0, key))];
  for (int n : first) CHECK(std::abs(n - 20) < 22);
}

TEST_CASE("shuffle: the same everywhere") {
  // Recorded: a run that is continued elsewhere must find the same rows.
  const std::int64_t want[] = {0, 3, 2, 6, 5, 4, 1};
  for (std::int64_t i = 0; i < 7; ++i) CHECK(shuffled_index(7, i, 42) == want[i]);
  CHECK(shuffled_index(1000000, 0, 42) == 447512);
  CHECK(shuffled_index(1000000, 1, 42) == 825959);
  CHECK_THROWS_WITH(shuffled_index(0, 0, 1), contains("shuffled_index: count: expected at least 1, found 0"));
  CHECK_THROWS_WITH(shuffled_index(7, 7, 1), contains("shuffled_index: index: expected 0 to 6, found 7"));
}
