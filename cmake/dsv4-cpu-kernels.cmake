# SPDX-License-Identifier: Apache-2.0
# dsv4::cpu_kernels: dsv4::dsv4 with the matrix kernels of dsv4::exec::cpu compiled once, in a library of the project that asks
# for it, and not in each of its files. Built only where something links it, with that project's own flags.
if(NOT TARGET dsv4_cpu_kernels)
  set(dsv4_cpu_kernels_file ${CMAKE_CURRENT_BINARY_DIR}/dsv4_cpu_kernels.cpp)
  file(CONFIGURE OUTPUT ${dsv4_cpu_kernels_file} CONTENT "#include <dsv4/cpu_kernels.hpp>\n")
  add_library(dsv4_cpu_kernels STATIC EXCLUDE_FROM_ALL ${dsv4_cpu_kernels_file})
  add_library(dsv4::cpu_kernels ALIAS dsv4_cpu_kernels)
  set_target_properties(dsv4_cpu_kernels PROPERTIES POSITION_INDEPENDENT_CODE ON)
  target_link_libraries(dsv4_cpu_kernels PUBLIC dsv4::dsv4)
  target_compile_definitions(dsv4_cpu_kernels INTERFACE DSV4_COMPILED_KERNELS=1)
endif()
