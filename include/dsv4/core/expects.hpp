// SPDX-License-Identifier: Apache-2.0
/// Precondition checks at the public boundary.
#pragma once

#include <dsv4/core/error.hpp>

#include <cstdint>
#include <string>
#include <string_view>

namespace dsv4 {

/// Throws contract_error unless `found == expected`; `where` names the op, `argument` the extent.
inline void expect_extent(std::string_view where, std::string_view argument, std::int64_t found,
                          std::int64_t expected) {
  if (found != expected)
    throw contract_error(where, argument, std::to_string(expected), std::to_string(found));
}

/// Throws contract_error unless `condition`; `expected` is the rule in words.
inline void expect(bool condition, std::string_view where, std::string_view argument,
                   std::string_view expected, std::int64_t found) {
  if (!condition) throw contract_error(where, argument, expected, std::to_string(found));
}

}  // namespace dsv4
