// SPDX-License-Identifier: Apache-2.0
// What the public peer lacks, against the float64 NumPy of tests/oracle: multi-token prediction, the
// indexer's Hadamard transform and FP4, FP8 KV entries, all round trips of the released models, odd widths.
// Weights come from the rule of initialise_by_name, so that the files hold outputs only. Tolerance 1e-9: two
// float64 programs that sum in different orders, logits below 100.
#include "support/oracle.hpp"

#include "support/catch.hpp"
#include <dsv4/cpu.hpp>
#include <dsv4/model/quantise_parameters.hpp>

using namespace dsv4;

namespace {

template <model_config Config, numerics_config Q, policy P>
void check_oracle(const P& p, const std::string& name) {
  INFO(name << " " << P::name);
  using model = transformer<Config, double, Q>;
  const io::safetensors_file file(std::string(DSV4_TEST_DATA) + "/oracle_" + name + ".safetensors");
  typename model::parameters weights;
  if constexpr (storage_types<double, Q>::plain) {
    initialise_by_name(weights);
  } else {
    parameter_store<Config, double> wide;
    initialise_by_name(wide);
    quantise_parameters(p, wide, weights);
  }
  const auto tokens = testing::tensor<std::int32_t>(file, "tokens");
  const auto length = static_cast<std::int64_t>(tokens.size());
  const std::int64_t vocab = Config.vocab_size, n = Config.hyper_connection.hc_mult;
  const vector_view<const std::int32_t> ids(tokens.data(), length);
  workspace w;
  typename model::state state;
  const typename model::segment segment{&state, length};
  buffer<double> logits(length * vocab), streams(length * n * Config.hidden_size);
  model::forward(p, w, weights.views(), {std::span(&segment, 1), ids, logit_rows::all},
                 {logits.as(length, vocab), streams.as(length, n, Config.hidden_size)});
  CHECK(testing::largest_difference(logits, testing::tensor<double>(file, "logits")) < 1e-9);
  if constexpr (Config.num_nextn_predict_layers > 0) {
    // In two chunks: the draft block has a window cache of its own.
    buffer<double> drafts((length - 1) * vocab);
    for (std::int64_t begin = 0; begin < length - 1;) {
      const std::int64_t count = begin == 0 ? 11 : length - 1 - begin;
      const typename model::segment part{&state, count};
      model::draft(p, w, weights.views(), {std::span(&part, 1), ids.rows(begin + 1, count), logit_rows::all},
                   streams.as(length, n, Config.hidden_size).rows(begin, count),
                   {drafts.as(length - 1, vocab).rows(begin, count), {}});
      begin += count;
    }
    CHECK(testing::largest_difference(drafts, testing::tensor<double>(file, "mtp_logits")) < 1e-9);
    const typename model::segment beyond{&state, 2};
    CHECK_THROWS_AS(
        model::draft(p, w, weights.views(), {std::span(&beyond, 1), ids.rows(0, 2), logit_rows::none},
                     streams.as(length, n, Config.hidden_size).rows(0, 2), {}),
        contract_error);
  }
}

template <policy P>
void check_all(const P& p) {
  check_oracle<testing::mtp_case, numerics::float32>(p, "mtp");
  check_oracle<testing::odd_case, numerics::float32>(p, "odd");
  check_oracle<testing::hadamard_fp4_case, numerics::index_fp4>(p, "hadamard_fp4");
  check_oracle<testing::kv_fp8_case, numerics::kv_fp8_index_fp4>(p, "kv_fp8");
  check_oracle<testing::released_case, numerics::v4_released>(p, "v4_released");
}

}  // namespace

TEST_CASE("oracle: reference policy") { check_all(exec::reference{}); }
TEST_CASE("oracle: cpu policy") { check_all(exec::cpu(2)); }
