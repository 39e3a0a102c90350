// SPDX-License-Identifier: Apache-2.0
// What dsv4::cpu_kernels compiles, once for a program.
#include <dsv4/cpu_kernels.hpp>
