// SPDX-License-Identifier: Apache-2.0
/// Compares the storage types with the GPU's own conversions and the CUDA toolkit's, bit by bit: all 2^32
/// floats, and all codes. Needs CUDA 12.9 or later. Exit status 0 if all agree, 1 if not, 2 without a GPU.
///     nvcc -std=c++20 -O3 -Iinclude -gencode=arch=compute_90a,code=sm_90a tests/numeric/device_types.cu
/// and once more with --use_fast_math, which must change nothing.
#include <dsv4/numeric/bf16.hpp>
#include <dsv4/numeric/e5m6.hpp>
#include <dsv4/numeric/e8m0.hpp>
#include <dsv4/numeric/minifloat.hpp>
#include <dsv4/numeric/nvfp4.hpp>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp4.h>
#include <cuda_fp8.h>

using namespace dsv4;

namespace {

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  std::printf("%s: %s\n", what, cudaGetErrorString(status));
  std::exit(2);
}

struct counts {
  unsigned long long different;
  unsigned threads;  ///< that found a difference
  unsigned first_input, first_ours, first_theirs;
};

__device__ bool nan_float(float x) { return (__float_as_uint(x) & 0x7fffffffu) > 0x7f800000u; }

/// Each comparison has ours(input), theirs(input), and same(input, ours, theirs), which says what may differ.
struct any_nan {  // of two codes: the same bits, or NaN of whatever sign and payload
  template <class F>
  static __device__ bool codes(unsigned a, unsigned b) {
    using S = decltype(F{}.bits);
    return a == b || (F::from_bits(static_cast<S>(a)).is_nan() && F::from_bits(static_cast<S>(b)).is_nan());
  }
  static __device__ bool floats(unsigned a, unsigned b) {
    return a == b || (nan_float(__uint_as_float(a)) && nan_float(__uint_as_float(b)));
  }
};

template <class F, __nv_fp8_interpretation_t Kind, __nv_saturation_t Saturation>
struct encode_fp8 {
  static constexpr std::uint64_t inputs = std::uint64_t{1} << 32;
  static __device__ unsigned ours(unsigned u) {
    if constexpr (Saturation == __NV_SATFINITE) return F(__uint_as_float(u)).bits;
    return F::non_saturating(__uint_as_float(u)).bits;
  }
  static __device__ unsigned theirs(unsigned u) {
    return __nv_cvt_float_to_fp8(__uint_as_float(u), Saturation, Kind);
  }
  static __device__ bool same(unsigned, unsigned a, unsigned b) { return any_nan::codes<F>(a, b); }
};

template <class F, __nv_fp8_interpretation_t Kind>
struct decode_fp8 {
  static constexpr std::uint64_t inputs = 256;
  static __device__ unsigned ours(unsigned u) {
    return __float_as_uint(static_cast<float>(F::from_bits(static_cast<std::uint8_t>(u))));
  }
  static __device__ unsigned theirs(unsigned u) {  // half holds all values of both formats
    return __float_as_uint(
        __half2float(__half(__nv_cvt_fp8_to_halfraw(static_cast<__nv_fp8_storage_t>(u), Kind))));
  }
  static __device__ bool same(unsigned, unsigned a, unsigned b) { return any_nan::floats(a, b); }
};

struct encode_e2m1 {
  static constexpr std::uint64_t inputs = std::uint64_t{1} << 32;
  static __device__ unsigned ours(unsigned u) { return e2m1(__uint_as_float(u)).bits; }
  static __device__ unsigned theirs(unsigned u) {
    return __nv_cvt_float_to_fp4(__uint_as_float(u), __NV_E2M1, cudaRoundNearest) & 0xFu;
  }
  /// The format has no NaN: ours becomes +0, the toolkit's the largest value.
  static __device__ bool same(unsigned u, unsigned a, unsigned b) {
    return nan_float(__uint_as_float(u)) ? a == 0 && b == 7 : a == b;
  }
};

