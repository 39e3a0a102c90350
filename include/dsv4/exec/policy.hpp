// SPDX-License-Identifier: Apache-2.0
/// What an execution policy is, and how an op finds its implementation.
#pragma once

#include <dsv4/tensor/view.hpp>

#include <concepts>
#include <string_view>

namespace dsv4 {

/// An execution policy: a small value that says where the data lives and who computes.
template <class P>
concept policy = requires {
  { P::memory } -> std::convertible_to<space>;
  { P::name } -> std::convertible_to<std::string_view>;
};

/// The implementation of `Op` under policy `P`: a class with a static `forward`. Declared here, specialised
/// by `ops/<stem>.hpp` (reference), `ops/cpu/<stem>.hpp` and users' own policies. To see every implementation
/// of an op, search for `kernel<op`.
template <class Op, class P>
struct kernel {
  static_assert(sizeof(Op) == 0,
                "dsv4: this op has no kernel for this policy here; include <dsv4/cpu.hpp> for exec::cpu, or "
                "specialise dsv4::kernel<Op, Policy> for your own policy");
};

/// Whether policy `P` has kernels of its own for `Op`, which is otherwise a row of other ops under `P`: the
/// same bits as these. Specialised beside such kernels, which are free to round less in between.
template <class Op, class P>
inline constexpr bool has_fused_kernel = false;

namespace detail {
struct no_range {
  ~no_range() {}  // so that nobody calls it unused
};
/// Names what `p` is asked for from here to the end of the scope, where the policy has a profiler to tell.
template <policy P>
[[nodiscard]] auto named_range(const P& p, const char* name) {
  if constexpr (requires { p.range(name); })
    return p.range(name);
  else
    return no_range();
}

/// Whether the kernel, which may be declared before, is defined here.
template <class Op, class P>
concept has_kernel = requires {
  sizeof(kernel<Op, P>);
};
template <class Op, class P>
consteval void expect_kernel() {
  static_assert(has_kernel<Op, P>,
                "dsv4: this policy's kernel for this op is not included here; include <dsv4/cpu.hpp> for "
                "exec::cpu");
}

/// Public `forward` functions end in this one line.
template <class Op, policy P, class... Arguments>
void dispatch(const P& p, const Arguments&... arguments) {
  static_assert(Op::memory == P::memory,
                "dsv4: the op's views live in another memory space than the policy's");
  expect_kernel<Op, P>();
  if constexpr (has_kernel<Op, P>) kernel<Op, P>::forward(p, arguments...);
}
/// Those of ops that are composed of others, in this one: the policy's own kernel where it has one.
template <class Op, policy P, class... Arguments>
void dispatch_composed(const P& p, Arguments&&... arguments) {
  if constexpr (has_fused_kernel<Op, P>)
    kernel<Op, P>::forward(p, arguments...);
  else
    Op::by_ops(p, arguments...);
}
}  // namespace detail

}  // namespace dsv4
