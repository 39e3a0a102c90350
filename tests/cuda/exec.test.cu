// SPDX-License-Identifier: Apache-2.0
// The policy itself: memory, streams, errors, graphs, ranges.
#include "support/device.cuh"
#include <dsv4/exec/branch.hpp>
#include <dsv4/ops/cuda/linear.cuh>
#include <dsv4/ops/cuda/rms_norm.cuh>

#include <string>
#include <vector>

using namespace dsv4;
using namespace dsv4::testing;

namespace {
// What a profiler sees of NVTX ranges.
std::vector<std::string> events;
int NVTX_API range_opened(const char* name) {
  events.push_back(name);
  return 0;
}
int NVTX_API range_closed() {
  events.push_back("end");
  return 0;
}
int NVTX_API attach(NvtxGetExportTableFunc_t get) {
  const auto* const callbacks = static_cast<const NvtxExportTableCallbacks*>(get(NVTX_ETID_CALLBACKS));
  NvtxFunctionTable table = nullptr;
  unsigned size = 0;
  if (!callbacks->GetModuleFunctionTable(NVTX_CB_MODULE_CORE, &table, &size)) return 0;
  *table[NVTX_CBID_CORE_RangePushA] = reinterpret_cast<NvtxFunctionPointer>(range_opened);
  *table[NVTX_CBID_CORE_RangePop] = reinterpret_cast<NvtxFunctionPointer>(range_closed);
  return 1;
}
// NVTX asks for it at its first range.
const bool attached = (InitializeInjectionNvtx2_fnptr = attach) != nullptr;
}  // namespace

TEST_CASE("a buffer is zeroed, also for streams that do not wait for the default one") {
  const exec::cuda own;
  for (int i = 0; i < 20; ++i) {
    const device_buffer<float> b(1 << 20);
    const auto h = to_host(own.stream(), b);
    bool zero = true;
    for (float v : h) zero = zero && v == 0;
    CHECK(zero);
  }
  CHECK(device_buffer<float>().size() == 0);
  CHECK(device_buffer<float>(0).data() == nullptr);
}

TEST_CASE("a device workspace repeats without growing") {
  device_workspace w;
  for (int i = 0; i < 3; ++i) {
    const workspace_scope scope(w);
    const auto a = take<float>(w, 3, 100), b = take<float>(w, 3, 100);
    CHECK(b.data >= a.data + 300);
    CHECK(reinterpret_cast<std::uintptr_t>(b.data) % 256 == 0);
    CHECK(w.capacity() == std::size_t{1} << 20);
  }
}

TEST_CASE("errors name the op, the reason and the place") {
  const exec::cuda p;
  const device_buffer<float> x(16);
  const auto launch = [&](unsigned threads) {
    p.launch("test op", detail::rms_norm_kernel<float, 1, 32>, dim3(1), threads, 0,
             matrix_view<const float, D>(x.data(), 1, 16), vector_view<const float, D>{}, 1e-6,
             matrix_view<float, D>{});
  };
  try {
    launch(4096);
    FAIL("a block of 4096 threads was launched");
  } catch (const cuda_error& e) {
    CHECK_THAT(e.what(), contains("test op"));
    CHECK_THAT(e.what(), contains("invalid"));
    CHECK_THAT(e.what(), contains("exec.test.cu:"));  // the line that launches
  }
  cudaGetLastError();
  CHECK_THROWS_AS((rms_norm<float, D>::forward(p, {x.as(1, 16), x.as(8), 1e-6}, {})), contract_error);
}

TEST_CASE("a profiler is told of ranges where options ask for it") {
  REQUIRE(attached);
  for (const bool wanted : {false, true}) {
    exec::cuda::options options;
    options.profile_ranges = wanted;
    const exec::cuda p(options);
    events.clear();
    {
      const auto outer = detail::named_range(p, "outer");
      const auto inner = detail::named_range(p, "inner");
    }
    CHECK(events ==
          (wanted ? std::vector<std::string>{"outer", "inner", "end", "end"} : std::vector<std::string>{}));
  }
}

