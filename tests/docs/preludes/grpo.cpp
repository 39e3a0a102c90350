// SPDX-License-Identifier: Apache-2.0
#include <dsv4/config/presets.hpp>
#include <dsv4/cpu.hpp>
#include <dsv4/train/cpu.hpp>
#include <dsv4/train/grpo.hpp>
#include <dsv4/train/initialise.hpp>
#include <dsv4/train/rollout.hpp>
#include <dsv4/train/rollout_trainer.hpp>

#include <vector>

int main() {
  constexpr dsv4::model_config config = dsv4::v4_nano;
  const dsv4::exec::cpu cpu;
  dsv4::workspace scratch;
  dsv4::rollout_trainer<config> model({}), old({}), reference({});
  for (auto* of : {&model, &old, &reference}) dsv4::initialise_for_training(of->weights(), {.seed = 1});
  const std::vector<std::vector<std::int32_t>> prompts(4, {256, '2', '+', '3', '='});
  dsv4::rollout_batch answers;
  dsv4::rollout<config> writer;
  writer.sample(cpu, scratch, old.current(cpu), prompts, {.most_tokens = 4, .seed = 1}, answers);
  const std::vector<double> rewards{0, 1, 0, 0};
  // BLOCK
}
