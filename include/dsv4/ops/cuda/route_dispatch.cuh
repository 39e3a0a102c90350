// SPDX-License-Identifier: Apache-2.0
/// Choosing experts and sending rows to them on the GPU: in one launch for one token, else op by op.
#pragma once

#include <dsv4/ops/cuda/expert_dispatch.cuh>
#include <dsv4/ops/cuda/route.cuh>
#include <dsv4/ops/route_dispatch.hpp>

namespace dsv4 {

template <class T>
inline constexpr bool has_fused_kernel<route_dispatch<T, space::device>, exec::cuda> = true;

namespace detail {
inline constexpr int route_threads = 256;
/// Most experts that one launch chooses, a warp having their weights, and of how many.
inline constexpr int most_chosen = 32, most_experts = 1024;

/// What route_dispatch_kernel has in shared memory of n experts, of which it chooses k: the scores, and the
/// best k of every 32.
template <class A>
struct route_memory {
  double* score;  // (n)
  A* key;         // (candidates)
  int* number;    // (candidates)
  int candidates;

  DSV4_HOST_DEVICE static int count(int n, int k) { return (n + 31) / 32 * k; }
  static std::size_t bytes(int n, int k) {
    return static_cast<std::size_t>(n) * sizeof(double) +
           static_cast<std::size_t>(count(n, k)) * (sizeof(A) + sizeof(int));
  }
  __device__ route_memory(unsigned char* memory, int n, int k)
      : score(reinterpret_cast<double*>(memory)),
        key(reinterpret_cast<A*>(score + n)),
        number(reinterpret_cast<int*>(key + count(n, k))),
        candidates(count(n, k)) {}
};

/// Block 0 chooses, by counting what is before a key, first in each 32 experts and then among the best of
/// them, and says where rows lie; the others bring the token, which is row r of x_sorted for all r.
template <class T, int N>
__global__ void __launch_bounds__(route_threads)
    route_dispatch_kernel(typename route_dispatch<T, space::device>::inputs in,
                          typename route_dispatch<T, space::device>::outputs out) {
  wait_for_previous_kernels();
  using A = accumulator<T>;
  using P = pack<T, N>;
  extern __shared__ __align__(16) unsigned char memory[];
  __shared__ int expert[most_chosen], scored;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  if (blockIdx.x > 0) {
    const P* const from = reinterpret_cast<const P*>(in.x.data);
    P* const to = reinterpret_cast<P*>(&out.rows.x_sorted(blockIdx.x - 1, 0));
    for (int i = thread; i < in.x.extent[1] / N; i += route_threads) to[i] = from[i];
    return;
  }
  const auto& choice = in.choice;
  const int n = static_cast<int>(choice.logits.extent[1]), k = static_cast<int>(out.chosen.experts.extent[1]);
  const auto score_of = [&](int e) { return route_score(widened<double>(choice.logits(0, e))); };
  const route_memory<A> m(memory, n, k);
  bool good = true;
  if (choice.table.data) {
    const std::int64_t id = choice.tokens(0);
    const bool known = id >= 0 && id < choice.table.extent[0];
    const std::int32_t e = known && thread < k ? choice.table(id, thread) : 0;
    const bool exists = e >= 0 && e < n;
    if (thread < k) expert[thread] = exists ? e : 0;
    good = __syncthreads_and(known && exists);
  } else {
    if (thread < k) expert[thread] = thread < n ? thread : 0;  // once scores are gone: in order of number
    if (thread == 0) scored = 0;
    __syncthreads();
    for (int chunk = thread / 32; chunk < (n + 31) / 32; chunk += route_threads / 32) {
      const int e = chunk * 32 + lane;
      A own = -infinity<A>;
      if (e < n) {
        const double s = m.score[e] = score_of(e);
        own = route_key<T>(s, choice.bias(e));
      }
      const bool is_scored = own > -infinity<A>;  // not NaN
      int before = 0;
#pragma unroll
      for (int i = 0; i < 32; ++i) {
        const A other = __shfl_sync(0xffffffffu, own, i);
        before += other > own || (other == own && i < lane);
      }
      const int count = __popc(__ballot_sync(0xffffffffu, is_scored)), at = chunk * k;
      if (is_scored && before < k) m.key[at + before] = own, m.number[at + before] = e;
      if (lane >= count && lane < k) m.key[at + lane] = -infinity<A>;
      if (lane == 0) atomicAdd(&scored, count);
    }
    __syncthreads();
    for (int c = thread; c < m.candidates; c += route_threads) {
      const A own = m.key[c];
      if (!(own > -infinity<A>)) continue;
      int before = 0;  // of equal keys, those of lower experts are before
      for (int i = 0; i < m.candidates; ++i) before += m.key[i] > own || (m.key[i] == own && i < c);
      if (before < k) expert[before] = m.number[c];
    }
    __syncthreads();
    good = scored >= k;
  }
  const auto smaller = [&](int e) {
    int count = 0;
    for (int j = 0; j < k; ++j) count += expert[j] < e;
    return count;
  };
  for (int e = thread; e <= n; e += route_threads) out.rows.offsets(e) = smaller(e);
  if (thread >= 32) return;
  const int e = thread < k ? expert[thread] : 0;
  const double s = thread >= k ? 0.0 : choice.table.data ? score_of(e) : m.score[e];
  const T weight = route_weight<T>(s, warp_sum(s), choice.factor, good);
  if (thread >= k) return;
  int row = smaller(e);
  for (int j = 0; j < thread; ++j) row += expert[j] == e;
  out.chosen.experts(0, thread) = e;
  out.chosen.weights(0, thread) = weight;
  out.rows.order(row) = thread;
  out.rows.weight_sorted(row) = weight;
}
}  // namespace detail

template <class T>
struct kernel<route_dispatch<T, space::device>, exec::cuda> {
  using op = route_dispatch<T, space::device>;
  static void forward(const exec::cuda& p, const typename op::inputs& in, const typename op::outputs& out) {
    const std::int64_t k = out.chosen.experts.extent[1], n = in.choice.logits.extent[1];
    if (in.x.extent[0] != 1 || k < 1 || k > detail::most_chosen || n > detail::most_experts) {
      op::by_ops(p, in, out);
      return;
    }
    const std::size_t bytes =
        detail::route_memory<detail::accumulator<T>>::bytes(static_cast<int>(n), static_cast<int>(k));
    const auto run = [&](auto kernel) {
      p.launch("route_dispatch", kernel, dim3(static_cast<unsigned>(k + 1)), detail::route_threads, bytes, in,
               out);
    };
    if (detail::all_vectorisable(in.x, out.rows.x_sorted))
      run(detail::route_dispatch_kernel<T, detail::vector_width<T>>);
    else
      run(detail::route_dispatch_kernel<T, 1>);
  }
};

}  // namespace dsv4
