// SPDX-License-Identifier: Apache-2.0
/// Work that does not depend on what is queued beside it, for policies that can do both at once.
#pragma once

#include <dsv4/exec/policy.hpp>
#include <dsv4/exec/workspace.hpp>

#include <cstdint>

namespace dsv4::detail {

/// Up to so many rows leave most of a large device idle.
inline constexpr std::int64_t rows_for_branches = 4;

/// From here to join(), what policy() and the policy itself are asked for may run at the same time: neither
/// reads what the other writes. Where the policy has no such way, or it is not `wanted`, policy() is the
/// policy and all runs in order. Until join() nothing that is taken from `w` is used again, by either.
template <policy P, space S>
class branch {
 public:
  branch(const P& p, basic_workspace<S>& w, bool wanted) : p_(p), w_(w) {
    if constexpr (can_fork)
      if (wanted) aside_ = &p.fork(), w_.hold();
  }
  branch(const branch&) = delete;
  branch& operator=(const branch&) = delete;
  ~branch() {
    try {
      join();
    } catch (...) {  // another exception is under way, or the next call has this one
    }
  }

  const P& policy() const { return aside_ ? *aside_ : p_; }
  /// What policy() is asked for from here on comes after all that the policy was asked for so far.
  void catch_up() {
    if constexpr (can_fork)
      if (aside_) p_.fork();
  }
  /// What the policy is asked for from here on comes after both.
  void join() {
    if constexpr (can_fork)
      if (aside_) {
        aside_ = nullptr;
        w_.release_hold();
        p_.join();
      }
  }

 private:
  static constexpr bool can_fork = requires(const P& p) { p.fork(); };
  const P& p_;
  basic_workspace<S>& w_;
  const P* aside_ = nullptr;
};

}  // namespace dsv4::detail
