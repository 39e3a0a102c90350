// expect: e4m3fnuz
// SPDX-License-Identifier: Apache-2.0
#include <dsv4/numeric/minifloat.hpp>

dsv4::e4m3fn read(dsv4::e4m3fnuz stored) { return static_cast<dsv4::e4m3fn>(stored); }
