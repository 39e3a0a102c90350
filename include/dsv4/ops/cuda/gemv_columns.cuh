// SPDX-License-Identifier: Apache-2.0
/// What products with few rows multiply x by, and where their results go: columns of one matrix, of two side
/// by side, or of a gate and what it gates.
#pragma once

#include <dsv4/ops/cuda/common.cuh>
#include <dsv4/ops/cuda/gemm_problem.cuh>
#include <dsv4/ops/cuda/gemv_steps.cuh>
#include <dsv4/ops/cuda/loose_pairs.cuh>
#include <dsv4/ops/cuda/swiglu.cuh>

#include <cstdint>

namespace dsv4::detail {

/// What one launch multiplies x by beside problem.weight: nothing.
struct gemv_alone {
  static constexpr bool beside = false, gated = false;
};
/// A second product, y = x weight^T.
template <class T, class WView>
struct gemv_beside {
  static constexpr bool beside = true, gated = false;
  WView weight;
  matrix_view<T, space::device> y;
};
/// A gate: the result is swiglu(x gate^T, x weight^T) times the row's weight, where there is one. Both
/// products are rounded to T first, as those of single ops are.
template <class T, class WView>
struct gemv_gated {
  static constexpr bool beside = false, gated = true;
  WView weight;  // the gate is problem.weight
  vector_view<const T, space::device> row_weight;
  double limit;
};

/// The columns that the warps of a block go through, some at a time: a unit, which has two rows of weights.
/// Matrices are looked up again whenever they are needed: registers are scarcer than L1.
template <class T, class XView, class WView, class Second>
struct gemv_columns {
  using problem = gemm_problem<T, XView, WView>;
  using W = loose_pairs<typename view_storage<WView>::type>;
  static constexpr bool gated = Second::gated;
  static constexpr int per_unit = gated ? gemv_outputs / 2 : gemv_outputs;
  const problem& p;
  const Second& second;
  int group;

  /// Of all products together.
  __device__ int count() const {
    int n = static_cast<int>(p.y.extent[1]);
    if constexpr (Second::beside) n += static_cast<int>(second.y.extent[1]);
    return n;
  }
  __device__ int units() const { return (count() + per_unit - 1) / per_unit; }
  /// The weights of output o of a unit.
  __device__ typename W::row row(int unit, int o) const {
    return weights_of(unit * per_unit + (gated ? o / 2 : o), gated && o % 2);
  }
  /// The weights of a column, or, where there is a gate, those beside the gate's. Columns beyond the last one
  /// are the last one again.
  __device__ typename W::row weights_of(int column, bool beside_gate) const {
    column = min(column, count() - 1);
    if constexpr (gated)
      if (beside_gate) return W::row_of(matrix_of(second.weight, group), column);
    if constexpr (Second::beside) {
      column -= static_cast<int>(p.y.extent[1]);
      if (column >= 0) return W::row_of(matrix_of(second.weight, group), column);
      column += static_cast<int>(p.y.extent[1]);
    }
    return W::row_of(p.weight_of(group), column);
  }
  /// Stores the products of a unit for row r.
  __device__ void store(int unit, std::int64_t r, const float (&value)[gemv_outputs]) const {
#pragma unroll
    for (int i = 0; i < per_unit; ++i)
      if constexpr (gated)
        store_gated(unit * per_unit + i, r, value[2 * i], value[2 * i + 1]);
      else
        store_column(unit * per_unit + i, r, value[i]);
  }
  /// Does nothing beyond the last column, as the next one.
  __device__ void store_column(int column, std::int64_t r, float value) const {
    if (column >= count()) return;
    if constexpr (Second::beside)
      if (column >= p.y.extent[1]) {
        second.y(r, column - p.y.extent[1]) = narrowed<T>(value);
        return;
      }
    y(r)[column] = narrowed<T>(value);
  }
  __device__ void store_gated(int column, std::int64_t r, float gate, float up) const {
    if (column >= count()) return;
    const float weight = second.row_weight.data ? widened<float>(second.row_weight(r)) : 1.0f;
    const auto rounded = [](float v) { return widened<float>(narrowed<T>(v)); };
    y(r)[column] =
        narrowed<T>(swiglu_value(rounded(gate), rounded(up), static_cast<float>(second.limit)) * weight);
  }

 private:
  __device__ T* y(std::int64_t r) const { return p.y.data + group * p.y_batch + r * p.y.stride[0]; }
};

/// The group of row `row`: as many end before it. All threads of a block come here.
template <class Problem>
__device__ int group_of_row(const Problem& p, std::int64_t row) {
  const int thread = static_cast<int>(threadIdx.x);
  int group = 0;
  for (int e = thread; e - thread < p.groups; e += static_cast<int>(blockDim.x))
    group += __syncthreads_count(e < p.groups && p.offsets[e + 1] <= row);
  return group;
}

}  // namespace dsv4::detail
