// SPDX-License-Identifier: Apache-2.0
/// What the benchmarks of whole layers share.
#pragma once

#include <support/device_weights.cuh>
#include <support/work.hpp>

namespace dsv4::bench {

/// With a vocabulary that a prompt's tokens are spread over.
template <model_config C, attention_kind K>
inline constexpr model_config whole_layer = one_layer<C, K, 1024>;

/// Both residual sites read and write the streams.
inline double stream_bytes(const model_config& c, std::int64_t rows) {
  return 2 * 2 * 2.0 * double(rows * c.hyper_connection.hc_mult * c.hidden_size);
}

}  // namespace dsv4::bench
