// SPDX-License-Identifier: Apache-2.0
/// Hopper's warpgroup matrix products, bf16 or half precision in and float out: D (64, N) += A (64, 16) B
/// (16, N). The operands lie in shared memory, as descriptors say (sm90.cuh); `TransB` reads B with N as its
/// contiguous axis, `TransA` A with M.
#pragma once

#include <dsv4/numeric/bf16.hpp>
#include <dsv4/numeric/fp16.hpp>
#include <dsv4/ops/cuda/sm90.cuh>

#include <cstdint>
#include <type_traits>

namespace dsv4::detail {

/// Product of elements E with `N` columns; every one of the warpgroup's 128 threads holds N / 2 of the sums.
template <int N, int TransB, int TransA = 0, class E = bf16>
struct wgmma;

template <int TransB>
struct wgmma<32, TransB, 0> {
  static constexpr int sums = 16;
  static __device__ __forceinline__ void run(float (&d)[sums], std::uint64_t a, std::uint64_t b, bool add) {
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %18, 0;"
        "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
        "}, %16, %17, p, 1, 1, 0, %19;}"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
          "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])
        : "l"(a), "l"(b), "r"(static_cast<int>(add)), "n"(TransB));
  }
};

template <int TransB>
struct wgmma<64, TransB, 0> {
  static constexpr int sums = 32;
  static __device__ __forceinline__ void run(float (&d)[sums], std::uint64_t a, std::uint64_t b, bool add) {
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %34, 0;"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
        "}, %32, %33, p, 1, 1, 0, %35;}"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
          "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]),
          "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]),
          "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]),
          "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
        : "l"(a), "l"(b), "r"(static_cast<int>(add)), "n"(TransB));
  }
};

template <int TransB>
struct wgmma<128, TransB, 0> {
  static constexpr int sums = 64;
  static __device__ __forceinline__ void run(float (&d)[sums], std::uint64_t a, std::uint64_t b, bool add) {
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %66, 0;"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
        "}, %64, %65, p, 1, 1, 0, %67;}"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
          "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]),
          "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]),
          "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]),
          "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]),
          "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]), "+f"(d[42]),
          "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]), "+f"(d[49]),
          "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), "+f"(d[56]),
          "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
        : "l"(a), "l"(b), "r"(static_cast<int>(add)), "n"(TransB));
  }
};

#define DSV4_SUMS_16(i)                                                                                   \
  "+f"(d[(i)]), "+f"(d[(i) + 1]), "+f"(d[(i) + 2]), "+f"(d[(i) + 3]), "+f"(d[(i) + 4]), "+f"(d[(i) + 5]), \
      "+f"(d[(i) + 6]), "+f"(d[(i) + 7]), "+f"(d[(i) + 8]), "+f"(d[(i) + 9]), "+f"(d[(i) + 10]),          \
      "+f"(d[(i) + 11]), "+f"(d[(i) + 12]), "+f"(d[(i) + 13]), "+f"(d[(i) + 14]), "+f"(d[(i) + 15])

template <int TransB, int TransA, class E>
struct wgmma<96, TransB, TransA, E> {
  static constexpr int sums = 48;
  static __device__ __forceinline__ void run(float (&d)[sums], std::uint64_t a, std::uint64_t b, bool add) {
#define DSV4_RUN(type)                                                                   \
  asm volatile(                                                                          \
      "{.reg .pred p; setp.ne.b32 p, %50, 0;"                                            \
      "wgmma.mma_async.sync.aligned.m64n96k16.f32." type "." type                        \
      " {"                                                                               \
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "           \
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"   \
      "}, %48, %49, p, 1, 1, %51, %52;}"                                                 \
      : DSV4_SUMS_16(0), DSV4_SUMS_16(16), DSV4_SUMS_16(32)                              \
      : "l"(a), "l"(b), "r"(static_cast<int>(add)), "n"(TransA), "n"(TransB))
    if constexpr (std::is_same_v<E, bf16>)
      DSV4_RUN("bf16");
    else
      DSV4_RUN("f16");
#undef DSV4_RUN
  }
};

