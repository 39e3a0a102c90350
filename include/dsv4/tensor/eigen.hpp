// SPDX-License-Identifier: Apache-2.0
/// Views as Eigen maps, and Eigen's fixed-size arrays as portable vectors. The only header that includes
/// Eigen.
#pragma once

#include <dsv4/tensor/view.hpp>

#include <Eigen/Core>

#include <cmath>
#include <type_traits>

namespace dsv4 {

/// A row-major Eigen matrix of the element type of a view.
template <class T>
using eigen_matrix = Eigen::Matrix<std::remove_const_t<T>, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// A map of a matrix_view: rows `stride[0]` apart, nothing copied.
template <class T>
using eigen_map = Eigen::Map<std::conditional_t<std::is_const_v<T>, const eigen_matrix<T>, eigen_matrix<T>>,
                             Eigen::Unaligned, Eigen::OuterStride<>>;

/// A column vector map of a vector_view.
template <class T>
using eigen_vector_map = Eigen::Map<
    std::conditional_t<std::is_const_v<T>, const Eigen::Matrix<std::remove_const_t<T>, Eigen::Dynamic, 1>,
                       Eigen::Matrix<T, Eigen::Dynamic, 1>>>;

template <class T>
eigen_map<T> as_eigen(const matrix_view<T>& m) {
  return {m.data, m.extent[0], m.extent[1], Eigen::OuterStride<>(m.stride[0])};
}

template <class T>
eigen_vector_map<T> as_eigen(const vector_view<T>& v) {
  return {v.data, v.extent[0]};
}

/// A view of a row-major Eigen matrix, which must outlive it.
template <class T>
matrix_view<T> as_view(
    Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>& m) {  // NOLINT: views are mutable
  return {m.data(), m.rows(), m.cols()};
}
template <class T>
matrix_view<const T> as_view(const Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>& m) {
  return {m.data(), m.rows(), m.cols()};
}

/// One 16-byte vector of T on any machine that Eigen vectorises for.
template <class T>
using eigen_packet = Eigen::Array<T, 16 / static_cast<int>(sizeof(T)), 1>;

/// a * b + c, always fused where the machine can: written as a product and a sum, it would be up to the
/// compiler, and change from one unrolled loop to another.
template <class T>
inline eigen_packet<T> multiply_add(const eigen_packet<T>& a, const eigen_packet<T>& b,
                                    const eigen_packet<T>& c) {
  namespace ei = Eigen::internal;
  constexpr int size = eigen_packet<T>::SizeAtCompileTime;
  using vector = ei::find_best_packet<T, size>;
  eigen_packet<T> r;
  if constexpr (sizeof(typename vector::type) == sizeof(r)) {
    ei::pstoreu(r.data(), ei::pmadd(ei::ploadu<typename vector::type>(a.data()),
                                    ei::ploadu<typename vector::type>(b.data()),
                                    ei::ploadu<typename vector::type>(c.data())));
  } else {
#if defined(FP_FAST_FMA) && defined(FP_FAST_FMAF)
    for (int i = 0; i < size; ++i) r[i] = std::fma(a[i], b[i], c[i]);
#else
    r = a * b + c;
#endif
  }
  return r;
}

}  // namespace dsv4
