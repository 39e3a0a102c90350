// SPDX-License-Identifier: Apache-2.0
// The gradients of the whole model: against central differences in double, with multi-token prediction and
// the indexer's loss; packed documents against separate runs; equal bits for any number of threads, in every
// run and under every recompute policy; memory.
#include "support/catch.hpp"
#include "support/compare.hpp"
#include "support/model_gradients.hpp"
#include <dsv4/config/presets.hpp>
#include <dsv4/cpu.hpp>
#include <dsv4/model/quantise_parameters.hpp>
#include <dsv4/model/training.hpp>
#include <dsv4/train/grad_check.hpp>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

using namespace dsv4;
using testing::difference;
using testing::flat;
using testing::is_indexer;
using testing::same_bits;

namespace {

constexpr model_config tiny = testing::tiny_model;

/// Packed documents: a long one, one token, two tokens, and one shorter than a group of HCA.
struct batch {
  std::vector<std::int64_t> offsets{0, 13, 14, 16, 19};
  std::vector<std::int32_t> tokens, targets, second_targets;

  explicit batch(std::vector<std::int64_t> o = {0, 13, 14, 16, 19}, std::int32_t vocabulary = 11)
      : offsets(std::move(o)) {
    for (std::size_t d = 0; d + 1 < offsets.size(); ++d)
      for (std::int64_t t = offsets[d]; t < offsets[d + 1]; ++t) {
        const auto token = [&](std::int64_t i) {
          return static_cast<std::int32_t>((i * i * 3 + 5 * static_cast<std::int64_t>(d) + 1) % vocabulary);
        };
        tokens.push_back(token(t));
        targets.push_back(token(t + 1));
        second_targets.push_back(t + 2 < offsets[d + 1] ? token(t + 2) : -1);
      }
  }
  std::int64_t rows() const { return offsets.back(); }
  template <class Model>
  typename Model::inputs inputs() const {
    return {offsets, {tokens.data(), rows()}, {targets.data(), rows()}, {second_targets.data(), rows()}};
  }
};

template <model_config Config, class T>
struct model_and_gradients {
  parameter_store<Config, T> weights, gradients;
  model_and_gradients() { initialise_by_name(weights, 3); }
};

template <recompute_policy R = recompute::nothing, model_config Config, class T, class P>
std::vector<T> run(const P& p, model_and_gradients<Config, T>& m, const batch& b,
                   const training_weights& weight, training_losses* losses = nullptr) {
  using model = training<Config, T, numerics::float32, R>;
  parameter_store<Config, T> gradients;
  workspace w;
  const auto l = model::step(p, w, m.weights.views(), b.inputs<model>(), weight, &gradients.views());
  if (losses) *losses = l;
  return flat(gradients);
}

/// Every gradient of `loss(losses)` against central differences; of the indexers' parameters, or of all
/// others.
template <model_config Config, class Loss>
void check_differences(const batch& b, const training_weights& weight, bool indexers, const Loss& loss) {
  using model = training<Config, double>;
  model_and_gradients<Config, double> m;
  const exec::cpu p(1);
  workspace w;
  const auto in = b.inputs<model>();
  model::step(p, w, m.weights.views(), in, weight, &m.gradients.views());
  const auto arguments = testing::differentiated(m.weights, m.gradients, indexers);
  training_weights only_value = weight;
  const auto value = [&] {
    return loss(
        model::step(p, w, m.weights.views(), in, only_value, static_cast<model_gradients<double>*>(nullptr)));
  };
  // 5 elements of each parameter.
  const auto worst = grad_check(value, std::span<const grad_check_argument>(arguments),
                                {.step = 2e-3, .steps = 4, .floor = 1e-2, .most = 5});
  INFO(worst.text());
  CHECK(worst.checked > (indexers ? 50 : 600));
  CHECK(worst.error < 1e-7);
}

}  // namespace

TEST_CASE("the model's gradients are those of its loss") {
  check_differences<tiny>(batch(), {.token = 1}, false, [](const training_losses& l) { return l.token; });
}

TEST_CASE("the model's gradients with multi-token prediction") {
  check_differences<tiny>(batch(), {.token = 0.7, .mtp = 0.3}, false,
                          [](const training_losses& l) { return 0.7 * l.token + 0.3 * l.mtp; });
}

TEST_CASE("the indexers' gradients are those of their loss, dense and sparse") {
  for (bool dense : {true, false})
    for (bool sink : {true, false})
      check_differences<tiny>(batch(),
                              {.token = 0, .indexer = 0.5, .dense = dense, .target_includes_sink = sink},
                              true, [](const training_losses& l) { return 0.5 * l.indexer; });
}

