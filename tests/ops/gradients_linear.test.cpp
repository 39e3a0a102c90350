// SPDX-License-Identifier: Apache-2.0
// The backward of the matrix products: against central differences, cpu against reference, threads, the rule
// of docs/notation.md; and straight-through gradients of stored weights and inputs.
#include "support/gradient_case.hpp"
#include <dsv4/ops/cpu/quantise.hpp>
#include <dsv4/ops/quantise.hpp>

using namespace dsv4;
using namespace dsv4::testing;

namespace {

struct linear_case {
  std::int64_t n, out, in;

  template <class T>
  std::vector<operand<T>> inputs() const {
    std::vector<operand<T>> o;
    o.push_back(input<T>("x", role::overwritten, n * in, 1));
    o.push_back(input<T>("weight", role::added, out * in, 2));
    return o;
  }
  std::vector<std::int64_t> outputs() const { return {n * out}; }
  template <class T, class P>
  void forward(const P& p, workspace&, const pointers<const T>& a, const pointers<T>& y) const {
    linear<T>::forward(p, {as(a[0], n, in), as(a[1], out, in)}, {as(y[0], n, out)});
  }
  template <class T, class P>
  void backward(const P& p, workspace& w, const pointers<const T>& a, const pointers<const T>& dy,
                const pointers<T>& g) const {
    linear<T>::backward(p, w, {as(a[0], n, in), as(a[1], out, in)}, {as(dy[0], n, out)},
                        {as(g[0], n, in), as(g[1], out, in)});
  }
};

struct batched_linear_case {
  std::int64_t n, groups, out, in;

  template <class T>
  std::vector<operand<T>> inputs() const {
    std::vector<operand<T>> o;
    o.push_back(input<T>("x", role::overwritten, n * groups * in, 1));
    o.push_back(input<T>("weight", role::added, groups * out * in, 2));
    return o;
  }
  std::vector<std::int64_t> outputs() const { return {n * groups * out}; }
  template <class T, class P>
  void forward(const P& p, workspace&, const pointers<const T>& a, const pointers<T>& y) const {
    batched_linear<T>::forward(p, {as(a[0], n, groups, in), as(a[1], groups, out, in)},
                               {as(y[0], n, groups, out)});
  }
  template <class T, class P>
  void backward(const P& p, workspace& w, const pointers<const T>& a, const pointers<const T>& dy,
                const pointers<T>& g) const {
    batched_linear<T>::backward(p, w, {as(a[0], n, groups, in), as(a[1], groups, out, in)},
                                {as(dy[0], n, groups, out)},
                                {as(g[0], n, groups, in), as(g[1], groups, out, in)});
  }
};

struct grouped_linear_case {
  std::vector<std::int64_t> offsets;
  std::int64_t out, in;

  std::int64_t rows() const { return offsets.back(); }
  std::int64_t experts() const { return static_cast<std::int64_t>(offsets.size()) - 1; }
  template <class T>
  std::vector<operand<T>> inputs() const {
    std::vector<operand<T>> o;
    o.push_back(input<T>("x", role::overwritten, rows() * in, 1));
    o.push_back(input<T>("weight", role::added, experts() * out * in, 2));
    return o;
  }
  std::vector<std::int64_t> outputs() const { return {rows() * out}; }
  template <class T>
  typename grouped_linear<T>::inputs arguments(const pointers<const T>& a) const {
    return {as(a[0], rows(), in), {offsets.data(), experts() + 1}, as(a[1], experts(), out, in)};
  }
  template <class T, class P>
  void forward(const P& p, workspace&, const pointers<const T>& a, const pointers<T>& y) const {
    grouped_linear<T>::forward(p, arguments<T>(a), {as(y[0], rows(), out)});
  }
  template <class T, class P>
  void backward(const P& p, workspace& w, const pointers<const T>& a, const pointers<const T>& dy,
                const pointers<T>& g) const {
    grouped_linear<T>::backward(p, w, arguments<T>(a), {as(dy[0], rows(), out)},
                                {as(g[0], rows(), in), as(g[1], experts(), out, in)});
  }
};

/// Random weights in storage `W`, and the same numbers in double.
template <class W>
struct stored_weights {
  std::vector<std::uint8_t> codes;
  std::vector<e8m0> scales;
  std::vector<W> values;
  buffer<double> exact;
  storage_matrix<const W> view;

  stored_weights(std::int64_t rows, std::int64_t columns, std::uint64_t seed) : exact(rows * columns) {
    const auto wide = random<float>(rows * columns, seed);
    if constexpr (block_format<W>) {
      codes.resize(static_cast<std::size_t>(rows * W::row_bytes(columns)));
      scales.resize(static_cast<std::size_t>(W::scale_rows(rows) * W::scale_columns(columns)));
      quantise<W, float>::forward(exec::reference{}, {wide.as(rows, columns)},
                                  {{codes.data(), scales.data(), rows, columns}});
      view = block_scaled_matrix<const W>(codes.data(), scales.data(), rows, columns);
    } else {
      for (float v : wide) values.push_back(W(v));
      view = {values.data(), rows, columns};
    }
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t c = 0; c < columns; ++c) exact[r * columns + c] = to_double(view(r, c));
  }
};

}  // namespace

TEST_CASE("linear: backward") {
  for (std::int64_t n : {0, 1, 2, 5, 13})
    for (std::int64_t out : {1, 6, 19})
      for (std::int64_t in : {1, 8, 17}) check_backward(linear_case{n, out, in}, 32 + double(n));
  check_cpu<float>(linear_case{300, 70, 200}, 600);  // more than a block, more than its depth
  check_cpu<double>(linear_case{300, 200, 70}, 600);
}

