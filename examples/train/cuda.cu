// SPDX-License-Identifier: Apache-2.0
/// dsv4-train on the GPU.
#include "run.hpp"
#include <dsv4/cuda.cuh>
#include <dsv4/model/cuda_parameters.cuh>
#include <dsv4/train/cuda.cuh>

int training_program::train_on_gpu(const options& o) { return train_configuration(dsv4::exec::cuda(), o); }
