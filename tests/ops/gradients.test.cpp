// SPDX-License-Identifier: Apache-2.0
// The backward of every op whose arguments are rows: against central differences in double at 1e-7, cpu
// against reference, threads, and the rule of docs/notation.md. `terms` is the length of the longest sum that
// the two policies may order differently, plus the operations around it. Attention, products and
// cross-entropy have files of their own.
#include "support/gradient_case.hpp"

using namespace dsv4;
using namespace dsv4::testing;

namespace {

struct rms_norm_case {
  std::int64_t n, width;
  bool weighted;

  template <class T>
  std::vector<operand<T>> inputs() const {
    std::vector<operand<T>> in;
    in.push_back(input<T>("x", role::overwritten, n * width, 1, 2));
    if (weighted) in.push_back(input<T>("weight", role::added, width, 2));
    return in;
  }
  std::vector<std::int64_t> outputs() const { return {n * width}; }
  template <class T>
  typename rms_norm<T>::inputs arguments(const pointers<const T>& in) const {
    return {as(in[0], n, width), weighted ? as(in[1], width) : vector_view<const T>{},
            width == 1 ? 0.5 : 1e-3};  // the gradient of a lone channel vanishes with eps
  }
  template <class T, class P>
  void forward(const P& p, workspace&, const pointers<const T>& in, const pointers<T>& out) const {
    rms_norm<T>::forward(p, arguments<T>(in), {as(out[0], n, width)});
  }
  template <class T, class P>
  void backward(const P& p, workspace& w, const pointers<const T>& in, const pointers<const T>& dy,
                const pointers<T>& g) const {
    rms_norm<T>::backward(p, w, arguments<T>(in), {as(dy[0], n, width)},
                          {as(g[0], n, width), weighted ? as(g[1], width) : vector_view<T>{}});
  }
};

struct rope_case {
  std::int64_t n, heads, width;
  bool inverse;

  template <class T>
  std::vector<operand<T>> inputs() const {
    std::vector<operand<T>> in;
    in.push_back(input<T>("x", role::overwritten, n * heads * width, 1));
    return in;
  }
  std::vector<std::int64_t> outputs() const { return {n * heads * width}; }
  template <class T>
  typename rope<T>::inputs arguments() const {
    return {make_rope_frequencies(6, 100, {100, 100, 1, 32, 1, 64}), 5, 3, inverse};
  }
  template <class T, class P>
  void forward(const P& p, workspace&, const pointers<const T>& in, const pointers<T>& out) const {
    std::copy_n(in[0], n * heads * width, out[0]);
    rope<T>::forward(p, arguments<T>(), {as(out[0], n, heads, width)});
  }
  template <class T, class P>
  void backward(const P& p, workspace& w, const pointers<const T>&, const pointers<const T>& dy,
                const pointers<T>& g) const {
    rope<T>::backward(p, w, arguments<T>(), {as(dy[0], n, heads, width)}, {as(g[0], n, heads, width)});
  }
};

struct hadamard_case {
  std::int64_t n, width;

  template <class T>
  std::vector<operand<T>> inputs() const {
    std::vector<operand<T>> in;
    in.push_back(input<T>("x", role::overwritten, n * width, 1));
    return in;
  }
  std::vector<std::int64_t> outputs() const { return {n * width}; }
  template <class T, class P>
  void forward(const P& p, workspace&, const pointers<const T>& in, const pointers<T>& out) const {
    std::copy_n(in[0], n * width, out[0]);
    hadamard<T>::forward(p, {}, {as(out[0], n, width)});
  }
  template <class T, class P>
  void backward(const P& p, workspace& w, const pointers<const T>&, const pointers<const T>& dy,
                const pointers<T>& g) const {
    hadamard<T>::backward(p, w, {}, {as(dy[0], n, width)}, {as(g[0], n, width)});
  }
};

struct broadcast_add_case {
  std::int64_t n, streams, width;

