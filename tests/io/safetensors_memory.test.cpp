// SPDX-License-Identifier: Apache-2.0
// A file in memory is read as the same file on disk is.
#include "support/catch.hpp"
#include "support/golden.hpp"
#include <dsv4/io/checkpoint.hpp>
#include <dsv4/io/checkpoint_writer.hpp>
#include <dsv4/io/safetensors_memory.hpp>
#include <dsv4/model/quantise_parameters.hpp>

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

using namespace dsv4;

namespace {

constexpr model_config tiny = [] {
  model_config c = testing::golden(schedule({testing::S, testing::C, testing::H}), 1);
  c.num_nextn_predict_layers = 1;
  return c;
}();
using released = parameter_store<tiny, float, numerics::v4_released>;

/// The bytes of a saved model in the released formats.
std::vector<std::byte> saved_model() {
  parameter_store<tiny, float> wide;
  initialise_by_name(wide);
  released narrow;
  quantise_parameters(exec::reference{}, wide, narrow);
  const auto path = std::filesystem::temp_directory_path() /
                    ("dsv4_safetensors_memory_" + std::to_string(reinterpret_cast<std::uintptr_t>(&wide)));
  io::save_parameters(path, narrow);
  std::vector<std::byte> bytes;
  {
    const io::safetensors_file file(path);
    const io::mapped_file whole(path);
    bytes.assign(whole.bytes().begin(), whole.bytes().end());
    const io::safetensors_memory memory("a name", bytes);
    REQUIRE(memory.tensors().size() == file.tensors().size());
    for (const auto& t : file.tensors()) {
      const auto* same = memory.find(t.name);
      REQUIRE(same);
      CHECK(same->shape == t.shape);
      CHECK(std::ranges::equal(memory.bytes(*same), file.bytes(t)));
    }
  }
  std::filesystem::remove(path);
  return bytes;
}

using testing::message_of;

}  // namespace

TEST_CASE("safetensors_memory: narrow weights stay where they are") {
  const auto bytes = saved_model();
  const auto source = std::make_shared<const io::safetensors_memory>("a name", bytes);
  released bound;
  io::load_parameters(source, bound);
  const auto* codes =
      reinterpret_cast<const std::byte*>(bound.views().layers[0].ffn.experts.w1.matrices[0].codes);
  CHECK(codes >= bytes.data());
  CHECK(codes < bytes.data() + bytes.size());
  CHECK(source->find("no such tensor") == nullptr);
}

TEST_CASE("safetensors_memory: bytes that are no file, or another's") {
  auto bytes = saved_model();
  io::tensor_info outside = io::safetensors_memory("a name", bytes).tensors().back();
  outside.end = outside.begin + bytes.size();
  CHECK(message_of([&] {
          static_cast<void>(io::safetensors_memory("a name", bytes).bytes(outside));
        }).find("a name") != std::string::npos);
  bytes.pop_back();
  CHECK(message_of([&] { io::safetensors_memory("a name", bytes); }).starts_with("a name"));
}
