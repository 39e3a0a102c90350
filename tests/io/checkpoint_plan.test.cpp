// SPDX-License-Identifier: Apache-2.0
// Planning Flash and Pro from headers, without weights.
#include "support/catch.hpp"
#include "support/golden.hpp"
#include <dsv4/cpu.hpp>
#include <dsv4/io/checkpoint_plan.hpp>
#include <dsv4/io/checkpoint_writer.hpp>
#include <dsv4/model/quantise_parameters.hpp>

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <set>
#include <string>

using namespace dsv4;

namespace {

struct temporary_folder {
  std::filesystem::path path =
      std::filesystem::temp_directory_path() /
      ("dsv4_plan_" + std::to_string(std::chrono::steady_clock::now().time_since_epoch().count()));
  ~temporary_folder() { std::filesystem::remove_all(path); }
};

io::safetensors_checkpoint headers(const std::filesystem::path& folder) {
  return io::safetensors_checkpoint(folder, io::file_access::map, io::file_contents::headers_only);
}

template <model_config C, numerics_config Q>
io::checkpoint_plan plan(const char* name) {
  temporary_folder folder;
  io::save_headers<C, float, Q>(folder.path);
  const auto source = headers(folder.path);
  CHECK(io::detect_numerics(source) == name);
  const auto plan = io::plan_checkpoint<C, float, Q>(source);
  CHECK(plan.read == source.total_bytes());
  CHECK(plan.tensors.size() == source.tensor_count());
  return plan;
}

}  // namespace

TEST_CASE("shape rules that hold only for Flash: Flash and Pro are planned from headers") {
  const auto flash = plan<v4_flash, numerics::v4_released>("v4_released");
  const auto pro = plan<v4_pro, numerics::v4_released>("v4_released");
  const auto base = plan<v4_flash, numerics::v4_released_base>("v4_released_base");
  // Routed experts: layers and MTP x experts x 3 matrices, at 4.25 and at 8 + 8 / 16384 bits an element.
  CHECK(flash.experts == std::uint64_t{44} * 256 * 3 * 4096 * 2048 / 32 * 17);
  CHECK(pro.experts == std::uint64_t{62} * 384 * 3 * 7168 * 3072 / 32 * 17);
  CHECK(base.experts == std::uint64_t{44} * 256 * 3 * (4096 * 2048 + 32 * 16));
  // Everything narrow stays in the file; norms, mHC, sinks, biases, position biases and tables are owned.
  CHECK(static_cast<std::uint64_t>(flash.mapped) < flash.read);
  CHECK(flash.owned < 200'000'000);
  CHECK(pro.owned < 400'000'000);
}

TEST_CASE("what is planned is what loading takes") {
  constexpr model_config c = testing::mixed;
  parameter_store<c, float> wide;
  parameter_store<c, float, numerics::v4_released> narrow, loaded;
  initialise_by_name(wide);
  quantise_parameters(exec::reference{}, wide, narrow);
  temporary_folder folder;
  io::save_checkpoint(folder.path, narrow, 300'000);
  const auto source = std::make_shared<const io::safetensors_checkpoint>(folder.path);
  const auto plan = io::plan_checkpoint<c, float, numerics::v4_released>(*source);
  io::load_parameters(source, loaded);
  // Rows of owned weights start on cache lines, which the plan leaves out: less than 64 bytes a weight.
  const auto about = [](std::int64_t bytes, std::int64_t planned) {
    return bytes >= planned && bytes < planned + 64 * 1000;
  };
  CHECK(about(narrow.bytes(), plan.owned + plan.mapped));
  // Mapped, but for the odd BF16 tensor that an odd number of FP8 bytes before it has misaligned.
  CHECK(loaded.bytes() >= plan.owned);
  CHECK(loaded.bytes() < plan.owned + plan.mapped / 4);
  std::set<std::string> files;
  for (const auto& t : plan.tensors) files.insert(t.file);
  CHECK(files.size() == source->shard_names().size());
}

TEST_CASE("a plan is as strict as loading") {
  constexpr model_config c = testing::csa_only, drafting = [] {
    model_config d = testing::csa_only;
    d.num_nextn_predict_layers = 1;
    return d;
  }();
  temporary_folder folder;
  io::save_headers<c, float, numerics::v4_released>(folder.path / "plain");
  io::save_headers<drafting, float, numerics::v4_released>(folder.path / "drafting");
  const auto source = headers(folder.path / "plain"), longer = headers(folder.path / "drafting");
  const auto message = [&](const auto& f) {
    try {
      f();
    } catch (const format_error& failure) {
      return std::string(failure.what());
    }
    return std::string();
  };
  const auto missing =
      message([&] { io::plan_checkpoint<testing::mixed, float, numerics::v4_released>(source); });
  CHECK(missing.find("found none") != std::string::npos);
  const auto unread = message([&] { io::plan_checkpoint<c, float, numerics::v4_released>(longer); });
  CHECK(unread.find("\"mtp.0.") != std::string::npos);
  CHECK(unread.find("nothing reads") != std::string::npos);
  const auto type = message([&] { io::plan_checkpoint<c, float, numerics::v4_released_base>(source); });
  CHECK(type.find("F8_E4M3 [32, 64]") != std::string::npos);
  CHECK(type.find("I8 [32, 32]") != std::string::npos);
  CHECK_THROWS_AS(io::with_numerics("fp3", []<numerics_config>() {}), contract_error);
}

TEST_CASE("caches of a million tokens") {
  // Specification, section 10, in float: window, entries and index keys.
  std::int64_t expected = 0;
  for (int i = 0; i <= v4_pro.num_hidden_layers(); ++i) {
    const auto kind = v4_pro.kind(i);
    expected += 128 * 512;
    if (kind == attention_kind::csa) expected += 250'000 * (512 + 128);
    if (kind == attention_kind::hca) expected += 1'000'000 / 128 * 512;
  }
  CHECK(io::cache_bytes<v4_pro, float>(1'000'000) == 4 * expected);
}
