// SPDX-License-Identifier: Apache-2.0
// The whole model on the GPU, in double, against the float64 NumPy of tests/oracle: multi-token prediction,
// Hadamard and FP4, FP8 KV, all formats of the released models. Tolerance 1e-9, as in
// tests/model/oracle.test.cpp.
#include "support/device.cuh"
#include "support/oracle.hpp"
#include <dsv4/cuda.cuh>
#include <dsv4/model/cuda_parameters.cuh>
#include <dsv4/model/quantise_parameters.hpp>

using namespace dsv4;

namespace {

template <model_config Config, numerics_config Q>
void check_oracle(const std::string& name) {
  INFO(name);
  using testing::D;
  using model = transformer<Config, double, Q, D>;
  const exec::cuda p;
  const io::safetensors_file file(std::string(DSV4_TEST_DATA) + "/oracle_" + name + ".safetensors");
  parameter_store<Config, double, Q> host_weights;
  if constexpr (storage_types<double, Q>::plain) {
    initialise_by_name(host_weights);
  } else {
    parameter_store<Config, double> wide;
    initialise_by_name(wide);
    quantise_parameters(exec::reference{}, wide, host_weights);
  }
  typename model::parameters weights;
  upload_parameters(p, host_weights, weights);
  const auto tokens = testing::tensor<std::int32_t>(file, "tokens");
  const auto length = static_cast<std::int64_t>(tokens.size());
  const std::int64_t vocab = Config.vocab_size, n = Config.hyper_connection.hc_mult;
  buffer<std::int32_t> host_ids(length);
  std::copy(tokens.begin(), tokens.end(), host_ids.begin());
  const auto device_ids = to_device(p.stream(), host_ids);
  const auto ids = device_ids.as(length);
  device_workspace w;
  typename model::state state;
  const typename model::segment segment{&state, length};
  device_buffer<double> logits(length * vocab), streams(length * n * Config.hidden_size);
  model::forward(p, w, weights.views(), {std::span(&segment, 1), ids, logit_rows::all},
                 {logits.as(length, vocab), streams.as(length, n, Config.hidden_size)});
  CHECK(testing::largest_difference(to_host(p.stream(), logits), testing::tensor<double>(file, "logits")) <
        1e-9);
  if constexpr (Config.num_nextn_predict_layers > 0) {
    device_buffer<double> drafts((length - 1) * vocab);
    for (std::int64_t begin = 0; begin < length - 1;) {
      const std::int64_t count = begin == 0 ? 11 : length - 1 - begin;
      const typename model::segment part{&state, count};
      model::draft(p, w, weights.views(), {std::span(&part, 1), ids.rows(begin + 1, count), logit_rows::all},
                   streams.as(length, n, Config.hidden_size).rows(begin, count),
                   {drafts.as(length - 1, vocab).rows(begin, count), {}});
      begin += count;
    }
    CHECK(testing::largest_difference(to_host(p.stream(), drafts),
                                      testing::tensor<double>(file, "mtp_logits")) < 1e-9);
  }
}

}  // namespace

TEST_CASE("oracle on the GPU: multi-token prediction, odd sizes") {
  check_oracle<testing::mtp_case, numerics::float32>("mtp");
  check_oracle<testing::odd_case, numerics::float32>("odd");
}
TEST_CASE("oracle on the GPU: small formats") {
  check_oracle<testing::hadamard_fp4_case, numerics::index_fp4>("hadamard_fp4");
  check_oracle<testing::kv_fp8_case, numerics::kv_fp8_index_fp4>("kv_fp8");
  check_oracle<testing::released_case, numerics::v4_released>("v4_released");
}
