// SPDX-License-Identifier: Apache-2.0
#include "commands.hpp"
#include "own_dump.hpp"
#include <dsv4/cpu.hpp>
#include <dsv4/train/cpu/adamw.hpp>
#include <dsv4/train/cpu/muon.hpp>

void conformance::dump_float(const fs::path& suite, const fs::path& folder, int threads) {
  const auto policy = threads > 0 ? dsv4::exec::cpu(threads) : dsv4::exec::cpu();
  dump_ops<float>(policy, folder);
  dump_mixed<float>(policy, suite, folder);
  dump_released<float>(policy, suite, folder);
  dump_training<float>(policy, suite, folder);
  dump_refused(suite, folder);
}
