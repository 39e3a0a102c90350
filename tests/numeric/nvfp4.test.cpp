// SPDX-License-Identifier: Apache-2.0
#include "support/catch.hpp"
#include <dsv4/numeric/e8m0.hpp>
#include <dsv4/numeric/nvfp4.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

using namespace dsv4;

TEST_CASE("nvfp4: values on the grid come back, the even one in the low nibble") {
  const float grid[] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6, -0.5f, -1, -1.5f, -2, -3, -4, -6, 0.5f};
  float x[16], y[16];
  for (int i = 0; i < 16; ++i) x[i] = 3 * grid[i];
  const nvfp4_block block = nvfp4_block::quantise(x, 0.25f);
  CHECK(float(block.scale) == 12);
  CHECK(block.pairs[0].bits == 0x10);
  CHECK(block.pairs[7].bits == 0x1F);
  block.dequantise(0.25f, y);
  for (int i = 0; i < 16; ++i) CHECK(y[i] == x[i]);
}

TEST_CASE("nvfp4: zeros, blocks too small for the tensor's scale, NaN and saturation") {
  float x[16] = {}, y[16];
  CHECK(nvfp4_block::quantise(x, 1).scale.bits == 0);
  CHECK(nvfp4_block::quantise(x, 0).scale.bits == 0);
  x[3] = 6 * 0x1p-11f;  // its scale would be 2^-11, a quarter of the smallest E4M3
  nvfp4_block::quantise(x, 1).dequantise(1, y);
  CHECK(std::all_of(y, y + 16, [](float v) { return v == 0; }));
  x[3] = std::numeric_limits<float>::quiet_NaN();
  x[4] = 7;
  CHECK(nvfp4_block::quantise(x, 1).scale.is_nan());
  nvfp4_block::quantise(x, 1).dequantise(1, y);
  CHECK(std::all_of(y, y + 16, [](float v) { return std::isnan(v); }));
  x[3] = 1e9f;
  nvfp4_block::quantise(x, 1).dequantise(1, y);
  CHECK(y[3] == 6 * 448);
  CHECK(nvfp4_block::tensor_scale(2688) == 1);
}

TEST_CASE("relative error on Gaussian samples: nvfp4 beside both rules of MXFP4") {
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  std::vector<float> x(1 << 18);
  for (float& v : x) v = normal(random);
  float amax = 0;
  for (float v : x) amax = std::max(amax, std::abs(v));
  const float tensor_scale = nvfp4_block::tensor_scale(amax);
  double squares = 0, nv = 0, ceil = 0, floor = 0;
  for (std::size_t i = 0; i < x.size(); i += 16) {
    float y[16];
    nvfp4_block::quantise(&x[i], tensor_scale).dequantise(tensor_scale, y);
    for (std::size_t j = 0; j < 16; ++j) nv += std::pow(double(y[j] - x[i + j]), 2);
  }
  for (std::size_t i = 0; i < x.size(); i += 32) {
    float largest = 0;
    for (std::size_t j = i; j < i + 32; ++j) largest = std::max(largest, std::abs(x[j]));
    const float up = float(e8m0::ceil(largest / 6)), down = float(e8m0::floor(largest)) / 4;
    for (std::size_t j = i; j < i + 32; ++j) {
      squares += std::pow(double(x[j]), 2);
      ceil += std::pow(double(float(e2m1(x[j] / up)) * up - x[j]), 2);
      floor += std::pow(double(float(e2m1(x[j] / down)) * down - x[j]), 2);
    }
  }
  CHECK(std::sqrt(nv / squares) == Catch::Approx(0.0950).epsilon(0.01));
  CHECK(std::sqrt(ceil / squares) == Catch::Approx(0.1153).epsilon(0.01));
  CHECK(std::sqrt(floor / squares) == Catch::Approx(0.1149).epsilon(0.01));
}
