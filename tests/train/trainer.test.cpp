// SPDX-License-Identifier: Apache-2.0
#include "support/catch.hpp"
#include "support/golden.hpp"
#include <dsv4/cpu.hpp>
#include <dsv4/io/training_state.hpp>
#include <dsv4/train/cpu.hpp>
#include <dsv4/train/initialise.hpp>
#include <dsv4/train/trainer.hpp>

#include <chrono>
#include <cstring>
#include <filesystem>
#include <set>
#include <span>
#include <string>
#include <vector>

using namespace dsv4;

namespace {

constexpr model_config tiny = [] {
  model_config c = testing::golden(schedule({testing::S, testing::C, testing::H}), 1);
  c.vocab_size = 258;
  c.hidden_size = 32;
  c.attention.num_attention_heads = 2;
  c.attention.head_dim = 16;
  c.attention.index_n_heads = 2;
  c.moe.n_routed_experts = 4;
  c.moe.moe_intermediate_size = 24;
  c.num_nextn_predict_layers = 1;
  return c;
}();

std::string sentence() {
  std::string text;
  for (int i = 0; i < 40; ++i) text += "the sea is " + std::string(i % 3 ? "blue" : "wide") + " and deep; ";
  return text;
}

byte_dataset dataset(const std::string& text) {
  byte_dataset_options o;
  o.row_tokens = 48;
  o.packing = row_packing::windows;
  o.held_out = 0.1;
  return byte_dataset(std::as_bytes(std::span(text)), o);
}

trainer_options quick(std::int64_t steps) {
  trainer_options o;
  o.schedule = {.peak = 5e-3, .last = 5e-4, .steps = steps, .warmup_steps = 2, .decay_begin = steps / 2};
  o.rows_per_step = o.rows_per_microbatch = 4;
  return o;
}

template <class Trainer>
std::vector<float> all_weights(Trainer& t) {
  std::vector<float> all;
  for_each_parameter<tiny>(t.weights().views(), [&]<class U, int R>(const parameter_info&, view<U, R>& v) {
    for (std::int64_t i = 0; i < v.size(); ++i) all.push_back(static_cast<float>(v.data[i]));
  });
  return all;
}

}  // namespace

TEST_CASE("the same bytes in every run and for 1, 2 or 4 threads") {
  const std::string text = sentence();
  const auto data = dataset(text);
  std::vector<float> first;
  for (const int threads : {1, 2, 4, 1}) {
    trainer<tiny> run(quick(10));
    initialise_for_training(run.weights());
    workspace w;
    for (int i = 0; i < 3; ++i) run.step(exec::cpu(threads), w, data);
    if (first.empty()) first = all_weights(run);
    CHECK(all_weights(run) == first);
  }
}

TEST_CASE("a resumed run goes on bit by bit") {
  const std::string text = sentence();
  const auto data = dataset(text);
  const exec::cpu cpu(2);
  workspace w;
  const auto file =
      std::filesystem::temp_directory_path() /
      ("dsv4_trainer_" + std::to_string(std::chrono::steady_clock::now().time_since_epoch().count()));
  trainer<tiny> whole(quick(10)), begun(quick(10)), resumed(quick(10));
  const auto state_of = [](trainer<tiny>& t) {
    io::training_state s;
    t.remember(s);
    return s;
  };
  initialise_for_training(whole.weights());
  initialise_for_training(begun.weights());
  for (int i = 0; i < 4; ++i) whole.step(cpu, w, data);
  for (int i = 0; i < 2; ++i) begun.step(cpu, w, data);
  state_of(begun).save(file);
  state_of(resumed).load(file);
  std::filesystem::remove(file);
  CHECK(resumed.steps() == 2);
  for (int i = 0; i < 2; ++i) resumed.step(cpu, w, data);
  CHECK(all_weights(resumed) == all_weights(whole));
}

