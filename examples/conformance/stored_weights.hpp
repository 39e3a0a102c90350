// SPDX-License-Identifier: Apache-2.0
/// The weights of a suite's model, decoded as they should be, and as engines have decoded them.
#pragma once

#include "tensors.hpp"
#include <dsv4/numeric/e8m0.hpp>
#include <dsv4/numeric/minifloat.hpp>

#include <cmath>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace conformance {

/// How bytes of small formats are read.
enum class reading {
  right,
  nibbles_swapped,  ///< the high nibble is the even element
  ggml_order,       ///< byte j of a group holds elements j and j + 16
  scale_as_number,  ///< the E8M0 byte is the scale itself
  fnuz,             ///< the other FP8 dialect: bias 8, no -0
  groups_of_16,     ///< one scale for 16 elements
};

inline double scale_value(double byte, reading how) {
  return how == reading::scale_as_number ? byte
                                         : double(dsv4::e8m0::from_bits(static_cast<std::uint8_t>(byte)));
}
inline double e2m1_value(int code) {
  return double(float(dsv4::e2m1::from_bits(static_cast<std::uint8_t>(code))));
}
inline double e4m3_value(double byte, reading how) {
  const auto bits = static_cast<std::uint8_t>(byte);
  if (how == reading::fnuz) return bits == 0x80 ? NAN : double(float(dsv4::e4m3fnuz::from_bits(bits)));
  return double(float(dsv4::e4m3::from_bits(bits)));
}

/// Rows of MXFP4: `code` holds pairs, `scale` one byte for 32 elements.
inline tensor decode_mxfp4(const tensor& code, const tensor& scale, reading how) {
  const std::int64_t rows = code.shape[0], bytes = code.shape[1], groups = scale.shape[1];
  tensor x{dtype::f32, {rows, 2 * bytes}, std::vector<double>(static_cast<std::size_t>(2 * rows * bytes))};
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t c = 0; c < 2 * bytes; ++c) {
      std::int64_t byte = c / 2;
      bool high = c % 2 == 1;
      if (how == reading::nibbles_swapped) high = !high;
      if (how == reading::ggml_order && c / 32 * 16 + 16 <= bytes)
        byte = c / 32 * 16 + c % 16, high = c % 32 >= 16;
      const int pair = static_cast<int>(code[r * bytes + byte]);
      const std::int64_t group = how == reading::groups_of_16 ? std::min(c / 16, groups - 1) : c / 32;
      x[r * 2 * bytes + c] =
          e2m1_value(high ? pair >> 4 : pair & 15) * scale_value(scale[r * groups + group], how);
    }
  return x;
}

/// FP8 in blocks of `high` x `wide`.
inline tensor decode_e4m3(const tensor& code, const tensor& scale, std::int64_t high, std::int64_t wide,
                          reading how) {
  tensor x = code;
  x.type = dtype::f32;
  const std::int64_t columns = code.shape[1], across = scale.shape[1];
  for (std::int64_t i = 0; i < x.size(); ++i)
    x[i] =
        e4m3_value(code[i], how) * scale_value(scale[i / columns / high * across + i % columns / wide], how);
  return x;
}

/// The tensors of a model's checkpoint, read when they are first asked for.
class stored_weights {
 public:
  explicit stored_weights(fs::path file) : file_(std::move(file)) {}

  /// A weight by the name that nodes give it; '*' stacks those of all experts.
  std::optional<tensor> find(std::string_view name, reading how = reading::right) {
    if (!read_) tensors_ = fs::exists(file_) ? read_tensors(file_) : tensor_map{}, read_ = true;
    const auto star = name.find('*');
    if (star == std::string_view::npos) return one(std::string(name), how);
    std::optional<tensor> all;
    for (int e = 0;; ++e) {
      const auto part = one(
          std::string(name.substr(0, star)) + std::to_string(e) + std::string(name.substr(star + 1)), how);
      if (!part) break;
      if (!all) all = tensor{part->type, {0, part->shape[0], part->shape[1]}, {}};
      ++all->shape[0];
      all->values.insert(all->values.end(), part->values.begin(), part->values.end());
    }
    return all;
  }

 private:
  std::optional<tensor> one(const std::string& name, reading how) const {
    const auto at = tensors_.find(name);
    if (at == tensors_.end()) return {};
    const std::string scale = name.ends_with("weight") ? name.substr(0, name.size() - 6) + "scale" : "";
    const auto scales = tensors_.find(scale);
    if (scales == tensors_.end()) return at->second;
    if (at->second.type == dtype::i8) return decode_mxfp4(at->second, scales->second, how);
    return decode_e4m3(at->second, scales->second, 128, 128, how);
  }

  fs::path file_;
  tensor_map tensors_;
  bool read_ = false;
};

}  // namespace conformance
