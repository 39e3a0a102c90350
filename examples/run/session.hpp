// SPDX-License-Identifier: Apache-2.0
/// One model, one sequence: prefill in chunks, decode, perplexity, dumps.
#pragma once

#include "compiled_model.hpp"
#include "console.hpp"
#include "embedded_model.hpp"
#include "engine.hpp"
#include "options.hpp"
#include "plan.hpp"
#include "text_codec.hpp"
#include <dsv4/config/presets.hpp>
#include <dsv4/cpu.hpp>
#include <dsv4/io/checkpoint.hpp>
#include <dsv4/io/checkpoint_plan.hpp>
#include <dsv4/io/checkpoint_writer.hpp>
#include <dsv4/io/config_json.hpp>
#include <dsv4/io/expert_cache.hpp>
#include <dsv4/io/safetensors_writer.hpp>
#include <dsv4/model/quantise_parameters.hpp>
#include <dsv4/model/sampler.hpp>
#include <dsv4/model/transformer.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <variant>
#include <vector>

namespace runner {

constexpr int exit_interrupted = 130;

template <dsv4::model_config C>
void write_config(const std::filesystem::path& folder) {
  std::ofstream config(folder / "config.json");
  config << dsv4::io::config_to_json<C>() << '\n';
  if (!config.flush()) throw dsv4::io_error((folder / "config.json").string(), "write", "failed");
}

template <dsv4::model_config C, dsv4::numerics_config Q>
class session {
  using model = dsv4::transformer<C, float, Q>;
  static constexpr bool narrow_experts = dsv4::block_format<typename dsv4::storage_types<float, Q>::expert>;
  using expert_cache =
      std::conditional_t<narrow_experts, dsv4::io::expert_cache<C, float, Q>, std::monostate>;

 public:
  explicit session(const options& o)
      : options_(o),
        text_(o.model, C.vocab_size, C.bos_token_id),
        cpu_(o.threads > 0 ? dsv4::exec::cpu(o.threads) : dsv4::exec::cpu()),
        weights_(std::make_shared<typename model::parameters>()) {
    if (o.model.empty())
      embed();
    else
      load();
  }

  /// The program's exit status.
  int run() {
    if (!options_.save.empty()) return save();
    start_engine();
    if (!options_.perplexity.empty()) return perplexity();
    if (options_.dump_layer >= 0 || options_.dump_logits) return dump();
    return generate();
  }

 private:
  void embed() {
    if constexpr (C == embedded_config) {
      load_embedded(cpu_, *weights_);
      std::fprintf(stderr, "embedded model: %s\n", embedded_origin);
      return;
    }
    if constexpr (dsv4::storage_types<float, Q>::plain) {
      dsv4::initialise_by_name(*weights_);
    } else {
      dsv4::parameter_store<C, float> wide;
      dsv4::initialise_by_name(wide);
      dsv4::quantise_parameters(cpu_, wide, *weights_);
    }
    std::fprintf(stderr, "embedded model: %.1fM random weights, so the text below is noise\n",
                 double(dsv4::count_parameters(C).with_mtp()) / 1e6);
  }

  void load() {
    const auto source = std::make_shared<const dsv4::io::safetensors_checkpoint>(options_.model);
    dsv4::io::load_options how;
    how.check_expert_scales = options_.expert_memory == 0;
    dsv4::io::load_parameters(source, *weights_, how);
    if (options_.expert_memory == 0) return;
    if constexpr (narrow_experts) {
      experts_.emplace(weights_->views(), options_.expert_memory);
      if (experts_->always_misses())
        std::fprintf(
            stderr,
            "warning: memory for %lld experts, and a token uses %d: every token reads them from disk "
            "again; --expert-memory %lld holds those of one token\n",
            static_cast<long long>(experts_->slots()), C.num_hidden_layers() * C.moe.num_experts_per_tok,
            static_cast<long long>(experts_->expert_bytes() * C.num_hidden_layers() *
                                   C.moe.num_experts_per_tok));
    } else {
      throw dsv4::contract_error("dsv4-run", "--expert-memory", "experts in FP4 or FP8", options_.numerics);
    }
  }

  /// Text as it is into a file or pipe; on a terminal without the control codes that would upset it.
  static void print(const std::string& text) {
    static const bool terminal = isatty(STDOUT_FILENO) != 0;
    for (std::size_t i = 0; i < text.size(); ++i) {
      const auto c = static_cast<unsigned char>(text[i]);
      // U+0080 to U+009F are control codes as well.
      const bool wide = c == 0xC2 && i + 1 < text.size() && (text[i + 1] & 0xE0) == 0x80;
      const bool control = (c < 32 && c != '\n' && c != '\t') || c == 127 || wide;
      std::fputc(terminal && control ? '?' : c, stdout);
      if (terminal && wide) ++i;
    }
    std::fflush(stdout);
  }

