# SPDX-License-Identifier: Apache-2.0
import re

from conan import ConanFile
from conan.tools.cmake import CMake, CMakeToolchain, CMakeDeps
from conan.tools.files import load


class Dsv4(ConanFile):
    name = "dsv4"
    description = "DeepSeek-V4 building blocks, header-only C++20"
    license = "Apache-2.0"
    package_type = "header-library"
    settings = "os", "compiler", "build_type", "arch"
    options = {"tokenizer": [True, False]}
    default_options = {"tokenizer": False}
    exports_sources = "CMakeLists.txt", "cmake/*", "include/*", "LICENSE"
    no_copy_source = True

    def set_version(self):
        text = load(self, f"{self.recipe_folder}/include/dsv4/version.hpp")
        self.version = ".".join(re.findall(r"#define DSV4_VERSION_[A-Z]+ (\d+)", text))

    def requirements(self):
        self.requires("eigen/[>=3.4 <4]")
        self.requires("nlohmann_json/[>=3.11 <4]")
        if self.options.tokenizer:
            self.requires("pcre2/[>=10.42 <11]")  # found by pkg-config: consumers generate with PkgConfigDeps

    def generate(self):
        toolchain = CMakeToolchain(self)
        for part in ("TESTS", "EXAMPLES", "BENCHMARKS"):
            toolchain.cache_variables[f"DSV4_BUILD_{part}"] = False
        toolchain.generate()
        CMakeDeps(self).generate()

    def package(self):
        cmake = CMake(self)
        cmake.configure()
        cmake.install()

    def package_info(self):
        self.cpp_info.set_property("cmake_find_mode", "none")
        self.cpp_info.builddirs = ["share/cmake/dsv4"]

    def package_id(self):
        self.info.clear()
