// SPDX-License-Identifier: Apache-2.0
/// AdamW: a step in the direction of the mean gradient over its root mean square, element by element.
#pragma once

#include <dsv4/core/expects.hpp>
#include <dsv4/exec/cpu.hpp>
#include <dsv4/exec/reference.hpp>

#include <cmath>
#include <cstdint>

namespace dsv4 {

/// DeepSeek-V4's constants (report, section 4.2). With this epsilon any gradient that float can square makes
/// a full step; one of exactly 0 makes none.
struct adamw_options {
  double beta1 = 0.9, beta2 = 0.95;
  double epsilon = 1e-20;
  double weight_decay = 0.1;
};

/// With g = gradient_scale gradient, and t = step, the first being 1:
///   first  <- beta1 first  + (1 - beta1) g          second <- beta2 second + (1 - beta2) g^2
///   weight <- (1 - learning_rate weight_decay) weight
///             - learning_rate (first / (1 - beta1^t)) / (sqrt(second / (1 - beta2^t)) + epsilon)
template <class T, space S = space::host>
struct adamw {
  static constexpr space memory = S;
  struct inputs {
    vector_view<const T, S> gradient;  // (N)
    double learning_rate;
    std::int64_t step;
    double gradient_scale = 1;
    adamw_options options = {};

    double correction1() const { return 1 - std::pow(options.beta1, double(step)); }
    double correction2() const { return 1 - std::pow(options.beta2, double(step)); }
  };
  struct outputs {
    vector_view<T, S> weight, first, second;  // (N) each, updated
  };

  template <policy P>
  static void forward(const P& p, const inputs& in, const outputs& out) {
    expect(in.step >= 1, "adamw", "step", "1 or more", in.step);
    expect_extent("adamw", "weight", out.weight.extent[0], in.gradient.extent[0]);
    expect_extent("adamw", "first", out.first.extent[0], in.gradient.extent[0]);
    expect_extent("adamw", "second", out.second.extent[0], in.gradient.extent[0]);
    detail::dispatch<adamw>(p, in, out);
  }
};

template <class T>
struct kernel<adamw<T>, exec::reference> {
  using op = adamw<T>;
  static void forward(const auto&, const typename op::inputs& in, const typename op::outputs& out) {
    const adamw_options& o = in.options;
    for (std::int64_t i = 0; i < in.gradient.extent[0]; ++i) {
      const double g = in.gradient_scale * double(in.gradient(i));
      const double first = o.beta1 * double(out.first(i)) + (1 - o.beta1) * g;
      const double second = o.beta2 * double(out.second(i)) + (1 - o.beta2) * g * g;
      const double direction =
          (first / in.correction1()) / (std::sqrt(second / in.correction2()) + o.epsilon);
      out.first(i) = T(first);
      out.second(i) = T(second);
      out.weight(i) =
          T((1 - in.learning_rate * o.weight_decay) * double(out.weight(i)) - in.learning_rate * direction);
    }
  }
};

template <class T>
struct kernel<adamw<T>, exec::cpu>;  // in train/cpu/adamw.hpp

}  // namespace dsv4
