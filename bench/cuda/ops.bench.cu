// SPDX-License-Identifier: Apache-2.0
/// The ops by themselves, at the shapes of V4-Flash and V4-Pro.
#include "support/device.cuh"

#include <cstring>

using namespace dsv4;
using namespace dsv4::bench;

namespace {

void bench_sparse_attention(const exec::cuda& p, const ceilings& c, std::int64_t rows, std::int64_t heads,
                            std::int64_t first, std::int64_t ratio, std::int64_t k, const char* name) {
  const std::int64_t d = 512, window = 128, oldest = std::max<std::int64_t>(0, first - window + 1);
  const std::int64_t locals = first + rows - oldest, entries = ratio ? (first + rows) / ratio : 1;
  const auto q = random<bf16>(p, rows * heads * d), local = random<bf16>(p, locals * d),
             compressed = random<bf16>(p, entries * d), sinks = random<bf16>(p, heads);
  device_buffer<bf16> o(rows * heads * d);
  buffer<std::int32_t> chosen(rows * std::max<std::int64_t>(k, 1));
  double keys = 0;
  for (std::int64_t t = 0; t < rows; ++t) {
    const std::int64_t visible = ratio ? (first + t + 1) / ratio : 0;
    for (std::int64_t j = 0; j < k; ++j)  // spread over all that is visible
      chosen[t * k + j] = j < visible ? std::int32_t(visible > k ? j * visible / k : j) : -1;
    keys += double(std::min(window, first + t + 1) + (k ? std::min(k, visible) : visible));
  }
  const auto selected = to_device(p.stream(), chosen);
  const double ms = milliseconds(p, [&] {
    sparse_attention<bf16, D>::forward(p,
                                       {q.as(rows, heads, d), local.as(locals, d), compressed.as(entries, d),
                                        k ? selected.as(rows, k) : matrix_view<const std::int32_t, D>{},
                                        sinks.as(heads), first, oldest, window, ratio, 0.044},
                                       {o.as(rows, heads, d)});
  });
  c.report(std::string("sparse_attention ") + name, ms, 4.0 * keys * double(heads * d),
           2.0 * 2 * double(rows * heads * d));
}

void bench_sparse_attention_backward(const exec::cuda& p, const ceilings& c, std::int64_t rows,
                                     std::int64_t heads, std::int64_t ratio, std::int64_t k,
                                     const char* name) {
  const std::int64_t d = 512, entries = ratio ? rows / ratio : 1;
  const auto q = random<bf16>(p, rows * heads * d), local = random<bf16>(p, rows * d),
             compressed = random<bf16>(p, entries * d), sinks = random<bf16>(p, heads),
             o = random<bf16>(p, rows * heads * d), up = random<bf16>(p, rows * heads * d);
  auto lse = random<float>(p, rows * heads);
  device_buffer<bf16> dq(rows * heads * d), dlocal(rows * d), dcompressed(entries * d), dsinks(heads);
  buffer<std::int32_t> chosen(rows * std::max<std::int64_t>(k, 1));
  double keys = 0;
  for (std::int64_t t = 0; t < rows; ++t) {
    const std::int64_t visible = ratio ? (t + 1) / ratio : 0;
    for (std::int64_t j = 0; j < k; ++j)
      chosen[t * k + j] = j < visible ? std::int32_t(visible > k ? j * visible / k : j) : -1;
    keys += double(std::min<std::int64_t>(128, t + 1) + (k ? std::min(k, visible) : visible));
  }
  const auto selected = to_device(p.stream(), chosen);
  device_workspace w(std::size_t{1} << 30);
  const double ms = milliseconds(p, [&] {
    sparse_attention<bf16, D>::backward(
        p, w,
        {q.as(rows, heads, d), local.as(rows, d), compressed.as(entries, d),
         k ? selected.as(rows, k) : matrix_view<const std::int32_t, D>{}, sinks.as(heads), 0, 0, 128, ratio,
         0.044},
        {lse.as(rows, heads), o.as(rows, heads, d)}, {up.as(rows, heads, d)},
        {dq.as(rows, heads, d), dlocal.as(rows, d), dcompressed.as(entries, d), dsinks.as(heads)});
  });
  c.report(std::string("sparse_attention backward ") + name, ms, 10.0 * keys * double(heads * d),
           2.0 * 4 * double(rows * heads * d));
}

void bench_index_topk(const exec::cuda& p, const ceilings& c, std::int64_t rows, std::int64_t first,
                      std::int64_t k, const char* name) {
  const std::int64_t heads = 64, width = 128, entries = (first + rows) / 4;
  const auto q = random<bf16>(p, rows * heads * width), keys = random<bf16>(p, entries * width),
             weights = random<bf16>(p, rows * heads);
  device_buffer<std::int32_t> selected(rows * k);
  double pairs = 0;
  for (std::int64_t t = 0; t < rows; ++t) pairs += double((first + t + 1) / 4);
  const double ms = milliseconds(p, [&] {
    index_topk<bf16, D>::forward(
        p, {q.as(rows, heads, width), keys.as(entries, width), weights.as(rows, heads), first, 4},
        {selected.as(rows, k)});
  });
  c.report(std::string("index_topk ") + name, ms, pairs * 2 * double(heads * width),
           2.0 * double(rows * heads * width + entries * width));
}

/// Offsets of `rows` rows that are spread over `count` experts, from expert `first` on.
device_buffer<std::int64_t> even_offsets(const exec::cuda& p, std::int64_t rows, std::int64_t count,
                                         std::int64_t first = 0) {
  buffer<std::int64_t> b(count + 1);
  const std::int64_t used = std::min(rows, count);
  for (std::int64_t e = 0; e <= count; ++e)
    b[e] = std::clamp<std::int64_t>(e - first % (count - used + 1), 0, used) * rows / used;
  return to_device(p.stream(), b);
}

void bench_grouped(const exec::cuda& p, const ceilings& c, std::int64_t rows, std::int64_t inner,
                   std::int64_t columns) {
  const std::int64_t count = 256, used = std::min(count, rows);
  const int calls = rows < 1000 ? 16 : 1;  // few rows: other experts in every call
  std::vector<device_buffer<std::int64_t>> offsets;
  for (int i = 0; i < calls; ++i) offsets.push_back(even_offsets(p, rows, count, i * used));
  const auto x = random<bf16>(p, rows * inner);
  device_buffer<bf16> y(rows * columns);
  const std::string shape =
      std::to_string(rows) + " rows, 256 x (" + std::to_string(columns) + " x " + std::to_string(inner) + ")";
  const double operations = 2.0 * double(rows * inner * columns), io = 2.0 * double(rows * (inner + columns));
  {
    const auto w = random<bf16>(p, count * columns * inner);
    const double ms = milliseconds(
        p,
        [&](int i) {
          grouped_linear<bf16, D>::forward(
              p, {x.as(rows, inner), offsets[i].as(count + 1), w.as(count, columns, inner)},
              {y.as(rows, columns)});
        },
        15, calls);
    c.report("grouped_linear bf16 " + shape, ms, operations, io + 2.0 * double(used * inner * columns));
  }
  random_matrices<mxfp4> narrow(p);
  random_matrices<fp8_activation> narrow_inputs(p);
  const auto w = narrow.take(count, columns, inner);
  const auto narrow_x = narrow_inputs.take(rows, inner);
  const auto stored = [&]<class X>(const storage_matrix<const X, D>& in, const char* name, double x_bytes) {
    const double ms = milliseconds(
        p,
        [&](int i) {
          grouped_linear<bf16, D, mxfp4, X>::forward(p, {in, offsets[i].as(count + 1), w},
                                                     {y.as(rows, columns)});
        },
        15, calls);
    c.report(name + shape, ms, operations,
             double(rows) * (x_bytes * double(inner) + 2.0 * double(columns)) +
                 0.53125 * double(used * inner * columns));
  };
  stored.template operator()<bf16>(x.as(rows, inner), "grouped_linear mxfp4, x bf16 ", 2);
  stored.template operator()<fp8_activation>(narrow_x, "grouped_linear mxfp4, x fp8 ", 1);
}

/// dx and dweight apart: each reads or writes all experts' matrices once, dweight reads and writes its own.
void bench_grouped_backward(const exec::cuda& p, const ceilings& c, std::int64_t rows, std::int64_t inner,
                            std::int64_t columns) {
  const std::int64_t count = 256, used = std::min(count, rows);
  const auto offsets = even_offsets(p, rows, count);
  const auto x = random<bf16>(p, rows * inner), dy = random<bf16>(p, rows * columns),
             w = random<bf16>(p, count * columns * inner);
  device_buffer<bf16> dx(rows * inner);
  device_workspace work(std::size_t{1} << 20);
  const std::string shape =
      std::to_string(rows) + " rows, 256 x (" + std::to_string(columns) + " x " + std::to_string(inner) + ")";
  const double operations = 2.0 * double(rows * inner * columns), io = 2.0 * double(rows * (inner + columns)),
               matrices = 2.0 * double(used * inner * columns);
  const auto dx_of = [&](auto weight, bool add) {
    using W =
        std::conditional_t<std::is_same_v<decltype(weight), block_scaled_stack<const mxfp4, D>>, mxfp4, bf16>;
    return milliseconds(p, [&] {
      grouped_linear<bf16, D, W>::backward(p, work, {x.as(rows, inner), offsets.as(count + 1), weight},
                                           {dy.as(rows, columns)}, {dx.as(rows, inner), {}, add});
    });
  };
  const tensor_view<const bf16, D> weight = w.as(count, columns, inner);
  c.report("grouped_linear dx " + shape, dx_of(weight, false), operations, io + matrices);
  c.report("grouped_linear dx added " + shape, dx_of(weight, true), operations,
           io + matrices + 2.0 * double(rows * inner));
  {
    random_matrices<mxfp4> narrow(p);
    c.report("grouped_linear dx mxfp4 " + shape, dx_of(narrow.take(count, columns, inner), false), operations,
             io + 0.265625 * matrices);
  }
  auto dweight = random<bf16>(p, count * columns * inner);
  const double ms = milliseconds(p, [&] {
    grouped_linear<bf16, D>::backward(p, work, {x.as(rows, inner), offsets.as(count + 1), weight},
                                      {dy.as(rows, columns)}, {{}, dweight.as(count, columns, inner)});
  });
  c.report("grouped_linear dweight " + shape, ms, operations, io + 2 * matrices);
}

void bench_linear(const exec::cuda& p, const ceilings& c, std::int64_t rows, std::int64_t inner,
                  std::int64_t columns) {
  const int calls = rows < 100 ? 16 : 1;  // few rows: other weights in every call
  const auto x = random<bf16>(p, rows * inner), w = random<bf16>(p, calls * columns * inner);
  const auto weight = [&](int i) { return w.as(calls, columns, inner)[i]; };
  device_buffer<bf16> y(rows * columns);
  const std::string shape =
      std::to_string(rows) + " x " + std::to_string(inner) + " x " + std::to_string(columns);
  const double operations = 2.0 * double(rows * inner * columns), io = 2.0 * double(rows * (inner + columns));
  double ms = milliseconds(
      p,
      [&](int i) {
        linear<bf16, D>::forward(p, {x.as(rows, inner), weight(i)}, {y.as(rows, columns)});
      },
      15, calls);
  c.report("linear bf16 (cuBLASLt) " + shape, ms, operations, io + 2.0 * double(inner * columns));
  ms = milliseconds(
      p,
      [&](int i) {
        const detail::gemm_problem<bf16, matrix_view<const bf16, D>, matrix_view<const bf16, D>> own{
            x.as(rows, inner), weight(i), y.as(rows, columns), nullptr, 0, 0, 1};
        if (!detail::launch_gemv(p, "linear", own)) detail::launch_gemm_sm90(p, "linear", own);
      },
      15, calls);
  c.report("linear bf16 (own) " + shape, ms, operations, io + 2.0 * double(inner * columns));
  random_matrices<fp8_weight> weights(p);
  std::vector<block_scaled_matrix<const fp8_weight, D>> narrow;
  for (int i = 0; i < calls; ++i) narrow.push_back(weights.take(columns, inner));
  ms = milliseconds(
      p,
      [&](int i) {
        linear<bf16, D, fp8_weight>::forward(p, {x.as(rows, inner), narrow[i]}, {y.as(rows, columns)});
      },
      15, calls);
  c.report("linear fp8 weight, x bf16 " + shape, ms, operations, io + double(inner * columns));
  random_matrices<fp8_activation> inputs(p);
  const auto narrow_x = inputs.take(rows, inner);
  ms = milliseconds(
      p,
      [&](int i) {
        linear<bf16, D, fp8_weight, fp8_activation>::forward(p, {narrow_x, narrow[i]}, {y.as(rows, columns)});
      },
      15, calls);
  c.report("linear fp8 weight, x fp8 " + shape, ms, operations,
           double(rows) * (double(inner) + 2.0 * double(columns)) + double(inner * columns));
}

void bench_hyper_connection(const exec::cuda& p, const ceilings& c, std::int64_t rows, std::int64_t width) {
  const std::int64_t n = 4, mixes = 24;
  const auto x = random<bf16>(p, rows * n * width), fn = random<bf16>(p, mixes * n * width, 0.01f),
             base = random<bf16>(p, mixes), scale = random<bf16>(p, 3), v = random<bf16>(p, rows * width);
  device_buffer<bf16> z(rows * mixes), pre(rows * n), post(rows * n), comb(rows * n * n), u(rows * width),
      out(rows * n * width);
  const std::string shape = std::to_string(rows) + " x 4 x " + std::to_string(width);
  const double stream = 2.0 * double(rows * n * width), one = 2.0 * double(rows * width);
  c.report("hyper_connection z " + shape,
           milliseconds(p,
                        [&] {
                          linear<bf16, D>::forward(p, {x.as(rows, n * width), fn.as(mixes, n * width)},
                                                   {z.as(rows, mixes)});
                        }),
           0, stream);
  c.report("hyper_connection_gates " + shape,
           milliseconds(p,
                        [&] {
                          hyper_connection_gates<bf16, D>::forward(
                              p,
                              {x.as(rows, n, width), z.as(rows, mixes), base.as(mixes), scale.as(3), 1e-6,
                               1e-6, 20},
                              {pre.as(rows, n), post.as(rows, n), comb.as(rows, n, n)});
                        }),
           0, stream);
  c.report("hyper_connection_collapse " + shape,
           milliseconds(p,
                        [&] {
                          hyper_connection_collapse<bf16, D>::forward(
                              p, {x.as(rows, n, width), pre.as(rows, n)}, {u.as(rows, width)});
                        }),
           0, stream + one);
  c.report(
      "hyper_connection_expand " + shape,
      milliseconds(p,
                   [&] {
                     hyper_connection_expand<bf16, D>::forward(
                         p, {x.as(rows, n, width), v.as(rows, width), post.as(rows, n), comb.as(rows, n, n)},
                         {out.as(rows, n, width)});
                   }),
      0, 2 * stream + one);

  device_buffer<bf16> dv(rows * width), dpost(rows * n), dcomb(rows * n * n), dx(rows * n * width),
      dfn(mixes * n * width), dbase(mixes), dscale(3), dnorm(width);
  const auto norm = random<bf16>(p, width), dnext = random<bf16>(p, rows * n * width);
  device_workspace w(std::size_t{256} << 20);
  const typename hyper_connection_fold<bf16, D>::inputs in{x.as(rows, n, width),
                                                           fn.as(mixes, n * width),
                                                           base.as(mixes),
                                                           scale.as(3),
                                                           norm.as(width),
                                                           1e-6,
                                                           1e-6,
                                                           20};
  c.report("hyper_connection_fold (z, gates, sum, norm) " + shape,
           milliseconds(p,
                        [&] {
                          hyper_connection_fold<bf16, D>::forward(
                              p, w, in, {u.as(rows, width), post.as(rows, n), comb.as(rows, n, n)},
                              {z.as(rows, mixes), {}, {}});
                        }),
           0, 2 * stream + one);
  c.report(
      "hyper_connection_reopen " + shape,
      milliseconds(
          p,
          [&] {
            hyper_connection_reopen<bf16, D>::forward(
                p, w, {in, z.as(rows, mixes), v.as(rows, width), dnext.as(rows, n, width)},
                {u.as(rows, width), dv.as(rows, width), dpost.as(rows, n), dcomb.as(rows, n, n), {}, {}, {}});
          }),
      0, 2 * stream + 3 * one);
  c.report("hyper_connection_fold backward " + shape,
           milliseconds(p,
                        [&] {
                          hyper_connection_fold<bf16, D>::backward(
                              p, w, in, {z.as(rows, mixes), {}, {}},
                              {u.as(rows, width), dpost.as(rows, n), dcomb.as(rows, n, n),
                               dnext.as(rows, n, width)},
                              {dx.as(rows, n, width), dfn.as(mixes, n * width), dbase.as(mixes), dscale.as(3),
                               dnorm.as(width)});
                        }),
           0, 4 * stream + 2 * one);
}

void bench_small(const exec::cuda& p, const ceilings& c, std::int64_t rows) {
  const std::int64_t d = 4096, heads = 64;
  const auto x = random<bf16>(p, rows * heads * 512), w = random<bf16>(p, d);
  device_buffer<bf16> y(rows * heads * 512);
  const std::string n = std::to_string(rows);
  c.report("rms_norm " + n + " x 4096",
           milliseconds(p,
                        [&] {
                          rms_norm<bf16, D>::forward(p, {x.as(rows, d), w.as(d), 1e-6}, {y.as(rows, d)});
                        }),
           0, 4.0 * double(rows * d));
  c.report(
      "rms_norm " + n + " x 64 heads of 512",
      milliseconds(
          p,
          [&] {
            rms_norm<bf16, D>::forward(p, {x.as(rows * heads, 512), {}, 1e-6}, {y.as(rows * heads, 512)});
          }),
      0, 4.0 * double(rows * heads * 512));
  rope_frequencies f{};
  f.pairs = 32;
  c.report("rope " + n + " x 64 heads",
           milliseconds(p,
                        [&] {
                          rope<bf16, D>::forward(p, {f, 0}, {y.as(rows, heads, 512)});
                        }),
           0, 4.0 * double(rows * heads * 64));
  c.report("swiglu " + n + " x 2048",
           milliseconds(p,
                        [&] {
                          swiglu<bf16, D>::forward(p, {x.as(6 * rows, 2048), x.as(6 * rows, 2048), {}, 10},
                                                   {y.as(6 * rows, 2048)});
                        }),
           0, 6.0 * double(6 * rows * 2048));
  const std::int64_t sorted_rows = 6 * rows;
  const auto wide = random<bf16>(p, 3 * sorted_rows * 2048), row_weight = random<bf16>(p, sorted_rows);
  device_buffer<bf16> dgate(sorted_rows * 2048), dup(sorted_rows * 2048), drow_weight(sorted_rows);
  device_workspace work(std::size_t{1} << 22);
  const auto third = [&](int i) { return wide.as(3 * sorted_rows, 2048).rows(i * sorted_rows, sorted_rows); };
  c.report("swiglu backward " + n + " x 6 x 2048",
           milliseconds(p,
                        [&] {
                          swiglu<bf16, D>::backward(
                              p, work, {third(0), third(1), row_weight.as(sorted_rows), 10}, {third(2)},
                              {dgate.as(sorted_rows, 2048), dup.as(sorted_rows, 2048),
                               drow_weight.as(sorted_rows)});
                        }),
           0, 10.0 * double(sorted_rows * 2048));
  device_buffer<std::uint8_t> codes(rows * d);
  device_buffer<e8m0> scales(rows * d / 128);
  c.report("quantise fp8_activation " + n + " x 4096",
           milliseconds(p,
                        [&] {
                          quantise<fp8_activation, bf16, D>::forward(
                              p, {x.as(rows, d)},
                              {block_scaled_matrix<fp8_activation, D>(codes.data(), scales.data(), rows, d)});
                        }),
           0, 3.0 * double(rows * d));
  const auto logits = random<bf16>(p, rows * 256), bias = random<bf16>(p, 256);
  device_buffer<std::int32_t> chosen(rows * 6);
  device_buffer<bf16> weights(rows * 6), sorted(rows * 6 * d), weight_sorted(rows * 6);
  device_buffer<std::int64_t> offsets(257), order(rows * 6), inverse(rows * 6);
  c.report("route " + n + " x 256",
           milliseconds(p,
                        [&] {
                          route<bf16, D>::forward(p, {logits.as(rows, 256), bias.as(256), {}, {}, 1.5},
                                                  {chosen.as(rows, 6), weights.as(rows, 6)});
                        }),
           0, 2.0 * double(rows * 256));
  c.report("expert_dispatch " + n + " x 6 x 4096",
           milliseconds(p,
                        [&] {
                          expert_dispatch<bf16, D>::forward(
                              p, {x.as(rows, d), chosen.as(rows, 6), weights.as(rows, 6)},
                              {offsets.as(257), order.as(rows * 6), sorted.as(rows * 6, d),
                               weight_sorted.as(rows * 6)});
                        }),
           0, 2.0 * double(rows * 7 * d));
  c.report("expert_combine " + n + " x 6 x 4096",
           milliseconds(p,
                        [&] {
                          expert_combine<bf16, D>::forward(
                              p, {sorted.as(rows * 6, d), order.as(rows * 6), x.as(rows, d)},
                              {y.as(rows, d), inverse.as(rows * 6)});
                        }),
           0, 2.0 * double(rows * 8 * d));
  c.report("expert_combine backward " + n + " x 6 x 4096",
           milliseconds(p,
                        [&] {
                          expert_combine<bf16, D>::backward(p, work, {{}, order.as(rows * 6), {}},
                                                            {x.as(rows, d)}, {sorted.as(rows * 6, d)});
                        }),
           0, 2.0 * double(rows * 7 * d));
  c.report("expert_dispatch backward " + n + " x 6 x 4096",
           milliseconds(p,
                        [&] {
                          expert_dispatch<bf16, D>::backward(
                              p, work, {x.as(rows, d), chosen.as(rows, 6), weights.as(rows, 6)},
                              {order.as(rows * 6)}, {sorted.as(rows * 6, d), weight_sorted.as(rows * 6)},
                              {y.as(rows, d), weights.as(rows, 6)});
                        }),
           0, 2.0 * double(rows * 7 * d));
  const auto kv = random<bf16>(p, rows * 1024), gate = random<bf16>(p, rows * 1024),
             ape = random<bf16>(p, 128 * 1024);
  c.report("compress_pool CSA " + n,
           milliseconds(p,
                        [&] {
                          compress_pool<bf16, D>::forward(
                              p, {kv.as(rows, 1024), gate.as(rows, 1024), ape.as(4, 1024), 0, 0, true},
                              {y.as(rows / 4, 512)});
                        }),
           0, 2.0 * double(rows * 2048 + rows / 4 * 512));
  c.report("compress_pool HCA " + n,
           milliseconds(p,
                        [&] {
                          compress_pool<bf16, D>::forward(
                              p, {kv.as(rows, 512), gate.as(rows, 512), ape.as(128, 512), 0, 0, false},
                              {y.as(rows / 128, 512)});
                        }),
           0, 2.0 * double(rows * 1024 + rows / 128 * 512));
}

}  // namespace