TEST_CASE("ops are captured into a graph and replayed with other inputs") {
  const exec::cuda p;
  auto x = random<float>(8 * 64), w = random<float>(32 * 64, 2), y = poison<float>(8 * 32),
       want = poison<float>(8 * 32);
  device_buffer<float> normed(8 * 64);
  const auto run = [&](device_buffer<float>& to) {
    rms_norm<float, D>::forward(p, {x.d(8, 64), {}, 1e-6}, {normed.as(8, 64)});
    linear<float, D>::forward(p, {normed.as(8, 64), w.d(32, 64)}, {to.as(8, 32)});
  };
  run(want.device);
  p.synchronise();
  cudaGraph_t graph;
  cudaGraphExec_t ready;
  detail::check_cuda(cudaStreamBeginCapture(p.stream(), cudaStreamCaptureModeGlobal), "test");
  run(y.device);
  detail::check_cuda(cudaStreamEndCapture(p.stream(), &graph), "test");
  detail::check_cuda(cudaGraphInstantiate(&ready, graph, 0), "test");
  CHECK(std::isnan(y.fetch()[0]));  // captured, not run
  for (int i = 0; i < 2; ++i) {
    detail::check_cuda(cudaGraphLaunch(ready, p.stream()), "test");
    p.synchronise();
    CHECK(same_bytes(y.fetch(), to_host(p.stream(), want.device)));
    const auto other = random<float>(8 * 64, 9);
    copy_elements(p.stream(), other.host.data(), x.device.data(), 8 * 64);
    run(want.device);
    p.synchronise();
  }
  cudaGraphExecDestroy(ready);
  cudaGraphDestroy(graph);
}

namespace {
template <int>
__global__ void next_kernel(const std::int64_t* from, std::int64_t* to, std::int64_t count) {
  wait_for_previous_kernels();
  // The first blocks end long before the last one writes.
  if (blockIdx.x + 1 == gridDim.x)
    for (int i = 0; i < 20; ++i) __nanosleep(1000);
  for (std::int64_t i = detail::global_thread(); i < count; i += detail::global_threads())
    to[i] = from[(i * 7 + 3) % count] + i;
}

/// 20 kernels, each of which reads what the one before wrote, all of it.
void run_chain(const exec::cuda& p, device_buffer<std::int64_t>& a, device_buffer<std::int64_t>& b) {
  for (int i = 0; i < 10; ++i) {
    p.launch("test", next_kernel<0>, dim3(40), 256, 0, a.data(), b.data(), a.size());
    p.launch("test", next_kernel<0>, dim3(40), 256, 0, b.data(), a.data(), a.size());
  }
}
}  // namespace

TEST_CASE("a kernel that starts early sees all that the kernels before it wrote, in graphs too") {
  const std::int64_t count = 10007;
  buffer<std::int64_t> want(count), start(count);
  for (std::int64_t i = 0; i < count; ++i) start[i] = want[i] = i * i;
  for (int step = 0; step < 20; ++step) {
    buffer<std::int64_t> next(count);
    for (std::int64_t i = 0; i < count; ++i) next[i] = want[(i * 7 + 3) % count] + i;
    want = std::move(next);
  }
  for (const bool early : {true, false}) {
    exec::cuda::options o;
    o.early_starts = early;
    const exec::cuda p(o);
    device_buffer<std::int64_t> b(count), other(count);
    auto a = to_device(p.stream(), start), c = to_device(p.stream(), start);
    run_chain(p, a, b);
    CHECK(same_bytes(to_host(p.stream(), a), want));

    // A graph of the same kernels, and its update to other arguments, as a decode step's is.
    cudaGraphExec_t ready = nullptr;
    for (auto* first : {&a, &c}) {
      copy_elements(p.stream(), start.data(), first->data(), count);
      p.synchronise();
      cudaGraph_t graph;
      detail::check_cuda(cudaStreamBeginCapture(p.stream(), cudaStreamCaptureModeGlobal), "test");
      run_chain(p, *first, other);
      detail::check_cuda(cudaStreamEndCapture(p.stream(), &graph), "test");
      cudaGraphExecUpdateResultInfo info{};
      if (ready)
        detail::check_cuda(cudaGraphExecUpdate(ready, graph, &info), "test");
      else
        detail::check_cuda(cudaGraphInstantiate(&ready, graph, 0), "test");
      detail::check_cuda(cudaGraphLaunch(ready, p.stream()), "test");
      p.synchronise();
      CHECK(same_bytes(to_host(p.stream(), *first), want));
      cudaGraphDestroy(graph);
    }
    cudaGraphExecDestroy(ready);
  }
}

