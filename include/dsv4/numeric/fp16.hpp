// SPDX-License-Identifier: Apache-2.0
/// IEEE half precision.
#pragma once

#include <dsv4/numeric/minifloat.hpp>

namespace dsv4 {

/// Sign, 5 exponent and 10 mantissa bits; max 65504, to which larger values saturate.
using fp16 = minifloat<5, 10, top_exponent::ieee>;

static_assert(sizeof(fp16) == 2 && fp16::max() == 65504);

}  // namespace dsv4
