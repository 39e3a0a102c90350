# SPDX-License-Identifier: Apache-2.0
# What our own programs are built with. Nothing here reaches a consumer.
find_package(nlohmann_json REQUIRED)
find_package(PkgConfig REQUIRED)
pkg_check_modules(DSV4_PCRE2 REQUIRED QUIET IMPORTED_TARGET GLOBAL libpcre2-8)
if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "" FORCE)
endif()
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_CURRENT_BINARY_DIR}/bin)

add_library(dsv4_own_flags INTERFACE)
target_compile_options(dsv4_own_flags INTERFACE "$<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Wpedantic;-Werror>")
if(DSV4_SANITIZE)
  target_compile_options(dsv4_own_flags INTERFACE
    "$<$<COMPILE_LANGUAGE:CXX>:-fsanitize=address,undefined;-fno-sanitize-recover=all>")
  target_link_options(dsv4_own_flags INTERFACE -fsanitize=address,undefined)
endif()

# dsv4_own_headers: the library from its headers alone. dsv4_own, for most: with its kernels compiled once.
add_library(dsv4_own_headers INTERFACE)
target_link_libraries(dsv4_own_headers INTERFACE dsv4_own_flags dsv4::tokenizer)
if(PROJECT_IS_TOP_LEVEL)  # else they are a consumer's
  target_link_libraries(dsv4_cpu_kernels PRIVATE dsv4_own_flags)
endif()
add_library(dsv4_own INTERFACE)
target_link_libraries(dsv4_own INTERFACE dsv4_own_headers dsv4::cpu_kernels)

# The same for the GPU. The architectures are ours to name: 90a, with Hopper's own instructions, has no place in
# CMake's list of every release.
if(DSV4_CUDA)
  set(CMAKE_CUDA_ARCHITECTURES OFF)
  enable_language(CUDA)
  set(DSV4_CUDA_ARCHITECTURES 80 90a CACHE STRING "What own programs for the GPU are compiled for")
  add_library(dsv4_own_cuda_flags INTERFACE)
  target_link_libraries(dsv4_own_cuda_flags INTERFACE dsv4::cuda dsv4::io)
  target_compile_options(dsv4_own_cuda_flags INTERFACE "$<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra>"
                                                       "$<$<COMPILE_LANGUAGE:CUDA>:--Werror=all-warnings>")
  add_library(dsv4_own_cuda INTERFACE)
  target_link_libraries(dsv4_own_cuda INTERFACE dsv4_own_cuda_flags)
  foreach(architecture IN LISTS DSV4_CUDA_ARCHITECTURES)
    target_compile_options(dsv4_own_cuda INTERFACE
      "$<$<COMPILE_LANGUAGE:CUDA>:-gencode=arch=compute_${architecture},code=sm_${architecture}>")
  endforeach()
endif()

# One program from one source file; with FROM_HEADERS by dsv4_own_headers.
function(dsv4_program name source)
  cmake_parse_arguments(PARSE_ARGV 2 arg FROM_HEADERS "" "")
  add_executable(${name} ${source})
  target_link_libraries(${name} PRIVATE $<IF:$<BOOL:${arg_FROM_HEADERS}>,dsv4_own_headers,dsv4_own>
                                        ${arg_UNPARSED_ARGUMENTS})
endfunction()
