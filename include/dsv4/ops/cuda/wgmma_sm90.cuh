// SPDX-License-Identifier: Apache-2.0
/// Hopper's warpgroup matrix products, float out: D (64, N) += A (64, K) B (K, N), K = 16 of bf16 or half
/// precision or 32 of E4M3. The operands lie in shared memory, as descriptors say (sm90.cuh). Every one of
/// the warpgroup's 128 threads holds N / 2 of the sums.
#pragma once

#include <dsv4/numeric/bf16.hpp>
#include <dsv4/numeric/fp16.hpp>
#include <dsv4/ops/cuda/sm90.cuh>

#include <cstdint>
#include <type_traits>

namespace dsv4::detail {

// The sums d as operands of an asm statement, 0 to how many there are, and their numbers in its text.
#define DSV4_SUMS_8(i)                                                                        \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define DSV4_SUMS_16(i) DSV4_SUMS_8(i), DSV4_SUMS_8(i + 8)
#define DSV4_OPERANDS_4 "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
#define DSV4_NUMBERS_4 "%0, %1, %2, %3"
#define DSV4_OPERANDS_16 DSV4_SUMS_16(0)
#define DSV4_NUMBERS_16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define DSV4_OPERANDS_32 DSV4_OPERANDS_16, DSV4_SUMS_16(16)
#define DSV4_NUMBERS_32 \
  DSV4_NUMBERS_16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define DSV4_OPERANDS_48 DSV4_OPERANDS_32, DSV4_SUMS_16(32)
#define DSV4_NUMBERS_48 \
  DSV4_NUMBERS_32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define DSV4_OPERANDS_64 DSV4_OPERANDS_48, DSV4_SUMS_16(48)
#define DSV4_NUMBERS_64 \
  DSV4_NUMBERS_48 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define DSV4_OPERANDS_80 DSV4_OPERANDS_64, DSV4_SUMS_16(64)
#define DSV4_NUMBERS_80 \
  DSV4_NUMBERS_64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define DSV4_OPERANDS_96 DSV4_OPERANDS_80, DSV4_SUMS_16(80)
#define DSV4_NUMBERS_96 \
  DSV4_NUMBERS_80 ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define DSV4_OPERANDS_112 DSV4_OPERANDS_96, DSV4_SUMS_16(96)
#define DSV4_NUMBERS_112 \
  DSV4_NUMBERS_96        \
  ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111"
#define DSV4_OPERANDS_128 DSV4_OPERANDS_112, DSV4_SUMS_16(112)
#define DSV4_NUMBERS_128 \
  DSV4_NUMBERS_112       \
  ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
// A product of `shape`. Its operands after the sums are `...`, then `predicate`: whether to add, p in
// `inputs`.
#define DSV4_WGMMA(shape, sums, inputs, predicate, ...)                                              \
  asm volatile("{.reg .pred p; setp.ne.b32 p, " predicate ", 0; wgmma.mma_async.sync.aligned." shape \
               " {" DSV4_NUMBERS_##sums "}, " inputs ";}"                                            \
               : DSV4_OPERANDS_##sums                                                                \
               : __VA_ARGS__, "r"(static_cast<int>(add)))

// The branch of the product with n columns.
#define DSV4_SHAPE(n, sums, inputs, predicate)                                                        \
  if constexpr (N == n) {                                                                             \
    if constexpr (std::is_same_v<E, bf16>)                                                            \
      DSV4_WGMMA("m64n" #n "k16.f32.bf16.bf16", sums, inputs, predicate, "l"(a), "l"(b), "n"(TransA), \
                 "n"(TransB));                                                                        \
    else                                                                                              \
      DSV4_WGMMA("m64n" #n "k16.f32.f16.f16", sums, inputs, predicate, "l"(a), "l"(b), "n"(TransA),   \
                 "n"(TransB));                                                                        \
  }

/// Elements E with `N` columns; `TransB` reads B with N as its contiguous axis, `TransA` A with M.
template <int N, int TransB, int TransA = 0, class E = bf16>
struct wgmma {
  static constexpr int sums = N / 2;
  static __device__ __forceinline__ void run(float (&d)[sums], std::uint64_t a, std::uint64_t b, bool add) {
    static_assert(std::is_same_v<E, bf16> || std::is_same_v<E, fp16>);
    static_assert(N == 32 || N == 64 || N == 96 || N == 128 || N == 160 || N == 192 || N == 256);
    DSV4_SHAPE(32, 16, "%16, %17, p, 1, 1, %18, %19", "%20")
    DSV4_SHAPE(64, 32, "%32, %33, p, 1, 1, %34, %35", "%36")
    DSV4_SHAPE(96, 48, "%48, %49, p, 1, 1, %50, %51", "%52")
    DSV4_SHAPE(128, 64, "%64, %65, p, 1, 1, %66, %67", "%68")
    DSV4_SHAPE(160, 80, "%80, %81, p, 1, 1, %82, %83", "%84")
    DSV4_SHAPE(192, 96, "%96, %97, p, 1, 1, %98, %99", "%100")
    DSV4_SHAPE(256, 128, "%128, %129, p, 1, 1, %130, %131", "%132")
  }
};

/// The same with A in registers: of rows r = lane / 4 and r + 8 of the warp's 16, channels c = 2 (lane % 4),
/// c + 1 in a[0] (row r) and a[1] (row r + 8), c + 8, c + 9 in a[2] and a[3]; B with K contiguous.
template <int N>
struct wgmma_registers {
  static constexpr int sums = N / 2;
  static __device__ __forceinline__ void run(float (&d)[sums], const std::uint32_t (&a)[4], std::uint64_t b,
                                             bool add) {
    static_assert(N == 64);
    DSV4_WGMMA("m64n64k16.f32.bf16.bf16", 32, "{%32, %33, %34, %35}, %36, p, 1, 1, 0", "%37", "r"(a[0]),
               "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
  }
};

/// E4M3, both operands with K contiguous.
template <int N>
struct wgmma_e4m3 {
  static constexpr int sums = N / 2;
  static __device__ __forceinline__ void run(float (&d)[sums], std::uint64_t a, std::uint64_t b, bool add) {
    static_assert(N == 64);
    DSV4_WGMMA("m64n64k32.f32.e4m3.e4m3", 32, "%32, %33, p, 1, 1", "%34", "l"(a), "l"(b));
  }
};

/// The same with A in registers: of rows r = lane / 4 and r + 8 of the warp's 16, channels 4 (lane % 4) to
/// + 3 in a[0] (row r) and a[1] (row r + 8), those 16 further in a[2] and a[3].
template <int N>
struct wgmma_e4m3_registers {
  static constexpr int sums = N / 2;
  static __device__ __forceinline__ void run(float (&d)[sums], const std::uint32_t (&a)[4], std::uint64_t b,
                                             bool add) {
    static_assert(N == 8 || N == 32 || N == 64 || N == 96 || N == 128);
    if constexpr (N == 8)
      DSV4_WGMMA("m64n8k32.f32.e4m3.e4m3", 4, "{%4, %5, %6, %7}, %8, p, 1, 1", "%9", "r"(a[0]), "r"(a[1]),
                 "r"(a[2]), "r"(a[3]), "l"(b));
    else if constexpr (N == 32)
      DSV4_WGMMA("m64n32k32.f32.e4m3.e4m3", 16, "{%16, %17, %18, %19}, %20, p, 1, 1", "%21", "r"(a[0]),
                 "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
    else if constexpr (N == 64)
      DSV4_WGMMA("m64n64k32.f32.e4m3.e4m3", 32, "{%32, %33, %34, %35}, %36, p, 1, 1", "%37", "r"(a[0]),
                 "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
    else if constexpr (N == 96)
      DSV4_WGMMA("m64n96k32.f32.e4m3.e4m3", 48, "{%48, %49, %50, %51}, %52, p, 1, 1", "%53", "r"(a[0]),
                 "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
    else
      DSV4_WGMMA("m64n128k32.f32.e4m3.e4m3", 64, "{%64, %65, %66, %67}, %68, p, 1, 1", "%69", "r"(a[0]),
                 "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
  }
};

#undef DSV4_SUMS_8
#undef DSV4_SUMS_16
#undef DSV4_OPERANDS_4
#undef DSV4_NUMBERS_4
#undef DSV4_OPERANDS_16
#undef DSV4_NUMBERS_16
#undef DSV4_OPERANDS_32
#undef DSV4_NUMBERS_32
#undef DSV4_OPERANDS_48
#undef DSV4_NUMBERS_48
#undef DSV4_OPERANDS_64
#undef DSV4_NUMBERS_64
#undef DSV4_OPERANDS_80
#undef DSV4_NUMBERS_80
#undef DSV4_OPERANDS_96
#undef DSV4_NUMBERS_96
#undef DSV4_OPERANDS_112
#undef DSV4_NUMBERS_112
#undef DSV4_OPERANDS_128
#undef DSV4_NUMBERS_128
#undef DSV4_WGMMA
#undef DSV4_SHAPE

}  // namespace dsv4::detail
