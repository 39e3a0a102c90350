// SPDX-License-Identifier: Apache-2.0
// All of V4-Flash in float: forward and draft.
#include <dsv4/config/presets.hpp>
#include <dsv4/cpu_dense.hpp>
#include <dsv4/model/instantiate.hpp>

template struct dsv4::precompiled<dsv4::transformer<dsv4::v4_flash>, dsv4::exec::cpu>;
