// SPDX-License-Identifier: Apache-2.0
/// Tensors by name, with their values in double, and their files.
#pragma once

#include <dsv4/io/safetensors.hpp>
#include <dsv4/io/safetensors_writer.hpp>
#include <dsv4/numeric/bf16.hpp>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <vector>

namespace conformance {

namespace fs = std::filesystem;
using dsv4::io::dtype;

/// Row-major. Codes of small formats (F8_E4M3, F8_E8M0, U8, I8) are held as the byte, 0 to 255.
struct tensor {
  dtype type = dtype::f32;
  std::vector<std::int64_t> shape;
  std::vector<double> values;

  std::int64_t size() const { return static_cast<std::int64_t>(values.size()); }
  double operator[](std::int64_t i) const { return values[static_cast<std::size_t>(i)]; }
  double& operator[](std::int64_t i) { return values[static_cast<std::size_t>(i)]; }
  /// Elements of one entry of the first axis.
  std::int64_t row() const { return shape.empty() || shape[0] == 0 ? 1 : size() / shape[0]; }
};

using tensor_map = std::map<std::string, tensor, std::less<>>;

inline double half_to_double(std::uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const double magnitude = exponent == 31 ? (fraction ? NAN : INFINITY)
                           : exponent     ? std::ldexp(1024 + fraction, exponent - 25)
                                          : std::ldexp(fraction, -24);
  return bits >> 15 ? -magnitude : magnitude;
}

template <class U>
U read_as(const std::byte* at) {
  U value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

inline tensor read_tensor(const dsv4::io::safetensors_file& file, const dsv4::io::tensor_info& info) {
  tensor t{info.dtype, info.shape, {}};
  const std::byte* at = file.bytes(info).data();
  const auto bytes = static_cast<std::size_t>(dsv4::io::dtype_bits(info.dtype) / 8);
  if (bytes == 0) throw dsv4::format_error(file.path().string(), info.name, "whole bytes", "F4");
  t.values.reserve(info.size_bytes() / bytes);
  for (std::uint64_t i = 0; i < info.size_bytes(); i += bytes, at += bytes) switch (info.dtype) {
      case dtype::f64:
        t.values.push_back(read_as<double>(at));
        break;
      case dtype::f32:
        t.values.push_back(double(read_as<float>(at)));
        break;
      case dtype::f16:
        t.values.push_back(half_to_double(read_as<std::uint16_t>(at)));
        break;
      case dtype::bf16:
        t.values.push_back(double(float(dsv4::bf16::from_bits(read_as<std::uint16_t>(at)))));
        break;
      case dtype::i64:
        t.values.push_back(double(read_as<std::int64_t>(at)));
        break;
      case dtype::i32:
        t.values.push_back(double(read_as<std::int32_t>(at)));
        break;
      case dtype::i16:
        t.values.push_back(double(read_as<std::int16_t>(at)));
        break;
      default:
        t.values.push_back(double(std::to_integer<std::uint8_t>(*at)));
    }
  return t;
}

inline tensor_map read_tensors(const fs::path& path) {
  const dsv4::io::safetensors_file file(path);
  tensor_map all;
  for (const auto& info : file.tensors()) all.emplace(info.name, read_tensor(file, info));
  return all;
}

/// Writes F64, F32, BF16, I32 and U8; values must be exact in their type. The order is that of the names:
/// equal tensors, equal bytes.
inline void write_tensors(const fs::path& path, const tensor_map& all) {
  fs::create_directories(path.parent_path());
  std::vector<std::vector<std::byte>> kept;
  kept.reserve(all.size());
  dsv4::io::safetensors_writer writer;
  writer.set_metadata("format", "pt");
  for (const auto& entry : all) {
    const tensor& t = entry.second;
    const std::size_t size = t.values.size();
    std::vector<std::byte>& bytes = kept.emplace_back();
    const auto as = [&]<class U>(U) {
      bytes.resize(size * sizeof(U));
      for (std::size_t i = 0; i < size; ++i) {
        const U value = static_cast<U>(t.values[i]);
        std::memcpy(bytes.data() + i * sizeof(U), &value, sizeof(U));
      }
    };
    switch (t.type) {
      case dtype::f64:
        as(double{});
        break;
      case dtype::f32:
        as(float{});
        break;
      case dtype::i64:
        as(std::int64_t{});
        break;
      case dtype::i32:
        as(std::int32_t{});
        break;
      case dtype::bf16: {
        bytes.resize(size * 2);
        for (std::size_t i = 0; i < size; ++i) {
          const dsv4::bf16 value(t.values[i]);
          std::memcpy(bytes.data() + 2 * i, &value, 2);
        }
        break;
      }
      default:
        as(std::uint8_t{});
    }
    writer.add(entry.first, t.type, t.shape, bytes);
  }
  writer.write(path);
}

inline void write_text(const fs::path& path, const std::string& text) {
  fs::create_directories(path.parent_path());
  std::ofstream out(path, std::ios::binary);
  out << text;
  if (!out.flush()) throw dsv4::io_error(path.string(), "write", "failed");
}

/// `value` to `bits` significant bits, ties to even.
inline double to_bits(double value, int bits) {
  if (!std::isfinite(value) || value == 0) return value;
  int exponent;
  std::frexp(value, &exponent);
  return std::ldexp(std::nearbyint(std::ldexp(value, bits - exponent)), exponent - bits);
}

}  // namespace conformance
