// expect: no matching
// SPDX-License-Identifier: Apache-2.0
#include <dsv4/numeric/minifloat.hpp>

dsv4::e4m3 read(unsigned char code) { return dsv4::e4m3(code); }
