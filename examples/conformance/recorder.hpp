// SPDX-License-Identifier: Apache-2.0
/// An execution policy that lets another one compute, and writes down every op that it is asked for: its
/// arguments by name, its results by value. Blocks and models run under it unchanged.
#pragma once

#include "suite.hpp"
#include <dsv4/exec/policy.hpp>
#include <dsv4/exec/workspace.hpp>
#include <dsv4/ops/rope.hpp>
#include <dsv4/tensor/block_scaled_view.hpp>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace conformance {

/// What is known of an op: its name, its arguments and their axes. Specialised in op_fields.hpp.
template <class Op>
struct describe;

/// What was recorded. Memory has names: an argument is called what was last written where it lies.
class recorder {
 public:
  int bits = 53;          ///< every floating result is rounded to so many significant bits: how errors grow
  bool extras = true;     ///< whether index scores, which no op returns, are computed too
  bool watching = true;   ///< whether ops are written down; results are rounded in any case
  bool f32_only = false;  ///< bfloat16 cannot hold what the vector is about
  bool steady = false;    ///< given values are about ties: none is moved to see what that does
  std::vector<node> nodes;
  tensor_map tensors;                                                   ///< given and computed ones
  std::vector<std::pair<std::string, expectation>> expected;            ///< computed ones, in order
  std::function<std::string(const node&, const std::string&)> name_of;  ///< (node, role) -> tensor

  /// Memory that is there before the first op, by name; `file` keeps its values too.
  template <class V>
  void know(const V& v, const std::string& name) {
    names_[address(v)] = name;
  }
  void know(const dsv4::rope_frequencies& f, const std::string& name) { tables_.emplace_back(f, name); }

  template <class V>
  void input(node& n, const char* role, const V& v) {
    if (!watching || !address(v)) return;
    const auto at = names_.find(address(v));
    if (at == names_.end())
      throw dsv4::contract_error("recorder", n.op + " " + role, "memory with a name", "other memory");
    n.inputs.emplace_back(role, at->second);
  }
  void input(node& n, const char* role, const dsv4::rope_frequencies& f) {
    if (!watching) return;
    for (const auto& [table, name] : tables_)
      if (table.pairs == f.pairs && std::equal(f.value, f.value + f.pairs, table.value))
        return static_cast<void>(n.inputs.emplace_back(role, name));
    throw dsv4::contract_error("recorder", n.op + " frequencies", "a known table", "another one");
  }

  /// A result: named, rounded, kept.
  template <class U, int R>
  void output(node& n, const char* role, const dsv4::view<U, R>& v, const char* axes, comparison how) {
    if (!v.data) return;
    std::vector<std::int64_t> shape(v.extent, v.extent + R);
    tensor t{std::is_floating_point_v<U> ? dtype::f32 : dtype::i32, shape, {}};
    t.values.reserve(static_cast<std::size_t>(v.size()));
    each(v, [&](U& value) {
      if constexpr (std::is_floating_point_v<U>)
        if (bits < 53) value = static_cast<U>(to_bits(double(value), bits));
      t.values.push_back(double(value));
    });
    keep(n, role, std::move(t), axes, how, v.data);
  }
  template <class F>
  void output(node& n, const char* role, const dsv4::block_scaled_matrix<F>& m, const char* axes,
              comparison how) {
    using format = std::remove_const_t<F>;
    const std::int64_t rows = m.extent[0], width = format::row_bytes(m.extent[1]);
    const std::int64_t blocks = format::scale_rows(rows), across = format::scale_columns(m.extent[1]);
    tensor codes{dtype::u8, {rows, width}, {}}, scales{dtype::u8, {blocks, across}, {}};
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t c = 0; c < width; ++c) codes.values.push_back(m.row(r)[c]);
    for (std::int64_t b = 0; b < blocks; ++b)
      for (std::int64_t c = 0; c < across; ++c)
        scales.values.push_back(m.row_scales(b * format::block_rows)[c].bits);
    keep(n, role, std::move(codes), axes, how, m.codes);
    keep(n, (std::string(role) + "_scale").c_str(), std::move(scales), "token block", how, nullptr);
  }
  /// A result that no memory holds.
  void computed(node& n, const char* role, tensor t, const char* axes, comparison how) {
    keep(n, role, std::move(t), axes, how, nullptr);
  }

  /// Calls f(element) in row-major order.
  template <class U, int R, class F>
  static void each(const dsv4::view<U, R>& v, const F& f) {
    if constexpr (R == 1)
      for (std::int64_t i = 0; i < v.extent[0]; ++i) f(v.data[i]);
    else
      for (std::int64_t i = 0; i < v.extent[0]; ++i) each(v[i], f);
  }

 private:
  template <class U, int R>
  static const void* address(const dsv4::view<U, R>& v) {
    return v.data;
  }
  template <class F>
  static const void* address(const dsv4::block_scaled_matrix<F>& m) {
    return m.codes;
  }
  template <class F>
  static const void* address(const dsv4::block_scaled_stack<F>& s) {
    return s.extent[0] ? s.matrices[0].codes : nullptr;
  }

  void keep(node& n, const std::string& role, tensor t, const char* axes, comparison how, const void* at) {
    if (!watching) return;
    const std::string name = name_of(n, role);
    if (t.type != dtype::f32 && how == comparison::scaled) how = comparison::exact;
    if (tensors.contains(name)) throw dsv4::contract_error("recorder", n.op + " " + role, "a new name", name);
    n.outputs.emplace_back(role, name);
    expected.emplace_back(name, expectation{axes, how, 0, {}});
    tensors.emplace(name, std::move(t));
    if (at) names_[at] = name;
  }

  std::map<const void*, std::string> names_;
  std::vector<std::pair<dsv4::rope_frequencies, std::string>> tables_;
};