struct decode_e2m1 {
  static constexpr std::uint64_t inputs = 16;
  static __device__ unsigned ours(unsigned u) {
    return __float_as_uint(static_cast<float>(e2m1::from_bits(static_cast<std::uint8_t>(u))));
  }
  static __device__ unsigned theirs(unsigned u) {
    return __float_as_uint(
        __half2float(__half(__nv_cvt_fp4_to_halfraw(static_cast<__nv_fp4_storage_t>(u), __NV_E2M1))));
  }
  static __device__ bool same(unsigned, unsigned a, unsigned b) { return a == b; }
};

/// The order of two in a byte: x is the low nibble, as element 2i is here.
struct decode_e2m1_pair {
  static constexpr std::uint64_t inputs = 512;  // byte, and which of the two
  static __device__ unsigned ours(unsigned u) {
    const auto pair = e2m1x2::from_bits(static_cast<std::uint8_t>(u));
    return __float_as_uint(static_cast<float>(u < 256 ? pair.even() : pair.odd()));
  }
  static __device__ unsigned theirs(unsigned u) {
    const __half2 pair(__nv_cvt_fp4x2_to_halfraw2(static_cast<__nv_fp4x2_storage_t>(u & 0xFF), __NV_E2M1));
    return __float_as_uint(u < 256 ? __low2float(pair) : __high2float(pair));
  }
  static __device__ bool same(unsigned, unsigned a, unsigned b) { return a == b; }
};

struct encode_bf16 {
  static constexpr std::uint64_t inputs = std::uint64_t{1} << 32;
  static __device__ unsigned ours(unsigned u) { return bf16(__uint_as_float(u)).bits; }
  static __device__ unsigned theirs(unsigned u) {
    return __bfloat16_as_ushort(__float2bfloat16_rn(__uint_as_float(u)));
  }
  static __device__ bool same(unsigned, unsigned a, unsigned b) { return any_nan::codes<bf16>(a, b); }
};

struct decode_bf16 {
  static constexpr std::uint64_t inputs = 65536;
  static __device__ unsigned ours(unsigned u) {
    return __float_as_uint(static_cast<float>(bf16::from_bits(static_cast<std::uint16_t>(u))));
  }
  static __device__ unsigned theirs(unsigned u) {
    return __float_as_uint(__bfloat162float(__ushort_as_bfloat16(static_cast<unsigned short>(u))));
  }
  static __device__ bool same(unsigned, unsigned a, unsigned b) { return any_nan::floats(a, b); }
};

template <cudaRoundMode Mode>
struct encode_e8m0 {
  static constexpr std::uint64_t inputs = std::uint64_t{1} << 32;
  static __device__ unsigned ours(unsigned u) {
    return Mode == cudaRoundPosInf ? e8m0::ceil(__uint_as_float(u)).bits
                                   : e8m0::floor(__uint_as_float(u)).bits;
  }
  static __device__ unsigned theirs(unsigned u) {
    return __nv_cvt_float_to_e8m0(__uint_as_float(u), __NV_SATFINITE, Mode);
  }
  /// The toolkit takes the magnitude of negative numbers and saturates infinity; both are NaN here.
  static __device__ bool same(unsigned u, unsigned a, unsigned b) {
    const bool scale = u == 0x80000000u || u < 0x7f800000u;
    return scale ? a == b : a == 0xFF;
  }
};

struct decode_e8m0 {
  static constexpr std::uint64_t inputs = 256;
  static __device__ unsigned ours(unsigned u) {
    return __float_as_uint(static_cast<float>(e8m0::from_bits(static_cast<std::uint8_t>(u))));
  }
  static __device__ unsigned theirs(unsigned u) {
    return static_cast<unsigned>(__nv_cvt_e8m0_to_bf16raw(static_cast<__nv_fp8_storage_t>(u)).x) << 16;
  }
  static __device__ bool same(unsigned, unsigned a, unsigned b) { return any_nan::floats(a, b); }
};

