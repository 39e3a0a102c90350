// SPDX-License-Identifier: Apache-2.0
/// Fuzz target: any bytes must parse or be refused with `format_error`, and what parses must lie in bounds.
///
///   clang++ -std=c++20 -g -O1 -fsanitize=fuzzer,address,undefined -Iinclude
///   tests/fuzz/safetensors_header.cpp
#include <dsv4/io/safetensors.hpp>

#include <cstddef>
#include <cstdint>
#include <span>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto whole = std::as_bytes(std::span(data, size));
  try {
    const auto header = dsv4::io::parse_safetensors_header("input.safetensors", whole);
    const auto bytes = whole.subspan(static_cast<std::size_t>(header.data_offset));
    std::uint64_t covered = 0;
    for (const auto& info : header.tensors) {
      if (info.begin != covered || info.end < info.begin || info.end > bytes.size()) __builtin_trap();
      if (dsv4::io::tensor_bytes(info.dtype, info.shape) != info.size_bytes()) __builtin_trap();
      if (header.find(info.name) != &info) __builtin_trap();
      covered = info.end;
    }
    if (covered != bytes.size()) __builtin_trap();
  } catch (const dsv4::format_error&) {
    // The only way out for a bad file; anything else ends the run.
  }
  return 0;
}