  template <class T>
  std::vector<operand<T>> inputs() const {
    std::vector<operand<T>> in;
    in.push_back(input<T>("e", role::overwritten, n * width, 1));
    return in;
  }
  std::vector<std::int64_t> outputs() const { return {n * streams * width}; }
  template <class T, class P>
  void forward(const P& p, workspace&, const pointers<const T>& in, const pointers<T>& out) const {
    broadcast_add<T>::forward(p, {as(in[0], n, width)}, {as(out[0], n, streams, width)});
  }
  template <class T, class P>
  void backward(const P& p, workspace& w, const pointers<const T>& in, const pointers<const T>& dy,
                const pointers<T>& g) const {
    broadcast_add<T>::backward(p, w, {as(in[0], n, width)}, {as(dy[0], n, streams, width)},
                               {as(g[0], n, width)});
  }
};

struct copy_rows_case {
  std::int64_t from, to, width, source_first, destination_first, count;

  template <class T>
  std::vector<operand<T>> inputs() const {
    std::vector<operand<T>> in;
    in.push_back(input<T>("source", role::overwritten, from * width, 1));
    return in;
  }
  std::vector<std::int64_t> outputs() const { return {to * width}; }
  template <class T, class P>
  void forward(const P& p, workspace&, const pointers<const T>& in, const pointers<T>& out) const {
    copy_rows<T>::forward(p, {as(in[0], from, width), source_first, destination_first, count},
                          {as(out[0], to, width)});
  }
  template <class T, class P>
  void backward(const P& p, workspace& w, const pointers<const T>& in, const pointers<const T>& dy,
                const pointers<T>& g) const {
    copy_rows<T>::backward(p, w, {as(in[0], from, width), source_first, destination_first, count},
                           {as(dy[0], to, width)}, {as(g[0], from, width)});
  }
};

struct embedding_case {
  std::vector<std::int32_t> tokens;
  std::int64_t vocabulary, streams, width;

  std::int64_t n() const { return static_cast<std::int64_t>(tokens.size()); }
  template <class T>
  std::vector<operand<T>> inputs() const {
    std::vector<operand<T>> in;
    in.push_back(input<T>("table", role::added, vocabulary * width, 1));
    return in;
  }
  std::vector<std::int64_t> outputs() const { return {n() * streams * width}; }
  template <class T, class P>
  void forward(const P& p, workspace&, const pointers<const T>& in, const pointers<T>& out) const {
    embedding<T>::forward(p, {{tokens.data(), n()}, as(in[0], vocabulary, width)},
                          {as(out[0], n(), streams, width)});
  }
  template <class T, class P>
  void backward(const P& p, workspace& w, const pointers<const T>& in, const pointers<const T>& dy,
                const pointers<T>& g) const {
    embedding<T>::backward(p, w, {{tokens.data(), n()}, as(in[0], vocabulary, width)},
                           {as(dy[0], n(), streams, width)}, {as(g[0], vocabulary, width)});
  }
};

struct swiglu_case {
  std::int64_t n, width;
  bool weighted;
  double limit;

  template <class T>
  std::vector<operand<T>> inputs() const {
    std::vector<operand<T>> in;
    in.push_back(input<T>("gate", role::overwritten, n * width, 1, 3));
    in.push_back(input<T>("up", role::overwritten, n * width, 2, 3));
    if (weighted) in.push_back(input<T>("row_weight", role::overwritten, n, 3));
    return in;
  }
  std::vector<std::int64_t> outputs() const { return {n * width}; }
  template <class T>
  typename swiglu<T>::inputs arguments(const pointers<const T>& in) const {
    return {as(in[0], n, width), as(in[1], n, width), weighted ? as(in[2], n) : vector_view<const T>{},
            limit};
  }
  template <class T, class P>
  void forward(const P& p, workspace&, const pointers<const T>& in, const pointers<T>& out) const {
    swiglu<T>::forward(p, arguments<T>(in), {as(out[0], n, width)});
  }
  template <class T, class P>
  void backward(const P& p, workspace& w, const pointers<const T>& in, const pointers<const T>& dy,
                const pointers<T>& g) const {
    swiglu<T>::backward(p, w, arguments<T>(in), {as(dy[0], n, width)},
                        {as(g[0], n, width), as(g[1], n, width), weighted ? as(g[2], n) : vector_view<T>{}});
  }
};

/// Dispatch: outputs x_sorted and weight_sorted.
struct expert_dispatch_case {
  std::int64_t n, k, width, experts;

