// SPDX-License-Identifier: Apache-2.0
/// Text to the model's tokens and back: by the directory's tokenizer.json, or a token for each byte.
#pragma once

#include <dsv4/core/error.hpp>
#include <dsv4/io/mapped_file.hpp>
#include <dsv4/io/tokenizer.hpp>

#include <nlohmann/json.hpp>

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace runner {

inline constexpr const char *tokenizer_name = "tokenizer.json",
                            *tokenizer_settings_name = "tokenizer_config.json";

inline std::string read_file(const std::filesystem::path& path) {
  const dsv4::io::mapped_file file(path);
  const auto bytes = file.bytes();
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

class text_codec {
 public:
  /// `model`: a directory, or empty. Its tokenizer must not know more tokens than the model has.
  text_codec(const std::filesystem::path& model, std::int64_t vocab_size, std::int32_t bos_token_id)
      : bos_(bos_token_id) {
    if (model.empty()) return;
    if (const auto file = model / tokenizer_name; std::filesystem::exists(file)) {
      tokenizer_.emplace(file);
      if (tokenizer_->size() > vocab_size)
        throw dsv4::format_error(file.string(), "tokens",
                                 "at most " + std::to_string(vocab_size) + ", the model's vocab_size",
                                 std::to_string(tokenizer_->size()));
    }
    if (const auto file = model / tokenizer_settings_name; std::filesystem::exists(file)) read_settings(file);
  }
  text_codec(const text_codec&) = delete;  // decoders refer to it
  text_codec& operator=(const text_codec&) = delete;

  /// The tokens of `text`, behind the beginning-of-text token unless tokenizer_config.json says
  /// add_bos_token: false. Where it does not say, what tokenizer.json itself puts in front is enough.
  std::vector<std::int32_t> encode(std::string_view text) const {
    std::vector<std::int32_t> tokens;
    bool add_bos = add_bos_.value_or(true);
    if (tokenizer_) {
      tokens = tokenizer_->encode(text, !add_bos_);
      if (!add_bos_ && !tokenizer_->encode("", true).empty()) add_bos = false;
      // A prompt that spells the token out has it already.
      if (!tokens.empty() && tokens.front() == bos_) add_bos = false;
    } else {
      for (const char c : text) tokens.push_back(static_cast<unsigned char>(c));
    }
    if (add_bos) tokens.insert(tokens.begin(), bos_);
    return tokens;
  }

  /// Gives the text of one token after another. Special tokens, and ids that only pad the vocabulary, are no
  /// text.
  class decoder {
   public:
    explicit decoder(const text_codec& codec) : tokenizer_(codec.tokenizer_ ? &*codec.tokenizer_ : nullptr) {
      if (tokenizer_) stream_.emplace(*tokenizer_, true);
    }
    std::string push(std::int32_t token) {
      if (tokenizer_) return tokenizer_->contains(token) ? stream_->push(token) : std::string();
      return token < 256 ? std::string(1, static_cast<char>(token)) : std::string();
    }
    /// The beginning of a character that never came to its end.
    std::string finish() { return stream_ ? stream_->finish() : std::string(); }

   private:
    const dsv4::io::tokenizer* tokenizer_;
    std::optional<dsv4::io::streaming_decoder> stream_;
  };

 private:
  void read_settings(const std::filesystem::path& file) {
    using nlohmann::json;
    const json settings = json::parse(read_file(file), nullptr, false);
    if (!settings.is_object())
      throw dsv4::format_error(file.string(), "settings", "a JSON object", "something else");
    const auto add_bos = settings.find("add_bos_token");
    if (add_bos == settings.end() || add_bos->is_null()) return;
    if (!add_bos->is_boolean())
      throw dsv4::format_error(file.string(), "add_bos_token", "true or false", add_bos->type_name());
    add_bos_ = add_bos->get<bool>();
  }

  std::int32_t bos_;
  std::optional<bool> add_bos_;
  std::optional<dsv4::io::tokenizer> tokenizer_;
};

}  // namespace runner
