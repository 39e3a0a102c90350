// SPDX-License-Identifier: Apache-2.0
/// Puts a table into a page.
#pragma once

#include <dsv4/core/error.hpp>

#include <fstream>
#include <iterator>
#include <string>

namespace distill {

inline const std::string table_begin = "<!-- table: dsv4-distill --table FILE -->\n",
                         table_end = "<!-- /table -->\n";

/// The page, which must have both marks. Throws io_error or format_error.
inline std::string read_page(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::string page(std::istreambuf_iterator<char>(in), {});
  if (!in) throw dsv4::io_error(path, "read", "failed");
  const std::size_t begin = page.find(table_begin);
  if (begin == std::string::npos || page.find(table_end, begin) == std::string::npos)
    throw dsv4::format_error(path, "table",
                             "the lines '" + table_begin.substr(0, table_begin.size() - 1) + "' and '" +
                                 table_end.substr(0, table_end.size() - 1) + "'",
                             "no such lines");
  return page;
}

/// Replaces what stands between the marks.
inline void write_table(const std::string& path, const std::string& table) {
  std::string page = read_page(path);
  const std::size_t begin = page.find(table_begin) + table_begin.size();
  page.replace(begin, page.find(table_end, begin) - begin, table);
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  if (!(out << page).flush()) throw dsv4::io_error(path, "write", "failed");
}

}  // namespace distill