  std::vector<std::int32_t> choice() const {
    std::vector<std::int32_t> c;
    for (std::int64_t t = 0; t < n; ++t)
      for (std::int64_t j = 0; j < k; ++j)
        c.push_back(static_cast<std::int32_t>((t * t + 3 * j + t * j) % experts));
    return c;
  }
  template <class T>
  std::vector<operand<T>> inputs() const {
    std::vector<operand<T>> in;
    in.push_back(input<T>("x", role::overwritten, n * width, 1));
    in.push_back(input<T>("weights", role::overwritten, n * k, 2));
    return in;
  }
  std::vector<std::int64_t> outputs() const { return {n * k * width, n * k}; }
  template <class T, class P>
  void run(const P& p, const pointers<const T>& in, T* x_sorted, T* weight_sorted,
           std::vector<std::int64_t>& order) const {
    const auto c = choice();
    std::vector<std::int64_t> offsets(static_cast<std::size_t>(experts + 1));
    order.resize(static_cast<std::size_t>(n * k));
    expert_dispatch<T>::forward(p, {as(in[0], n, width), {c.data(), n, k}, as(in[1], n, k)},
                                {{offsets.data(), experts + 1},
                                 {order.data(), n * k},
                                 as(x_sorted, n * k, width),
                                 {weight_sorted, n * k}});
  }
  template <class T, class P>
  void forward(const P& p, workspace&, const pointers<const T>& in, const pointers<T>& out) const {
    std::vector<std::int64_t> order;
    run<T>(p, in, out[0], out[1], order);
  }
  template <class T, class P>
  void backward(const P& p, workspace& w, const pointers<const T>& in, const pointers<const T>& dy,
                const pointers<T>& g) const {
    std::vector<std::int64_t> order;
    buffer<T> x(n * k * width), weights(n * k);
    run<T>(p, in, x.data(), weights.data(), order);
    const auto c = choice();
    expert_dispatch<T>::backward(p, w, {as(in[0], n, width), {c.data(), n, k}, as(in[1], n, k)},
                                 {{order.data(), n * k}}, {as(dy[0], n * k, width), as(dy[1], n * k)},
                                 {as(g[0], n, width), as(g[1], n, k)});
  }
};

struct expert_combine_case {
  std::int64_t n, k, width;

  std::vector<std::int64_t> order() const {
    std::vector<std::int64_t> o;
    for (std::int64_t i = 0; i < n * k; ++i) o.push_back((i * 7 + 2) % (n * k));  // 7 and n k coprime
    return o;
  }
  template <class T>
  std::vector<operand<T>> inputs() const {
    std::vector<operand<T>> in;
    in.push_back(input<T>("y", role::overwritten, n * k * width, 1));
    in.push_back(input<T>("shared", role::none, n * width, 2));
    return in;
  }
  std::vector<std::int64_t> outputs() const { return {n * width}; }
  template <class T, class P>
  void forward(const P& p, workspace&, const pointers<const T>& in, const pointers<T>& out) const {
    const auto o = order();
    std::vector<std::int64_t> inverse(o.size());
    expert_combine<T>::forward(p, {as(in[0], n * k, width), {o.data(), n * k}, as(in[1], n, width)},
                               {as(out[0], n, width), {inverse.data(), n * k}});
  }
  template <class T, class P>
  void backward(const P& p, workspace& w, const pointers<const T>& in, const pointers<const T>& dy,
                const pointers<T>& g) const {
    const auto o = order();
    expert_combine<T>::backward(p, w, {as(in[0], n * k, width), {o.data(), n * k}, as(in[1], n, width)},
                                {as(dy[0], n, width)}, {as(g[0], n * k, width)});
  }
};

struct route_case {
  std::int64_t n, experts, k;
  double size;
  bool hashed;