template <int TransB, int TransA, class E>
struct wgmma<160, TransB, TransA, E> {
  static constexpr int sums = 80;
  static __device__ __forceinline__ void run(float (&d)[sums], std::uint64_t a, std::uint64_t b, bool add) {
#define DSV4_RUN(type)                                                                          \
  asm volatile(                                                                                 \
      "{.reg .pred p; setp.ne.b32 p, %82, 0;"                                                   \
      "wgmma.mma_async.sync.aligned.m64n160k16.f32." type "." type                              \
      " {"                                                                                      \
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                  \
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "        \
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "        \
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "        \
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"          \
      "}, %80, %81, p, 1, 1, %83, %84;}"                                                        \
      : DSV4_SUMS_16(0), DSV4_SUMS_16(16), DSV4_SUMS_16(32), DSV4_SUMS_16(48), DSV4_SUMS_16(64) \
      : "l"(a), "l"(b), "r"(static_cast<int>(add)), "n"(TransA), "n"(TransB))
    if constexpr (std::is_same_v<E, bf16>)
      DSV4_RUN("bf16");
    else
      DSV4_RUN("f16");
#undef DSV4_RUN
  }
};

template <int TransB, int TransA, class E>
struct wgmma<192, TransB, TransA, E> {
  static constexpr int sums = 96;
  static __device__ __forceinline__ void run(float (&d)[sums], std::uint64_t a, std::uint64_t b, bool add) {
#define DSV4_RUN(type)                                                                           \
  asm volatile(                                                                                  \
      "{.reg .pred p; setp.ne.b32 p, %98, 0;"                                                    \
      "wgmma.mma_async.sync.aligned.m64n192k16.f32." type "." type                               \
      " {"                                                                                       \
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                   \
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "         \
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "         \
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "         \
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "         \
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"           \
      "}, %96, %97, p, 1, 1, %99, %100;}"                                                        \
      : DSV4_SUMS_16(0), DSV4_SUMS_16(16), DSV4_SUMS_16(32), DSV4_SUMS_16(48), DSV4_SUMS_16(64), \
        DSV4_SUMS_16(80)                                                                         \
      : "l"(a), "l"(b), "r"(static_cast<int>(add)), "n"(TransA), "n"(TransB))
    if constexpr (std::is_same_v<E, bf16>)
      DSV4_RUN("bf16");
    else
      DSV4_RUN("f16");
#undef DSV4_RUN
  }
};

template <int TransB, int TransA, class E>
struct wgmma<256, TransB, TransA, E> {
  static constexpr int sums = 128;
  static __device__ __forceinline__ void run(float (&d)[sums], std::uint64_t a, std::uint64_t b, bool add) {
#define DSV4_RUN(type)                                                                                 \
  asm volatile(                                                                                        \
      "{.reg .pred p; setp.ne.b32 p, %130, 0;"                                                         \
      "wgmma.mma_async.sync.aligned.m64n256k16.f32." type "." type                                     \
      " {"                                                                                             \
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                         \
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "               \
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "               \
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "               \
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "               \
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "               \
      "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "   \
      "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127" \
      "}, %128, %129, p, 1, 1, %131, %132;}"                                                           \
      : DSV4_SUMS_16(0), DSV4_SUMS_16(16), DSV4_SUMS_16(32), DSV4_SUMS_16(48), DSV4_SUMS_16(64),       \
        DSV4_SUMS_16(80), DSV4_SUMS_16(96), DSV4_SUMS_16(112)                                          \
      : "l"(a), "l"(b), "r"(static_cast<int>(add)), "n"(TransA), "n"(TransB))
    if constexpr (std::is_same_v<E, bf16>)
      DSV4_RUN("bf16");
    else
      DSV4_RUN("f16");
#undef DSV4_RUN
  }
};

#undef DSV4_SUMS_16

/// The same with A in registers: of rows r = lane / 4 and r + 8 of the warp's 16, channels c = 2 (lane % 4),
/// c + 1 in a[0] (row r) and a[1] (row r + 8), c + 8, c + 9 in a[2] and a[3]; B with K contiguous.
template <int N>
struct wgmma_registers;

template <>
struct wgmma_registers<64> {
  static constexpr int sums = 32;
  static __device__ __forceinline__ void run(float (&d)[sums], const std::uint32_t (&a)[4], std::uint64_t b,
                                             bool add) {
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %37, 0;"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
        "}, {%32, %33, %34, %35}, %36, p, 1, 1, 0;}"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
          "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]),
          "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]),
          "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]),
          "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)));
  }
};

}  // namespace dsv4::detail
