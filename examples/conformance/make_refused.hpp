// SPDX-License-Identifier: Apache-2.0
/// Files that no reader may accept: headers that lie, and configurations with something missing.
#pragma once

#include "make.hpp"

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace conformance {

inline std::vector<refused_file> make_refused(const fs::path& folder, const std::string& config) {
  std::vector<refused_file> all;
  const auto add = [&](std::string name, const std::string& bytes, std::string why,
                       std::vector<std::string> rows) {
    all.push_back({"refuse/" + std::move(name), std::move(why), std::move(rows)});
    write_text(folder / all.back().file, bytes);
  };
  /// A safetensors file: length of the header, header, data of zeros.
  const auto tensors = [&](const std::string& name, const std::string& header, std::size_t data,
                           const char* why, std::vector<std::string> rows, std::uint64_t length = 0) {
    std::string bytes;
    if (length == 0) length = header.size();
    for (int i = 0; i < 8; ++i) bytes += static_cast<char>(length >> (8 * i) & 255);
    add(name + ".safetensors", bytes + header + std::string(data, '\0'), why, std::move(rows));
  };
  tensors("unknown_dtype", R"({"a":{"dtype":"F9","shape":[2],"data_offsets":[0,8]}})", 8, "dtype F9 is none",
          {"54"});
  tensors("span_too_long", R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,12]}})", 12,
          "two floats do not fill 12 bytes", {"57"});
  tensors("product_overflows",
          R"({"a":{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,0]}})", 0,
          "the number of elements is not 0, it is 2^66", {"57"});
  tensors("negative_axis", R"({"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}})", 8, "an axis of -2",
          {"57"});
  tensors(
      "overlap",
      R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})",
      12, "two tensors share bytes", {"57"});
  tensors("data_missing", R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 4,
          "the data ends early", {"57"});
  tensors("header_too_long", R"({})", 0, "the header's length is 2^63", {"57"}, std::uint64_t{1} << 63);
  tensors("key_without_quotes", R"({a:{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8,
          "the header is not JSON", {"57"});
  tensors(
      "name_twice",
      R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
      8, "two tensors of one name", {"57"});

  const auto changed = [&](const std::string& name, const char* why, std::vector<std::string> rows,
                           const auto& change) {
    json c = json::parse(config);
    change(c);
    add(name + ".json", c.dump(1) + "\n", why, std::move(rows));
  };
  for (const char* key : {"compress_rope_theta", "swiglu_limit", "routed_scaling_factor"})
    changed(std::string("no_") + key, "a value is missing, and no default is right", {"9"},
            [&](json& c) { c.erase(key); });
  changed("rope_wider_than_head", "24 rotated channels of a head of 20", {"57"},
          [](json& c) { c["qk_rope_head_dim"] = 24; });
  changed("ratios_too_few", "compress_ratios is shorter than the layers", {"57"}, [](json& c) {
    c["compress_ratios"] = json::array({0, 4});
  });
  changed("other_model_type", "deepseek_v41 is another architecture", {},
          [](json& c) { c["model_type"] = "deepseek_v41"; });
  return all;
}

}  // namespace conformance
