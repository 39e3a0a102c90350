// SPDX-License-Identifier: Apache-2.0
/// The instruction sets that exec::cpu has kernels for, and the choice between them.
#pragma once

#include <dsv4/core/macros.hpp>

#if DSV4_X86_KERNELS
#include <cpuid.h>
#endif

namespace dsv4::detail {

enum class instruction_set { portable, avx2, avx512, avx512_vbmi };

/// Whether this machine has it.
inline bool supported(instruction_set set) {
#if DSV4_X86_KERNELS
  // Clang 14 does not know "f16c" by name. CPUID can trap in a virtual machine: ask once.
  static const bool f16c = [] {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
  }();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && f16c;
  if (set == instruction_set::avx2) return avx2;
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  if (set == instruction_set::avx512) return avx512;
  if (set == instruction_set::avx512_vbmi)
    return avx512 && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vbmi");
#endif
  return set == instruction_set::portable;
}

/// The best instruction set of this machine.
inline instruction_set best_set() {
  return supported(instruction_set::avx512) ? instruction_set::avx512
         : supported(instruction_set::avx2) ? instruction_set::avx2
                                            : instruction_set::portable;
}

/// The one of these kernels for an instruction set, of those that it includes the last.
template <class F>
F kernel_for(instruction_set set, F portable, F avx2, F avx512, F avx512_vbmi) {
  const F all[] = {portable, avx2, avx512, avx512_vbmi};
  return all[static_cast<int>(set)];
}
template <class F>
F kernel_for(instruction_set set, F portable, F avx2, F avx512) {
  return kernel_for(set, portable, avx2, avx512, avx512);
}

}  // namespace dsv4::detail
