// SPDX-License-Identifier: Apache-2.0
#include "support/device.cuh"
#include <dsv4/ops/cuda/block_topk.cuh>

#include <algorithm>
#include <functional>
#include <numeric>
#include <string>
#include <vector>

using namespace dsv4;
using namespace dsv4::testing;

namespace {
template <int Threads, int Each>
__global__ void select_kernel(const float* scores, int n, int k, std::int32_t* selected) {
  wait_for_previous_kernels();
  using topk = detail::block_topk<Threads, Each>;
  __shared__ typename topk::state state;
  topk::select(state, scores, n, k, [&](int j, int i) { selected[j] = i; });
}

/// The selection from score(0), ..., score(n - 1) is that of a stable sort.
template <int Threads, int Each>
void check(const std::string& what, int n, int k, const std::function<double(std::int64_t)>& score) {
  INFO(what << ": " << k << " of " << n << " by " << Threads << " threads");
  buffer<float> scores(n);
  for (int i = 0; i < n; ++i) scores[i] = static_cast<float>(score(i));
  std::vector<std::int32_t> order(static_cast<std::size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return scores[a] > scores[b]; });
  order.resize(static_cast<std::size_t>(std::min(n, k)));
  std::sort(order.begin(), order.end());
  twin<float> in(std::move(scores));
  auto selected = poison<std::int32_t>(k);
  gpu().launch("select", select_kernel<Threads, Each>, 1, Threads, 0, in.device.data(), n, k,
               selected.device.data());
  const auto got = selected.fetch();
  CHECK(std::equal(order.begin(), order.end(), got.begin()));
  CHECK(std::all_of(got.begin() + std::min(n, k), got.end(), [&](auto i) { return i == selected.host[0]; }));
}

template <int Threads, int Each>
void check_all(int n, int k) {
  const auto run = [&](const std::string& what, const std::function<double(std::int64_t)>& score) {
    check<Threads, Each>(what, n, k, score);
  };
  const auto any = [](std::int64_t i) { return noise(1, i); };
  const double inf = INFINITY;
  run("uniform", any);
  run("ascending", [](std::int64_t i) { return double(i); });
  run("few values", [&](std::int64_t i) { return std::floor(3 * any(i)); });
  run("equal", [](std::int64_t) { return -2.5; });
  run("zeros of both signs", [](std::int64_t i) { return i % 3 == 0 ? -0.0 : 0.0; });
  run("all magnitudes", [&](std::int64_t i) { return std::copysign(std::exp2(140 * noise(2, i)), any(i)); });
  run("one far away", [&](std::int64_t i) { return i == 7 ? 1e38 : any(i); });
  run("close", [&](std::int64_t i) { return i % 50 == 0 ? 100 * any(i) : 1 + 0x1p-20 * any(i); });
  run("the range overflows", [&](std::int64_t i) { return 3.4e38 * any(i); });
  run("denormal", [&](std::int64_t i) { return 1e-42 * any(i); });
  run("infinite", [&](std::int64_t i) { return i % 5 == 0 ? inf : i % 5 == 1 ? -inf : any(i); });
  run("nearly all the lowest", [&](std::int64_t i) { return i % 100 == 99 ? any(i) : -inf; });
  run("the lowest", [&](std::int64_t) { return -inf; });
}
}  // namespace

TEST_CASE("block_topk: selects what a stable sort does, whatever the scores") {
  for (const int n : {1, 31, 512, 513, 1000, 1024}) check_all<256, 4>(n, 512);
  for (const int n : {777, 4095, 4096}) check_all<256, 16>(n, 512);
  for (const int k : {1, 2000, 4000}) check_all<256, 16>(4000, k);
  check_all<512, 16>(8001, 512);
  check_all<1024, 4>(2051, 1024);
  check_all<1024, 16>(16383, 512);
}

TEST_CASE("block_topk: what is not a number is the lowest") {
  const auto score = [](std::int64_t i) { return i % 2 == 0 ? double(NAN) : 1000 - double(i); };
  buffer<float> scores(900);
  for (int i = 0; i < 900; ++i) scores[i] = static_cast<float>(score(i));
  twin<float> in(std::move(scores));
  auto selected = poison<std::int32_t>(500);
  gpu().launch("select", select_kernel<256, 4>, 1, 256, 0, in.device.data(), 900, 500,
               selected.device.data());
  const auto got = selected.fetch();
  std::int64_t numbers = 0;
  for (std::int64_t j = 0; j < 500; ++j) {
    CHECK((got[j] >= 0 && got[j] < 900 && (j == 0 || got[j] > got[j - 1])));
    numbers += got[j] % 2;
  }
  CHECK(numbers == 450);
}