namespace {

/// The same tokens in other company: document `d` of a batch, alone.
batch alone(const batch& all, std::size_t d) {
  batch b;
  const auto first = all.offsets[d], last = all.offsets[d + 1];
  const auto cut = [&](const std::vector<std::int32_t>& v) {
    return std::vector<std::int32_t>(v.begin() + first, v.begin() + last);
  };
  b.offsets = {0, last - first};
  b.tokens = cut(all.tokens), b.targets = cut(all.targets), b.second_targets = cut(all.second_targets);
  return b;
}

constexpr training_weights everything{.token = 0.7, .mtp = 0.3, .indexer = 0.2};

constexpr model_config three_layers = [] {
  model_config c = v4_nano;
  c.layers = schedule({attention_kind::sliding, attention_kind::csa, attention_kind::hca});
  return c;
}();

}  // namespace

TEST_CASE("packed documents have the gradients of separate runs") {
  const batch all;
  model_and_gradients<tiny, double> m;
  training_losses packed_losses, sum_losses;
  const auto packed = run(exec::cpu(2), m, all, everything, &packed_losses);
  std::vector<double> sum(packed.size());
  for (std::size_t d = 0; d + 1 < all.offsets.size(); ++d) {
    training_losses l;
    const auto one = run(exec::cpu(2), m, alone(all, d), everything, &l);
    for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += one[i];
    sum_losses.token += l.token, sum_losses.mtp += l.mtp, sum_losses.indexer += l.indexer;
    sum_losses.tokens += l.tokens, sum_losses.mtp_tokens += l.mtp_tokens;
    sum_losses.indexer_rows += l.indexer_rows;
  }
  CHECK(difference(packed, sum) < 1e-13);
  CHECK(packed_losses.token == Catch::Approx(sum_losses.token).epsilon(1e-14));
  CHECK(packed_losses.mtp == Catch::Approx(sum_losses.mtp).epsilon(1e-14));
  CHECK(packed_losses.indexer == Catch::Approx(sum_losses.indexer).epsilon(1e-14));
  CHECK(packed_losses.tokens == 19);
  CHECK(packed_losses.mtp_tokens == sum_losses.mtp_tokens);
  CHECK(packed_losses.mtp_tokens == 11 + 0 + 0 + 1);
  CHECK(packed_losses.indexer_rows == sum_losses.indexer_rows);
  CHECK(packed_losses.indexer_rows == 2 * (12 + 0 + 1 + 2));  // two CSA layers, groups of two
}

TEMPLATE_TEST_CASE("nothing flows from one document to another", "", float, double) {
  using T = TestType;
  // Tokens 0 to 4 occur in the first document only, 5 to 10 in the others, which have no loss of their own.
  batch b;
  for (std::int64_t t = 0; t < b.rows(); ++t) {
    auto& token = b.tokens[static_cast<std::size_t>(t)];
    token = t < 13 ? token % 5 : 5 + token % 6;
    b.targets[static_cast<std::size_t>(t)] = t < 13 ? token : -1;
    b.second_targets[static_cast<std::size_t>(t)] = -1;
  }
  model_and_gradients<tiny, T> m;
  const auto packed = run(exec::cpu(2), m, b, {});
  const auto first = run(exec::cpu(2), m, alone(b, 0), {});
  CHECK(same_bits(packed, first));
  bool zero = true;
  for (std::size_t i = 5 * tiny.hidden_size; i < 11 * tiny.hidden_size; ++i) zero = zero && packed[i] == 0;
  CHECK(zero);  // embed.weight comes first
  CHECK(packed[0] != 0);
}

TEMPLATE_TEST_CASE(
    "gradients have the same bits on any number of threads, in every run, whatever is recomputed", "", float,
    double) {
  using T = TestType;
  const batch b({0, 70, 75, 140});  // several chunks of rows
  model_and_gradients<tiny, T> m;
  const auto want = run(exec::cpu(1), m, b, everything);
  for (int threads : {1, 2, 4}) CHECK(same_bits(run(exec::cpu(threads), m, b, everything), want));
  const exec::cpu p(2);
  CHECK(same_bits(run<recompute::streams>(p, m, b, everything), want));
  CHECK(same_bits(run<recompute::sublayers>(p, m, b, everything), want));
  CHECK(same_bits(run<recompute::everything>(p, m, b, everything), want));
  CHECK(same_bits(run<recompute_policy{.streams_every = 3}>(p, m, b, everything), want));
  CHECK(same_bits(run<recompute_policy{.streams_every = 100}>(p, m, b, everything), want));
  // Rounding only between the policies: float within 1e-4 of the largest gradient, over 8 sublayers.
  CHECK(difference(want, run(exec::reference{}, m, b, everything)) < (sizeof(T) == 4 ? 1e-4 : 1e-12));
}

