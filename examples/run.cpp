// SPDX-License-Identifier: Apache-2.0
// dsv4-run: a complete DeepSeek-V4 model from a Hugging Face directory or, without one, a small embedded one.
#include "run/compiled_model.hpp"
#include "run/console.hpp"
#include "run/text_codec.hpp"
#include <dsv4/core/error.hpp>

#include <CLI/CLI.hpp>

#include <iostream>
#include <iterator>
#include <string>

namespace {

const runner::compiled_model& model_called(const std::string& name) {
  std::string known;
  for (const auto* m : runner::compiled_models) {
    if (name == m->name) return *m;
    known += (known.empty() ? "" : ", ") + std::string(m->name);
  }
  throw dsv4::contract_error("dsv4-run", "--config", known, name);
}

/// The configuration whose every value is in the directory's config.json; `fallback`, whose differences will
/// then be listed, when there is none.
std::string matching_config(const std::filesystem::path& file, const std::string& fallback) {
  for (const auto* m : runner::compiled_models) try {
      m->check_config(file);
      return m->name;
    } catch (const dsv4::format_error&) {
    }
  return fallback;
}

}  // namespace

int main(int argc, char** argv) {
  runner::options options;
  std::string config = "v4_nano", prompt_file;
  bool dump_config = false;
  CLI::App app{"Runs a DeepSeek-V4 model on the CPU, or on an NVIDIA GPU."};
  app.option_defaults()->always_capture_default();
  app.add_option("model", options.model,
                 "directory with config.json, safetensors and, unless its tokens are bytes, "
                 "tokenizer.json; without it, a small embedded model is run");
  const auto* named =
      app.add_option("--config", config,
                     "compiled configuration: v4_nano, v4_bench, v4_flash or v4_pro; of a directory, the one "
                     "that its config.json matches");
  app.add_option(
      "--numerics", options.numerics,
      "how weights are stored: float32, bf16, mxfp4_experts_only, v4_released, v4_released_base; of a "
      "directory, as it has them");
  app.add_option("--device", options.device, "cpu, or cuda for an NVIDIA GPU")
      ->check(CLI::IsMember({"cpu", "cuda"}));
  app.add_option("--scalar", options.scalar,
                 "with --device cuda: float32, or bf16, which is faster; narrow weights stay as they are")
      ->check(CLI::IsMember({"float32", "bf16"}));
  app.add_flag("--no-graphs", options.no_graphs,
               "with --device cuda: queue every kernel of a token by itself, not as a CUDA graph");
  app.add_option("--expert-memory", options.expert_memory,
                 "memory for routed experts in FP4 or FP8 (such as 8GiB); the others are read when they are "
                 "needed; without it, the system decides what of the mapped files stays in memory")
      ->transform(CLI::AsSizeValue(false))
      ->check(CLI::PositiveNumber);
  auto* prompt = app.add_option("-p,--prompt", options.prompt, "the text to continue ('-': read stdin)");
  app.add_option("-f,--prompt-file", prompt_file, "file with the text to continue")->excludes(prompt);
  app.add_option("-n,--max-tokens", options.max_tokens, "tokens to make")->check(CLI::NonNegativeNumber);
  app.add_option("--chunk", options.chunk, "tokens per prefill call")->check(CLI::PositiveNumber);
  app.add_option("-t,--temperature", options.temperature, "0 is greedy")->check(CLI::NonNegativeNumber);
  app.add_option("--top-p", options.top_p, "probability mass to sample from");
  app.add_option("--seed", options.seed, "of the sampler");
  app.add_flag("--ignore-eos", options.ignore_eos, "go on after the end-of-text token");
  app.add_option("--threads", options.threads, "0: all of the machine's")->check(CLI::NonNegativeNumber);
  app.add_option("--perplexity", options.perplexity, "print the perplexity of this file instead");
  app.add_option("--save", options.save, "write the model as a directory, and stop");
  app.add_option("--save-headers", options.save_headers,
                 "write the model as a directory of headers without data, at any size, and stop");
  app.add_flag(
      "--plan", options.plan,
      "print what would be read of the directory, tensor by tensor, and the memory it takes, and stop");
  app.add_option("--context", options.context, "tokens that --plan counts caches for")
      ->check(CLI::NonNegativeNumber);
  app.add_flag("--dump-config", dump_config, "print the configuration as config.json and stop");
  app.add_option("--dump-layer", options.dump_layer, "write the prompt's residual streams before this layer")
      ->check(CLI::NonNegativeNumber);
  app.add_flag("--dump-logits", options.dump_logits, "write the logits of the whole prompt");
  app.add_option("--dump-file", options.dump_file, "where dumps go (safetensors)");
  CLI11_PARSE(app, argc, argv);

  try {
    if (dump_config) {
      std::cout << model_called(config).config_text() << '\n';
      return 0;
    }
    if (!prompt_file.empty()) options.prompt = runner::read_file(prompt_file);
    if (options.prompt == "-") options.prompt.assign(std::istreambuf_iterator<char>(std::cin), {});
    if (!options.model.empty() && named->count() == 0)
      config = matching_config(options.model / "config.json", config);
    const runner::compiled_model& model = model_called(config);
    if (!options.model.empty())
      model.check_config(options.model / "config.json");
    else if (options.plan)
      throw dsv4::contract_error("dsv4-run", "--plan", "a directory", "none");
    runner::catch_interrupts();
    return model.run(options);
  } catch (const std::exception& failure) {
    return runner::failed("dsv4-run", failure);
  }
}
