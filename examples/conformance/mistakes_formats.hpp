// SPDX-License-Identifier: Apache-2.0
/// Known mistakes of matrix products, norms, transforms and number formats.
#pragma once

#include "scene.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

namespace conformance {

struct named_reading {
  reading how;
  const char* what;
  const char* row;
};
inline constexpr named_reading wrong_readings[] = {
    {reading::nibbles_swapped, "FP4 nibbles are swapped: the high one is taken as the even element", "50"},
    {reading::ggml_order, "FP4 nibbles are read in GGUF's order, j and j + 16 in a byte", "50"},
    {reading::scale_as_number, "the E8M0 scale's byte is taken as a number", "51"},
    {reading::fnuz, "FP8 is read in the other dialect, e4m3fnuz", "51b"},
    {reading::groups_of_16, "a scale is taken for 16 elements, as in NVFP4", "53"},
};

// ---- matrix products
// ---------------------------------------------------------------------------------------

/// The rows of a product's input, decoded where they are FP8.
inline std::optional<tensor> product_input(const scene& s, reading how = reading::right) {
  const tensor* x = s.input("x");
  if (!x || x->type != dtype::u8) return x ? std::optional(*x) : std::nullopt;
  const tensor* scale = s.at(std::string(s.call.input("x")) + "_scale");
  return scale ? std::optional(decode_e4m3(*x, *scale, 1, 128, how)) : std::nullopt;
}

/// y of linear, batched_linear or grouped_linear.
inline std::optional<tensor> product(const scene& s, const tensor& x, const tensor& weight) {
  const tensor* expected = s.expected();
  if (!expected) return {};
  tensor y = *expected;
  const std::int64_t in = weight.shape.back(), columns = expected->shape.back();
  const std::int64_t rows = y.size() / std::max<std::int64_t>(columns, 1), given = x.size() / in;
  const tensor* offsets = s.input("offsets");
  const std::int64_t groups = s.call.op == "batched_linear" ? expected->shape[1] : 1;
  for (std::int64_t r = 0; r < std::min(rows, given); ++r) {
    std::int64_t matrix = s.call.op == "batched_linear" ? r % groups : 0;
    if (offsets)
      while (r >= std::int64_t((*offsets)[matrix + 1])) ++matrix;
    for (std::int64_t o = 0; o < columns; ++o) {
      const std::int64_t row = (matrix * columns + o) * in;
      if (row + in > weight.size()) return {};
      double sum = 0;
      for (std::int64_t i = 0; i < in; ++i) sum += x[r * in + i] * weight[row + i];
      y[r * columns + o] = sum;
    }
  }
  return y;
}

inline void product_mistakes(scene& s) {
  const std::string name(s.call.input("weight"));
  const auto x = product_input(s);
  if (!x || s.role != "y") return;
  const auto add = [&](std::string what, std::vector<std::string> rows, const tensor& input,
                       const std::optional<tensor>& weight) {
    if (!weight) return;
    if (auto y = product(s, input, *weight)) s.add(std::move(what), std::move(rows), std::move(*y));
  };
  for (const auto& wrong : wrong_readings)
    add(std::string(wrong.what) + " (weights)", {wrong.row}, *x, s.weights.find(name, wrong.how));
  const tensor* right = s.at(s.call.input("weight"));
  if (!right) return;
  for (const auto& wrong : {wrong_readings[2], wrong_readings[3]})
    if (s.input("x")->type == dtype::u8)
      if (const auto read = product_input(s, wrong.how))
        add(std::string(wrong.what) + " (inputs)", {wrong.row}, *read, *right);
  const auto rounded = [](tensor t, int bits) {
    for (double& v : t.values) v = to_bits(v, bits);
    return t;
  };
  const bool router = name.ends_with("gate.weight") || s.call.output("y") == "gate.y";
  if (router)
    add("the router's input and weight are rounded to bfloat16", {"48"}, rounded(*x, 8), rounded(*right, 8));
  if (s.input("x")->type == dtype::u8) {  // the input before it was rounded
    const std::string code(s.call.input("x"));
    if (const tensor* raw = s.at(code.substr(0, code.rfind(".fp8"))))
      add("the input is not rounded to FP8", {"35"}, *raw, *right);
  }
  const auto swap = [&](const char* a, const char* b) {
    std::string other = name;
    if (const auto at = other.find(a); at != std::string::npos) {
      other.replace(at, std::string_view(a).size(), b);
      add("the weight of " + other + " is used", {}, *x, s.weights.find(other));
    }
  };
  swap(".w1.", ".w3."), swap(".w3.", ".w1."), swap(".wkv.", ".wgate."), swap(".wgate.", ".wkv.");
  if (right->shape.size() == 2 && right->shape[0] == right->shape[1]) {
    tensor turned = *right;
    const std::int64_t n = right->shape[0];
    for (std::int64_t i = 0; i < n * n; ++i) turned[i] = (*right)[i % n * n + i / n];
    add("the weight is transposed", {"56"}, *x, turned);
  }
}

// ---- norms and transforms
// ----------------------------------------------------------------------------------

inline void norm_mistakes(scene& s) {
  const tensor *x = s.input("x"), *weight = s.input("weight"), *expected = s.expected();
  if (!x || !expected || s.role != "y" || x->size() < expected->size()) return;
  const double eps = s.parameter("eps");
  const auto norm = [&](std::int64_t width, const auto& factor) {
    tensor y = *expected;
    for (std::int64_t i = 0; i < y.size(); ++i) {
      double squares = 0;
      for (std::int64_t c = 0; c < width; ++c)
        squares += (*x)[i / width * width + c] * (*x)[i / width * width + c];
      y[i] = (*x)[i] / std::sqrt(squares / double(width) + eps) * factor(i);
    }
    return y;
  };
  tensor same = *x;
  same.values.resize(expected->values.size());
  s.add("the norm is left out", {s.call.output("y") == "norm" ? "37" : "35"}, std::move(same));
  const std::int64_t width = expected->shape.back();
  if (weight) {
    s.add("the norm's weight is left out", {"37"}, norm(width, [](auto) { return 1.0; }));
    s.add("the norm multiplies by 1 + weight", {"37"},
          norm(width, [&](auto i) { return 1 + (*weight)[i % width]; }));
  } else if (expected->shape.size() == 3) {
    s.add("the norm runs over all heads together", {"35"}, norm(expected->row(), [](auto) { return 1.0; }));
    const std::string at(s.call.output("y"));
    if (at.ends_with("q_head_norm"))
      if (const auto kv_norm = s.weights.find(at.substr(0, at.size() - 11) + "kv_norm.weight"))
        s.add("the norm of query heads has a weight", {"35"},
              norm(width, [&](auto i) { return (*kv_norm)[i % width]; }));
  }
}

inline tensor hadamard_of(const tensor& x) {
  tensor y = x;
  const std::int64_t width = x.shape.back();
  for (std::int64_t i = 0; i < x.size(); ++i) {
    double sum = 0;
    for (std::int64_t j = 0; j < width; ++j)
      sum +=
          (std::popcount(static_cast<std::uint64_t>(i % width & j)) % 2 ? -1 : 1) * x[i / width * width + j];
    y[i] = sum / std::sqrt(double(width));
  }
  return y;
}

inline void hadamard_mistakes(scene& s) {
  const tensor* x = s.input("x");
  if (!x) return;
  const double root = std::sqrt(double(x->shape.back()));
  s.add("the Hadamard transform is left out", {"22"}, *x);
  s.add_each("the Hadamard transform is not scaled", {"22"}, hadamard_of(*x),
             [=](double v) { return v * root; });
  s.add_each("the Hadamard transform is scaled twice", {"22"}, hadamard_of(*x),
             [=](double v) { return v / root; });
}

// ---- rounding
// ----------------------------------------------------------------------------------------------

enum class scaling { right, exact, floor };

/// x rounded in groups, by columns [0, columns) of every row.
inline tensor round_groups(tensor x, std::int64_t columns, std::int64_t group, bool fp4, scaling how) {
  const std::int64_t width = x.shape.back();
  const double top = fp4 ? 6 : 448, least = fp4 ? 6 * 0x1p-126 : 1e-4;
  for (std::int64_t r = 0; r < x.size() / width; ++r)
    for (std::int64_t begin = 0; begin < columns; begin += group) {
      double amax = least;
      const std::int64_t end = std::min(begin + group, columns);
      for (std::int64_t c = begin; c < end; ++c) amax = std::max(amax, std::abs(x[r * width + c]));
      const double exponent = std::log2(amax / top);
      const double scale = how == scaling::exact   ? amax / top
                           : how == scaling::floor ? std::exp2(std::floor(exponent))
                                                   : std::exp2(std::ceil(exponent));
      for (std::int64_t c = begin; c < end; ++c) {
        const float v = static_cast<float>(x[r * width + c] / scale);
        x[r * width + c] = scale * double(fp4 ? float(dsv4::e2m1(v)) : float(dsv4::e4m3(v)));
      }
    }
  return x;
}

inline void rounding_mistakes(scene& s) {
  const tensor* x = s.input("x");
  if (!x || s.call.op != "round_trip") return;
  const bool fp4 = s.parameter<std::string>("format") == "mxfp4";
  const std::int64_t columns = s.parameter<std::int64_t>("columns"), group = fp4 ? 32 : 64;
  s.add("nothing is rounded", {fp4 ? "22" : "35"}, *x);
  if (fp4) {
    s.add("the Hadamard transform is missing before the rounding", {"22"},
          round_groups(hadamard_of(*x), columns, group, true, scaling::right));
  } else {
    s.add("the rotated channels are rounded too", {"35"},
          round_groups(*x, x->shape.back(), group, false, scaling::right));
  }
  s.add("scales are not powers of two", {"35"}, round_groups(*x, columns, group, fp4, scaling::exact));
  s.add("scales are rounded down to a power of two", {"35"},
        round_groups(*x, columns, group, fp4, scaling::floor));
  s.add("groups are of 128", {"35"}, round_groups(*x, columns, 128, fp4, scaling::right));
  if (fp4) s.add("groups are of 16", {"53"}, round_groups(*x, columns, 16, fp4, scaling::right));
}

inline void decoding_mistakes(scene& s) {
  const std::string name(s.call.input("code"));
  const tensor *code = s.input("code"), *scale = s.at(name + "_scale");
  if (!code || !scale || s.call.op != "dequantise") return;
  const std::string format = s.parameter<std::string>("format");
  for (const auto& wrong : wrong_readings) {
    if (format == "mxfp4") s.add(wrong.what, {wrong.row}, decode_mxfp4(*code, *scale, wrong.how));
    if (format == "e4m3_1x128") s.add(wrong.what, {wrong.row}, decode_e4m3(*code, *scale, 1, 128, wrong.how));
  }
  if (format == "mxfp4") {
    tensor flushed = decode_mxfp4(*code, *scale, reading::right);
    for (double& v : flushed.values) v = std::abs(v) < 0x1p-126 ? 0 : v;
    s.add("values below 2^-126 are flushed to 0", {"51"}, std::move(flushed));
  }
}

}  // namespace conformance
