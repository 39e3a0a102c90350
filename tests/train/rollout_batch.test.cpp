// SPDX-License-Identifier: Apache-2.0
#include "support/catch.hpp"
#include <dsv4/train/rollout_batch.hpp>

using namespace dsv4;
using ids = std::vector<std::int32_t>;

namespace {
template <class Range>
ids list(const Range& range) {
  return {range.begin(), range.end()};
}
ids list(vector_view<const std::int32_t> v) { return {v.data, v.data + v.size()}; }
}  // namespace

TEST_CASE("rollout_batch: a row for every token but the last, and targets where the answer is predicted") {
  rollout_batch b;
  CHECK(b.size() == 0);
  CHECK(b.rows() == 0);
  b.add(ids{4, 5, 6}, ids{7, 8}, std::vector<double>{-0.5, -2});
  b.add(ids{9}, ids{1});
  CHECK(b.size() == 2);
  CHECK(list(b.tokens()) == ids{4, 5, 6, 7, 9});
  CHECK(list(b.targets()) == ids{-1, -1, 7, 8, 1});
  CHECK(list(b.answers()) == ids{7, 8, 1});
  CHECK(std::vector<std::int64_t>(b.offsets().begin(), b.offsets().end()) ==
        std::vector<std::int64_t>{0, 4, 5});
  CHECK(b.answer_offsets()(1) == 2);
  CHECK(b.answer_offsets()(2) == b.answer_rows());
  CHECK(list(b.prompt(0)) == ids{4, 5, 6});
  CHECK(list(b.prompt(1)) == ids{9});
  CHECK(list(b.answer(0)) == ids{7, 8});
  CHECK(list(b.answer(1)) == ids{1});
  CHECK(b.first_answer_row(0) == 2);
  CHECK(b.first_answer_row(1) == 4);
  CHECK(b.logp()(1) == -2);
  CHECK(std::isnan(b.logp()(2)));

  rollout_batch some;
  some.add(b, 1);
  some.add(b, 0);
  CHECK(list(some.tokens()) == ids{9, 4, 5, 6, 7});
  CHECK(some.logp()(2) == -2);
  b.clear();
  CHECK(b.size() == 0);
  CHECK(b.answer_rows() == 0);
}

TEST_CASE("rollout_batch: what it refuses") {
  rollout_batch b;
  CHECK_THROWS_WITH(b.add(ids{}, ids{1}), "rollout_batch::add: prompt tokens: expected at least 1, found 0");
  CHECK_THROWS_WITH(b.add(ids{1}, ids{}), "rollout_batch::add: answer tokens: expected at least 1, found 0");
  CHECK_THROWS_WITH(b.add(ids{1}, ids{1, 2}, std::vector<double>{0}),
                    "rollout_batch::add: logp: expected 2, found 1");
  CHECK(b.size() == 0);
}
