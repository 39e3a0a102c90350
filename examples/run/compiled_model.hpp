// SPDX-License-Identifier: Apache-2.0
/// The configurations that dsv4-run was compiled for, in files of their own: they are most of the compiler's
/// work.
#pragma once

#include "options.hpp"

#include <filesystem>
#include <string>

namespace runner {

struct compiled_model {
  const char* name;
  /// Throws dsv4::format_error for a config.json with other values.
  void (*check_config)(const std::filesystem::path& config_json);
  std::string (*config_text)();
  /// Does what the options say with the numerics that they name, and returns the program's exit status.
  int (*run)(const options&);
};

extern const compiled_model v4_nano_model, v4_bench_model, v4_flash_model, v4_pro_model;

inline const compiled_model* const compiled_models[] = {&v4_nano_model, &v4_bench_model, &v4_flash_model,
                                                        &v4_pro_model};

}  // namespace runner
