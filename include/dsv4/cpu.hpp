// SPDX-License-Identifier: Apache-2.0
/// exec::cpu with all of its kernels.
#pragma once

#include <dsv4/cpu_dense.hpp>
#include <dsv4/ops/cpu/quantise.hpp>
#include <dsv4/ops/cpu/stored_linear.hpp>