TEST_CASE("batched_linear: backward") {
  for (std::int64_t n : {0, 1, 7}) check_backward(batched_linear_case{n, 3, 5, 9}, 32);
  check_cpu<float>(batched_linear_case{70, 2, 33, 65}, 200);
}

TEST_CASE("grouped_linear: backward, with experts that have no rows") {
  check_backward(grouped_linear_case{{0, 3, 3, 4, 11, 11}, 5, 9}, 32);
  check_backward(grouped_linear_case{{0, 0, 0}, 4, 3}, 32);
  check_cpu<float>(grouped_linear_case{{0, 40, 41, 100}, 33, 65}, 200);
}

TEMPLATE_TEST_CASE("linear: an x with several readers collects their gradients", "", float, double) {
  using T = TestType;
  const std::int64_t n = 9, in = 20;
  const auto x = random<T>(n * in, 1), a = random<T>(7 * in, 2), b = random<T>(5 * in, 3),
             da = random<T>(n * 7, 4), db = random<T>(n * 5, 5);
  const auto run = [&](const auto& p) {
    buffer<T> first = poison<T>(n * in), second = poison<T>(n * in), both = poison<T>(n * in);
    workspace w;
    linear<T>::backward(p, w, {x.as(n, in), a.as(7, in)}, {da.as(n, 7)}, {first.as(n, in), {}});
    linear<T>::backward(p, w, {x.as(n, in), b.as(5, in)}, {db.as(n, 5)}, {second.as(n, in), {}});
    linear<T>::backward(p, w, {x.as(n, in), a.as(7, in)}, {da.as(n, 7)}, {both.as(n, in), {}});
    linear<T>::backward(p, w, {x.as(n, in), b.as(5, in)}, {db.as(n, 5)}, {both.as(n, in), {}, true});
    for (std::int64_t i = 0; i < n * in; ++i) first[i] += second[i];
    CHECK(relative_error(both, first) <= rounding<T>(4));
  };
  run(exec::reference{});
  run(exec::cpu(2));
}

TEMPLATE_TEST_CASE("stored weights and inputs: the gradient is that of their exact values", "", bf16,
                   fp8_weight, mxfp4) {
  using W = TestType;
  const std::int64_t n = 37, out = 131, in = 200;
  const stored_weights<W> weight(out, in, 1);
  const stored_weights<fp8_activation> x(n, in, 2);
  const auto dy = random<double>(n * out, 3);
  const auto dy_float = random<float>(n * out, 3);
  workspace w;
  buffer<double> dx(n * in), dweight(out * in);
  linear<double>::backward(exec::reference{}, w, {x.exact.as(n, in), weight.exact.as(out, in)},
                           {dy.as(n, out)}, {dx.as(n, in), dweight.as(out, in)});
  const auto close = [&](const buffer<float>& found, const buffer<double>& want) {
    double worst = 0, largest = 0;
    for (std::int64_t i = 0; i < found.size(); ++i) {
      largest = std::max(largest, std::abs(want[i]));
      worst = std::max(worst, std::abs(double(found[i]) - want[i]));
    }
    CHECK(worst <= rounding<float>(64) * largest);
  };
  const auto run = [&](const auto& p) {
    buffer<float> gx = poison<float>(n * in), gw(out * in);
    linear<float, space::host, W, fp8_activation>::backward(
        p, w, {x.view, weight.view}, {dy_float.as(n, out)}, {gx.as(n, in), gw.as(out, in)});
    close(gx, dx);
    close(gw, dweight);
    // As two experts of half the rows each, and as two groups of one.
    const storage_matrix<const W> pair[] = {weight.view, weight.view};
    storage_stack<const W> stack;
    buffer<W> dense;
    if constexpr (block_format<W>) {
      stack.matrices = pair;
      stack.extent[0] = 2, stack.extent[1] = out, stack.extent[2] = in;
    } else {
      dense = buffer<W>(2 * out * in);
      for (std::int64_t i = 0; i < 2 * out * in; ++i)
        dense[i] = weight.values[static_cast<std::size_t>(i % (out * in))];
      stack = dense.as(2, out, in);
    }
    const std::int64_t offsets[] = {0, 20, n};
    buffer<float> ex = poison<float>(n * in), ew(2 * out * in);
    grouped_linear<float, space::host, W, fp8_activation>::backward(
        p, w, {x.view, {offsets, 3}, stack}, {dy_float.as(n, out)}, {ex.as(n, in), ew.as(2, out, in)});
    CHECK(same(ex, gx));
    for (std::int64_t i = 0; i < out * in; ++i) ew[i] += ew[out * in + i];
    buffer<float> both(out * in);
    for (std::int64_t i = 0; i < out * in; ++i) both[i] = ew[i];
    close(both, dweight);
    const auto xf = random<float>(n * 2 * in, 5), dyf = random<float>(n * 2 * out, 6);
    buffer<float> bx = poison<float>(n * 2 * in), first = poison<float>(n * in);
    batched_linear<float, space::host, W>::backward(p, w, {xf.as(n, 2, in), stack}, {dyf.as(n, 2, out)},
                                                    {bx.as(n, 2, in), {}});
    matrix_view<const float> half = dyf.as(n, 2 * out).columns(0, out);
    linear<float, space::host, W>::backward(p, w, {xf.as(n, 2 * in).columns(0, in), weight.view}, {half},
                                            {first.as(n, in), {}});
    for (std::int64_t t = 0; t < n; ++t)
      for (std::int64_t i = 0; i < in; ++i) CHECK(bx[t * 2 * in + i] == first[t * in + i]);
  };
  run(exec::reference{});
  run(exec::cpu(2));
}