TEST_CASE("gradients are added to, and those that are not wanted are skipped") {
  model_and_gradients<tiny, double> m;
  const batch b;
  const exec::cpu p(2);
  const auto once = run(p, m, b, everything);
  using model = training<tiny, double>;
  workspace w;
  for (int i = 0; i < 2; ++i)
    model::step(p, w, m.weights.views(), b.inputs<model>(), everything, &m.gradients.views());
  auto twice = flat(m.gradients);
  for (double& v : twice) v /= 2;
  CHECK(difference(twice, once) < 1e-14);

  // Frozen: only the last layer's shared expert and the norm have gradients.
  parameter_store<tiny, double> some;
  model_gradients<double> wanted;
  wanted.layers.resize(4);
  wanted.layers[3].ffn.shared_w1 = some.views().layers[3].ffn.shared_w1;
  wanted.norm = some.views().norm;
  model::step(p, w, m.weights.views(), b.inputs<model>(), everything, &wanted);
  std::size_t at = 0;
  for_each_parameter<tiny>(some.views(), [&]<class V>(const parameter_info& info, V& v) {
    if constexpr (std::is_same_v<typename V::value_type, double>) {
      const bool given = info.name == "layers.3.ffn.shared_experts.w1.weight" || info.name == "norm.weight";
      bool right = true;
      for (std::int64_t i = 0; i < v.size(); ++i)
        right = right && v.data[i] == (given ? once[at + static_cast<std::size_t>(i)] : 0.0);
      INFO(info.name);
      CHECK(right);
      at += static_cast<std::size_t>(v.size());
    }
  });
}

TEST_CASE("the warm-up trains the indexers alone, with the gradients that they have in the whole") {
  model_and_gradients<tiny, double> m;
  const batch b;
  const auto whole = run(exec::cpu(2), m, b, {.token = 1, .indexer = 0.2, .dense = true});
  const auto only = run(exec::cpu(2), m, b, {.token = 0, .indexer = 0.2, .dense = true});
  const auto again =
      run<recompute::everything>(exec::cpu(2), m, b, {.token = 0, .indexer = 0.2, .dense = true});
  CHECK(same_bits(only, again));
  std::size_t at = 0;
  for_each_parameter<tiny>(m.gradients.views(), [&]<class V>(const parameter_info& info, V& v) {
    if constexpr (std::is_same_v<typename V::value_type, double>) {
      const auto count = static_cast<std::size_t>(v.size());
      bool right = true, any = false;
      for (std::size_t i = at; i < at + count; ++i) {
        right = right && only[i] == (is_indexer(info.name) ? whole[i] : 0.0);
        any = any || only[i] != 0;
      }
      INFO(info.name);
      CHECK(right);
      CHECK(any == is_indexer(info.name));
      at += count;
    }
  });
}

TEST_CASE("nothing to train on") {
  using model = training<tiny, float>;
  model_and_gradients<tiny, float> m;
  const exec::cpu p(2);
  workspace w;
  const auto l =
      model::step(p, w, m.weights.views(), batch({0}).inputs<model>(), everything, &m.gradients.views());
  CHECK(l.tokens == 0);
  model::step(p, w, m.weights.views(), batch({0, 0, 0}).inputs<model>(), everything, &m.gradients.views());
  for (float v : flat(m.gradients)) CHECK(v == 0);
  // One token: no entry, no second target, one key.
  model::step(p, w, m.weights.views(), batch({0, 1, 1}).inputs<model>(), everything, &m.gradients.views());
  bool finite = true;
  for (float v : flat(m.gradients)) finite = finite && std::isfinite(v);
  CHECK(finite);

  batch wrong;
  wrong.offsets = {0, 14, 13, 19};
  CHECK_THROWS_WITH(model::step(p, w, m.weights.views(), wrong.inputs<model>(), {}, &m.gradients.views()),
                    testing::contains("training_context: offsets[2]: expected at least 14, found 13"));
  const batch b;
  auto short_of_tokens = b.inputs<model>();
  const std::vector<std::int64_t> twenty{0, 20};
  short_of_tokens.offsets = twenty;
  CHECK_THROWS_WITH(model::step(p, w, m.weights.views(), short_of_tokens, {}, &m.gradients.views()),
                    testing::contains("training::forward: tokens: expected 20, found 19"));
}

