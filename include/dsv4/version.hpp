// SPDX-License-Identifier: Apache-2.0
/// The library's version: the one place that holds it; CMake reads it from here.
#pragma once

#define DSV4_VERSION_MAJOR 0
#define DSV4_VERSION_MINOR 1
#define DSV4_VERSION_PATCH 0
