// SPDX-License-Identifier: Apache-2.0
/// Exponentials over rows, written once for every vector instruction set. gemm_portable.hpp, gemm_avx2.hpp
/// and gemm_avx512.hpp each include this file after gemm_tile.hpp, inside their own namespace; hence no
/// include guard. Included alone it is empty.
#if defined(DSV4_TARGET)

/// One step of an online softmax over a row of scores: s[j] becomes e^(scale s[j] - top'), top' the larger of
/// `top` and every scale s[j]; `sum` becomes e^(top - top') sum + sum_j s[j]. Returns e^(top - top').
template <class T>
DSV4_TARGET T softmax_step(T* s, std::int64_t n, T scale, T& top, T& sum) {
  using L = lanes<T>;
  T largest = top;
  std::int64_t scaled = 0;
  if (n >= L::width) {
    typename L::vec most = L::fill(top);
    for (; scaled + L::width <= n; scaled += L::width) {
      const typename L::vec v = L::fma(L::fill(scale), L::load(s + scaled), L::zero());
      L::store(s + scaled, v);
      most = L::max(most, v);
    }
    T lane[L::width];
    L::store(lane, most);
    for (T v : lane) largest = v > largest ? v : largest;
  }
  for (; scaled < n; ++scaled) {
    s[scaled] *= scale;
    largest = s[scaled] > largest ? s[scaled] : largest;
  }
  const typename L::vec shift = L::fill(-largest);
  const typename L::vec one = L::fill(T(1));
  typename L::vec acc = L::zero();
  for (std::int64_t j = 0; j < n; j += L::width) {
    const typename L::tail tail = L::first(std::min<std::int64_t>(n - j, L::width));
    L::store(s + j, L::exp(L::fma(one, L::load(s + j, tail), shift)), tail);
    acc = L::fma(one, L::load(s + j, tail), acc);
  }
  T correction = T(1);
  if (top != largest) {
    T one_lane[L::width];
    L::store(one_lane, L::exp(L::fill(top - largest)));
    correction = one_lane[0];
  }
  sum = sum * correction + L::reduce(acc);
  top = largest;
  return correction;
}

/// y[j] = 1 / (1 + e^-x[j]), by exponentials of negative numbers only.
template <class T>
DSV4_TARGET void sigmoid(const T* x, T* y, std::int64_t n) {
  using L = lanes<T>;
  const typename L::vec minus = L::fill(T(-1)), one = L::fill(T(1));
  for (std::int64_t j = 0; j < n; j += L::width) {
    const std::int64_t count = std::min<std::int64_t>(n - j, L::width);
    const typename L::vec v = L::load(x + j, L::first(count));
    const typename L::vec size = L::max(v, L::fma(minus, v, L::zero()));
    const typename L::vec e = L::exp(L::fma(minus, size, L::zero()));
    L::store(y + j, L::divide(L::where_negative(v, e, one), L::fma(one, one, e)), L::first(count));
  }
}

/// Weights and gradients of a row of scores, given its log-sum-exp and delta = sum_j weight_j dp_j.
template <class T>
DSV4_TARGET void softmax_gradient(T* s, T* dp, std::int64_t n, T lse, T delta) {
  using L = lanes<T>;
  const typename L::vec one = L::fill(T(1)), shift = L::fill(-lse), mean = L::fill(-delta);
  for (std::int64_t j = 0; j < n; j += L::width) {
    const typename L::tail tail = L::first(std::min<std::int64_t>(n - j, L::width));
    const typename L::vec p = L::exp(L::fma(one, L::load(s + j, tail), shift));
    L::store(s + j, p, tail);
    L::store(dp + j, L::fma(p, L::fma(one, L::load(dp + j, tail), mean), L::zero()), tail);
  }
}

#endif  // DSV4_TARGET