TEST_CASE("weights of 1e3 times their size: gradients stay finite") {
  model_and_gradients<tiny, float> m;
  for_each_parameter<tiny>(m.weights.views(), [&]<class V>(const parameter_info&, V& v) {
    if constexpr (std::is_same_v<typename V::value_type, float>)
      for (std::int64_t i = 0; i < v.size(); ++i) v.data[i] *= 1e3f;
  });
  for (float v : run(exec::cpu(2), m, batch(), everything))
    if (!std::isfinite(v)) FAIL("not finite");
}

TEST_CASE("narrow weights have the gradients of their exact values") {
  // Experts in MXFP4, all else in float; and all matrices in bf16. The float model holds the same values.
  const batch b;
  const exec::cpu p(2);
  const auto check = [&]<numerics_config Q>() {
    parameter_store<tiny, float> wide, exact;
    initialise_by_name(wide, 3);
    parameter_store<tiny, float, Q> narrow;
    quantise_parameters(p, wide, narrow);
    initialise_by_name(exact, 3);
    std::vector<view<float, 1>> into;
    for_each_parameter<tiny>(exact.views(), [&]<class V>(const parameter_info&, V& v) {
      if constexpr (std::is_same_v<typename V::value_type, float>) into.push_back({v.data, v.size()});
    });
    std::size_t i = 0;
    for_each_parameter<tiny>(narrow.views(), [&]<class V>(const parameter_info&, V& v) {
      if constexpr (requires { v.matrices; }) {
        auto& to = into[i++];
        for (std::int64_t e = 0, at = 0; e < v.extent[0]; ++e)
          for (std::int64_t r = 0; r < v.extent[1]; ++r)
            for (std::int64_t c = 0; c < v.extent[2]; ++c) to(at++) = v[e](r, c);
      } else if constexpr (!std::is_same_v<V, matrix_view<std::int32_t>>) {
        auto& to = into[i++];
        for (std::int64_t k = 0; k < v.size(); ++k) to(k) = widen(v.data[k]);
      }
    });
    parameter_store<tiny, float> found, want;
    workspace w;
    using narrow_model = training<tiny, float, Q>;
    using wide_model = training<tiny, float>;
    narrow_model::step(p, w, narrow.views(), b.inputs<narrow_model>(), everything, &found.views());
    wide_model::step(p, w, exact.views(), b.inputs<wide_model>(), everything, &want.views());
    CHECK(difference(flat(found), flat(want)) < 1e-5);
  };
  check.operator()<numerics::mxfp4_experts_only>();
  check.operator()<numerics::bf16>();
}

TEST_CASE("a step in the formats of the released model is finite, and the same under recomputation") {
  parameter_store<three_layers, float> wide;
  initialise_by_name(wide);
  const exec::cpu p(2);
  parameter_store<three_layers, float, numerics::v4_released> weights;
  quantise_parameters(p, wide, weights);
  const batch b({0, 90, 130}, 258);
  workspace w;
  const auto run_with = [&]<recompute_policy R>() {
    using model = training<three_layers, float, numerics::v4_released, R>;
    parameter_store<three_layers, float> g;
    model::step(p, w, weights.views(), b.inputs<model>(), everything, &g.views());
    return flat(g);
  };
  const auto want = run_with.operator()<recompute::nothing>();
  double squares = 0;
  for (float v : want) squares += double(v) * double(v);
  CHECK(std::isfinite(squares));
  CHECK(squares > 0);
  CHECK(same_bits(run_with.operator()<recompute::everything>(), want));
}

TEST_CASE("the backward pass writes nothing that the forward pass kept, and needs no other memory of it") {
  using model = training<tiny, double>;
  model_and_gradients<tiny, double> m;
  const batch b;
  const exec::cpu p(2);
  const training_options options{.mtp = true, .attention = {.indexer_loss = true}};
  const auto bytes = static_cast<std::size_t>(model::context::bytes(b.offsets, options));
  workspace memory(bytes), w;
  const auto c = model::context::take(memory, b.offsets, options);
  CHECK(memory.high_water() == bytes);
  CHECK(memory.capacity() == bytes);
  model::forward(p, w, m.weights.views(), b.inputs<model>(), c);

  const auto* kept =
      reinterpret_cast<const unsigned char*>(c.attention.front().q_latent.data);  // the first array
  const std::vector<unsigned char> before(kept, kept + bytes);
  const auto dhidden = testing::random<double>(b.rows() * tiny.hidden_size, 1),
             dmtp = testing::random<double>(b.rows() * tiny.hidden_size, 2);
  const auto dindexer = testing::random<double>(b.rows(), 3);
  const auto backward = [&] {
    parameter_store<tiny, double> g;
    model::backward(
        p, w, m.weights.views(), b.inputs<model>(), c,
        {dhidden.as(b.rows(), tiny.hidden_size), dmtp.as(b.rows(), tiny.hidden_size), dindexer.as(b.rows())},
        g.views());
    return flat(g);
  };
  const auto first = backward();
  CHECK(std::memcmp(before.data(), kept, bytes) == 0);
  CHECK(same_bits(backward(), first));
}

