// expect: e8m0
// SPDX-License-Identifier: Apache-2.0
#include <dsv4/numeric/e8m0.hpp>

float read(dsv4::e8m0 scale) { return scale; }
