#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# check.sh SOURCE_DIR BUILD_DIR: installs the package into a prefix with a space and builds examples/downstream against it,
# then with add_subdirectory and FetchContent; the projects that the documentation shows; the tokenizer component; the CUDA component where there is nvcc; pkg-config where there is one.
set -euo pipefail
export CMAKE_GENERATOR=Ninja  # there may be no make
source=$1
work="$2/package test"
rm -rf "$work"
mkdir -p "$work"
prefix="$work/pre fix"
cmake --install "$2" --prefix "$prefix" > "$work/install.log"

build() {  # name, cmake arguments
  local name=$1
  shift
  cmake -S "$source/examples/downstream" -B "$work/$name" -DCMAKE_BUILD_TYPE=Debug "$@" > "$work/$name.log"
  cmake --build "$work/$name" >> "$work/$name.log" || { cat "$work/$name.log"; exit 1; }
  "$work/$name/downstream"
}
build find_package -DCMAKE_PREFIX_PATH="$prefix"
build add_subdirectory -DDSV4_SOURCE="$source"
build fetch_content -DDSV4_FETCH="$source"

# The projects that the documentation shows: programs have their project's name.
python3 "$source/tests/docs/extract.py" "$source" "$work/documented"
for project in "$work/documented/projects"/*/; do
  name=$(basename "$project")
  # One is for the GPU: compiled where there is nvcc, run where there is a GPU as well.
  for_gpu=false
  if grep -q 'COMPONENTS cuda' "$project/CMakeLists.txt"; then for_gpu=true; fi
  if $for_gpu && ! command -v nvcc > /dev/null; then continue; fi
  cmake -S "$project" -B "$work/documented/$name" -DCMAKE_BUILD_TYPE=Debug -DCMAKE_PREFIX_PATH="$prefix" > "$work/$name.log"
  cmake --build "$work/documented/$name" >> "$work/$name.log" || { cat "$work/$name.log"; exit 1; }
  if $for_gpu && ! nvidia-smi > /dev/null 2>&1; then
    if "$work/documented/$name/$name" 2> "$work/$name.err"; then echo "a program for the GPU ran without one"; exit 1; fi
    echo "documented project $name: compiled"
    continue
  fi
  echo "documented project $name: $(cd "$source" && "$work/documented/$name/$name")"
done

mkdir "$work/components"
cat > "$work/components/CMakeLists.txt" <<'EOF'
cmake_minimum_required(VERSION 3.25)
project(components LANGUAGES CXX)
find_package(dsv4 0.1 REQUIRED COMPONENTS io nonsense)
EOF
if cmake -S "$work/components" -B "$work/components/build" -DCMAKE_PREFIX_PATH="$prefix" > "$work/components.log" 2>&1; then
  echo "an unknown component was accepted"
  exit 1
fi
tr -s '\n ' ' ' < "$work/components.log" | grep -q "no component 'nonsense'; it has: cpu_kernels, io, tokenizer, cuda" || { cat "$work/components.log"; exit 1; }

mkdir "$work/tokenizer"
cat > "$work/tokenizer/CMakeLists.txt" <<'EOF'
cmake_minimum_required(VERSION 3.25)
project(tokenizer_consumer LANGUAGES CXX)
find_package(dsv4 0.1 REQUIRED COMPONENTS tokenizer)
add_executable(consumer consumer.cpp)
target_link_libraries(consumer PRIVATE dsv4::tokenizer)
EOF
cat > "$work/tokenizer/consumer.cpp" <<'EOF'
#include <dsv4/io/tokenizer.hpp>
int main(int, char** argv) {
  const dsv4::io::tokenizer t{std::filesystem::path(argv[1])};
  return t.decode(t.encode("The sea, 1234")) == "The sea, 1234" ? 0 : 1;
}
EOF
cmake -S "$work/tokenizer" -B "$work/tokenizer/build" -DCMAKE_PREFIX_PATH="$prefix" > "$work/tokenizer.log"
cmake --build "$work/tokenizer/build" >> "$work/tokenizer.log" || { cat "$work/tokenizer.log"; exit 1; }
"$work/tokenizer/build/consumer" "$source/tests/data/tokenizer_deepseek_style.json"
# Only who asks for it needs PCRE2.
without_pcre2() { PKG_CONFIG_PATH='' PKG_CONFIG_LIBDIR="$work" cmake -DCMAKE_PREFIX_PATH="$prefix" "$@" > "$work/without.log" 2>&1; }
without_pcre2 -S "$source/examples/downstream" -B "$work/without" || { cat "$work/without.log"; exit 1; }
without_pcre2 -S "$source/examples/downstream" -B "$work/without_source" -DDSV4_SOURCE="$source" || { cat "$work/without.log"; exit 1; }
if without_pcre2 -S "$work/tokenizer" -B "$work/tokenizer/without"; then
  echo "a missing PCRE2 was accepted"
  exit 1
fi
tr -s '\n ' ' ' < "$work/without.log" | grep -q "'tokenizer' needs PCRE2" || { cat "$work/without.log"; exit 1; }

if command -v pkg-config > /dev/null; then
  flags=$(PKG_CONFIG_PATH="$prefix/share/pkgconfig" pkg-config --cflags dsv4)
  eval "${CXX:-c++} -O0 $flags -o \"$work/by_pkg_config\" \"$source/examples/downstream/main.cpp\""
  "$work/by_pkg_config"
fi
