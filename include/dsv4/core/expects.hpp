// SPDX-License-Identifier: Apache-2.0
/// Precondition checks at the public boundary.
#pragma once

#include <dsv4/core/error.hpp>

#include <cstdint>
#include <string>
#include <string_view>

namespace dsv4 {

/// Words around a number, for a rule or an argument that has one. Put together only when they are thrown.
struct numbered {
  std::string_view before;
  std::int64_t number;
  std::string_view after = {};
};

namespace detail {
inline std::string_view words(std::string_view text) { return text; }
inline std::string words(const numbered& n) { return joined({n.before, std::to_string(n.number), n.after}); }

/// Out of line, so that checks cost their callers a comparison and a call.
[[noreturn, gnu::cold, gnu::noinline]] inline void fail(std::string_view where, std::string_view argument,
                                                        std::string_view expected, std::int64_t found) {
  throw contract_error(where, argument, expected, std::to_string(found));
}
[[noreturn, gnu::cold, gnu::noinline]] inline void fail(std::string_view where, std::string_view argument,
                                                        std::int64_t expected, std::int64_t found) {
  fail(where, argument, std::to_string(expected), found);
}
template <class Argument, class Expected>
[[noreturn, gnu::cold, gnu::noinline]] void fail_numbered(std::string_view where, const Argument& argument,
                                                          const Expected& expected, std::int64_t found) {
  fail(where, words(argument), words(expected), found);
}
}  // namespace detail

/// Throws contract_error unless `found == expected`; `where` names the op, `argument` the extent.
inline void expect_extent(std::string_view where, std::string_view argument, std::int64_t found,
                          std::int64_t expected) {
  if (found != expected) detail::fail(where, argument, expected, found);
}

/// Throws contract_error unless `condition`; `expected` is the rule in words.
inline void expect(bool condition, std::string_view where, std::string_view argument,
                   std::string_view expected, std::int64_t found) {
  if (!condition) detail::fail(where, argument, expected, found);
}
inline void expect(bool condition, std::string_view where, std::string_view argument,
                   const numbered& expected, std::int64_t found) {
  if (!condition) detail::fail_numbered(where, argument, expected, found);
}
inline void expect(bool condition, std::string_view where, const numbered& argument,
                   std::string_view expected, std::int64_t found) {
  if (!condition) detail::fail_numbered(where, argument, expected, found);
}
inline void expect(bool condition, std::string_view where, const numbered& argument, const numbered& expected,
                   std::int64_t found) {
  if (!condition) detail::fail_numbered(where, argument, expected, found);
}

}  // namespace dsv4
