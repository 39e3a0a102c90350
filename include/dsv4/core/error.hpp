// SPDX-License-Identifier: Apache-2.0
/// Exceptions. Every message names what was expected, what came, and where.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <string_view>

namespace dsv4 {

namespace detail {
inline std::string joined(std::initializer_list<std::string_view> parts) {
  std::size_t size = 0;
  for (const std::string_view part : parts) size += part.size();
  std::string all(size, ' ');
  char* to = all.data();
  for (const std::string_view part : parts) to += part.copy(to, part.size());
  return all;
}
}  // namespace detail

/// Base of every exception that the library throws itself.
class error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A caller broke a precondition of an op, block or model (shape, range, null argument).
class contract_error : public error {
 public:
  contract_error(std::string_view where, std::string_view argument, std::string_view expected,
                 std::string_view found)
      : error(detail::joined({where, ": ", argument, ": expected ", expected, ", found ", found})) {}
};

/// A file is not what it claims to be, or not what the model needs.
class format_error : public error {
 public:
  format_error(std::string_view file, std::string_view item, std::string_view expected,
               std::string_view found)
      : error(detail::joined({file, ": ", item, ": expected ", expected, ", found ", found})) {}
};

/// The operating system refused a read, write or map.
class io_error : public error {
 public:
  io_error(std::string_view file, std::string_view operation, std::string_view reason)
      : error(detail::joined({file, ": ", operation, ": ", reason})) {}
};

/// A sequence state no longer holds what `truncate(length)` would need.
class cannot_rewind : public error {
 public:
  cannot_rewind(std::int64_t wanted, std::int64_t shortest, std::int64_t length)
      : error(detail::joined({"sequence_state::truncate: expected a length of 0 or from ",
                              std::to_string(shortest), " to ", std::to_string(length), ", found ",
                              std::to_string(wanted)})),
        shortest_length(shortest) {}
  std::int64_t shortest_length;  ///< the shortest non-zero length that truncate accepts now
};

}  // namespace dsv4
