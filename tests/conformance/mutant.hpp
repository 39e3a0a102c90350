// SPDX-License-Identifier: Apache-2.0
/// An engine with a known bug: the reference policy, in which one op goes wrong in one place.
#pragma once

#include "../../examples/conformance/op_fields.hpp"
#include <dsv4/exec/reference.hpp>

#include <cmath>
#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace dsv4::testing {

/// Which mistake, and in which call of its op: the n-th, or all of them (-1).
struct mutation {
  std::string_view bug;
  int call = -1;
  mutable int seen = 0;
  mutable int made = 0;  ///< calls that went wrong

  /// Whether this call, one of those that `bug` can be made in, is to go wrong.
  bool here(std::string_view name) const {
    if (bug != name) return false;
    const bool now = call < 0 || seen == call;
    ++seen, made += now;
    return now;
  }
};

struct mutant {
  static constexpr space memory = space::host;
  static constexpr std::string_view name = "mutant";
  const mutation* mistake;
};

/// A copy that may be changed, and a view of it.
template <class T, int R>
struct changed {
  std::vector<std::remove_const_t<T>> values;
  view<std::remove_const_t<T>, R> at;

  explicit changed(const view<T, R>& from) {
    conformance::recorder::each(from, [&](T& v) { values.push_back(v); });
    at.data = values.data();
    std::int64_t step = 1;
    for (int axis = R - 1; axis >= 0; --axis) {
      at.extent[axis] = from.extent[axis], at.stride[axis] = step;
      step *= from.extent[axis];
    }
  }
};

using right = exec::reference;

/// The mistakes of an op's backward pass.
template <class Op>
struct backward_mistakes_of {
  static bool backward(const mutation&, const auto&...) { return false; }
};
template <class T>
struct backward_mistakes_of<rope<T>> {
  using op = rope<T>;
  static bool backward(const mutation& m, const typename op::inputs& in, const typename op::upstream& up,
                       const typename op::gradients& g) {
    if (!in.inverse || !m.here("gradient not turned")) return false;
    const changed dy(up.dy);
    std::copy(dy.values.begin(), dy.values.end(), g.dx.data);
    return true;
  }
};

/// The mistakes of an op. `forward` returns false to let the reference do it.
template <class Op>
struct mistakes_of {
  static bool forward(const mutation&, const auto&, const auto&, const auto&...) { return false; }
};

template <class T>
struct mistakes_of<rope<T>> {
  using op = rope<T>;
  static bool forward(const mutation& m, const typename op::inputs& in, const typename op::outputs& out) {
    const kernel<op, right> correct;
    const std::int64_t width = out.x.extent[2], turned = 2 * in.frequencies.pairs, skip = width - turned;
    const auto reorder = [&](const auto& from) {  // the right op on channels in another order
      const changed before(out.x);
      each(out.x, [&](auto t, auto h, auto c) { out.x(t, h, c) = before.at(t, h, from(c)); });
      correct.forward(right{}, in, out);
      const changed after(out.x);
      each(out.x, [&](auto t, auto h, auto c) { out.x(t, h, from(c)) = after.at(t, h, c); });
      return true;
    };
    auto wrong = in;
    if (m.here("half-split"))
      return reorder([&](std::int64_t c) {
        return c < skip ? c : skip + (c - skip) / 2 + (c - skip) % 2 * in.frequencies.pairs;
      });
    if (m.here("first channels")) return reorder([&](std::int64_t c) { return (c + turned) % width; });
    if (in.inverse && m.here("no inverse")) return true;
    if (in.inverse && m.here("inverse ignored")) wrong.inverse = false;
    if (in.position_step > 1 && m.here("entry index"))
      wrong.position_step = 1, wrong.first_position /= in.position_step;
    if (m.here("other table"))
      wrong.frequencies = make_rope_frequencies(int(turned), 5000, {5000, 5000, 1, 32, 1, 16});
    if (m.here("compressed table"))
      wrong.frequencies = make_rope_frequencies(int(turned), 90000, {0, 0, 8, 32, 1, 16});
    if (m.here("no yarn"))
      wrong.frequencies = make_rope_frequencies(int(turned), 90000, {0, 0, 1, 32, 1, 16});
    if (m.here("wavelengths"))
      for (int i = 0; i < in.frequencies.pairs; ++i) wrong.frequencies.value[i] = 1 / in.frequencies.value[i];
    correct.forward(right{}, wrong, out);
    return true;
  }