/// The policy. `P` computes.
template <class P>
struct recording {
  static constexpr dsv4::space memory = P::memory;
  static constexpr std::string_view name = "recording";
  P inner;
  recorder* to;
};

/// What `describe` shows the arguments to.
struct input_visitor {
  recorder& to;
  node& n;
  template <class V>
  void operator()(const char* role, const V& v) const {
    to.input(n, role, v);
  }
  template <class V>
  void set(const char* parameter, const V& value) const {
    n.parameters[parameter] = value;
  }
};
struct output_visitor {
  recorder& to;
  node& n;
  template <class V>
  void operator()(const char* role, const V& v, const char* axes, comparison how = comparison::scaled) const {
    to.output(n, role, v, axes, how);
  }
};

template <class Op>
concept described = requires {
  describe<Op>::name;
};
template <class Op>
concept differentiated = requires {
  describe<Op>::has_backward;
};

}  // namespace conformance

template <class Op, class P>
struct dsv4::kernel<Op, conformance::recording<P>> {
  using policy = conformance::recording<P>;

  template <class Outputs, class... More>
  static void forward(const policy& p, const typename Op::inputs& in, const Outputs& out,
                      const More&... more) {
    record(
        p, in, out, [&](const auto& inputs) { kernel<Op, P>::forward(p.inner, inputs, out, more...); },
        more...);
  }
  template <class Outputs, class... More>
  static void forward(const policy& p, workspace& w, const typename Op::inputs& in, const Outputs& out,
                      const More&... more) {
    record(
        p, in, out, [&](const auto& inputs) { kernel<Op, P>::forward(p.inner, w, inputs, out, more...); },
        more...);
  }

  template <class... More>
  static void backward(const policy& p, workspace& w, const typename Op::inputs& in, const More&... more) {
    if constexpr (conformance::differentiated<Op>) {
      conformance::node n{
          std::string(conformance::describe<Op>::name) + ".backward", {}, {}, conformance::json::object()};
      conformance::describe<Op>::back_in(conformance::input_visitor{*p.to, n}, in, more...);
      kernel<Op, P>::backward(p.inner, w, in, more...);
      conformance::describe<Op>::back_out(conformance::output_visitor{*p.to, n}, in, more...);
      if (p.to->watching) p.to->nodes.push_back(std::move(n));
    } else {
      kernel<Op, P>::backward(p.inner, w, in, more...);
    }
  }

 private:
  template <class Outputs, class Compute, class... More>
  static void record(const policy& p, const typename Op::inputs& in, const Outputs& out,
                     const Compute& compute, const More&... more) {
    if constexpr (conformance::described<Op>) {
      conformance::node n{conformance::describe<Op>::name, {}, {}, conformance::json::object()};
      conformance::describe<Op>::in(conformance::input_visitor{*p.to, n}, in, out);
      typename Op::inputs rounded = in;
      if constexpr (requires { rounded.frequencies; })
        if (p.to->bits < 53)  // engines hold tables in float
          for (double& f : rounded.frequencies.value) f = conformance::to_bits(f, 24);
      compute(rounded);
      const conformance::output_visitor results{*p.to, n};
      if constexpr (requires { conformance::describe<Op>::out(results, in, out, more...); })
        conformance::describe<Op>::out(results, in, out, more...);
      else
        conformance::describe<Op>::out(results, in, out);
      if (p.to->watching) p.to->nodes.push_back(std::move(n));
    } else {
      compute(in);
    }
  }
};
