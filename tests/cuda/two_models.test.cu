// SPDX-License-Identifier: Apache-2.0
// Whole models on the GPU: two side by side, from two threads on two streams, and decode against prefill.
#include "support/device.cuh"
#include <dsv4/config/presets.hpp>
#include <dsv4/cuda.cuh>
#include <dsv4/model/cuda_parameters.cuh>
#include <dsv4/model/quantise_parameters.hpp>
#include <dsv4/model/transformer.hpp>

#include <algorithm>
#include <cmath>
#include <latch>
#include <span>
#include <thread>
#include <type_traits>
#include <vector>

using namespace dsv4;
using namespace dsv4::testing;

namespace {

// Longer than windows, groups and selections need to turn over: 32, 16 and 4 x 16 tokens.
constexpr std::int64_t length = 150, vocab = v4_nano.vocab_size;

/// A model, its weights on the GPU, and all that one thread needs to run it.
template <class T, numerics_config Q>
struct world {
  using model = transformer<v4_nano, T, Q, D>;
  exec::cuda p;
  typename model::parameters weights;
  device_workspace w;
  device_buffer<std::int32_t> ids{length};
  device_buffer<T> logits{length * vocab};

  explicit world(std::uint64_t seed) {
    parameter_store<v4_nano, T, Q> host;
    if constexpr (storage_types<T, Q>::plain) {
      initialise_by_name(host, seed);
    } else {
      parameter_store<v4_nano, T> wide;
      initialise_by_name(wide, seed);
      quantise_parameters(exec::reference{}, wide, host);
    }
    upload_parameters(p, host, weights);
    buffer<std::int32_t> tokens(length);
    for (std::int64_t i = 0; i < length; ++i)
      tokens[i] = static_cast<std::int32_t>(detail::splitmix64(seed + static_cast<std::uint64_t>(i)) % vocab);
    ids = to_device(p.stream(), tokens);
  }

  /// The logits of all tokens, of which the first `prefill` are one call, and each other is one.
  buffer<T> run(std::int64_t prefill) {
    typename model::state state;
    for (std::int64_t at = 0; at < length;) {
      const std::int64_t count = at == 0 ? prefill : 1;
      const typename model::segment segment{&state, count};
      model::forward(p, w, weights.views(),
                     {std::span(&segment, 1), ids.as(length).rows(at, count), logit_rows::all},
                     {logits.as(length, vocab).rows(at, count), {}});
      at += count;
    }
    return to_host(p.stream(), logits);
  }
};

/// Root mean square of a - b by that of b; infinity when a value is not finite.
template <class T>
double relative_difference(const buffer<T>& a, const buffer<T>& b) {
  double error = 0, size = 0;
  for (std::int64_t i = 0; i < b.size(); ++i) {
    error += std::pow(double(a[i]) - double(b[i]), 2);
    size += double(b[i]) * double(b[i]);
  }
  return std::isfinite(error) ? std::sqrt(error / size) : INFINITY;
}

}  // namespace

TEST_CASE("two models on two streams from two threads give the bits of each alone") {
  world<bf16, numerics::float32> a(1);
  world<double, numerics::v4_released> b(2);
  CHECK(a.p.stream() != b.p.stream());
  const buffer<bf16> a_alone = a.run(100);
  const buffer<double> b_alone = b.run(70);
  for (int round = 0; round < 5; ++round) {
    buffer<bf16> a_beside;
    buffer<double> b_beside;
    std::latch start(2);
    std::thread other([&] {
      start.arrive_and_wait();
      b_beside = b.run(70);
    });
    start.arrive_and_wait();
    a_beside = a.run(100);
    other.join();
    CHECK(same_bytes(a_beside, a_alone));
    CHECK(same_bytes(b_beside, b_alone));
  }
}

// The same numbers, summed in another order: products of many rows and of one are different kernels.
TEST_CASE("decode is prefill, token by token") {
  const auto check = [](auto& model, double limit) {
    const auto whole = model.run(length);
    // The tokens come one at a time from the first on, or from within groups and windows.
    for (const std::int64_t prefill : {1, 45, 131}) {
      INFO(prefill << " tokens, then one at a time");
      const auto steps = model.run(prefill);
      if constexpr (std::is_same_v<std::remove_cvref_t<decltype(whole[0])>, double>)
        CHECK(difference(steps, whole) < limit);
      else
        CHECK(relative_difference(steps, whole) < limit);
    }
  };
  SECTION("double") {  // as the oracle's tests
    world<double, numerics::float32> model(3);
    check(model, 1e-9);
  }
  SECTION("double, released formats") {
    world<double, numerics::v4_released> model(4);
    check(model, 1e-9);
  }
  // A layer rounds to bf16 about 30 times on the way of its streams; where the orders of the sums differ each
  // is off by up to half a unit, 2^-9, evenly, either way in both: sqrt(2 30 4 / 3) 2^-9 = 1.7% of 4 layers.
  // Three times that, for what the layers amplify.
  SECTION("bf16") {
    world<bf16, numerics::float32> model(5);
    check(model, 0.05);
  }
}
