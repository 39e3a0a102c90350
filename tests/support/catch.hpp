// SPDX-License-Identifier: Apache-2.0
/// Catch2, version 2 or 3, and what exceptions say.
#pragma once

#include <exception>
#include <string>

#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_all.hpp>
namespace dsv4::testing {
inline auto contains(const std::string& text) { return Catch::Matchers::ContainsSubstring(text); }
}  // namespace dsv4::testing
#else
#include <catch2/catch.hpp>
namespace Catch {
using Detail::Approx;
}
namespace dsv4::testing {
inline auto contains(const std::string& text) { return Catch::Matchers::Contains(text); }
}  // namespace dsv4::testing
#endif

namespace dsv4::testing {
/// What the `Exception` that f throws says; nothing when it throws none. Others pass.
template <class Exception = std::exception, class F>
std::string message_of(const F& f) {
  try {
    f();
  } catch (const Exception& failure) {
    return failure.what();
  }
  return "";
}
}  // namespace dsv4::testing