  template <class T>
  std::vector<operand<T>> inputs() const {
    std::vector<operand<T>> in;
    in.push_back(input<T>("logits", role::overwritten, n * experts, 1, size));
    in.push_back(input<T>("bias", role::none, experts, 2, 0.3));
    return in;
  }
  std::vector<std::int64_t> outputs() const { return {n * k}; }
  template <class T, class P>
  std::vector<std::int32_t> run(const P& p, const pointers<const T>& in, T* weights) const {
    std::vector<std::int32_t> chosen(static_cast<std::size_t>(n * k)), table, tokens;
    for (std::int64_t i = 0; i < 7 * k; ++i) table.push_back(static_cast<std::int32_t>(i * i % experts));
    for (std::int64_t i = 0; i < n; ++i) tokens.push_back(static_cast<std::int32_t>(i % 7));
    typename route<T>::inputs a{as(in[0], n, experts), as(in[1], experts), {}, {}, 1.5};
    if (hashed) a.bias = {}, a.table = {table.data(), 7, k}, a.tokens = {tokens.data(), n};
    route<T>::forward(p, a, {{chosen.data(), n, k}, {weights, n, k}});
    return chosen;
  }
  template <class T, class P>
  void forward(const P& p, workspace&, const pointers<const T>& in, const pointers<T>& out) const {
    run<T>(p, in, out[0]);
  }
  template <class T, class P>
  void backward(const P& p, workspace& w, const pointers<const T>& in, const pointers<const T>& dy,
                const pointers<T>& g) const {
    buffer<T> weights(n * k);
    const auto chosen = run<T>(p, in, weights.data());
    route<T>::backward(p, w, {as(in[0], n, experts), {}, {}, {}, 1.5}, {{chosen.data(), n, k}},
                       {as(dy[0], n, k)}, {as(g[0], n, experts)});
  }
};

struct compress_pool_case {
  std::int64_t rows, m, width, first_position, first_entry, entries;
  bool overlap;
  double size = 2;

  std::int64_t wide() const { return overlap ? 2 * width : width; }
  template <class T>
  std::vector<operand<T>> inputs() const {
    std::vector<operand<T>> in;
    in.push_back(input<T>("kv", role::overwritten, rows * wide(), 1));
    in.push_back(input<T>("gate", role::overwritten, rows * wide(), 2, size));
    in.push_back(input<T>("bias", role::added, m * wide(), 3, size));
    return in;
  }
  std::vector<std::int64_t> outputs() const { return {entries * width}; }
  template <class T>
  typename compress_pool<T>::inputs arguments(const pointers<const T>& in) const {
    return {as(in[0], rows, wide()),
            as(in[1], rows, wide()),
            as(in[2], m, wide()),
            first_position,
            first_entry,
            overlap};
  }
  template <class T, class P>
  void forward(const P& p, workspace&, const pointers<const T>& in, const pointers<T>& out) const {
    compress_pool<T>::forward(p, arguments<T>(in), {matrix_view<T>(out[0], entries, width)});
  }
  template <class T, class P>
  void backward(const P& p, workspace& w, const pointers<const T>& in, const pointers<const T>& dy,
                const pointers<T>& g) const {
    compress_pool<T>::backward(p, w, arguments<T>(in), {matrix_view<const T>(dy[0], entries, width)},
                               {as(g[0], rows, wide()), as(g[1], rows, wide()), as(g[2], m, wide())});
  }
};

struct gates_case {
  std::int64_t n, streams, width;
  int iterations;
  bool head;
  double size = 1;
  bool add = false;

