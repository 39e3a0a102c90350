// SPDX-License-Identifier: Apache-2.0
/// What the CUDA runtime and cuBLAS report, as exceptions that say where.
#pragma once

#include <dsv4/core/error.hpp>

#include <concepts>
#include <cublasLt.h>
#include <cuda_runtime_api.h>
#include <source_location>
#include <string>
#include <string_view>

namespace dsv4 {

/// A call of the CUDA runtime failed, or a kernel launched earlier did. `status` is the runtime's number.
class cuda_error : public error {
 public:
  cuda_error(std::string_view where, std::string_view reason, int status_, const std::source_location& at)
      : error(std::string(where) + ": " + std::string(reason) + " (" + at.file_name() + ":" +
              std::to_string(at.line()) + ")"),
        status(status_) {}
  int status;
};

namespace detail {
/// The op that asks for something, and the line that does: made where the op's name is written.
struct call_site {
  std::string_view op;
  std::source_location at;

  template <std::convertible_to<std::string_view> Name>
  call_site(const Name& name, const std::source_location& line = std::source_location::current())
      : op(name), at(line) {}
};

/// Throws cuda_error unless `status` is success; `where` names the op or the call.
inline void check_cuda(cudaError_t status, std::string_view where, const std::source_location& at) {
  if (status != cudaSuccess)
    throw cuda_error(where, cudaGetErrorString(status), static_cast<int>(status), at);
}
inline void check_cuda(cublasStatus_t status, std::string_view where, const std::source_location& at) {
  if (status != CUBLAS_STATUS_SUCCESS)
    throw cuda_error(where, cublasLtGetStatusString(status), static_cast<int>(status), at);
}
template <class Status>
void check_cuda(Status status, const call_site& where) {
  check_cuda(status, where.op, where.at);
}

inline std::string cuda_version(int number) {
  return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
}

/// Throws cuda_error with a sentence for the user unless a GPU and a driver for this runtime are there.
inline void expect_cuda_device(const std::source_location& at = std::source_location::current()) {
  int driver = 0, runtime = 0, count = 0;
  check_cuda(cudaDriverGetVersion(&driver), "exec::cuda", at);
  check_cuda(cudaRuntimeGetVersion(&runtime), "exec::cuda", at);
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (driver == 0)
    throw cuda_error("exec::cuda", "expected an NVIDIA driver, found none", cudaErrorNoDevice, at);
  if (status == cudaErrorInsufficientDriver)
    throw cuda_error("exec::cuda",
                     "expected a driver for CUDA " + cuda_version(runtime) +
                         " or later, found one for CUDA " + cuda_version(driver),
                     status, at);
  if (status == cudaErrorNoDevice || (status == cudaSuccess && count == 0))
    throw cuda_error("exec::cuda", "expected a GPU, found none", cudaErrorNoDevice, at);
  check_cuda(status, "exec::cuda", at);
}
}  // namespace detail

}  // namespace dsv4
