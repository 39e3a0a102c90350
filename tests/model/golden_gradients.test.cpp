// SPDX-License-Identifier: Apache-2.0
// Every gradient of the recorded models (tests/README.md). In the repository each tensor is kept as its norm
// and its sums under six fixed patterns of signs: a wrong element shows in half of them or so. Where the
// peer's whole files lie in the directory that the environment variable DSV4_FULL_GOLDENS names, every
// element is compared. Tolerances, relative to a tensor's norm and to its largest element: 2e-5 in double
// (the peer computed in float32: the float64 gradients here differ from it by up to 1.1e-5), 2e-4 in float.
#include "support/catch.hpp"
#include "support/golden.hpp"
#include <dsv4/core/hash.hpp>
#include <dsv4/cpu.hpp>
#include <dsv4/model/training.hpp>

#include <cstdlib>
#include <filesystem>
#include <map>
#include <memory>

using namespace dsv4;

namespace {

constexpr int projections = 6;

/// A gradient as the peer names and shapes it.
using named_gradients = std::map<std::string, std::vector<double>>;

template <model_config Config, class T>
named_gradients as_the_peer(parameter_store<Config, T>& store) {
  named_gradients result;
  for_each_parameter<Config>(store.views(), [&]<class V>(const parameter_info& info, V& v) {
    if constexpr (std::is_same_v<typename V::value_type, T>) {
      if (info.name.ends_with("gate.bias")) return;  // a buffer
      const auto fused = io::fused_expert_name(info.name);
      if (!fused) {
        result[*io::hugging_face_name(info.name)].assign(v.data, v.data + v.size());
        return;
      }
      // (E, I, D) into w1 above w3, (E, 2 I, D); w2 has a tensor of its own.
      auto& to = result[*fused];
      const bool down = info.name.ends_with("w2.weight");
      const std::int64_t each = v.size() / v.extent[0], stride = down ? each : 2 * each;
      const std::int64_t shift = info.name.ends_with("w3.weight") ? each : 0;
      to.resize(static_cast<std::size_t>(v.extent[0] * stride));
      for (std::int64_t e = 0; e < v.extent[0]; ++e)
        for (std::int64_t i = 0; i < each; ++i)
          to[static_cast<std::size_t>(e * stride + shift + i)] = double(v.data[e * each + i]);
    }
  });
  return result;
}

template <class T, model_config Config, recompute_policy R, policy P>
void check_golden(const P& p, const std::string& name) {
  INFO(name << " " << P::name);
  constexpr double tolerance = std::is_same_v<T, double> ? 2e-5 : 2e-4;
  const std::string data = DSV4_TEST_DATA;
  const io::safetensors_file file(data + "/" + name + ".safetensors");
  parameter_store<Config, T> weights, gradients;
  io::load_parameters(file, weights,
                      {.prefixes = {"param.", "buffer."},
                       .ignored = {"tokens", "logits", "hidden.", "loss", "decode_logits"}});
  const auto tokens = testing::tensor<std::int32_t>(file, "tokens");
  const std::int64_t batch = file.at("tokens").shape[0], length = file.at("tokens").shape[1];
  std::vector<std::int32_t> targets;
  std::vector<std::int64_t> offsets{0};
  for (std::int64_t b = 0; b < batch; ++b) {
    for (std::int64_t t = 1; t < length; ++t)
      targets.push_back(tokens[static_cast<std::size_t>(b * length + t)]);
    targets.push_back(-1);
    offsets.push_back((b + 1) * length);
  }
  workspace w;
  using model = training<Config, T, numerics::float32, R>;
  const double count = double(batch * (length - 1));
  const auto losses = model::step(
      p, w, weights.views(), {offsets, {tokens.data(), batch * length}, {targets.data(), batch * length}, {}},
      {.token = 1 / count}, &gradients.views());
  CHECK(losses.token / count == Catch::Approx(testing::tensor<double>(file, "loss")[0]).epsilon(tolerance));

  const auto found = as_the_peer(gradients);
  const io::safetensors_file recorded(data + "/golden_gradients.safetensors");
  const auto rows = testing::tensor<double>(recorded, name);
  REQUIRE(rows.size() == found.size() * (projections + 1));
  std::unique_ptr<io::safetensors_file> full;
  if (const char* folder = std::getenv("DSV4_FULL_GOLDENS"))
    full = std::make_unique<io::safetensors_file>(std::string(folder) + "/" + name + ".safetensors");
  std::size_t row = 0;
  int compared = 0;
  for (const auto& [tensor, g] : found) {
    const double* want = rows.data() + (projections + 1) * row++;
    double sums[projections] = {}, largest = 0;
    const std::uint64_t key = detail::fnv1a64(tensor);
    for (std::size_t i = 0; i < g.size(); ++i) {
      const std::uint64_t bits = detail::splitmix64(key + i);
      for (int j = 0; j < projections; ++j) sums[j] += (bits >> j & 1) ? -g[i] : g[i];
      largest = std::max(largest, std::abs(g[i]));
    }
    INFO(tensor);
    if (std::isnan(want[0])) {  // the peer gives none: the indexer, and pools of documents without a group
      CHECK(largest == 0);
      continue;
    }
    ++compared;
    for (int j = 0; j < projections; ++j) CHECK(std::abs(sums[j] - want[j]) <= tolerance * want[projections]);
    if (full) {
      const auto exact = testing::tensor<double>(*full, "grad." + tensor);
      double most = 0;
      for (double v : exact) most = std::max(most, std::abs(v));
      CHECK(testing::largest_difference(g, exact) <= tolerance * most);
    }
  }
  CHECK(compared >= 50);
}

template <class T, policy P>
void check_all(const P& p) {
  check_golden<T, testing::mixed, recompute::nothing>(p, "mixed");
  check_golden<T, testing::csa_only, recompute::sublayers>(p, "csa_only");
  check_golden<T, testing::hca_first, recompute::everything>(p, "hca_first");
  check_golden<T, testing::yarn, recompute::nothing>(p, "yarn");
  check_golden<T, testing::clamp, recompute::streams>(p, "clamp");
  check_golden<T, testing::short_text, recompute::nothing>(p, "short");
}

}  // namespace

TEST_CASE("golden gradients: reference policy, double") { check_all<double>(exec::reference{}); }
TEST_CASE("golden gradients: reference policy, float") { check_all<float>(exec::reference{}); }
TEST_CASE("golden gradients: cpu policy, double") { check_all<double>(exec::cpu(2)); }
TEST_CASE("golden gradients: cpu policy, float") { check_all<float>(exec::cpu(2)); }
