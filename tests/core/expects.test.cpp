// SPDX-License-Identifier: Apache-2.0
#include "support/catch.hpp"
#include <dsv4/core/expects.hpp>

#include <cstdint>
#include <string>

namespace {

using dsv4::expect;
using dsv4::numbered;

std::string message_of(const auto& f) { return dsv4::testing::message_of<dsv4::contract_error>(f); }

}  // namespace

TEST_CASE("what holds throws nothing", "[expects]") {
  CHECK_NOTHROW(dsv4::expect_extent("op", "x width", 3, 3));
  CHECK_NOTHROW(expect(true, "op", "x", "y", 1));
  CHECK_NOTHROW(expect(true, "op", numbered{"x[", 1, "]"}, numbered{"at most ", 2}, 1));
}

TEST_CASE("a message names the place, the argument, what was expected and what came", "[expects]") {
  CHECK(message_of([] { dsv4::expect_extent("op", "x width", 3, -4); }) ==
        "op: x width: expected -4, found 3");
  CHECK(message_of([] { expect(false, "op", "x", "even", 7); }) == "op: x: expected even, found 7");
  CHECK(message_of([] {
          expect(false, "op", "x", numbered{"at most ", 5}, 7);
        }) == "op: x: expected at most 5, found 7");
  CHECK(message_of([] {
          expect(false, "op", numbered{"x[", 2, "]"}, "even", 7);
        }) == "op: x[2]: expected even, found 7");
  CHECK(message_of([] {
          expect(false, "", numbered{"x[", INT64_MIN, "]"}, numbered{"within ", 9, " tokens"}, INT64_MAX);
        }) == ": x[-9223372036854775808]: expected within 9 tokens, found 9223372036854775807");
}
