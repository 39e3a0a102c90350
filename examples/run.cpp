// SPDX-License-Identifier: Apache-2.0
// dsv4-run: a complete DeepSeek-V4 model from a Hugging Face directory or, without one, a small embedded one.
#include "runner/session.hpp"
#include <dsv4/config/presets.hpp>

#include <CLI/CLI.hpp>

#include <iostream>
#include <iterator>

namespace {

/// The configurations that this program was compiled for: calls f<C>(name) for each until it returns true.
template <class F>
bool any_config(const F& f) {
  return f.template operator()<dsv4::v4_nano>("v4_nano") || f.template operator()<dsv4::v4_bench>("v4_bench");
}

/// Runs f<C>() for the configuration called `name`.
template <class F>
int with_config(const std::string& name, const F& f) {
  int status = 0;
  const bool known = any_config([&]<dsv4::model_config C>(const char* candidate) {
    if (name != candidate) return false;
    status = f.template operator()<C>();
    return true;
  });
  if (!known) throw dsv4::contract_error("dsv4-run", "--config", "v4_nano or v4_bench", name);
  return status;
}

/// The configuration whose every value is in the directory's config.json; `fallback`, whose differences will
/// then be listed, when there is none.
std::string matching_config(const std::filesystem::path& file, const std::string& fallback) {
  std::string match = fallback;
  any_config([&]<dsv4::model_config C>(const char* candidate) {
    try {
      dsv4::io::check_config<C>(file);
    } catch (const dsv4::format_error&) {
      return false;
    }
    match = candidate;
    return true;
  });
  return match;
}

std::string config_text(const std::string& name) {
  if (name == "v4_flash") return dsv4::io::config_to_json<dsv4::v4_flash>();
  if (name == "v4_pro") return dsv4::io::config_to_json<dsv4::v4_pro>();
  std::string text;
  with_config(name, [&]<dsv4::model_config C>() {
    text = dsv4::io::config_to_json<C>();
    return 0;
  });
  return text;
}

}  // namespace

int main(int argc, char** argv) {
  runner::options options;
  std::string config = "v4_nano", prompt_file;
  bool dump_config = false;
  CLI::App app{"Runs a DeepSeek-V4 model on the CPU."};
  app.add_option("model", options.model,
                 "directory with config.json, safetensors and, unless its tokens are bytes, "
                 "tokenizer.json; without it, a small embedded model is run");
  const auto* named =
      app.add_option("--config", config,
                     "compiled configuration: v4_nano, v4_bench (--dump-config: v4_flash, v4_pro too); "
                     "of a directory, the one that its config.json matches");
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
  app.add_flag("--dump-config", dump_config, "print the configuration as config.json and stop");
  app.add_option("--dump-layer", options.dump_layer, "write the prompt's residual streams before this layer")
      ->check(CLI::NonNegativeNumber);
  app.add_flag("--dump-logits", options.dump_logits, "write the logits of the whole prompt");
  app.add_option("--dump-file", options.dump_file, "where dumps go (safetensors)");
  CLI11_PARSE(app, argc, argv);

  try {
    if (dump_config) {
      std::cout << config_text(config) << '\n';
      return 0;
    }
    if (!prompt_file.empty()) options.prompt = runner::read_file(prompt_file);
    if (options.prompt == "-") options.prompt.assign(std::istreambuf_iterator<char>(std::cin), {});
    if (!options.model.empty() && named->count() == 0)
      config = matching_config(options.model / "config.json", config);
    runner::catch_interrupts();
    return with_config(config, [&]<dsv4::model_config C>() {
      if (!options.model.empty()) dsv4::io::check_config<C>(options.model / "config.json");
      return runner::session<C>(options).run();
    });
  } catch (const std::exception& failure) {
    std::cerr << "dsv4-run: " << failure.what() << '\n';
    return 1;
  }
}
