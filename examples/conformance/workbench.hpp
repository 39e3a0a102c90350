// SPDX-License-Identifier: Apache-2.0
/// Where the vectors of single ops are made: memory with names, filled by rule, and a recording policy.
#pragma once

#include "op_fields.hpp"
#include <dsv4/core/hash.hpp>
#include <dsv4/exec/workspace.hpp>
#include <dsv4/tensor/buffer.hpp>

#include <cstdint>
#include <deque>
#include <initializer_list>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace conformance {

/// Records the frequencies of a layer kind: what a table of them must hold.
inline dsv4::rope_frequencies record_table(recorder& to, const std::string& name, int dim, double theta,
                                           dsv4::rope_config yarn) {
  const auto f = dsv4::make_rope_frequencies(dim, theta, yarn);
  node n{"rope_frequencies", {}, {}, {}};
  n.parameters = {{"dim", dim}, {"theta", theta}, {"factor", yarn.yarn_factor}};
  n.parameters["original_max_position_embeddings"] = yarn.original_max_position_embeddings;
  n.parameters["beta_fast"] = yarn.beta_fast, n.parameters["beta_slow"] = yarn.beta_slow;
  tensor t{dtype::f32, {f.pairs}, std::vector<double>(f.value, f.value + f.pairs)};
  const auto keep_names = std::exchange(to.name_of, [&](const node&, const std::string&) { return name; });
  to.computed(n, "frequencies", std::move(t), "pair", comparison::relative);
  to.name_of = keep_names;
  to.nodes.push_back(std::move(n));
  to.know(f, name);
  return f;
}

template <class T, class P>
class workbench {
 public:
  using scalar = T;
  recording<P> policy;
  dsv4::workspace scratch;

  workbench(P p, recorder& to, std::string name)
      : policy{std::move(p), &to}, to_(to), name_(std::move(name)) {
    to_.name_of = [this](const node&, const std::string& role) { return next_ + "." + role; };
  }

  /// The results of the next op are called "<name>.<role>".
  void next(std::string name) { next_ = std::move(name); }

  /// A given array of multiples of size / 64 in [-size, size), exact in every float type: element i is
  /// size / 64 ((splitmix64(fnv1a64("<vector>/<name>") + i) >> 57) - 64).
  template <class... I>
  auto random(const std::string& name, double size, I... extents) {
    const std::uint64_t key = dsv4::detail::fnv1a64(name_ + "/" + name);
    return given(
        name,
        [&](std::int64_t i) {
          return size / 64 * (double(dsv4::detail::splitmix64(key + std::uint64_t(i)) >> 57) - 64);
        },
        extents...);
  }
  /// A given array of value(i).
  template <class F, class... I>
  auto given(const std::string& name, const F& value, I... extents) {
    auto v = array<T>(extents...);
    for (std::int64_t i = 0; i < v.size(); ++i) v.data[i] = static_cast<T>(value(i));
    enter(name, dtype::f32, v);
    if (to_.bits > 20 && to_.bits < 53 && !to_.steady) {  // by a unit in the last place, up or down
      const std::uint64_t key = dsv4::detail::fnv1a64(name) + std::uint64_t(to_.bits);
      const double unit = std::ldexp(1.0, -to_.bits);
      for (std::int64_t i = 0; i < v.size(); ++i)
        v.data[i] *= T(1 + (dsv4::detail::splitmix64(key + std::uint64_t(i)) & 1 ? unit : -unit));
    }
    return v;
  }
  template <class... I>
  auto values(const std::string& name, std::vector<double> all, I... extents) {
    return given(
        name, [&](std::int64_t i) { return all.at(static_cast<std::size_t>(i)); }, extents...);
  }
  template <class U = std::int32_t, class F, class... I>
  auto integers(const std::string& name, const F& value, I... extents) {
    auto v = array<U>(extents...);
    for (std::int64_t i = 0; i < v.size(); ++i) v.data[i] = static_cast<U>(value(i));
    enter(name, dtype::i32, v);
    return v;
  }
  /// A given block-scaled matrix: codes and scales are those functions of the byte's number.
  template <class F, class Code, class Scale>
  auto codes(const std::string& name, const Code& code, const Scale& scale, std::int64_t rows,
             std::int64_t columns) {
    const auto m = blocks<F>(rows, columns);
    tensor c{dtype::u8, {rows, F::row_bytes(columns)}, {}};
    tensor s{dtype::u8, {F::scale_rows(rows), F::scale_columns(columns)}, {}};
    for (std::int64_t i = 0; i < c.shape[0] * c.shape[1]; ++i)
      c.values.push_back(m.codes[i] = static_cast<std::uint8_t>(code(i)));
    for (std::int64_t i = 0; i < s.shape[0] * s.shape[1]; ++i) {
      m.scales[i] = dsv4::e8m0::from_bits(static_cast<std::uint8_t>(scale(i)));
      s.values.push_back(m.scales[i].bits);
    }
    to_.know(m, name);
    to_.tensors.emplace(name, std::move(c)), to_.tensors.emplace(name + "_scale", std::move(s));
    return m;
  }
  template <class F>
  dsv4::block_scaled_matrix<F> blocks(std::int64_t rows, std::int64_t columns) {
    auto bytes = array<std::uint8_t>(rows * F::row_bytes(columns));
    auto scales = array<std::uint8_t>(F::scale_rows(rows) * F::scale_columns(columns));
    return {bytes.data, reinterpret_cast<dsv4::e8m0*>(scales.data), rows, columns};
  }

  /// Zeroed memory for results.
  template <class U, class... I>
  dsv4::view<U, static_cast<int>(sizeof...(I))> array(I... extents) {
    const std::int64_t count = (std::int64_t{1} * ... * static_cast<std::int64_t>(extents));
    auto& memory = memory_.emplace_back(count * static_cast<std::int64_t>(sizeof(U)) + 64);
    return {reinterpret_cast<U*>(memory.data()), extents...};
  }
  template <class... I>
  auto out(I... extents) {
    return array<T>(extents...);
  }

  dsv4::rope_frequencies table(const std::string& name, int dim, double theta, dsv4::rope_config yarn) {
    return record_table(to_, "tables." + name, dim, theta, yarn);
  }
  /// A result of no op of ours, described by the caller.
  void record(node n, const std::string& role, tensor t, const char* axes,
              comparison how = comparison::scaled) {
    to_.computed(n, role.c_str(), std::move(t), axes, how);
    to_.nodes.push_back(std::move(n));
  }
  recorder& to() { return to_; }

 private:
  template <class U, int R>
  void enter(const std::string& name, dtype type, const dsv4::view<U, R>& v) {
    tensor t{type, std::vector<std::int64_t>(v.extent, v.extent + R), {}};
    for (std::int64_t i = 0; i < v.size(); ++i) t.values.push_back(double(v.data[i]));
    to_.tensors.emplace(name, std::move(t));
    to_.know(v, name);
  }

  recorder& to_;
  std::string name_, next_;
  std::deque<dsv4::buffer<std::uint8_t>> memory_;
};

template <class B>
using scalar_of = typename std::remove_cvref_t<B>::scalar;

}  // namespace conformance
