// expect: no matching
// SPDX-License-Identifier: Apache-2.0
#include <dsv4/numeric/minifloat.hpp>

dsv4::e2m1 round(float x) { return dsv4::e2m1::non_saturating(x); }