 private:
  static void each(const tensor_view<T>& x, const auto& f) {
    for (std::int64_t t = 0; t < x.extent[0]; ++t)
      for (std::int64_t h = 0; h < x.extent[1]; ++h)
        for (std::int64_t c = 0; c < x.extent[2]; ++c) f(t, h, c);
  }
};

template <class T>
struct mistakes_of<compress_pool<T>> {
  using op = compress_pool<T>;
  static bool forward(const mutation& m, const typename op::inputs& in, const typename op::outputs& out) {
    auto wrong = in;
    changed bias(in.bias), gate(in.gate);
    if (m.here("ape twice"))
      for (T& b : bias.values) b *= 2;
    if (m.here("no ape"))
      for (T& b : bias.values) b = 0;
    if (in.overlap && (m.here("lost overlap") || (out.y.extent[0] == 1 && m.here("lost overlap in decode"))))
      for (std::int64_t t = 0; t < gate.at.extent[0]; ++t)
        for (std::int64_t c = 0; c < gate.at.extent[1] / 2; ++c) gate.at(t, c) = -1e30;
    wrong.bias = bias.at, wrong.gate = gate.at;
    kernel<op, right>::forward(right{}, wrong, out);
    if (in.overlap && in.first_entry == 0 && out.y.extent[0] > 0 && m.here("zeros before"))
      for (std::int64_t f = 0; f < out.y.extent[1]; ++f) {  // m more tokens of weight e^0 and value 0
        double mass = 0;
        for (std::int64_t t = 0; t < in.bias.extent[0]; ++t)
          mass += std::exp(in.gate(t, out.y.extent[1] + f) + in.bias(t, out.y.extent[1] + f));
        out.y(0, f) *= mass / (mass + double(in.bias.extent[0]));
      }
    return true;
  }
};

template <class T>
struct mistakes_of<hadamard<T>> {
  static bool forward(const mutation& m, const auto&, const auto&) { return m.here("no hadamard"); }
};

template <class F, class T>
struct mistakes_of<round_trip<F, T>> {
  using op = round_trip<F, T>;
  static bool forward(const mutation& m, const typename op::inputs& in, const typename op::outputs& out) {
    if (m.here("not rounded")) return true;
    if (out.x.extent[1] == out.x.stride[0] || !m.here("all channels rounded")) return false;
    kernel<op, right>::forward(right{}, in, {{out.x.data, out.x.extent[0], out.x.stride[0]}});
    return true;
  }
};

template <class T>
struct mistakes_of<index_topk<T>> {
  using op = index_topk<T>;
  static bool forward(const mutation& m, const typename op::inputs& in, const typename op::outputs& out) {
    if (m.here("entry late")) {
      auto wrong = in;
      --wrong.first_position;
      kernel<op, right>::forward(right{}, wrong, out);
      return true;
    }
    if (m.here("reversed ties")) {  // the last entry first: only ties show it
      changed keys(in.keys);
      const std::int64_t count = (in.first_position + in.q.extent[0]) / in.ratio;
      for (std::int64_t e = 0; e < count; ++e)
        for (std::int64_t c = 0; c < keys.at.extent[1]; ++c) keys.at(e, c) = in.keys(count - 1 - e, c);
      auto wrong = in;
      wrong.keys = keys.at;
      kernel<op, right>::forward(right{}, wrong, out);
      for (std::int64_t i = 0; i < out.selected.size(); ++i)
        if (out.selected.data[i] >= 0)
          out.selected.data[i] = static_cast<std::int32_t>(count) - 1 - out.selected.data[i];
      return true;
    }
    if (!m.here("no relu")) return false;
    // max(0, x) = x for x + a with a large: heads' products are raised, and the sum of what was added is
    // even.
    for (std::int64_t t = 0; t < in.q.extent[0]; ++t) {
      const std::int64_t visible = (in.first_position + t + 1) / in.ratio, k = out.selected.extent[1];
      std::vector<std::pair<double, std::int32_t>> scored;
      for (std::int64_t s = 0; s < visible; ++s) {
        double sum = 0;
        for (std::int64_t h = 0; h < in.q.extent[1]; ++h)
          for (std::int64_t c = 0; c < in.q.extent[2]; ++c)
            sum += in.weights(t, h) * in.q(t, h, c) * in.keys(s, c);
        scored.emplace_back(-sum, static_cast<std::int32_t>(s));
      }
      std::sort(scored.begin(), scored.end());
      for (std::int64_t j = 0; j < k; ++j)
        out.selected(t, j) = j < std::int64_t(scored.size()) ? scored[std::size_t(j)].second : -1;
    }
    return true;
  }
};