  std::int64_t mixes() const { return head ? streams : (2 + streams) * streams; }
  std::int64_t segments() const { return head ? 1 : 3; }
  template <class T>
  std::vector<operand<T>> inputs() const {
    std::vector<operand<T>> in;
    in.push_back(input<T>("x", add ? role::added : role::overwritten, n * streams * width, 1));
    in.push_back(input<T>("z", role::overwritten, n * mixes(), 2, size));
    in.push_back(input<T>("base", role::added, mixes(), 3));
    in.push_back(input<T>("scale", role::added, segments(), 4));
    return in;
  }
  std::vector<std::int64_t> outputs() const {
    if (head) return {n * streams};
    return {n * streams, n * streams, n * streams * streams};
  }
  template <class T>
  typename hyper_connection_gates<T>::inputs arguments(const pointers<const T>& in) const {
    return {as(in[0], n, streams, width),
            as(in[1], n, mixes()),
            as(in[2], mixes()),
            as(in[3], segments()),
            1e-3,
            1e-6,
            iterations};
  }
  template <class T, class P>
  void forward(const P& p, workspace&, const pointers<const T>& in, const pointers<T>& out) const {
    if (head)
      hyper_connection_gates<T>::forward(p, arguments<T>(in), {as(out[0], n, streams), {}, {}});
    else
      hyper_connection_gates<T>::forward(
          p, arguments<T>(in),
          {as(out[0], n, streams), as(out[1], n, streams), as(out[2], n, streams, streams)});
  }
  template <class T, class P>
  void backward(const P& p, workspace& w, const pointers<const T>& in, const pointers<const T>& dy,
                const pointers<T>& g) const {
    typename hyper_connection_gates<T>::upstream up{as(dy[0], n, streams), {}, {}};
    if (!head) up.dpost = as(dy[1], n, streams), up.dcomb = as(dy[2], n, streams, streams);
    hyper_connection_gates<T>::backward(
        p, w, arguments<T>(in), up,
        {as(g[0], n, streams, width), as(g[1], n, mixes()), as(g[2], mixes()), as(g[3], segments()), add});
  }
};

struct collapse_case {
  std::int64_t n, streams, width;
  bool add = false;

  template <class T>
  std::vector<operand<T>> inputs() const {
    std::vector<operand<T>> in;
    in.push_back(input<T>("x", add ? role::added : role::overwritten, n * streams * width, 1));
    in.push_back(input<T>("pre", role::overwritten, n * streams, 2));
    return in;
  }
  std::vector<std::int64_t> outputs() const { return {n * width}; }
  template <class T, class P>
  void forward(const P& p, workspace&, const pointers<const T>& in, const pointers<T>& out) const {
    hyper_connection_collapse<T>::forward(p, {as(in[0], n, streams, width), as(in[1], n, streams)},
                                          {as(out[0], n, width)});
  }
  template <class T, class P>
  void backward(const P& p, workspace& w, const pointers<const T>& in, const pointers<const T>& dy,
                const pointers<T>& g) const {
    hyper_connection_collapse<T>::backward(p, w, {as(in[0], n, streams, width), as(in[1], n, streams)},
                                           {as(dy[0], n, width)},
                                           {as(g[0], n, streams, width), as(g[1], n, streams), add});
  }
};

struct expand_case {
  std::int64_t n, streams, width;

