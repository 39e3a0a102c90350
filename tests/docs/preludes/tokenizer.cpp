// SPDX-License-Identifier: Apache-2.0
#include <dsv4/io/tokenizer.hpp>

#include <iostream>
#include <vector>

int main() {
  // BLOCK
}
