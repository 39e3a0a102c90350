// SPDX-License-Identifier: Apache-2.0
#include "embedded_model.hpp"

// DSV4_EMBEDDED_MODEL is the file's path, from CMake.
__asm__(
    ".section .rodata\n"
    ".balign 64\n"
    ".globl dsv4_run_embedded_model\n"
    "dsv4_run_embedded_model:\n"
    ".incbin \"" DSV4_EMBEDDED_MODEL
    "\"\n"
    ".globl dsv4_run_embedded_model_end\n"
    "dsv4_run_embedded_model_end:\n"
    ".byte 0\n"
    ".previous\n");

extern "C" {
extern const std::byte dsv4_run_embedded_model[], dsv4_run_embedded_model_end[];
}

std::span<const std::byte> runner::embedded_file() {
  return {dsv4_run_embedded_model, dsv4_run_embedded_model_end};
}
