// SPDX-License-Identifier: Apache-2.0
/// Brings a model's weights to the GPU, and back.
#pragma once

#include <dsv4/core/expects.hpp>
#include <dsv4/exec/cuda.cuh>
#include <dsv4/exec/cuda_transfer.cuh>
#include <dsv4/model/parameters.hpp>

#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

namespace dsv4 {

namespace detail {
/// The host's view that corresponds to a device's.
template <class V>
struct host_counterpart;
template <class T, int R>
struct host_counterpart<view<T, R, space::device>> {
  using type = view<T, R>;
};
template <class F>
struct host_counterpart<block_scaled_matrix<F, space::device>> {
  using type = block_scaled_matrix<F>;
};
template <class F>
struct host_counterpart<block_scaled_stack<F, space::device>> {
  using type = block_scaled_stack<F>;
};

template <class T, int R, class Store>
void upload(cudaStream_t stream, const view<T, R>& from, view<T, R, space::device>& to,
            const std::string& name, Store& store) {
  using U = std::remove_const_t<T>;
  expect(from.dense(), "upload_parameters", name, "a dense array", from.stride[0]);
  U* data = nullptr;
  if constexpr (std::is_const_v<T>)
    data = store.template allocate<U>(from.size());  // narrow: the store has no memory for it yet
  else
    data = to.data;
  copy_elements<U>(stream, from.data, data, from.size());
  to.data = data;
  for (int axis = 0; axis < R; ++axis)
    to.extent[axis] = from.extent[axis], to.stride[axis] = from.stride[axis];
}

template <class F, class Store>
void upload(cudaStream_t stream, const block_scaled_matrix<const F>& from,
            block_scaled_matrix<const F, space::device>& to, const std::string& name, Store& store) {
  const std::int64_t rows = from.extent[0], columns = from.extent[1];
  expect(from.row_stride == F::row_bytes(columns) && from.scale_row_stride == F::scale_columns(columns),
         "upload_parameters", name, "dense rows of " + std::to_string(F::row_bytes(columns)) + " bytes",
         from.row_stride);
  // A part of a larger matrix may begin within a row of blocks.
  const std::int64_t bytes = rows * from.row_stride,
                     scales = F::scale_rows(from.skipped_rows + rows) * from.scale_row_stride;
  std::uint8_t* const code = store.template allocate<std::uint8_t>(bytes);
  e8m0* const scale = store.template allocate<e8m0>(scales);
  copy_elements(stream, from.codes, code, bytes);
  copy_elements(stream, from.scales, scale, scales);
  to = {code, scale, rows, columns};
  to.skipped_rows = from.skipped_rows;
}

template <class F, class Store>
void upload(cudaStream_t stream, const block_scaled_stack<const F>& from,
            block_scaled_stack<const F, space::device>& to, const std::string& name, Store& store) {
  using matrix = block_scaled_matrix<const F, space::device>;
  buffer<matrix> matrices(from.extent[0]);
  for (std::int64_t i = 0; i < from.extent[0]; ++i) upload(stream, from[i], matrices[i], name, store);
  matrix* const table = store.template allocate<matrix>(from.extent[0]);
  copy_elements(stream, matrices.data(), table, from.extent[0]);
  check_cuda(cudaStreamSynchronize(stream), "upload_parameters");  // the host's table ends here
  to.matrices = table;
  for (int axis = 0; axis < 3; ++axis) to.extent[axis] = from.extent[axis];
}
}  // namespace detail

/// Copies every weight of `from` that is there to `to`, in the order of the policy's stream, and waits.
template <model_config C, class T, numerics_config Q>
void upload_parameters(const exec::cuda& p, parameter_store<C, T, Q>& from,
                       parameter_store<C, T, Q, space::device>& to) {
  std::vector<const void*> hosts;
  for_each_parameter<C>(from.views(), [&](const parameter_info&, const auto& v) { hosts.push_back(&v); });
  std::size_t next = 0;
  for_each_parameter<C>(to.views(), [&]<class V>(const parameter_info& info, V& v) {
    const auto& host = *static_cast<const typename detail::host_counterpart<V>::type*>(hosts[next++]);
    if (host.extent[0] > 0) detail::upload(p.stream(), host, v, info.name, to);
  });
  p.synchronise();
}

/// Copies every weight of `from` to `to`, in the order of the policy's stream, and waits. For weights in the
/// scalar type and tables.
template <model_config C, class T>
void download_parameters(const exec::cuda& p, parameter_store<C, T, numerics::float32, space::device>& from,
                         parameter_store<C, T>& to) {
  std::vector<void*> hosts;
  for_each_parameter<C>(to.views(), [&](const parameter_info&, auto& v) { hosts.push_back(v.data); });
  std::size_t next = 0;
  for_each_parameter<C>(from.views(),
                        [&]<class U, int R>(const parameter_info&, view<U, R, space::device>& v) {
                          copy_elements<U>(p.stream(), v.data, static_cast<U*>(hosts[next++]), v.size());
                        });
  p.synchronise();
}

}  // namespace dsv4
