// SPDX-License-Identifier: Apache-2.0
/// Fuzz target: any bytes as a config.json are that of a configuration or are refused with an exception of
/// the library.
///
///   clang++ -std=c++20 -g -O1 -fsanitize=fuzzer,address,undefined -Iinclude tests/fuzz/config_json.cpp
#include <dsv4/config/presets.hpp>
#include <dsv4/io/config_json.hpp>

#include <cstddef>
#include <cstdint>
#include <string_view>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    const auto json =
        dsv4::io::detail::parse_config("input.json", {reinterpret_cast<const char*>(data), size});
    dsv4::io::detail::check_config(dsv4::v4_nano, json, "input.json");
    dsv4::io::detail::check_config(dsv4::v4_pro, json, "input.json");
  } catch (const dsv4::error&) {
    // The only way out of a bad file.
  }
  return 0;
}