TEST_CASE("recomputing saves memory, and memory is linear in the tokens") {
  const auto bytes = [](auto policy, std::int64_t tokens) {
    using model = training<three_layers, float, numerics::float32, decltype(policy)::value>;
    const std::vector<std::int64_t> offsets{0, tokens};
    return model::context::bytes(offsets, {});
  };
  const auto of = [&]<recompute_policy R>(std::integral_constant<recompute_policy, R> r) {
    return bytes(r, 512);
  };
  const auto nothing = of(std::integral_constant<recompute_policy, recompute::nothing>{});
  const auto streams = of(std::integral_constant<recompute_policy, recompute::streams>{});
  const auto sublayers = of(std::integral_constant<recompute_policy, recompute::sublayers>{});
  const auto everything_again = of(std::integral_constant<recompute_policy, recompute::everything>{});
  // Six sublayers keep their streams; in blocks of four, two do.
  const std::int64_t stream = 512 * three_layers.hyper_connection.hc_mult * three_layers.hidden_size * 4;
  CHECK(nothing - streams == 4 * stream);
  CHECK(sublayers - everything_again == 4 * stream);
  CHECK(3 * sublayers < 2 * nothing);

  // What a whole step takes, scratch included.
  const auto peak = [](std::int64_t tokens) {
    using model = training<three_layers, float>;
    parameter_store<three_layers, float> weights, g;
    initialise_by_name(weights);
    const batch b({0, tokens}, 258);
    workspace w;
    model::step(exec::cpu(2), w, weights.views(), b.inputs<model>(), {.token = 1}, &g.views());
    return double(w.high_water());
  };
  CHECK(peak(2048) / peak(1024) < 2.05);
}

TEST_CASE("routing weights have a gradient, the router's bias has none") {
  model_and_gradients<tiny, double> m;
  using model = training<tiny, double>;
  workspace w;
  const batch b;
  model::step(exec::cpu(1), w, m.weights.views(), b.inputs<model>(), {}, &m.gradients.views());
  for_each_parameter<tiny>(m.gradients.views(), [&]<class V>(const parameter_info& info, V& v) {
    if (info.name.starts_with("mtp")) return;
    const auto any = [&] {
      for (std::int64_t i = 0; i < v.size(); ++i)
        if (v.data[i] != 0) return true;
      return false;
    };
    INFO(info.name);
    if (info.name.ends_with("ffn.gate.weight")) CHECK(any());  // of hash layers too
    if (info.name.ends_with("ffn.gate.bias")) CHECK(!any());
  });
}

TEST_CASE("a loss of the router's own reaches its weights") {
  model_and_gradients<tiny, double> m;
  using model = training<tiny, double>;
  workspace w;
  const batch b;
  const auto run_with = [&](const auto& router_loss) {
    parameter_store<tiny, double> g;
    model::step(exec::cpu(2), w, m.weights.views(), b.inputs<model>(), {}, &g.views(), router_loss);
    const auto& gate = g.views().layers[2].ffn.gate;
    return std::vector<double>(gate.data, gate.data + gate.size());
  };
  std::vector<int> layers;
  const auto plain = run_with(no_router_loss{});
  const auto pushed = run_with([&](int layer, const auto& logits, const auto& chosen, const auto& dlogits) {
    layers.push_back(layer);
    CHECK(logits.extent[0] == b.rows());
    CHECK(chosen.extent[1] == tiny.moe.num_experts_per_tok);
    if (layer == 2) dlogits(0, 1) += 1;
  });
  CHECK(layers == std::vector<int>{3, 2, 1, 0});
  CHECK(pushed != plain);
  // Only the row of expert 1 moved: by the input of the sublayer in row 0.
  for (std::int64_t e = 0; e < tiny.moe.n_routed_experts; ++e)
    for (std::int64_t i = 0; i < tiny.hidden_size; ++i) {
      const auto at = static_cast<std::size_t>(e * tiny.hidden_size + i);
      if (e != 1) CHECK(pushed[at] == plain[at]);
    }
}
