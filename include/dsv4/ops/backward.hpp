// SPDX-License-Identifier: Apache-2.0
/// What the backward passes of all ops share: checks of gradients, and dispatch. The rule for gradients is in
/// docs/notation.md: those of activations are overwritten, those of parameters are added to, an empty view is
/// skipped.
#pragma once

#include <dsv4/core/expects.hpp>
#include <dsv4/exec/policy.hpp>
#include <dsv4/exec/workspace.hpp>

#include <cstdint>
#include <iterator>
#include <string>
#include <string_view>

namespace dsv4::detail {

[[noreturn, gnu::cold, gnu::noinline]] inline void fail_axis(std::string_view op, std::string_view name,
                                                             int axis, std::int64_t expected,
                                                             std::int64_t found) {
  fail(op, joined({name, " extent ", std::to_string(axis)}), expected, found);
}

/// Throws contract_error unless `gradient` is empty or has the extents of `of`.
template <class G, class X>
void expect_gradient(std::string_view op, std::string_view name, const G& gradient, const X& of) {
  static_assert(std::size(decltype(gradient.extent){}) == std::size(decltype(of.extent){}));
  if (!gradient.data) return;
  for (int axis = 0; axis < G::rank; ++axis)
    if (gradient.extent[axis] != of.extent[axis])
      fail_axis(op, name, axis, of.extent[axis], gradient.extent[axis]);
}

/// Throws contract_error unless `upstream` has the extents of `of`.
template <class G, class X>
void expect_upstream(std::string_view op, std::string_view name, const G& upstream, const X& of) {
  for (int axis = 0; axis < G::rank; ++axis)
    if (upstream.extent[axis] != of.extent[axis])
      fail_axis(op, name, axis, of.extent[axis], upstream.extent[axis]);
}

/// Whether policy `P` has a backward kernel for `Op`.
template <class Op, class P, class... Arguments>
concept differentiable = requires(const P& p, basic_workspace<Op::memory>& w, const Arguments&... arguments) {
  kernel<Op, P>::backward(p, w, arguments...);
};

/// Public `backward` functions end in this one line.
template <class Op, policy P, class... Arguments>
void dispatch_backward(const P& p, basic_workspace<Op::memory>& w, const Arguments&... arguments) {
  static_assert(Op::memory == P::memory,
                "dsv4: the op's views live in another memory space than the policy's");
  expect_kernel<Op, P>();
  if constexpr (has_kernel<Op, P>) {
    static_assert(differentiable<Op, P, Arguments...>,
                  "dsv4: this op has no backward kernel for this policy");
    kernel<Op, P>::backward(p, w, arguments...);
  }
}

}  // namespace dsv4::detail
