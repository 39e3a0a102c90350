// SPDX-License-Identifier: Apache-2.0
/// exec::cuda with all of its kernels for training. For .cu files: the CUDA compiler has to read it.
#pragma once

#include <dsv4/exec/cuda_transfer.cuh>
#include <dsv4/train/cuda/adamw.cuh>
#include <dsv4/train/cuda/gradient_clip.cuh>
#include <dsv4/train/cuda/muon.cuh>
#include <dsv4/train/cuda/newton_schulz.cuh>
#include <dsv4/train/cuda/opd_loss.cuh>
#include <dsv4/train/cuda/router_balance.cuh>