template <class T>
struct mistakes_of<sparse_attention<T>> {
  using op = sparse_attention<T>;
  static bool forward(const mutation& m, const typename op::inputs& in, const typename op::outputs& out,
                      const typename op::saved& keep) {
    auto wrong = in;
    changed sinks(in.sinks);
    if (m.here("no sink"))
      for (T& s : sinks.values) s = -1e30;
    if (m.here("sink of bytes"))  // a float read as the bfloat16 of its low half: about 0
      sinks.values[0] = 0;
    if (m.here("short window")) --wrong.window;
    if (m.here("mscale")) wrong.scale *= std::pow(0.1 * std::log(8.0) + 1, 2);
    if (in.ratio > 0 && m.here("no entries")) wrong.ratio = 0, wrong.selected = {}, wrong.compressed = {};
    if (in.selected.data && m.here("selection ignored")) wrong.selected = {};
    wrong.sinks = sinks.at;
    kernel<op, right>::forward(right{}, wrong, out, keep);
    return true;
  }
};

template <class T>
struct mistakes_of<rms_norm<T>> {
  using op = rms_norm<T>;
  static bool forward(const mutation& m, const typename op::inputs& in, const typename op::outputs& out) {
    if (m.here("no norm")) {
      for (std::int64_t t = 0; t < in.x.extent[0]; ++t)
        for (std::int64_t c = 0; c < in.x.extent[1]; ++c) out.y(t, c) = in.x(t, c);
      return true;
    }
    if (in.weight.data || !m.here("norm of all heads")) return false;
    kernel<op, right>::forward(right{}, {in.x.reshape(in.x.extent[0] / 6, in.x.extent[1] * 6), {}, in.eps},
                               {out.y.reshape(in.x.extent[0] / 6, in.x.extent[1] * 6)});
    return true;
  }
};

template <class T>
struct mistakes_of<hyper_connection_gates<T>> {
  using op = hyper_connection_gates<T>;
  static bool forward(const mutation& m, const typename op::inputs& in, const typename op::outputs& out) {
    auto wrong = in;
    if (m.here("one pass more")) ++wrong.sinkhorn_iters;
    if (m.here("no epsilon")) wrong.eps = 0;
    kernel<op, right>::forward(right{}, wrong, out);
    if (out.post.data && m.here("no factor 2"))
      for (std::int64_t i = 0; i < out.post.size(); ++i) out.post.data[i] /= 2;
    if (out.comb.data && m.here("comb transposed")) {
      const changed comb(out.comb);
      for (std::int64_t t = 0; t < comb.at.extent[0]; ++t)
        for (std::int64_t j = 0; j < comb.at.extent[1]; ++j)
          for (std::int64_t k = 0; k < comb.at.extent[2]; ++k) out.comb(t, j, k) = comb.at(t, k, j);
    }
    return true;
  }
};