/// All, or the ops whose name has the argument in it.
int main(int argc, char** argv) {
  const exec::cuda p;
  const ceilings c = ceilings::measure(p);
  const auto wanted = [&](const char* op) { return argc < 2 || std::strstr(op, argv[1]); };
  if (wanted("sparse_attention")) {
    bench_sparse_attention(p, c, 4096, 64, 0, 4, 512, "Flash CSA, T = 4096");
    bench_sparse_attention(p, c, 4096, 64, 60000, 4, 512, "Flash CSA, T = 4096 at 60K");
    bench_sparse_attention(p, c, 4096, 64, 0, 128, 0, "Flash HCA, T = 4096");
    bench_sparse_attention(p, c, 4096, 64, 0, 0, 0, "Flash SWA, T = 4096");
    bench_sparse_attention(p, c, 4096, 128, 60000, 4, 1024, "Pro CSA, T = 4096 at 60K");
    bench_sparse_attention(p, c, 1, 64, 60000, 4, 512, "Flash CSA decode at 60K");
    bench_sparse_attention(p, c, 1, 64, 1000000, 128, 0, "Flash HCA decode at 1M");
    bench_sparse_attention_backward(p, c, 4096, 64, 4, 512, "Flash CSA, T = 4096");
    bench_sparse_attention_backward(p, c, 4096, 64, 128, 0, "Flash HCA, T = 4096");
    bench_sparse_attention_backward(p, c, 4096, 128, 4, 1024, "Pro CSA, T = 4096");
    const exec::cuda any_order(exec::cuda::options{.sums = exec::sum_order::any});
    bench_sparse_attention_backward(any_order, c, 4096, 64, 4, 512, "Flash CSA, sums in any order");
  }
  if (wanted("index_topk")) {
    bench_index_topk(p, c, 4096, 0, 512, "T = 4096, k 512");
    bench_index_topk(p, c, 2048, 14336, 512, "2048 at 14K, k 512");
    bench_index_topk(p, c, 1, 1000000, 512, "decode at 1M, k 512");
  }
  if (wanted("grouped_linear")) {
    bench_grouped(p, c, 24576, 4096, 2048);
    bench_grouped(p, c, 24576, 2048, 4096);
    bench_grouped(p, c, 6, 4096, 2048);
    bench_grouped(p, c, 6, 2048, 4096);
    bench_grouped(p, c, 48, 4096, 2048);
    bench_grouped(p, c, 384, 4096, 2048);
    bench_grouped_backward(p, c, 24576, 4096, 2048);
    bench_grouped_backward(p, c, 24576, 2048, 4096);
    bench_grouped_backward(p, c, 196608, 4096, 2048);
  }
  if (wanted("linear")) {
    bench_linear(p, c, 4096, 1024, 32768);
    bench_linear(p, c, 4096, 4096, 1024);
    bench_linear(p, c, 4096, 8192, 4096);
    bench_linear(p, c, 1, 4096, 4096);
    bench_linear(p, c, 1, 1024, 32768);
    bench_linear(p, c, 8, 4096, 4096);
  }
  if (wanted("hyper_connection")) {
    bench_hyper_connection(p, c, 4096, 4096);
  }
  if (wanted("small")) {
    bench_small(p, c, 4096);
  }
}
