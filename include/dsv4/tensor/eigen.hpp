// SPDX-License-Identifier: Apache-2.0
/// Views as Eigen maps, and row-major Eigen matrices as views. The only header that includes Eigen.
#pragma once

#include <dsv4/tensor/view.hpp>

#include <Eigen/Core>

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

}  // namespace dsv4
