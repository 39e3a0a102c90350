// SPDX-License-Identifier: Apache-2.0
/// Decode steps as CUDA graphs. A position is an argument of many kernels, and which kernels run depends on
/// it (every fourth token completes an entry, say), so a graph fits one step alone: each is recorded anew,
/// and takes the place of an earlier one of the same kernels.
#pragma once

#include <dsv4/exec/cuda.cuh>

#include <cstddef>
#include <cuda_runtime.h>
#include <map>

namespace runner {

class decode_graphs {
 public:
  decode_graphs() = default;
  decode_graphs(const decode_graphs&) = delete;
  decode_graphs& operator=(const decode_graphs&) = delete;
  ~decode_graphs() {
    for (const auto& [nodes, graph] : ready_) cudaGraphExecDestroy(graph);
  }

  /// Records what run() queues on the policy's stream, without running it. Scratch memory may grow meanwhile.
  template <class Run>
  void record(const dsv4::exec::cuda& p, const Run& run) {
    using dsv4::detail::check_cuda;
    check_cuda(cudaStreamBeginCapture(p.stream(), cudaStreamCaptureModeRelaxed), "decode_graphs");
    run();
    cudaGraph_t graph = nullptr;
    check_cuda(cudaStreamEndCapture(p.stream(), &graph), "decode_graphs");
    const struct destroy {
      cudaGraph_t graph;
      ~destroy() { cudaGraphDestroy(graph); }
    } at_end{graph};
    std::size_t nodes = 0;
    check_cuda(cudaGraphGetNodes(graph, nullptr, &nodes), "decode_graphs");
    cudaGraphExec_t& ready = ready_[nodes];
    cudaGraphExecUpdateResultInfo info{};
    if (ready && cudaGraphExecUpdate(ready, graph, &info) != cudaSuccess) {
      cudaGetLastError();  // other kernels: this is no failure
      cudaGraphExecDestroy(ready);
      ready = nullptr;
    }
    if (!ready) check_cuda(cudaGraphInstantiate(&ready, graph, 0), "decode_graphs");
    next_ = ready;
  }

  /// Queues what was recorded last.
  void launch(const dsv4::exec::cuda& p) {
    dsv4::detail::check_cuda(cudaGraphLaunch(next_, p.stream()), "decode_graphs");
  }

 private:
  std::map<std::size_t, cudaGraphExec_t> ready_;  // by their number of nodes
  cudaGraphExec_t next_ = nullptr;
};

}  // namespace runner