  template <class T>
  std::vector<operand<T>> inputs() const {
    std::vector<operand<T>> in;
    in.push_back(input<T>("x", role::overwritten, n * streams * width, 1));
    in.push_back(input<T>("v", role::overwritten, n * width, 2));
    in.push_back(input<T>("post", role::overwritten, n * streams, 3));
    in.push_back(input<T>("comb", role::overwritten, n * streams * streams, 4));
    return in;
  }
  std::vector<std::int64_t> outputs() const { return {n * streams * width}; }
  template <class T>
  typename hyper_connection_expand<T>::inputs arguments(const pointers<const T>& in) const {
    return {as(in[0], n, streams, width), as(in[1], n, width), as(in[2], n, streams),
            as(in[3], n, streams, streams)};
  }
  template <class T, class P>
  void forward(const P& p, workspace&, const pointers<const T>& in, const pointers<T>& out) const {
    hyper_connection_expand<T>::forward(p, arguments<T>(in), {as(out[0], n, streams, width)});
  }
  template <class T, class P>
  void backward(const P& p, workspace& w, const pointers<const T>& in, const pointers<const T>& dy,
                const pointers<T>& g) const {
    hyper_connection_expand<T>::backward(p, w, arguments<T>(in), {as(dy[0], n, streams, width)},
                                         {as(g[0], n, streams, width), as(g[1], n, width),
                                          as(g[2], n, streams), as(g[3], n, streams, streams)});
  }
};

}  // namespace

TEST_CASE("rms_norm: backward") {
  for (std::int64_t n : {0, 1, 5, 70})
    for (std::int64_t width : {1, 7, 33})
      for (bool weighted : {true, false}) check_backward(rms_norm_case{n, width, weighted}, 64 + double(n));
}

TEST_CASE("rms_norm: backward by hand, and in place") {
  // One row (3, 4): r = 1 / sqrt(12.5); dy = (1, 0).
  double x[] = {3, 4}, weight[] = {2, 5}, d[] = {1, 0}, dweight[] = {10, 20};
  workspace w;
  rms_norm<double>::backward(exec::reference{}, w, {{x, 1, 2}, {weight, 2}, 0}, {{d, 1, 2}},
                             {{d, 1, 2}, {dweight, 2}});
  const double r = 1 / std::sqrt(12.5);
  CHECK(d[0] == Catch::Approx(r * (2 - 3 * r * r * 6 / 2)));
  CHECK(d[1] == Catch::Approx(r * (0 - 4 * r * r * 6 / 2)));
  CHECK(dweight[0] == Catch::Approx(10 + 3 * r));
  CHECK(dweight[1] == 20);
}

TEST_CASE("rope: backward is the other rotation") {
  for (std::int64_t n : {0, 1, 9})
    for (bool inverse : {false, true}) check_backward(rope_case{n, 3, 11, inverse}, 8);
}

TEST_CASE("hadamard: backward is itself") {
  for (std::int64_t n : {0, 1, 9})
    for (std::int64_t width : {1, 2, 32}) check_backward(hadamard_case{n, width}, 32);
}

TEST_CASE("broadcast_add: backward") {
  for (std::int64_t n : {0, 1, 9})
    for (std::int64_t streams : {1, 3}) check_backward(broadcast_add_case{n, streams, 13}, 8);
}

TEST_CASE("copy_rows: backward") {
  check_backward(copy_rows_case{5, 9, 3, 3, 7, 4}, 1);  // both sides wrap around
  check_backward(copy_rows_case{4, 4, 2, 0, 0, 4}, 1);
}

TEST_CASE("embedding: backward, with repeated tokens") {
  check_backward(embedding_case{{3, 0, 3, 3, 6, 1, 0}, 7, 4, 21}, 32);
  check_backward(embedding_case{{2}, 3, 1, 5}, 8);
  std::vector<std::int32_t> same(100, 1);
  check_backward(embedding_case{same, 2, 2, 40}, 200);
  workspace w;
  double dx[] = {1}, table[] = {1, 2}, dtable[] = {0, 0};
  const std::int32_t outside[] = {2};
  CHECK_THROWS_WITH(embedding<double>::backward(exec::cpu(1), w, {{outside, 1}, {table, 2, 1}},
                                                {{dx, 1, 1, 1}}, {{dtable, 2, 1}}),
                    contains("embedding: tokens[0]: expected a token id from 0 to 1, found 2"));
}

TEST_CASE("swiglu: backward, inside and outside of the limit") {
  for (std::int64_t n : {0, 1, 9})
    for (bool weighted : {false, true})
      for (double limit : {10.0, 1.25}) {  // no value of the inputs is closer to 1.25 than the step
        check_backward(swiglu_case{n, 17, weighted, limit}, 64);
      }
}