  void start_engine() {
#ifdef DSV4_WITH_CUDA
    if constexpr (on_gpu<C>)
      if (options_.device == "cuda") {
        engine_ = cuda_engines<C, Q>::make(*weights_, options_);
        weights_.reset();  // the GPU has its own
        return;
      }
#endif
    engine_ = std::make_unique<model_engine<model, dsv4::exec::cpu>>(cpu_, weights_);
  }

  /// One call of the model over `tokens`.
  void extend(std::span<const std::int32_t> tokens, dsv4::logit_rows rows, int layer = -1) {
    engine_->extend({tokens, rows, layer}, reply_);
  }

  /// Calls body(chunk) for the tokens in chunks, with a progress line; false when interrupted.
  template <class Body>
  bool in_chunks(std::span<const std::int32_t> tokens, const char* label, const Body& body) {
    progress_line line(label, static_cast<std::int64_t>(tokens.size()));
    for (std::size_t at = 0; at < tokens.size();) {
      if (interrupted()) return false;
      const std::size_t count = std::min(static_cast<std::size_t>(options_.chunk), tokens.size() - at);
      body(tokens.subspan(at, count), at);
      line.show(static_cast<std::int64_t>(at += count));
    }
    return true;
  }

  int generate() {
    const auto tokens = text_.encode(options_.prompt);
    if (tokens.empty())
      throw dsv4::contract_error("dsv4-run", "--prompt", "a text, for add_bos_token is false", "none");
    const stopwatch prefill;
    const bool whole = in_chunks(tokens, "prefill", [&](auto chunk, std::size_t at) {
      extend(chunk, at + chunk.size() == tokens.size() ? dsv4::logit_rows::last : dsv4::logit_rows::none);
    });
    if (!whole) return exit_interrupted;
    const double prefill_seconds = prefill.seconds();

    print(options_.prompt);
    text_codec::decoder text(text_);
    dsv4::sampler sample(options_.temperature, options_.top_p, options_.seed);
    const stopwatch decode;
    std::int64_t made = 0;
    for (; made < options_.max_tokens && !interrupted(); ++made) {
      const std::int32_t next = sample(std::span<const float>(reply_.logits));
      if (next == C.eos_token_id && !options_.ignore_eos) break;
      print(text.push(next));
      if (made + 1 < options_.max_tokens) extend(std::span(&next, 1), dsv4::logit_rows::last);
    }
    const double decode_seconds = decode.seconds();
    print(text.finish() + '\n');
    std::string memory = "peak memory " + bytes_text(peak_memory());
    if (engine_->device_bytes()) memory += ", on the GPU " + bytes_text(engine_->device_bytes());
    std::fprintf(stderr,
                 "prefill %zu tokens, %.1f tokens/s; decode %lld tokens, %.1f tokens/s; cache %s; %s\n",
                 tokens.size(), double(tokens.size()) / prefill_seconds, static_cast<long long>(made),
                 double(made) / decode_seconds, bytes_text(engine_->cache_bytes()).c_str(), memory.c_str());
    return interrupted() ? exit_interrupted : 0;
  }

  int perplexity() {
    const auto tokens = text_.encode(read_file(options_.perplexity));
    const std::span all(tokens);
    const std::vector<float>& logits = reply_.logits;
    double sum = 0;
    std::int64_t predicted = 0;
    const bool whole = in_chunks(all, "perplexity", [&](auto chunk, std::size_t at) {
      extend(chunk, dsv4::logit_rows::all);
      for (std::size_t i = 0; i < chunk.size() && at + i + 1 < all.size(); ++i, ++predicted) {
        const std::span row(logits.data() + i * C.vocab_size, std::size_t{C.vocab_size});
        const double top = *std::max_element(row.begin(), row.end());
        double total = 0;
        for (float v : row) total += std::exp(double(v) - top);
        sum += top + std::log(total) - double(row[static_cast<std::size_t>(all[at + i + 1])]);
      }
    });
    if (!whole) return exit_interrupted;
    const double mean = predicted ? sum / double(predicted) : 0;
    std::printf("%lld tokens, %.4f nats per token, perplexity %.4f\n", static_cast<long long>(predicted),
                mean, std::exp(mean));
    return 0;
  }

  /// The model as a directory that this program loads.
  int save() {
    dsv4::io::save_checkpoint(options_.save, *weights_);
    write_config<C>(options_.save);
    for (const char* name : {tokenizer_name, tokenizer_settings_name}) {
      const auto from = options_.model / name, to = options_.save / name;
      if (options_.model.empty() || !std::filesystem::exists(from)) continue;
      if (std::filesystem::exists(to) && std::filesystem::equivalent(from, to)) continue;
      std::filesystem::copy_file(from, to, std::filesystem::copy_options::overwrite_existing);
    }
    return 0;
  }

