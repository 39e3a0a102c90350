# SPDX-License-Identifier: Apache-2.0
# dsv4_instantiate(<target> CONFIG <header> <value> [SCALAR <type>] [NUMERICS <value>] [POLICY <cpu|reference>])
#
# Compiles the passes of dsv4::transformer<value, SCALAR, NUMERICS> under the policy in a file of their own, once, as a part of
# <target>. Its other files use them by way of
#     dsv4::precompiled<dsv4::transformer<value, SCALAR, NUMERICS>, dsv4::exec::POLICY>   (dsv4/model/precompiled.hpp)
# and compile fast. <header>, relative to the current folder or found by #include, defines <value>, a dsv4::model_config.
# Without the others: SCALAR float, NUMERICS dsv4::numerics::float32, POLICY cpu.
function(dsv4_instantiate target)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "SCALAR;NUMERICS;POLICY" "CONFIG")
  list(LENGTH arg_CONFIG given)
  if(NOT given EQUAL 2 OR arg_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "dsv4_instantiate(<target> CONFIG <header> <value> [SCALAR <type>] [NUMERICS <value>] [POLICY <cpu|reference>])")
  endif()
  list(GET arg_CONFIG 0 header)
  list(GET arg_CONFIG 1 value)
  set(scalar float)
  set(numerics dsv4::numerics::float32)
  set(policy cpu)
  foreach(name IN ITEMS SCALAR NUMERICS POLICY)
    if(arg_${name})
      string(TOLOWER ${name} variable)
      set(${variable} ${arg_${name}})
    endif()
  endforeach()
  if(policy STREQUAL "cpu" AND numerics STREQUAL "dsv4::numerics::float32")
    set(kernels dsv4/cpu_dense.hpp)
  elseif(policy STREQUAL "cpu")
    set(kernels dsv4/cpu.hpp)
  elseif(policy STREQUAL "reference")
    set(kernels dsv4/exec/reference.hpp)
  else()
    message(FATAL_ERROR "dsv4_instantiate: POLICY is cpu or reference, not ${policy}")
  endif()
  if(EXISTS ${CMAKE_CURRENT_SOURCE_DIR}/${header})
    set(header ${CMAKE_CURRENT_SOURCE_DIR}/${header})
  endif()

  string(MAKE_C_IDENTIFIER "${value}_${scalar}_${numerics}_${policy}" stem)
  set(file ${CMAKE_CURRENT_BINARY_DIR}/dsv4_instantiate/${target}/${stem}.cpp)
  file(CONFIGURE OUTPUT ${file} CONTENT [=[
// Written by dsv4_instantiate.
#include "@header@"
#include <@kernels@>
#include <dsv4/model/instantiate.hpp>
template struct dsv4::precompiled<dsv4::transformer<@value@, @scalar@, @numerics@>, dsv4::exec::@policy@>;
]=] @ONLY)
  target_sources(${target} PRIVATE ${file})
endfunction()
