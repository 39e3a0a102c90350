// SPDX-License-Identifier: Apache-2.0
// dsv4-train: trains a small DeepSeek-V4 from nothing on a text, with Muon, and saves it for dsv4-run.
#include "train/run.hpp"
#include <dsv4/cpu.hpp>
#include <dsv4/train/cpu.hpp>

#include <CLI/CLI.hpp>

#include <iostream>

int main(int argc, char** argv) {
  using training_program::options;
  options o;
  CLI::App app{"Trains a small DeepSeek-V4 on a text, from nothing. Tokens are bytes."};
  app.option_defaults()->always_capture_default();
  app.add_option("data", o.data, "the text")->check(CLI::ExistingFile);
  app.add_option(
      "-o,--out", o.out,
      "directory for the model, in the layout that dsv4-run reads, and for what a resumed run needs");
  app.add_option("--config", o.config, "v4_nano or v4_bench")->check(CLI::IsMember({"v4_nano", "v4_bench"}));
  app.add_option("--steps", o.steps, "updates")->check(CLI::PositiveNumber);
  app.add_option("--minutes", o.minutes, "as many updates as take about so long, instead")
      ->check(CLI::PositiveNumber);
  app.add_option("--rows", o.rows, "rows of the text in one update")->check(CLI::PositiveNumber);
  app.add_option("--microbatch", o.microbatch, "rows that are in memory at once")->check(CLI::PositiveNumber);
  app.add_option("--row-tokens", o.row_tokens, "tokens in a row")->check(CLI::PositiveNumber);
  app.add_option("--separator", o.separator, "what stands between documents of the text");
  app.add_option("--rate", o.rate, "peak learning rate; 0: 0.02, with AdamW alone 0.01");
  app.add_option("--decay", o.decay, "share of the updates in which the rate falls")
      ->check(CLI::Range(0.0, 1.0));
  app.add_option("--dense-steps", o.dense_steps, "updates with dense attention, before the indexers select")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--optimizer", o.optimizer, "muon (with AdamW for vectors and the vocabulary) or adamw")
      ->check(CLI::IsMember({"muon", "adamw"}));
  app.add_option("--residual", o.residual, "mhc or plain")->check(CLI::IsMember({"mhc", "plain"}));
  app.add_option("--numerics", o.numerics,
                 "float32, or v4_released: every product reads weights rounded to FP8 and FP4")
      ->check(CLI::IsMember({"float32", "v4_released"}));
  app.add_option("--device", o.device, "cpu or cuda")->check(CLI::IsMember({"cpu", "cuda"}));
  app.add_option("--seed", o.seed, "of the weights and of the order of rows");
  app.add_option("--threads", o.threads, "0: all of the machine's")->check(CLI::NonNegativeNumber);
  app.add_option("--evaluate-every", o.evaluate_every, "updates between losses on text that was held out")
      ->check(CLI::PositiveNumber);
  app.add_option("--held-out-rows", o.held_out_rows, "rows of it")->check(CLI::PositiveNumber);
  app.add_option("--save-every", o.save_every, "updates between saved states")->check(CLI::PositiveNumber);
  app.add_option("--log", o.log, "write every update to this CSV file");
  app.add_flag("--resume", o.resume,
               "go on from the newest saved state of --out; give the other options again");
  app.add_flag("--rules", o.rules, "print which rule trains which parameter, and stop");
  CLI11_PARSE(app, argc, argv);
  try {
    if (o.data.empty() && !o.rules) throw dsv4::contract_error("dsv4-train", "data", "a text file", "none");
    if (o.rules) {
      std::cout << (o.config == "v4_bench" ? dsv4::parameter_rule_text<dsv4::v4_bench>()
                                           : dsv4::parameter_rule_text<dsv4::v4_nano>());
      return 0;
    }
    runner::catch_interrupts();
    if (o.device == "cuda") {
#ifdef DSV4_WITH_CUDA
      return training_program::train_on_gpu(o);
#else
      throw dsv4::contract_error("dsv4-train", "--device cuda", "a program built with DSV4_CUDA=ON",
                                 "one that was built without it");
#endif
    }
    using dsv4::exec::cpu;
    return training_program::train_configuration(o.threads > 0 ? cpu(o.threads) : cpu(), o);
  } catch (const std::exception& failure) {
    return runner::failed("dsv4-train", failure);
  }
}
