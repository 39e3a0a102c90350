// SPDX-License-Identifier: Apache-2.0
// A small checkpoint in the released formats, in a folder of its own.
#include <dsv4/config/presets.hpp>
#include <dsv4/cpu.hpp>
#include <dsv4/io/checkpoint.hpp>
#include <dsv4/io/checkpoint_plan.hpp>
#include <dsv4/io/checkpoint_writer.hpp>
#include <dsv4/io/config_json.hpp>
#include <dsv4/io/expert_cache.hpp>
#include <dsv4/io/state_file.hpp>
#include <dsv4/model/quantise_parameters.hpp>
#include <dsv4/model/transformer.hpp>

#include <filesystem>
#include <fstream>
#include <iostream>
#include <memory>
#include <string>
#include <unistd.h>

struct temporary_folder {
  std::filesystem::path path =
      std::filesystem::temp_directory_path() / ("dsv4_docs_" + std::to_string(getpid()));
  temporary_folder() {
    dsv4::parameter_store<dsv4::v4_nano, float> wide;
    dsv4::initialise_by_name(wide);
    dsv4::parameter_store<dsv4::v4_nano, float, dsv4::numerics::v4_released> narrow;
    dsv4::quantise_parameters(dsv4::exec::cpu{}, wide, narrow);
    dsv4::io::save_checkpoint(path, narrow);
    std::ofstream(path / "config.json") << dsv4::io::config_to_json<dsv4::v4_nano>();
  }
  ~temporary_folder() { std::filesystem::remove_all(path); }
};

int main() {
  const temporary_folder made;
  const std::filesystem::path& folder = made.path;
  // BLOCK
}
