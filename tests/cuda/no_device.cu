// SPDX-License-Identifier: Apache-2.0
/// What exec::cuda says where there is no GPU to be seen: an exception that tells the user what is missing
/// and where it was asked for. Exit status 0 if so.
#include <dsv4/exec/cuda.cuh>

#include <cstdio>
#include <string>

int main() {
  try {
    const dsv4::exec::cuda p;
    std::puts("a policy without a GPU");
    return 1;
  } catch (const dsv4::cuda_error& e) {
    const std::string what = e.what();
    std::puts(what.c_str());
    const bool reason = what.find("expected a GPU") != what.npos ||
                        what.find("expected an NVIDIA driver") != what.npos ||
                        what.find("expected a driver for CUDA") != what.npos;
    return reason && what.find("no_device.cu:") != what.npos ? 0 : 1;
  }
}
