// expect: e4m3
// SPDX-License-Identifier: Apache-2.0
#include <dsv4/numeric/minifloat.hpp>

float read(dsv4::e4m3 stored) { return stored; }