TEST_CASE("the loss falls far below that of single bytes, on text that was held out too") {
  const std::string text = sentence();
  const auto data = dataset(text);
  trainer<tiny> run(quick(60));
  initialise_for_training(run.weights());
  workspace w;
  const exec::cpu cpu(2);
  std::vector<training_report> reports;
  const double before = run.evaluate(cpu, w, data, data_split::held_out, 100);
  for (int i = 0; i < 60; ++i) reports.push_back(run.step(cpu, w, data));
  // 258 tokens: log 258 = 5.55 is the loss of a model that knows nothing, and the text's 16 different bytes
  // alone would leave about 2.6.
  CHECK(before > 5);
  CHECK(reports.back().loss < 0.5);
  CHECK(reports.back().mtp_loss < 1);
  CHECK(run.evaluate(cpu, w, data, data_split::held_out, 100) < 0.5);
  CHECK(reports.back().indexer_loss < reports[5].indexer_loss);
  for (const auto& r : reports) {
    CHECK(r.targets <= 4 * 48);
    CHECK(r.targets > 3 * 48);  // the last row is short
    CHECK_FALSE(r.skipped);
    CHECK(r.max_over_mean_load >= 1);
  }
}

TEST_CASE("training through FP8 and FP4 weights learns as well: straight-through gradients") {
  const std::string text = sentence();
  const auto data = dataset(text);
  trainer<tiny, float, numerics::v4_released> run(quick(60));
  initialise_for_training(run.weights());
  workspace w;
  training_report report;
  for (int i = 0; i < 60; ++i) report = run.step(exec::cpu(2), w, data);
  CHECK(report.loss < 0.6);
}

TEST_CASE("recomputation changes memory, not one bit of the result") {
  const std::string text = sentence();
  const auto data = dataset(text);
  const exec::cpu cpu(2);
  trainer<tiny> kept(quick(10));
  trainer<tiny, float, numerics::float32, recompute::everything> again(quick(10));
  initialise_for_training(kept.weights());
  initialise_for_training(again.weights());
  workspace w, v;
  for (int i = 0; i < 2; ++i) kept.step(cpu, w, data), again.step(cpu, v, data);
  CHECK(all_weights(kept) == all_weights(again));
}

TEST_CASE("micro-batches add up to the same update") {
  const std::string text = sentence();
  const auto data = dataset(text);
  const exec::cpu cpu(2);
  workspace w;
  trainer_options parts = quick(10);
  parts.rows_per_microbatch = 1;
  parts.balance = 0;  // which is a mean over the sequences at hand
  trainer_options all = parts;
  all.rows_per_microbatch = 4;
  trainer<tiny, double> a(all), b(parts);
  initialise_for_training(a.weights());
  initialise_for_training(b.weights());
  const auto ra = a.step(cpu, w, data), rb = b.step(cpu, w, data);
  // Sums in another order, in double.
  CHECK(std::abs(ra.loss - rb.loss) < 1e-12);
  CHECK(std::abs(ra.gradient_norm - rb.gradient_norm) < 1e-10 * ra.gradient_norm);
}

TEST_CASE("gradients that are not finite skip the step and leave the weights") {
  const std::string text = sentence();
  const auto data = dataset(text);
  trainer<tiny> run(quick(10));
  initialise_for_training(run.weights());
  workspace w;
  run.step(exec::cpu(2), w, data);
  run.weights().views().head(3, 3) = std::numeric_limits<float>::infinity();
  const auto before = all_weights(run);
  const auto report = run.step(exec::cpu(2), w, data);
  CHECK(report.skipped);
  CHECK(run.steps() == 2);
  const auto after = all_weights(run);
  CHECK(std::memcmp(before.data(), after.data(), before.size() * sizeof(float)) == 0);
}

TEST_CASE("AdamW alone, and a plain residual, train too; frozen gates stay") {
  constexpr model_config plain = [] {
    model_config c = tiny;
    c.hyper_connection.hc_mult = 1;
    return c;
  }();
  const std::string text = sentence();
  const auto data = dataset(text);
  trainer_options o = quick(40);
  o.optimizer.muon_for_matrices = false;
  o.freeze_hyper_connections = true;
  trainer<plain> run(o);
  initialise_for_training(run.weights(), {.seed = 0, .embedding = 1, .gating = 0});
  const std::vector<float> fn(run.weights().views().layers[1].ffn_site.scale.data,
                              run.weights().views().layers[1].ffn_site.scale.data + 3);
  workspace w;
  training_report report;
  const double first = run.step(exec::cpu(2), w, data).loss;
  for (int i = 0; i < 39; ++i) report = run.step(exec::cpu(2), w, data);
  CHECK(report.loss < first / 2);
  CHECK(fn == std::vector<float>(3));
  for (int i = 0; i < 3; ++i) CHECK(run.weights().views().layers[1].ffn_site.scale(i) == 0);
}
