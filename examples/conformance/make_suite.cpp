// SPDX-License-Identifier: Apache-2.0
#include "make_suite.hpp"

#include "commands.hpp"

#include <iostream>

void conformance::make_suite_in(const fs::path& folder) {
  const suite made = make_suite(folder);
  std::uintmax_t bytes = 0;
  for (const auto& entry : fs::recursive_directory_iterator(folder))
    if (entry.is_regular_file()) bytes += entry.file_size();
  std::cout << "suite " << made.version << ": " << made.vectors.size() << " vectors, " << bytes
            << " bytes in " << folder.string() << '\n';
}
