// SPDX-License-Identifier: Apache-2.0
/// A policy that runs ops on the host and counts the multiply-adds of their products: what the cost model
/// claims, measured.
#pragma once

#include <dsv4/exec/cpu.hpp>
#include <dsv4/exec/policy.hpp>
#include <dsv4/ops/index_topk.hpp>
#include <dsv4/ops/linear.hpp>
#include <dsv4/ops/sparse_attention.hpp>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string_view>

namespace dsv4::cost {

/// Operations that were executed, two to a multiply-add.
struct executed_flops {
  std::int64_t products = 0;  ///< linear layers of all kinds
  std::int64_t index = 0;     ///< indexer scores
  std::int64_t core = 0;      ///< attention
};

/// Runs on one thread of exec::cpu. Copies share one count.
class counting {
 public:
  static constexpr space memory = space::host;
  static constexpr std::string_view name = "counting";

  const exec::cpu& inner() const { return inner_; }
  executed_flops& count() const { return *count_; }

 private:
  exec::cpu inner_{1};
  std::shared_ptr<executed_flops> count_ = std::make_shared<executed_flops>();
};

namespace detail {
template <class Op>
struct counter {
  static void add(executed_flops&, const auto&, const auto&) {}
};
template <class T, space S, class W, class X>
struct counter<linear<T, S, W, X>> {
  static void add(executed_flops& n, const auto& in, const auto& out) {
    n.products += 2 * out.y.extent[0] * out.y.extent[1] * in.x.extent[1];
  }
};
template <class T, space S, class W>
struct counter<batched_linear<T, S, W>> {
  static void add(executed_flops& n, const auto& in, const auto& out) {
    n.products += 2 * out.y.extent[0] * out.y.extent[1] * out.y.extent[2] * in.x.extent[2];
  }
};
template <class T, space S, class W, class X>
struct counter<grouped_linear<T, S, W, X>> {
  static void add(executed_flops& n, const auto& in, const auto& out) {
    n.products += 2 * in.offsets(in.offsets.extent[0] - 1) * out.y.extent[1] * in.x.extent[1];
  }
};
template <class T, space S>
struct counter<index_topk<T, S>> {
  static void add(executed_flops& n, const auto& in, const auto&) {
    for (std::int64_t t = 0; t < in.q.extent[0]; ++t)
      n.index += 2 * in.q.extent[1] * in.q.extent[2] * ((in.first_position + t + 1) / in.ratio);
  }
};
template <class T, space S>
struct counter<sparse_attention<T, S>> {
  static void add(executed_flops& n, const auto& in, const auto&) {
    for (std::int64_t t = 0; t < in.q.extent[0]; ++t) {
      std::int64_t keys = std::min(in.first_position + t + 1, in.window);
      if (in.selected.data)
        for (std::int64_t j = 0; j < in.selected.extent[1]; ++j) keys += in.selected(t, j) >= 0;
      else if (in.ratio > 0)
        keys += (in.first_position + t + 1) / in.ratio;
      n.core += 2 * in.q.extent[1] * 2 * in.q.extent[2] * keys;
    }
  }
};
}  // namespace detail

}  // namespace dsv4::cost

namespace dsv4 {
/// exec::cpu's kernel, and a count before it.
template <class Op>
struct kernel<Op, cost::counting> {
  template <class In, class Out, class... More>
  static void forward(const cost::counting& p, const In& in, const Out& out, const More&... more) {
    cost::detail::counter<Op>::add(p.count(), in, out);
    kernel<Op, exec::cpu>::forward(p.inner(), in, out, more...);
  }
};
}  // namespace dsv4