TEST_CASE("what a policy aside is asked for comes after the fork and before the join, in graphs too") {
  const std::int64_t count = 10007;
  const auto next = [&](const buffer<std::int64_t>& from) {
    buffer<std::int64_t> to(count);
    for (std::int64_t i = 0; i < count; ++i) to[i] = from[(i * 7 + 3) % count] + i;
    return to;
  };
  buffer<std::int64_t> start(count);
  for (std::int64_t i = 0; i < count; ++i) start[i] = i * i;
  const auto thrice = next(next(next(start))), five_times = next(next(thrice));

  const exec::cuda p;
  const auto a = to_device(p.stream(), start);
  device_buffer<std::int64_t> b(count), c(count), d(count), e(count), from_c(count), from_e(count);
  const auto launch = [&](const exec::cuda& on, const auto& from, auto& to) {
    on.launch("test", next_kernel<0>, dim3(40), 256, 0, from.data(), to.data(), count);
  };
  const auto run = [&] {
    launch(p, a, b);
    const exec::cuda& aside = p.fork();
    CHECK(aside.stream() != p.stream());
    CHECK(aside.scratch() != p.scratch());
    launch(aside, b, c);
    launch(p, b, e);
    launch(p, e, d);
    CHECK(&p.fork() == &aside);  // which waits for d
    launch(aside, d, e);
    p.join();
    launch(p, e, from_e);
    launch(p, c, from_c);
  };
  const auto check = [&] {
    CHECK(same_bytes(to_host(p.stream(), from_c), thrice));
    CHECK(same_bytes(to_host(p.stream(), from_e), five_times));
  };
  run();
  check();
  for (auto* x : {&b, &c, &d, &e, &from_c, &from_e})
    detail::check_cuda(cudaMemsetAsync(x->data(), 0, count * std::int64_t{sizeof(std::int64_t)}, p.stream()),
                       "test");
  p.synchronise();

  cudaGraph_t graph;
  cudaGraphExec_t ready;
  detail::check_cuda(cudaStreamBeginCapture(p.stream(), cudaStreamCaptureModeGlobal), "test");
  run();
  detail::check_cuda(cudaStreamEndCapture(p.stream(), &graph), "test");
  detail::check_cuda(cudaGraphInstantiate(&ready, graph, 0), "test");
  for (int i = 0; i < 5; ++i) detail::check_cuda(cudaGraphLaunch(ready, p.stream()), "test");
  check();
  cudaGraphExecDestroy(ready);
  cudaGraphDestroy(graph);
}

TEST_CASE("until a branch is joined a workspace gives nothing twice") {
  const exec::cuda p;
  device_workspace w;
  const auto taken = [&] {
    const workspace_scope scope(w);
    return take<float>(w, 64).data;
  };
  const workspace_scope scope(w);
  for (const bool wanted : {true, false}) {
    detail::branch<exec::cuda, D> aside(p, w, wanted);
    CHECK((aside.policy().stream() != p.stream()) == wanted);
    CHECK((taken() != taken()) == wanted);
    aside.join();
    CHECK(taken() == taken());
  }
  { const detail::branch<exec::cuda, D> forgotten(p, w, true); }
  CHECK(taken() == taken());
}

TEST_CASE("two policies on two streams do not disturb each other") {
  const exec::cuda a, b;
  CHECK(a.stream() != b.stream());
  CHECK(a.scratch() != b.scratch());
  auto x = random<float>(300 * 512), w = random<float>(256 * 512, 2);
  device_buffer<float> ya(300 * 256), yb(300 * 256);
  for (int i = 0; i < 20; ++i) {
    linear<float, D>::forward(a, {x.d(300, 512), w.d(256, 512)}, {ya.as(300, 256)});
    linear<float, D>::forward(b, {x.d(300, 512), w.d(256, 512)}, {yb.as(300, 256)});
  }
  CHECK(same_bytes(to_host(a.stream(), ya), to_host(b.stream(), yb)));
  CHECK(a.device().multiprocessors > 0);
}