TEMPLATE_TEST_CASE("swiglu: at the limit itself the gradient flows, beyond it is zero", "", float, double) {
  using T = TestType;
  const T limit = 10, above = std::nextafter(limit, T(11));
  T gate[] = {limit, above, -above, 1, 1, 1}, linear[] = {1, 1, 1, limit, -limit, above}, dh[6], dgate[6],
    dup[6];
  std::fill(dh, dh + 6, T(1));
  workspace w;
  const auto check = [&](const auto& p) {
    swiglu<T>::backward(p, w, {{gate, 1, 6}, {linear, 1, 6}, {}, 10}, {{dh, 1, 6}},
                        {{dgate, 1, 6}, {dup, 1, 6}, {}});
    CHECK(dgate[0] > T(0.9));
    CHECK(dgate[1] == 0);
    CHECK(dgate[2] != 0);  // the gate has no lower clamp
    CHECK(dup[3] > T(0.7));
    CHECK(dup[4] > T(0.7));
    CHECK(dup[5] == 0);
  };
  check(exec::reference{});
  check(exec::cpu(1));
}

TEST_CASE("expert_dispatch and expert_combine: backward") {
  for (std::int64_t n : {0, 1, 9, 40}) {
    check_backward(expert_dispatch_case{n, 3, 7, 5}, 8);
    if (n > 0) check_backward(expert_combine_case{n, 3, 7}, 8);
  }
}

TEST_CASE("route: backward, by score and by table") {
  for (std::int64_t n : {0, 1, 9})
    for (bool hashed : {false, true}) {
      // Small steps: a change of choice is a jump.
      check_backward(route_case{n, 11, 3, 2, hashed}, 16);
      check_backward(route_case{n, 4, 1, 2, hashed}, 16);
    }
}

TEMPLATE_TEST_CASE("route: gradients of logits far below zero stay finite and right", "", float, double) {
  // s = e^(z/2) there, so weights depend on the difference of two logits d alone: the softmax of z / 2.
  using T = TestType;
  workspace w;
  for (T z : {T(-60), T(-170), T(-1000)}) {
    T logits[] = {z, z + 1}, dweights[] = {1, 0}, dlogits[2];
    const std::int32_t experts[] = {0, 1};
    route<T>::backward(exec::cpu(1), w, {{logits, 1, 2}, {}, {}, {}, 2.0}, {{experts, 1, 2}},
                       {{dweights, 1, 2}}, {{dlogits, 1, 2}});
    const double s = 1 / (1 + std::exp(0.5));
    const double want = z > -700 ? 2 * s * (1 - s) / 2 : 0;  // below, every score underflows to 0
    CHECK(dlogits[0] == Catch::Approx(want).margin(1e-6));
    CHECK(dlogits[1] == Catch::Approx(-want).margin(1e-6));
  }
}

TEST_CASE("compress_pool: backward, with and without overlap") {
  check_backward(compress_pool_case{13, 4, 5, 0, 0, 3, true}, 64);  // an incomplete group behind
  check_backward(compress_pool_case{12, 4, 5, 8, 3, 2, true}, 64);  // a chunk in the middle
  check_backward(compress_pool_case{13, 3, 6, 0, 0, 4, false}, 64);
  check_backward(compress_pool_case{160, 2, 3, 0, 0, 80, true}, 256);      // several chunks of entries
  check_backward(compress_pool_case{3, 4, 5, 0, 0, 0, true}, 1);           // no group is complete: all zero
  check_cpu<float>(compress_pool_case{16, 4, 5, 0, 0, 4, true, 60}, 256);  // one token takes all
}

