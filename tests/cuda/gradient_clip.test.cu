// SPDX-License-Identifier: Apache-2.0
#include "support/device.cuh"
#include <dsv4/config/presets.hpp>
#include <dsv4/exec/cuda_transfer.cuh>
#include <dsv4/model/cuda_parameters.cuh>
#include <dsv4/train/cuda/gradient_clip.cuh>
#include <dsv4/train/gradient_accumulation.hpp>

using namespace dsv4;
using namespace dsv4::testing;

// Sums of positive terms in double: a chunk has 16 a thread, 32 warps' lanes and 8 warps; then the chunks.
TEMPLATE_TEST_CASE("squared_norm: cuda equals reference", "", float, double) {
  using T = TestType;
  for (const std::int64_t n : {0, 1, 7, 4096, 4097, 1000003}) {
    INFO(n);
    auto x = random<T>(n, 1, 3);
    auto sum = poison<double>(1);
    double want = 0;
    squared_norm<T>::forward(exec::reference{}, host_work(), {x.h(n)}, {{&want, 1}});
    const auto got =
        run_twice(sum, [&] { squared_norm<T, D>::forward(gpu(), work(), {x.d(n)}, {sum.d(1)}); });
    CHECK(std::abs(got[0] - want) <= want * 0x1p-52 * (16 + 5 + 8 + 1 + 8));
  }
}

TEST_CASE("the norm of a model's gradients on the GPU, and zeroing them") {
  constexpr model_config config = v4_nano;
  parameter_store<config, float> host;
  initialise_by_name(host);
  host.views().layers[2].ffn.gate_bias(0) = NAN;  // has no gradient
  parameter_store<config, float, numerics::float32, D> device;
  upload_parameters(gpu(), host, device);
  const double want = gradient_norm(exec::cpu(1), host_work(), host),
               norm = gradient_norm(gpu(), work(), device);
  CHECK(std::abs(norm - want) <= 1e-13 * want);
  CHECK(norm == gradient_norm(gpu(), work(), device));

  host.views().layers[2].attention.q_a(1, 2) = NAN;
  upload_parameters(gpu(), host, device);
  CHECK(std::isnan(gradient_norm(gpu(), work(), device)));
  zero_gradients(gpu(), device);
  CHECK(gradient_norm(gpu(), work(), device) == 0);
  download_parameters(gpu(), device, host);
  std::int64_t others = 0;
  for (std::int64_t i = 0; i < host.reals().extent[0]; ++i) others += host.reals()(i) != 0;
  CHECK(others == 0);
}
