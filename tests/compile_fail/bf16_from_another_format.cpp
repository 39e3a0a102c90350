// expect: no matching
// SPDX-License-Identifier: Apache-2.0
#include <dsv4/numeric/bf16.hpp>

dsv4::bf16 widen(dsv4::e5m2 x) { return dsv4::bf16(x); }