TEST_CASE("hyper_connection_gates: backward through Sinkhorn") {
  for (std::int64_t n : {0, 1, 5, 70}) check_backward(gates_case{n, 4, 9, 20, false}, 512);
  for (std::int64_t streams : {1, 2, 3, 5}) check_backward(gates_case{3, streams, 7, 20, false}, 512);
  check_backward(gates_case{3, 4, 7, 1, false}, 512);
  check_backward(gates_case{7, 4, 9, 0, true}, 64);
  check_backward(gates_case{7, 4, 9, 20, false, 1, true}, 512);
}

TEST_CASE("hyper_connection_gates: near-permutation logits and large upstream gradients") {
  // Logits of size 30: one entry of a row is 1, the others far below eps. The iteration amplifies roundings
  // by the inverse of its smallest divisor, so float is held to 1e-3 of the largest gradient.
  const gates_case extreme{6, 4, 9, 20, false, 30};
  check_against_differences(extreme, 1e-7);
  check_cpu<double>(extreme, 1e6);
  auto inputs = extreme.inputs<float>();
  const auto dy = testing::detail::upstream_of<float>(extreme, 1e30);
  const auto a = testing::detail::gradients_of<float>(extreme, exec::reference{}, inputs, dy);
  const auto b = testing::detail::gradients_of<float>(extreme, exec::cpu(2), inputs, dy);
  for (std::size_t i = 0; i < a.size(); ++i) CHECK(testing::detail::array_error(b[i], a[i]) < 1e-3);
}

TEST_CASE("Sinkhorn backward: rows of the gradient sum to zero") {
  const gates_case c{5, 4, 3, 20, false, 2};
  auto inputs = c.inputs<double>();
  const auto dy = testing::detail::upstream_of<double>(c, 1);
  const auto g = testing::detail::gradients_of<double>(c, exec::cpu(1), inputs, dy);
  for (int t = 0; t < 5; ++t)
    for (int j = 0; j < 4; ++j) {
      double sum = 0;
      for (int k = 0; k < 4; ++k) sum += g[1][t * 24 + 8 + 4 * j + k];
      CHECK(std::abs(sum) < 1e-12);  // the softmax of a row does not see its mean
    }
}

TEST_CASE("hyper_connection_collapse and _expand: backward") {
  for (std::int64_t n : {0, 1, 5})
    for (std::int64_t streams : {1, 2, 4})
      for (std::int64_t width : {1, 9, 200}) {
        if (width == 200 && n != 1) continue;
        for (bool add : {false, true}) check_backward(collapse_case{n, streams, width, add}, 64);
        check_backward(expand_case{n, streams, width}, 64);
      }
}

TEMPLATE_TEST_CASE("hyper_connection_expand: the gradient of X may replace that of X'", "", float, double) {
  using T = TestType;
  const expand_case c{3, 4, 150};
  auto in = c.inputs<T>();
  const auto dy = testing::detail::upstream_of<T>(c, 1);
  const auto want = testing::detail::gradients_of<T>(c, exec::cpu(1), in, dy);
  auto d = copy(dy[0]);
  workspace w;
  pointers<const T> p;
  for (auto& o : in) p.push_back(o.values.data());
  hyper_connection_expand<T>::backward(exec::cpu(2), w, c.arguments<T>(p), {d.as(3, 4, 150)},
                                       {d.as(3, 4, 150), {}, {}, {}});
  CHECK(same(d, want[0]));
}

TEST_CASE("gradients: extents are checked by name") {
  workspace w;
  double x[6] = {}, weight[3] = {}, wrong[2] = {};
  CHECK_THROWS_WITH(rms_norm<double>::backward(exec::cpu(1), w, {{x, 2, 3}, {weight, 3}, 1e-6}, {{x, 2, 3}},
                                               {{}, {wrong, 2}}),
                    contains("rms_norm: dweight extent 0: expected 3, found 2"));
  CHECK_THROWS_WITH(
      rms_norm<double>::backward(exec::cpu(1), w, {{x, 2, 3}, {weight, 3}, 1e-6}, {{x, 1, 3}}, {}),
      contains("rms_norm: dy extent 0: expected 2, found 1"));
}
