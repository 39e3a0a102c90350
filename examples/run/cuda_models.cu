// SPDX-License-Identifier: Apache-2.0
#include "cuda_engine.cuh"
#include <dsv4/config/presets.hpp>

namespace runner {

void expect_gpu() { dsv4::detail::expect_cuda_device(); }

template struct cuda_engines<dsv4::v4_nano, dsv4::numerics::float32>;
template struct cuda_engines<dsv4::v4_nano, dsv4::numerics::bf16>;
template struct cuda_engines<dsv4::v4_nano, dsv4::numerics::mxfp4_experts_only>;
template struct cuda_engines<dsv4::v4_nano, dsv4::numerics::v4_released>;
template struct cuda_engines<dsv4::v4_nano, dsv4::numerics::v4_released_base>;
template struct cuda_engines<dsv4::v4_bench, dsv4::numerics::float32>;
template struct cuda_engines<dsv4::v4_bench, dsv4::numerics::bf16>;
template struct cuda_engines<dsv4::v4_bench, dsv4::numerics::mxfp4_experts_only>;
template struct cuda_engines<dsv4::v4_bench, dsv4::numerics::v4_released>;
template struct cuda_engines<dsv4::v4_bench, dsv4::numerics::v4_released_base>;
template struct cuda_engines<dsv4::v4_flash, dsv4::numerics::v4_released>;
template struct cuda_engines<dsv4::v4_flash, dsv4::numerics::v4_released_base>;

}  // namespace runner
