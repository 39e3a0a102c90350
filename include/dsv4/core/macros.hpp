// SPDX-License-Identifier: Apache-2.0
/// The only header that looks at the compiler's identity.
#pragma once

#if defined(__CUDACC__)
#define DSV4_HOST_DEVICE __host__ __device__
#else
#define DSV4_HOST_DEVICE
#endif

/// 1: AVX2 and AVX-512 kernels are compiled, and chosen at run time. To do with the portable ones alone,
/// define it as 0 for the whole program. In .cu files it is 0: what runs exec::cpu for speed belongs in
/// others, or has its kernels from elsewhere, as below.
#if !defined(DSV4_X86_KERNELS)
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__)) && !defined(__CUDACC__)
#define DSV4_X86_KERNELS 1
#else
#define DSV4_X86_KERNELS 0
#endif
#endif
#if DSV4_X86_KERNELS && !defined(__clang__) && __GNUC__ < 12
#error "dsv4: GCC 12 or newer is needed, or DSV4_X86_KERNELS defined as 0"
#endif

/// 1: exec::cpu's matrix kernels are declared only, and compiled once for a program, in the one file that
/// includes <dsv4/cpu_kernels.hpp>. Who links dsv4::cpu_kernels has both.
#if !defined(DSV4_COMPILED_KERNELS)
#define DSV4_COMPILED_KERNELS 0
#endif

/// Whether an instruction has a builtin function of this name. GCC, which knows them only where they are
/// allowed, keeps their names; Clang has given up some.
#if defined(__clang__)
#define DSV4_HAS_INSTRUCTION(name) __has_builtin(name)
#else
#define DSV4_HAS_INSTRUCTION(name) 1
#endif

/// Asks for full unrolling of a loop over a register tile, whatever the optimisation level. nvcc has another
/// word for it.
#if defined(__CUDACC__)
#define DSV4_UNROLL
#else
#define DSV4_UNROLL _Pragma("GCC unroll 16")
#endif

/// In a loop that waits: leaves the core to the thread beside this one for some tens of nanoseconds.
#if defined(__x86_64__) && defined(__GNUC__)
#define DSV4_PAUSE() asm volatile("pause")
#elif defined(__aarch64__) && defined(__GNUC__)
#define DSV4_PAUSE() asm volatile("isb")
#else
#define DSV4_PAUSE() static_cast<void>(0)
#endif
