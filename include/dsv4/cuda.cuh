// SPDX-License-Identifier: Apache-2.0
/// exec::cuda with all of its kernels. For .cu files: the CUDA compiler has to read it.
#pragma once

#include <dsv4/ops/cuda/activation_linear.cuh>
#include <dsv4/ops/cuda/broadcast_add.cuh>
#include <dsv4/ops/cuda/compress_pool.cuh>
#include <dsv4/ops/cuda/copy_rows.cuh>
#include <dsv4/ops/cuda/cross_entropy.cuh>
#include <dsv4/ops/cuda/embedding.cuh>
#include <dsv4/ops/cuda/expert_dispatch.cuh>
#include <dsv4/ops/cuda/hadamard.cuh>
#include <dsv4/ops/cuda/hyper_connection.cuh>
#include <dsv4/ops/cuda/hyper_connection_fold.cuh>
#include <dsv4/ops/cuda/index_topk.cuh>
#include <dsv4/ops/cuda/indexer_loss.cuh>
#include <dsv4/ops/cuda/linear.cuh>
#include <dsv4/ops/cuda/norm_rope.cuh>
#include <dsv4/ops/cuda/quantise.cuh>
#include <dsv4/ops/cuda/recast.cuh>
#include <dsv4/ops/cuda/rms_norm.cuh>
#include <dsv4/ops/cuda/rope.cuh>
#include <dsv4/ops/cuda/route.cuh>
#include <dsv4/ops/cuda/route_dispatch.cuh>
#include <dsv4/ops/cuda/sparse_attention.cuh>
#include <dsv4/ops/cuda/swiglu.cuh>
