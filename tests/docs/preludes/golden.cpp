// SPDX-License-Identifier: Apache-2.0
#include "support/golden.hpp"

int main() {
  dsv4::parameter_store<dsv4::testing::short_text, double> weights;
  // BLOCK
}
