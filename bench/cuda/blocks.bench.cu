// SPDX-License-Identifier: Apache-2.0
/// Whole blocks of V4-Flash in bf16, the experts in the released formats too: attention of each kind,
/// experts, and the residual site around them.
#include "support/device.cuh"
#include <dsv4/blocks/attention.hpp>
#include <dsv4/blocks/attention_backward.hpp>
#include <dsv4/blocks/hyper_connection_site.hpp>
#include <dsv4/blocks/moe.hpp>
#include <dsv4/blocks/moe_backward.hpp>
#include <dsv4/config/presets.hpp>

using namespace dsv4;
using namespace dsv4::bench;

namespace {

constexpr model_config m = v4_flash;

/// Random matrices that live as long as this.
struct pool {
  const exec::cuda& p;
  std::vector<device_buffer<bf16>> all;
  template <class... I>
  auto take(I... extents) {
    const std::int64_t count = (std::int64_t{1} * ... * std::int64_t(extents));
    const std::int64_t in[] = {std::int64_t(extents)...};
    all.push_back(random<bf16>(p, count, float(std::sqrt(3.0 / double(in[sizeof...(I) - 1])))));
    return all.back().as(extents...);
  }
};

template <class T>
using parameters = attention_parameters<T, numerics::float32, D>;

parameters<bf16> make_attention(pool& a, attention_kind kind) {
  constexpr attention_config c = m.attention;
  const std::int64_t d = m.hidden_size, wide = std::int64_t{c.num_attention_heads} * c.head_dim;
  parameters<bf16> w;
  w.q_a = a.take(c.q_lora_rank, d), w.q_norm = a.take(c.q_lora_rank), w.q_b = a.take(wide, c.q_lora_rank);
  w.kv = a.take(c.head_dim, d), w.kv_norm = a.take(c.head_dim), w.sinks = a.take(c.num_attention_heads);
  w.o_a = a.take(c.o_groups, c.o_lora_rank, wide / c.o_groups), w.o_b = a.take(d, c.o_groups * c.o_lora_rank);
  const auto compressor = [&](std::int64_t dim, std::int64_t ratio, bool overlap) {
    compressor_parameters<bf16, D> k;
    const std::int64_t width = dim * (overlap ? 2 : 1);
    k.kv = a.take(width, d), k.gate = a.take(width, d), k.position_bias = a.take(ratio, width),
    k.norm = a.take(dim);
    return k;
  };
  if (kind != attention_kind::sliding)
    w.compressor = compressor(c.head_dim, c.compress_ratio(kind), kind == attention_kind::csa);
  if (kind == attention_kind::csa) {
    w.indexer.q_b = a.take(c.index_n_heads * c.index_head_dim, c.q_lora_rank);
    w.indexer.weights = a.take(c.index_n_heads, d);
    w.indexer.compressor = compressor(c.index_head_dim, c.csa_compress_ratio, true);
  }
  return w;
}

void bench_attention(const exec::cuda& p, const ceilings& c, attention_kind kind, std::int64_t rows,
                     std::int64_t before, const char* name) {
  pool a{p, {}};
  const auto w = make_attention(a, kind);
  const auto x = a.take(rows, m.hidden_size);
  device_buffer<bf16> y(rows * m.hidden_size);
  attention_cache<bf16, D> cache(m.attention, kind, 0);
  cache.reserve(p, before + rows, 0);
  device_workspace work(std::size_t{4} << 30);
  const attention_segment<bf16, D> segment{&cache, before, 0, rows};
  const double ms = milliseconds(p, [&] {
    attention<m.attention, numerics::float32, bf16, D>(p, work, w, 1e-6, std::span(&segment, 1), x,
                                                       y.as(rows, m.hidden_size));
  });
  std::printf("%-58s %9.4f   workspace %.2f GB\n", name, ms, double(work.high_water()) * 1e-9);
  (void)c;
}

/// One document, forward and backward with the gradients of all weights.
void bench_attention_training(const exec::cuda& p, attention_kind kind, std::int64_t rows, const char* name) {
  pool a{p, {}};
  const auto w = make_attention(a, kind);
  const auto gradients = make_attention(a, kind);
  const auto x = a.take(rows, m.hidden_size), dy = a.take(rows, m.hidden_size);
  device_buffer<bf16> y(rows * m.hidden_size), dx(rows * m.hidden_size);
  device_workspace work(std::size_t{6} << 30), kept(std::size_t{2} << 30);
  const attention_segment<bf16, D> segment{nullptr, 0, 0, rows};
  const std::span segments(&segment, 1);
  const auto context = attention_context<bf16, D>::take(kept, m.attention, kind, {}, segments, rows);
  const auto forward = [&] {
    attention<m.attention, numerics::float32, bf16, D>(p, work, w, 1e-6, segments, x,
                                                       y.as(rows, m.hidden_size), &context);
  };
  const auto backward = [&] {
    attention_backward<m.attention, numerics::float32, bf16, D>(p, work, w, 1e-6, segments, x, context, dy,
                                                                gradients, dx.as(rows, m.hidden_size));
  };
  const double f = milliseconds(p, forward, 7), both = milliseconds(
                                                    p,
                                                    [&] {
                                                      forward();
                                                      backward();
                                                    },
                                                    7);
  line(std::string(name) + ", keeping for backward", f);
  line(std::string(name) + ", forward and backward", both);
}

using moe_weights = moe_parameters<bf16, numerics::float32, D>;

/// Without biases, which would send all tokens to the same experts.
moe_weights make_moe(pool& a) {
  constexpr moe_config c = m.moe;
  const std::int64_t d = m.hidden_size, inner = c.moe_intermediate_size, count = c.n_routed_experts;
  moe_weights w;
  w.gate = a.take(count, d);
  a.all.push_back(random<bf16>(a.p, count, 0)), w.gate_bias = a.all.back().as(count);
  w.experts.w1 = a.take(count, inner, d), w.experts.w3 = a.take(count, inner, d),
  w.experts.w2 = a.take(count, d, inner);
  w.shared_w1 = a.take(inner, d), w.shared_w3 = a.take(inner, d), w.shared_w2 = a.take(d, inner);
  return w;
}

void bench_moe(const exec::cuda& p, std::int64_t rows) {
  const std::int64_t d = m.hidden_size;
  pool a{p, {}};
  const auto w = make_moe(a);
  const auto x = random<bf16>(p, rows * d);
  device_buffer<bf16> y(rows * d);
  device_workspace work(std::size_t{2} << 30);
  const double ms = milliseconds(
      p, [&] { moe<m.moe, numerics::float32, bf16, D>(p, work, w, {}, x.as(rows, d), y.as(rows, d)); });
  line("moe bf16, T = " + std::to_string(rows), ms);
}

void bench_moe_released(const exec::cuda& p) {
  constexpr moe_config c = m.moe;
  const std::int64_t d = m.hidden_size, inner = c.moe_intermediate_size, count = c.n_routed_experts;
  pool a{p, {}};
  random_matrices<mxfp4> fp4(p);
  random_matrices<fp8_weight> fp8(p);
  moe_parameters<bf16, numerics::v4_released, D> w;
  w.gate = a.take(count, d);
  a.all.push_back(random<bf16>(p, count, 0)), w.gate_bias = a.all.back().as(count);
  // Variance 1 / columns.
  const float of_d = float(std::sqrt(3.0 / double(d))), of_inner = float(std::sqrt(3.0 / double(inner)));
  w.experts.w1 = fp4.take(count, inner, d, of_d), w.experts.w3 = fp4.take(count, inner, d, of_d),
  w.experts.w2 = fp4.take(count, d, inner, of_inner);
  w.shared_w1 = fp8.take(inner, d, of_d), w.shared_w3 = fp8.take(inner, d, of_d),
  w.shared_w2 = fp8.take(d, inner, of_inner);
  device_workspace work(std::size_t{2} << 30);
  for (const std::int64_t rows : {4096, 1}) {
    const auto x = random<bf16>(p, rows * d);
    device_buffer<bf16> y(rows * d);
    const double ms = milliseconds(
        p, [&] { moe<m.moe, numerics::v4_released, bf16, D>(p, work, w, {}, x.as(rows, d), y.as(rows, d)); });
    line("moe released, T = " + std::to_string(rows), ms);
  }
}

/// Forward as it is in training, and backward with the gradients of all weights.
void bench_moe_training(const exec::cuda& p, std::int64_t rows) {
  const std::int64_t d = m.hidden_size;
  pool a{p, {}};
  const auto w = make_moe(a);
  const auto gradients = make_moe(a);
  const auto x = random<bf16>(p, rows * d), dy = random<bf16>(p, rows * d);
  device_buffer<bf16> y(rows * d), dx(rows * d);
  device_workspace work(std::size_t{4} << 30), kept(std::size_t{1} << 30);
  const auto context = moe_context<bf16, D>::take(kept, m.moe, rows);
  const auto forward = [&] {
    moe<m.moe, numerics::float32, bf16, D>(p, work, w, {}, x.as(rows, d), y.as(rows, d), &context);
  };
  const double f = milliseconds(p, forward, 7),
               both = milliseconds(
                   p,
                   [&] {
                     forward();
                     moe_backward<m.moe, numerics::float32, bf16, D>(
                         p, work, w, x.as(rows, d), context, dy.as(rows, d), gradients, dx.as(rows, d));
                   },
                   7);
  line("moe bf16, T = " + std::to_string(rows) + ", keeping for backward", f);
  line("moe bf16, T = " + std::to_string(rows) + ", forward and backward", both);
}

void bench_site(const exec::cuda& p, std::int64_t rows) {
  const std::int64_t n = 4, d = m.hidden_size;
  pool a{p, {}};
  hyper_connection_parameters<bf16, D> w;
  w.fn = a.take(24, n * d), w.base = a.take(24), w.scale = a.take(3);
  const vector_view<bf16, D> norm = a.take(d);
  const auto x = a.take(rows, n, d);
  device_workspace work(std::size_t{1} << 30);
  const double ms = milliseconds(p, [&] {
    hyper_connection_site<m.hyper_connection, bf16, D>(p, work, w, norm, 1e-6, x, [](auto, auto) {});
  });
  line("hyper_connection_site, T = " + std::to_string(rows), ms);
  hyper_connection_parameters<bf16, D> gradients;
  gradients.fn = a.take(24, n * d), gradients.base = a.take(24), gradients.scale = a.take(3);
  const vector_view<bf16, D> dnorm = a.take(d);
  const auto next = a.take(rows, n, d), dx = a.take(rows, n, d);
  const hyper_connection_context<bf16, D> kept{a.take(rows, 24), a.take(rows, d)};
  const double both = milliseconds(p, [&] {
    hyper_connection_site<m.hyper_connection, bf16, D>(p, work, w, norm, 1e-6, x, next, kept,
                                                       [](auto, auto) {});
    hyper_connection_site_backward<m.hyper_connection, bf16, D>(p, work, w, norm, 1e-6, x, kept, dx,
                                                                gradients, dnorm, [](auto, auto, auto) {});
  });
  line("hyper_connection_site, T = " + std::to_string(rows) + ", forward and backward", both);
}

}  // namespace

int main() {
  const exec::cuda p;
  const ceilings c = ceilings::measure(p);
  bench_attention(p, c, attention_kind::csa, 4096, 0, "attention CSA, T = 4096");
  bench_attention(p, c, attention_kind::hca, 4096, 0, "attention HCA, T = 4096");
  bench_attention(p, c, attention_kind::sliding, 4096, 0, "attention SWA, T = 4096");
  bench_attention(p, c, attention_kind::csa, 1, 65536, "attention CSA, decode at 64K");
  bench_attention(p, c, attention_kind::hca, 1, 65536, "attention HCA, decode at 64K");
  bench_attention(p, c, attention_kind::csa, 1, 1000000, "attention CSA, decode at 1M");
  bench_attention_training(p, attention_kind::csa, 4096, "attention CSA, T = 4096");
  bench_attention_training(p, attention_kind::hca, 4096, "attention HCA, T = 4096");
  bench_moe(p, 4096);
  bench_moe(p, 1);
  bench_moe_released(p);
  bench_moe_training(p, 4096);
  bench_site(p, 4096);
}