/// e5m6 has no counterpart, but half with its last four bits 0 is the same set of numbers.
struct decode_e5m6 {
  static constexpr std::uint64_t inputs = 4096;
  static __device__ unsigned ours(unsigned u) {
    return __float_as_uint(static_cast<float>(e5m6::from_bits(static_cast<std::uint16_t>(u))));
  }
  static __device__ unsigned theirs(unsigned u) {
    return __float_as_uint(__half2float(__ushort_as_half(static_cast<unsigned short>(u << 4))));
  }
  static __device__ bool same(unsigned, unsigned a, unsigned b) { return any_nan::floats(a, b); }
};

template <class C>
__global__ void compare(counts* result) {
  unsigned long long different = 0;
  const std::uint64_t stride = std::uint64_t{gridDim.x} * blockDim.x;
  for (std::uint64_t i = std::uint64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < C::inputs; i += stride) {
    const auto input = static_cast<unsigned>(i);
    const unsigned a = C::ours(input), b = C::theirs(input);
    if (C::same(input, a, b)) continue;
    if (different++ == 0 && atomicAdd(&result->threads, 1u) == 0) {
      result->first_input = input;
      result->first_ours = a;
      result->first_theirs = b;
    }
  }
  if (different > 0) atomicAdd(&result->different, different);
}

template <class C>
bool run(const char* name, counts* result) {
  check(cudaMemset(result, 0, sizeof(counts)), "memset");
  constexpr int blocks = C::inputs > 65536 ? 4096 : 4;
  compare<C><<<blocks, 256>>>(result);
  check(cudaGetLastError(), name);
  counts c;
  check(cudaMemcpy(&c, result, sizeof c, cudaMemcpyDeviceToHost), name);
  std::printf("%-26s %10llu inputs, %llu differ", name, static_cast<unsigned long long>(C::inputs),
              c.different);
  if (c.different > 0)
    std::printf("; one: input %08x, ours %08x, theirs %08x", c.first_input, c.first_ours, c.first_theirs);
  std::printf("\n");
  return c.different == 0;
}

}  // namespace

int main() {
  counts* result = nullptr;
  check(cudaMalloc(&result, sizeof(counts)), "device");
  cudaDeviceProp device;
  check(cudaGetDeviceProperties(&device, 0), "device");
  std::printf("%s, sm_%d%d\n", device.name, device.major, device.minor);
  bool good = true;
  good &= run<encode_fp8<e4m3, __NV_E4M3, __NV_SATFINITE>>("float -> e4m3", result);
  good &= run<encode_fp8<e4m3, __NV_E4M3, __NV_NOSAT>>("float -> e4m3, unsaturated", result);
  good &= run<decode_fp8<e4m3, __NV_E4M3>>("e4m3 -> float", result);
  good &= run<encode_fp8<e5m2, __NV_E5M2, __NV_SATFINITE>>("float -> e5m2", result);
  good &= run<encode_fp8<e5m2, __NV_E5M2, __NV_NOSAT>>("float -> e5m2, unsaturated", result);
  good &= run<decode_fp8<e5m2, __NV_E5M2>>("e5m2 -> float", result);
  good &= run<encode_e2m1>("float -> e2m1", result);
  good &= run<decode_e2m1>("e2m1 -> float", result);
  good &= run<decode_e2m1_pair>("two e2m1 -> float", result);
  good &= run<encode_bf16>("float -> bf16", result);
  good &= run<decode_bf16>("bf16 -> float", result);
  good &= run<encode_e8m0<cudaRoundPosInf>>("float -> e8m0, ceil", result);
  good &= run<encode_e8m0<cudaRoundZero>>("float -> e8m0, floor", result);
  good &= run<decode_e8m0>("e8m0 -> float", result);
  good &= run<decode_e5m6>("e5m6 -> float", result);
  check(cudaFree(result), "device");
  std::printf(good ? "all agree\n" : "NOT all agree\n");
  return good ? 0 : 1;
}
