// SPDX-License-Identifier: Apache-2.0
/// Clipping by the global norm: one factor for all gradients of a model.
#pragma once

#include <dsv4/core/expects.hpp>
#include <dsv4/exec/cpu.hpp>
#include <dsv4/exec/reference.hpp>
#include <dsv4/exec/transfer.hpp>
#include <dsv4/exec/workspace.hpp>
#include <dsv4/model/parameters.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

namespace dsv4 {

/// sum = sum_i x[i]^2 in double, whatever T: chunks of 4096 elements, added in index order. The result does
/// not depend on the number of threads.
template <class T, space S = space::host>
struct squared_norm {
  static constexpr space memory = S;
  static constexpr std::int64_t chunk = 4096;
  struct inputs {
    vector_view<const T, S> x;  // (N)
  };
  struct outputs {
    vector_view<double, S> sum;  // (1)
  };
  template <policy P>
  static void forward(const P& p, basic_workspace<S>& w, const inputs& in, const outputs& out) {
    expect_extent("squared_norm", "sum", out.sum.extent[0], 1);
    workspace_scope<S> scope(w);
    const auto sums = take<double>(w, (in.x.extent[0] + chunk - 1) / chunk);
    detail::dispatch<squared_norm>(p, in, out, sums);
  }
};

/// The square root of the sum of squares of all gradients that have one: not of router biases. Infinite or
/// NaN when a gradient is. The result is the host's: on a device this waits for all that was queued.
template <model_config C, class T, numerics_config Q, space S, policy P>
double gradient_norm(const P& p, basic_workspace<S>& w, const parameter_store<C, T, Q, S>& gradients) {
  const workspace_scope<S> scope(w);
  auto views = gradients.views();
  std::vector<vector_view<const T, S>> counted;
  for_each_parameter<C>(views, [&]<class U, int R>(const parameter_info& info, view<U, R, S>& v) {
    if constexpr (std::is_same_v<U, T>)
      if (!info.name.ends_with("gate.bias")) counted.push_back({v.data, v.size()});
  });
  const auto sums = take<double>(w, static_cast<std::int64_t>(counted.size()));
  for (std::size_t i = 0; i < counted.size(); ++i)
    squared_norm<T, S>::forward(p, w, {counted[i]}, {{sums.data + i, 1}});
  double sum = 0;
  for (double part : fetched(p, sums)) sum += part;
  return std::sqrt(sum);
}

/// What to multiply gradients of norm `norm` by, so that their norm is at most `most` (1 in V3; V4 does not
/// say). Throws contract_error when `norm` is not finite: such gradients must not reach the weights, skip
/// the step instead.
inline double clip_scale(double norm, double most = 1) {
  if (!std::isfinite(norm))
    throw contract_error("clip_scale", "norm", "a finite number", std::to_string(norm));
  return norm > most ? most / norm : 1;
}

template <class T>
struct kernel<squared_norm<T>, exec::reference> {
  using op = squared_norm<T>;
  static void forward(const auto&, const typename op::inputs& in, const typename op::outputs& out,
                      const vector_view<double>&) {
    long double sum = 0;
    for (std::int64_t i = 0; i < in.x.extent[0]; ++i) sum += static_cast<long double>(in.x(i)) * in.x(i);
    out.sum(0) = double(sum);
  }
};

template <class T>
struct kernel<squared_norm<T>, exec::cpu> {
  using op = squared_norm<T>;
  static void forward(const exec::cpu& p, const typename op::inputs& in, const typename op::outputs& out,
                      const vector_view<double>& sums) {
    p.parallel_for(sums.extent[0], 4, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t c = begin; c < end; ++c) {
        const T* const x = in.x.data + c * op::chunk;
        const std::int64_t n = std::min(op::chunk, in.x.extent[0] - c * op::chunk);
        double lane[8] = {};  // so that compilers vectorise without reordering
        std::int64_t i = 0;
        for (; i + 8 <= n; i += 8) {
          __builtin_prefetch(x + i + 1024);  // memory is the limit, and its own look-ahead too short
          for (int l = 0; l < 8; ++l) lane[l] += double(x[i + l]) * double(x[i + l]);
        }
        for (int l = 0; i + l < n; ++l) lane[l] += double(x[i + l]) * double(x[i + l]);
        sums(c) = ((lane[0] + lane[4]) + (lane[1] + lane[5])) + ((lane[2] + lane[6]) + (lane[3] + lane[7]));
      }
    });
    out.sum(0) = 0;
    for (std::int64_t c = 0; c < sums.extent[0]; ++c) out.sum(0) += sums(c);
  }
};

}  // namespace dsv4
