// expect: no matching
// SPDX-License-Identifier: Apache-2.0
#include <dsv4/numeric/e8m0.hpp>

dsv4::e8m0 scale(float amax) { return dsv4::e8m0(amax); }
