// SPDX-License-Identifier: Apache-2.0
/// Dense matrix products by cuBLASLt, with the choice of algorithm remembered per shape.
#pragma once

#include <dsv4/exec/cuda_error.cuh>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cublasLt.h>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>

namespace dsv4::exec {

/// A cuBLASLt handle and the algorithms chosen so far. Sums split over the inner extent are added in a fixed
/// order, so results do not change from run to run.
class cuda_matmul {
 public:
  /// y[b, t, o] = scale sum_i x[b, t, i] weight[b, o, i] + c_scale c[b, t, o]; strides in elements. With
  /// `transposed` flags, x is given as [i, t] or weight as [i, o], and their row strides are those of these
  /// shapes.
  struct problem {
    std::int64_t rows, columns, inner, batch;  // t, o, i, b
    const void* x;
    const void* weight;
    void* y;
    std::int64_t x_stride, weight_stride, y_stride;  ///< from row to row
    std::int64_t x_batch_stride, weight_batch_stride, y_batch_stride;
    cudaDataType_t x_type, weight_type, y_type;
    cublasComputeType_t compute;
    cudaDataType_t scale_type;
    bool x_transposed = false, weight_transposed = false;
    bool accumulate = false;  ///< c is y, c_scale 1
    const void* c = nullptr;  ///< of y's type and strides; null: none, unless accumulate
    double scale = 1, c_scale = 1;
  };

  cuda_matmul() { detail::check_cuda(cublasLtCreate(&handle_), "cublasLtCreate"); }
  cuda_matmul(const cuda_matmul&) = delete;
  cuda_matmul& operator=(const cuda_matmul&) = delete;
  ~cuda_matmul() { cublasLtDestroy(handle_); }

  /// Queues the product; false, and nothing queued, where cuBLASLt has no algorithm for these types, strides
  /// and alignments. Needs `scratch` until it has run.
  bool run(const detail::call_site& where, const problem& m, cudaStream_t stream, void* scratch,
           std::size_t scratch_bytes) {
    if (m.rows == 0 || m.columns == 0 || m.batch == 0 || (m.inner == 0 && m.accumulate)) return true;
    descriptors d(where, m);
    const std::optional<cublasLtMatmulAlgo_t> algorithm = choose(where, m, d, scratch_bytes);
    if (!algorithm) return false;
    const double alpha_d = m.scale, beta_d = m.c ? m.c_scale : m.accumulate ? 1.0 : 0.0;
    const float alpha_f = static_cast<float>(alpha_d), beta_f = static_cast<float>(beta_d);
    const bool wide = m.scale_type == CUDA_R_64F;
    const void* const c = m.c ? m.c : m.y;
    // cuBLAS is column-major: y^T (columns x rows) = weight x^T.
    detail::check_cuda(
        cublasLtMatmul(handle_, d.operation, wide ? static_cast<const void*>(&alpha_d) : &alpha_f, m.weight,
                       d.weight, m.x, d.x, wide ? static_cast<const void*>(&beta_d) : &beta_f, c, d.y, m.y,
                       d.y, &*algorithm, scratch, scratch_bytes, stream),
        where);
    return true;
  }