  /// The prompt's streams before a layer, and its logits, as a safetensors file.
  int dump() {
    if (options_.dump_layer > C.num_hidden_layers())
      throw dsv4::contract_error("dsv4-run", "--dump-layer", "0 to " + std::to_string(C.num_hidden_layers()),
                                 std::to_string(options_.dump_layer));
    const auto tokens = text_.encode(options_.prompt);
    const auto length = static_cast<std::int64_t>(tokens.size());
    constexpr std::int64_t n = C.hyper_connection.hc_mult, width = C.hidden_size;
    std::vector<float> logits, streams;
    const bool whole = in_chunks(tokens, "prefill", [&](auto chunk, std::size_t) {
      extend(chunk, options_.dump_logits ? dsv4::logit_rows::all : dsv4::logit_rows::none,
             options_.dump_layer);
      streams.insert(streams.end(), reply_.streams.begin(), reply_.streams.end());
      logits.insert(logits.end(), reply_.logits.begin(), reply_.logits.end());
    });
    if (!whole) return exit_interrupted;
    dsv4::io::safetensors_writer writer;
    writer.add("tokens", dsv4::io::dtype::i32, {length}, std::as_bytes(std::span(tokens)));
    if (options_.dump_layer >= 0)
      writer.add("hidden." + std::to_string(options_.dump_layer), dsv4::io::dtype::f32, {length, n, width},
                 std::as_bytes(std::span(streams)));
    if (options_.dump_logits)
      writer.add("logits", dsv4::io::dtype::f32, {length, C.vocab_size}, std::as_bytes(std::span(logits)));
    writer.write(options_.dump_file);
    std::fprintf(stderr, "wrote %s\n", options_.dump_file.c_str());
    return 0;
  }

  const options& options_;
  text_codec text_;
  dsv4::exec::cpu cpu_;
  std::shared_ptr<typename model::parameters> weights_;
  std::optional<expert_cache> experts_;
  std::unique_ptr<engine> engine_;
  reply reply_;
};

/// The numerics that the options name, a directory's own, or float32.
inline std::string chosen_numerics(const options& o) {
  if (!o.numerics.empty()) return o.numerics;
  if (o.model.empty()) return "float32";
  const dsv4::io::safetensors_checkpoint headers(o.model, dsv4::io::file_access::map,
                                                 dsv4::io::file_contents::headers_only);
  return std::string(dsv4::io::detect_numerics(headers));
}

/// Throws, before anything is read, where the device cannot do what is asked for or is not there.
template <dsv4::model_config C>
void check_device(const options& o) {
  if (o.device == "cpu") {
    if (o.scalar != "float32")
      throw dsv4::contract_error("dsv4-run", "--scalar", "float32 without --device cuda", o.scalar);
    return;
  }
#ifdef DSV4_WITH_CUDA
  if (!on_gpu<C>)
    throw dsv4::contract_error("dsv4-run", "--device", "cpu for so large a configuration", o.device);
  if (o.expert_memory != 0)
    throw dsv4::contract_error("dsv4-run", "--expert-memory",
                               "nothing with --device cuda, which holds all experts",
                               bytes_text(o.expert_memory));
  expect_gpu();
#else
  throw dsv4::error(
      "--device cuda: this dsv4-run was built without CUDA; docs/programs.md says how to build one with it");
#endif
}

/// Compiles a configuration for all numerics, or for the released ones alone where weights in anything wider
/// would fit no machine that runs this.
template <dsv4::model_config C>
int run_configuration(const options& given) {
  constexpr bool released_only = dsv4::count_parameters(C).with_mtp() > 10'000'000'000;
  options o = given;
  o.numerics = chosen_numerics(given);
  return dsv4::io::with_numerics(o.numerics, [&]<dsv4::numerics_config Q>() {
    if (o.plan) return print_plan<C, Q>(o);
    if (!o.save_headers.empty()) {
      dsv4::io::save_headers<C, float, Q>(o.save_headers);
      write_config<C>(o.save_headers);
      return 0;
    }
    check_device<C>(o);
    if constexpr (!released_only || Q == dsv4::numerics::v4_released ||
                  Q == dsv4::numerics::v4_released_base) {
      if (released_only && o.model.empty())
        throw dsv4::contract_error("dsv4-run", "model", "a directory, for so large a configuration", "none");
      return session<C, Q>(o).run();
    } else {
      throw dsv4::contract_error("dsv4-run", "--numerics", "v4_released or v4_released_base at this size",
                                 o.numerics);
    }
  });
}

template <dsv4::model_config C>
compiled_model make_compiled_model(const char* name) {
  return {name, [](const std::filesystem::path& file) { dsv4::io::check_config<C>(file); },
          [] { return dsv4::io::config_to_json<C>(); }, run_configuration<C>};
}

}  // namespace runner
