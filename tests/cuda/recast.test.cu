// SPDX-License-Identifier: Apache-2.0
#include "support/device.cuh"
#include <dsv4/ops/cuda/recast.cuh>

using namespace dsv4;
using namespace dsv4::testing;

TEST_CASE("recast: cuda gives the reference's bytes and counts, tiles that cannot be recast included") {
  for (const auto rule : {recast_rule::exact, recast_rule::normal})
    for (const std::int64_t rows : {1, 128, 300})
      for (const std::int64_t columns : {32, 300, 512})
        for (const int spread : {3, 12, 40}) {
          INFO(rows << " x " << columns << ", scales over " << spread << " powers of two");
          auto codes = integers<std::uint8_t>(rows * mxfp4::row_bytes(columns), 0, 255, 1);
          const std::int64_t count = rows * mxfp4::scale_columns(columns);
          buffer<e8m0> bits(count);
          for (std::int64_t i = 0; i < count; ++i)
            bits[i] =
                e8m0::from_bits(std::uint8_t(i == count - 1 && rows == 300 ? 255 : 110 + i * 7919 % spread));
          twin<e8m0> scales(std::move(bits));
          auto out = integers<std::uint8_t>(rows * columns, 0, 0);  // violating tiles keep their bytes
          buffer<e8m0> none(fp8_weight::scale_rows(rows) * fp8_weight::scale_columns(columns));
          twin<e8m0> out_scales(std::move(none));
          auto violations = poison<std::int64_t>(fp8_weight::scale_rows(rows));
          recast<>::forward(
              exec::reference{},
              {block_scaled_matrix<const mxfp4>(codes.host.data(), scales.host.data(), rows, columns), rule},
              {block_scaled_matrix<fp8_weight>(out.host.data(), out_scales.host.data(), rows, columns),
               violations.h(violations.size())});
          const auto got = run_twice(out, [&] {
            recast<D>::forward(gpu(),
                               {block_scaled_matrix<const mxfp4, D>(codes.device.data(), scales.device.data(),
                                                                    rows, columns),
                                rule},
                               {block_scaled_matrix<fp8_weight, D>(out.device.data(),
                                                                   out_scales.device.data(), rows, columns),
                                violations.d(violations.size())});
          });
          CHECK(same_bytes(got, out.host));
          CHECK(same_bytes(out_scales.fetch(), out_scales.host));
          CHECK(same_bytes(violations.fetch(), violations.host));
        }
}