 private:
  struct descriptors {
    descriptors(const detail::call_site& where, const problem& m) {
      detail::check_cuda(cublasLtMatmulDescCreate(&operation, m.compute, m.scale_type), where);
      const cublasOperation_t weight_op = m.weight_transposed ? CUBLAS_OP_N : CUBLAS_OP_T,
                              x_op = m.x_transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
      set(where, CUBLASLT_MATMUL_DESC_TRANSA, weight_op);
      set(where, CUBLASLT_MATMUL_DESC_TRANSB, x_op);
      weight =
          layout(where, m.weight_type, m.weight_transposed ? m.columns : m.inner,
                 m.weight_transposed ? m.inner : m.columns, m.weight_stride, m.batch, m.weight_batch_stride);
      x = layout(where, m.x_type, m.x_transposed ? m.rows : m.inner, m.x_transposed ? m.inner : m.rows,
                 m.x_stride, m.batch, m.x_batch_stride);
      y = layout(where, m.y_type, m.columns, m.rows, m.y_stride, m.batch, m.y_batch_stride);
    }
    descriptors(const descriptors&) = delete;
    descriptors& operator=(const descriptors&) = delete;
    ~descriptors() {
      for (auto l : {weight, x, y})
        if (l) cublasLtMatrixLayoutDestroy(l);
      if (operation) cublasLtMatmulDescDestroy(operation);
    }
    template <class V>
    void set(const detail::call_site& where, cublasLtMatmulDescAttributes_t attribute, const V& value) {
      detail::check_cuda(cublasLtMatmulDescSetAttribute(operation, attribute, &value, sizeof value), where);
    }
    static cublasLtMatrixLayout_t layout(const detail::call_site& where, cudaDataType_t type,
                                         std::int64_t rows, std::int64_t columns, std::int64_t stride,
                                         std::int64_t batch, std::int64_t batch_stride) {
      cublasLtMatrixLayout_t l = nullptr;
      // A single column may come with any stride; the library wants at least its height.
      detail::check_cuda(
          cublasLtMatrixLayoutCreate(&l, type, static_cast<std::uint64_t>(rows),
                                     static_cast<std::uint64_t>(columns), stride < rows ? rows : stride),
          where);
      const auto count = static_cast<std::int32_t>(batch);
      detail::check_cuda(
          cublasLtMatrixLayoutSetAttribute(l, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof count),
          where);
      detail::check_cuda(cublasLtMatrixLayoutSetAttribute(l, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
                                                          &batch_stride, sizeof batch_stride),
                         where);
      return l;
    }
    cublasLtMatmulDesc_t operation = nullptr;
    cublasLtMatrixLayout_t weight = nullptr, x = nullptr, y = nullptr;
  };

  static std::uint32_t alignment(const void* p) {
    const auto a = reinterpret_cast<std::uintptr_t>(p);
    const std::uintptr_t lowest = a & (~a + 1);
    return static_cast<std::uint32_t>(lowest > 256 ? 256 : lowest);
  }

  using key = std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t,
                         std::int64_t, std::int64_t, std::int64_t, std::int64_t, int, int, int, int,
                         std::uint32_t, std::uint32_t, std::uint32_t, int, std::size_t>;

  std::optional<cublasLtMatmulAlgo_t> choose(const detail::call_site& where, const problem& m,
                                             const descriptors& d, std::size_t scratch_bytes) {
    const std::uint32_t ax = alignment(m.x), aw = alignment(m.weight),
                        ay = m.c ? std::min(alignment(m.y), alignment(m.c)) : alignment(m.y);
    const key k{m.rows,
                m.columns,
                m.inner,
                m.batch,
                m.x_stride,
                m.weight_stride,
                m.y_stride,
                m.x_batch_stride,
                m.weight_batch_stride,
                m.y_batch_stride,
                m.x_type,
                m.weight_type,
                m.y_type,
                m.compute,
                ax,
                aw,
                ay,
                (m.c != nullptr) * 8 + m.x_transposed * 4 + m.weight_transposed * 2 + m.accumulate,
                scratch_bytes};
    const std::lock_guard lock(mutex_);
    if (const auto found = chosen_.find(k); found != chosen_.end()) return found->second;
    cublasLtMatmulPreference_t preference = nullptr;
    detail::check_cuda(cublasLtMatmulPreferenceCreate(&preference), where);
    const struct destroy {
      cublasLtMatmulPreference_t p;
      ~destroy() { cublasLtMatmulPreferenceDestroy(p); }
    } at_end{preference};
    const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
      detail::check_cuda(cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof value),
                         where);
    };
    const std::uint64_t bytes = scratch_bytes;
    // Partial sums go to scratch memory and are added in order, never in place by whoever comes first.
    const std::uint32_t reductions = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, bytes);
    set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, reductions);
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, aw);
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, ax);
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, ay);
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, ay);
    cublasLtMatmulHeuristicResult_t result{};
    int count = 0;
    const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(handle_, d.operation, d.weight, d.x, d.y,
                                                                 d.y, preference, 1, &result, &count);
    if (status != CUBLAS_STATUS_NOT_SUPPORTED) detail::check_cuda(status, where);
    const bool found = status == CUBLAS_STATUS_SUCCESS && count > 0;
    return chosen_.emplace(k, found ? std::optional(result.algo) : std::nullopt).first->second;
  }

  cublasLtHandle_t handle_ = nullptr;
  std::mutex mutex_;
  std::map<key, std::optional<cublasLtMatmulAlgo_t>> chosen_;
};

}  // namespace dsv4::exec