template <class T>
struct mistakes_of<hyper_connection_expand<T>> {
  using op = hyper_connection_expand<T>;
  static bool forward(const mutation& m, const typename op::inputs& in, const typename op::outputs& out) {
    changed comb(in.comb);
    if (m.here("comb used transposed"))
      for (std::int64_t t = 0; t < comb.at.extent[0]; ++t)
        for (std::int64_t j = 0; j < comb.at.extent[1]; ++j)
          for (std::int64_t k = 0; k < comb.at.extent[2]; ++k) comb.at(t, j, k) = in.comb(t, k, j);
    auto wrong = in;
    wrong.comb = comb.at;
    kernel<op, right>::forward(right{}, wrong, out);
    if (m.here("bf16 streams")) conformance::recorder::each(out.x, [](T& v) { v = T(float(bf16(v))); });
    return true;
  }
};

template <class T>
struct mistakes_of<swiglu<T>> {
  using op = swiglu<T>;
  static bool forward(const mutation& m, const typename op::inputs& in, const typename op::outputs& out) {
    auto wrong = in;
    if (m.here("no clamp") || (!in.row_weight.data && m.here("shared not clamped")) ||
        (in.row_weight.data && m.here("routed not clamped")))
      wrong.limit = 1e30;
    const bool late = m.here("product clamped");
    if (late) wrong.limit = 1e30, wrong.row_weight = {};
    kernel<op, right>::forward(right{}, wrong, out);
    if (late)
      for (std::int64_t r = 0; r < out.h.extent[0]; ++r)
        for (std::int64_t c = 0; c < out.h.extent[1]; ++c)
          out.h(r, c) = std::clamp<T>(out.h(r, c), -in.limit, in.limit) *
                        (in.row_weight.data ? in.row_weight(r) : T(1));
    return true;
  }
};

template <class T>
struct mistakes_of<route<T>> {
  using op = route<T>;
  static bool forward(const mutation& m, const typename op::inputs& in, const typename op::outputs& out) {
    auto wrong = in;
    std::vector<T> zeros(static_cast<std::size_t>(in.logits.extent[1]), T(0));
    if (in.bias.data && m.here("no bias")) wrong.bias = {zeros.data(), in.logits.extent[1]};
    if (in.table.data && m.here("no table"))
      wrong.table = {}, wrong.bias = {zeros.data(), in.logits.extent[1]};
    if (m.here("no scaling factor")) wrong.factor = 1;
    kernel<op, right>::forward(right{}, wrong, out);
    if (in.bias.data && m.here("bias in weights"))
      for (std::int64_t t = 0; t < in.logits.extent[0]; ++t) {
        double sum = 0;
        for (std::int64_t j = 0; j < out.experts.extent[1]; ++j) {
          const auto e = out.experts(t, j);
          sum += out.weights(t, j) = T(op::score(double(in.logits(t, e))) + double(in.bias(e)));
        }
        for (std::int64_t j = 0; j < out.experts.extent[1]; ++j) out.weights(t, j) *= T(in.factor / sum);
      }
    return true;
  }
};

}  // namespace dsv4::testing

template <class Op>
struct dsv4::kernel<Op, dsv4::testing::mutant> {
  template <class Outputs, class... More>
  static void forward(const testing::mutant& p, const typename Op::inputs& in, const Outputs& out,
                      const More&... more) {
    if (!testing::mistakes_of<Op>::forward(*p.mistake, in, out, more...))
      kernel<Op, exec::reference>::forward(exec::reference{}, in, out, more...);
  }
  template <class... More>
  static void forward(const testing::mutant&, workspace& w, const More&... more) {
    kernel<Op, exec::reference>::forward(exec::reference{}, w, more...);
  }
  template <class... Inputs>
  static auto scratch(const Inputs&... in) {
    return kernel<Op, exec::reference>::scratch(in...);
  }
  template <class... More>
  static void backward(const testing::mutant& p, workspace& w, const typename Op::inputs& in,
                       const More&... more) {
    if (!testing::backward_mistakes_of<Op>::backward(*p.mistake, in, more...))
      kernel<Op, exec::reference>::backward(exec::reference{}, w, in, more...);
  }
};

#include "mutant_products.hpp"
