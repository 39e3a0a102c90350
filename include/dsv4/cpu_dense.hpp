// SPDX-License-Identifier: Apache-2.0
/// exec::cpu with its kernels for weights of the scalar's own type, float or double, as in numerics::float32:
/// half a second less to compile than <dsv4/cpu.hpp>.
#pragma once

#include <dsv4/ops/cpu/broadcast_add.hpp>
#include <dsv4/ops/cpu/compress_pool.hpp>
#include <dsv4/ops/cpu/cross_entropy.hpp>
#include <dsv4/ops/cpu/embedding.hpp>
#include <dsv4/ops/cpu/expert_dispatch.hpp>
#include <dsv4/ops/cpu/hadamard.hpp>
#include <dsv4/ops/cpu/hyper_connection.hpp>
#include <dsv4/ops/cpu/index_topk.hpp>
#include <dsv4/ops/cpu/indexer_loss.hpp>
#include <dsv4/ops/cpu/linear.hpp>
#include <dsv4/ops/cpu/rms_norm.hpp>
#include <dsv4/ops/cpu/rope.hpp>
#include <dsv4/ops/cpu/sparse_attention.hpp>
#include <dsv4/ops/cpu/swiglu.hpp>
