// SPDX-License-Identifier: Apache-2.0
/// Vectors of gradients, losses and optimisers. Upstream gradients are given; those of parameters start at 0.
#pragma once

#include "workbench.hpp"
#include <dsv4/train/adamw.hpp>
#include <dsv4/train/muon.hpp>

#include <cmath>

namespace conformance {

template <class F>
void for_each_row_gradient_vector(const F& f) {
  f("rms_norm.gradient", "dx and dweight", {}, [](auto& b) {
    using T = scalar_of<decltype(b)>;
    const auto x = b.random("x", 2, 4, 18);
    const auto weight = b.random("weight", 1, 18);
    const auto dy = b.random("dy", 1, 4, 18);
    b.next("back");
    dsv4::rms_norm<T>::backward(b.policy, b.scratch, {x, weight, 1e-6}, {dy}, {b.out(4, 18), b.out(18)});
  });
  f("rope.gradient", "the gradient turns the other way", {"4", "5"}, [](auto& b) {
    using T = scalar_of<decltype(b)>;
    const auto table = b.table("window", 8, 10000, no_yarn);
    b.next("back");
    dsv4::rope<T>::backward(b.policy, b.scratch, {table, 3}, {b.random("dy", 1, 5, 2, 20)},
                            {b.out(5, 2, 20)});
  });
  f("hadamard.gradient", "the transform is its own adjoint", {"22"}, [](auto& b) {
    using T = scalar_of<decltype(b)>;
    b.next("back");
    dsv4::hadamard<T>::backward(b.policy, b.scratch, {}, {b.random("dy", 1, 3, 16)}, {b.out(3, 16)});
  });
  f("embedding.gradient", "rows of tokens that occur twice add up, over streams too", {"63"}, [](auto& b) {
    using T = scalar_of<decltype(b)>;
    const auto tokens = b.integers(
        "tokens", [](std::int64_t i) { return i == 3 ? 1 : i + 1; }, 4);
    const auto table = b.random("table", 1, 6, 5);
    const auto dx = b.random("dx", 1, 4, 2, 5);
    b.next("back");
    dsv4::embedding<T>::backward(b.policy, b.scratch, {tokens, table}, {dx}, {b.out(6, 5)});
  });
  f("linear.gradient", "dx and dweight", {}, [](auto& b) {
    using T = scalar_of<decltype(b)>;
    const auto x = b.random("x", 1, 3, 7);
    const auto weight = b.random("weight", 1, 5, 7);
    const auto dy = b.random("dy", 1, 3, 5);
    b.next("back");
    dsv4::linear<T>::backward(b.policy, b.scratch, {x, weight}, {dy}, {b.out(3, 7), b.out(5, 7)});
  });
  f("linear.groups_gradient", "dx and dweight of wo_a", {"56"}, [](auto& b) {
    using T = scalar_of<decltype(b)>;
    const auto x = b.random("x", 1, 3, 2, 9);
    const auto weight = b.random("weight", 1, 2, 4, 9);
    const auto dy = b.random("dy", 1, 3, 2, 4);
    b.next("back");
    dsv4::batched_linear<T>::backward(b.policy, b.scratch, {x, weight}, {dy},
                                      {b.out(3, 2, 9), b.out(2, 4, 9)});
  });
  f("compress_pool.gradient", "tokens of two entries; the last tokens are of none and get 0", {"12"},
    [](auto& b) {
      using T = scalar_of<decltype(b)>;
      const auto kv = b.random("kv", 1, 13, 12);
      const auto gate = b.random("gate", 2, 13, 12);
      const auto bias = b.random("ape", 1, 4, 12);
      const auto dy = b.random("dy", 1, 3, 6);
      b.next("back");
      dsv4::compress_pool<T>::backward(b.policy, b.scratch, {kv, gate, bias, 0, 0, true}, {dy},
                                       {b.out(13, 12), b.out(13, 12), b.out(4, 12)});
    });
}

template <class F>
void for_each_attention_gradient_vector(const F& f) {
  const auto attention = [](auto& b, std::int64_t rows, std::int64_t position, std::int64_t window,
                            std::int64_t ratio, dsv4::matrix_view<const std::int32_t> selected) {
    using T = scalar_of<decltype(b)>;
    const std::int64_t oldest = std::max<std::int64_t>(0, position - window + 1);
    const auto q = b.random("q", 1, rows, 2, 6);
    const auto dout = b.random("do", 1, rows, 2, 6);
    const auto local = b.random("local", 1, position + rows - oldest, 6);
    const auto sinks = b.random("sinks", 1, 2);
    dsv4::matrix_view<T> entries;
    if (ratio) entries = b.random("compressed", 1, (position + rows) / ratio, 6);
    const auto o = b.out(rows, 2, 6);
    const auto lse = b.out(rows, 2);
    const typename dsv4::sparse_attention<T>::inputs in{
        q, local, entries, selected, sinks, position, oldest, window, ratio, 1 / std::sqrt(6.0)};
    b.next("attention");
    dsv4::sparse_attention<T>::forward(b.policy, in, {o}, {lse, {}});
    b.next("back");
    dsv4::matrix_view<T> dentries;
    if (ratio) dentries = b.out(entries.extent[0], 6);
    dsv4::sparse_attention<T>::backward(b.policy, b.scratch, in, {lse, o}, {dout},
                                        {b.out(rows, 2, 6), b.out(local.extent[0], 6), dentries, b.out(2)});
  };
  f("sparse_attention.gradient", "dq, dk = dv of window and entries, of entries selected often, dsinks",
    {"5", "33", "63"}, [=](auto& b) {
      const auto selected = b.integers(
          "selected",
          [](std::int64_t i) {
            constexpr int rows[10] = {0, 2, 1, 2, 0, 2, 2, -1, 2, 3};
            return rows[i];
          },
          5, 2);
      attention(b, 5, 12, 4, 4, selected);
    });
  f("sparse_attention.gradient_window", "the same without entries, from the first token on",
    {"5", "33", "34"}, [=](auto& b) { attention(b, 6, 0, 3, 0, {}); });
  const auto divergence = [](auto& b, bool sparse) {
    using T = scalar_of<decltype(b)>;
    const auto q = b.random("q", 2, 5, 2, 6);
    const auto index_q = b.random("index_q", 4, 5, 3, 4);
    const auto entries = b.random("compressed", 2, 5, 6);
    const auto keys = b.random("index_keys", 2, 5, 4);
    const auto weights = b.random("index_weights", 1, 5, 3);
    const auto sinks = b.random("sinks", 1, 2);
    const auto dloss = b.random("dloss", 1, 5);
    dsv4::matrix_view<std::int32_t> selected;
    if (sparse)
      selected = b.integers(
          "selected",
          [](std::int64_t i) {
            constexpr int rows[15] = {0, 1, 2, 0, 2, 3, 3, 1, -1, -1, -1, -1, 4, 1, 0};
            return rows[i];
          },
          5, 3);
    const typename dsv4::indexer_loss<T>::inputs in{q,
                                                    entries,
                                                    sinks,
                                                    index_q,
                                                    keys,
                                                    weights,
                                                    selected,
                                                    15,
                                                    4,
                                                    1 / std::sqrt(6.0),
                                                    1 / std::sqrt(12.0),
                                                    sparse};
    b.next("divergence");
    dsv4::indexer_loss<T>::forward(b.policy, in, {b.out(5)});
    b.next("back");
    dsv4::indexer_loss<T>::backward(b.policy, b.scratch, in, {dloss},
                                    {b.out(5, 3, 4), b.out(5, 4), b.out(5, 3)});
  };
  f("indexer_loss.dense", "over all visible entries; the gradient that trains the indexer",
    {"60", "61", "62"}, [=](auto& b) { divergence(b, false); });
  f("indexer_loss.sparse", "over selected entries; the teacher's softmax holds the sink",
    {"33", "60", "61", "62"}, [=](auto& b) { divergence(b, true); });
}

template <class F>
void for_each_stream_gradient_vector(const F& f) {
  const auto gates = [](auto& b, auto base, double upstream) {
    using T = scalar_of<decltype(b)>;
    const auto x = b.random("x", 2, 3, 4, 5);
    const auto z = b.random("z", 2, 3, 24);
    const auto scale = b.values("scale", {0.75, 1.25, 0.5}, 3);
    const auto dpre = b.random("dpre", upstream, 3, 4);
    const auto dpost = b.random("dpost", upstream, 3, 4);
    const auto dcomb = b.random("dcomb", upstream, 3, 4, 4);
    b.next("back");
    dsv4::hyper_connection_gates<T>::backward(b.policy, b.scratch, {x, z, base, scale, 1e-6, 1e-6, 20},
                                              {dpre, dpost, dcomb},
                                              {b.out(3, 4, 5), b.out(3, 24), b.out(24), b.out(3)});
  };
  f("hyper_connection_gates.gradient", "back through twenty unrolled passes", {"42"},
    [=](auto& b) { gates(b, b.random("base", 1, 24), 1); });
  f("hyper_connection_gates.gradient_large", "upstream of 16384 at nearly a permutation: finite", {"42"},
    [=](auto& b) {
      const auto base = b.given(
          "base",
          [](std::int64_t i) {
            if (i < 8) return 0.25 * double(i) - 1;
            return (i - 8) % 4 == ((i - 8) / 4 + 1) % 4 ? 8.0 : -8.0;
          },
          24);
      gates(b, base, 16384);
    });
  f("hyper_connection_collapse.gradient", "dx is added to, dpre", {}, [](auto& b) {
    using T = scalar_of<decltype(b)>;
    const auto x = b.random("x", 2, 3, 4, 5);
    const auto pre = b.random("pre", 1, 3, 4);
    const auto du = b.random("du", 1, 3, 5);
    b.next("back");
    dsv4::hyper_connection_collapse<T>::backward(b.policy, b.scratch, {x, pre}, {du},
                                                 {b.out(3, 4, 5), b.out(3, 4)});
  });
  f("hyper_connection_expand.gradient", "dx = comb dX', dv, dpost, dcomb", {"38"}, [](auto& b) {
    using T = scalar_of<decltype(b)>;
    const auto x = b.random("x", 2, 3, 4, 5);
    const auto v = b.random("v", 1, 3, 5);
    const auto post = b.random("post", 1, 3, 4);
    const auto comb = b.random("comb", 1, 3, 4, 4);
    const auto dy = b.random("dy", 1, 3, 4, 5);
    b.next("back");
    dsv4::hyper_connection_expand<T>::backward(b.policy, b.scratch, {x, v, post, comb}, {dy},
                                               {b.out(3, 4, 5), b.out(3, 5), b.out(3, 4), b.out(3, 4, 4)});
  });
  f("swiglu.gradient", "0 beyond the limit, and at the limit of 10 itself it flows", {"43"}, [](auto& b) {
    using T = scalar_of<decltype(b)>;
    b.to().steady = true;
    const auto gate = b.values("gate", {20, -20, 10, 10.0625, 9.9375, -3, 2, 20, 0.5, -10}, 2, 5);
    const auto up = b.values("up", {20, 20, -10, -10.0625, 9.9375, -20, 10, 0.5, -3, 12}, 2, 5);
    const auto weight = b.values("row_weight", {0.75, 1.5}, 2);
    const auto dh = b.random("dh", 1, 2, 5);
    b.next("back");
    dsv4::swiglu<T>::backward(b.policy, b.scratch, {gate, up, weight, 10}, {dh},
                              {b.out(2, 5), b.out(2, 5), b.out(2)});
  });
  f("route.gradient", "weights pass a gradient to the chosen logits; the bias has none", {"45", "49"},
    [](auto& b) {
      using T = scalar_of<decltype(b)>;
      const auto logits = b.values(
          "logits", {1.5, -2, 0.25, 3, -30, -31, -32, -60, 60, 20, -20, 0, 0.5, 0.625, -0.5, 1}, 4, 4);
      const auto bias = b.values("bias", {0.5, -0.5, 0, 0.25}, 4);
      const auto dweights = b.random("dweights", 1, 4, 2);
      const auto experts = b.template array<std::int32_t>(4, 2);
      b.next("routed");
      dsv4::route<T>::forward(b.policy, {logits, bias, {}, {}, 1.5}, {experts, b.out(4, 2)});
      b.next("back");
      dsv4::route<T>::backward(b.policy, b.scratch, {logits, bias, {}, {}, 1.5}, {experts}, {dweights},
                               {b.out(4, 4)});
    });
  f("experts.gradient", "dx and dweight of products sorted by expert", {"63"}, [](auto& b) {
    using T = scalar_of<decltype(b)>;
    const auto x = b.random("x", 1, 6, 3);
    const auto weight = b.random("weight", 1, 3, 4, 3);
    const auto dy = b.random("dy", 1, 6, 4);
    const auto offsets = b.template integers<std::int64_t>(
        "offsets",
        [](std::int64_t i) {
          constexpr int rows[4] = {0, 4, 4, 6};
          return rows[i];
        },
        4);
    b.next("back");
    dsv4::grouped_linear<T>::backward(b.policy, b.scratch, {x, offsets, weight}, {dy},
                                      {b.out(6, 3), b.out(3, 4, 3)});
  });
  f("cross_entropy.gradient", "the loss of row t is that of the token after it; a masked row has none",
    {"65"}, [](auto& b) {
      using T = scalar_of<decltype(b)>;
      const auto hidden = b.random("hidden", 1, 4, 5);
      const auto head = b.random("head", 1, 7, 5);
      const auto targets = b.integers(
          "targets", [](std::int64_t i) { return i == 2 ? -1 : 2 * i; }, 4);
      const auto dloss = b.random("dloss", 1, 4);
      const auto lse = b.out(4);
      b.next("loss");
      dsv4::cross_entropy<T>::forward(b.policy, b.scratch, {hidden, head, targets}, {b.out(4)}, {lse});
      b.next("back");
      dsv4::cross_entropy<T>::backward(b.policy, b.scratch, {hidden, head, targets}, {lse}, {dloss},
                                       {b.out(4, 5), b.out(7, 5)});
    });
}

template <class F>
void for_each_optimizer_vector(const F& f) {
  const auto step = [](auto& b, std::int64_t rows, std::int64_t columns) {
    using T = scalar_of<decltype(b)>;
    const auto weight = b.random("weight", 1, rows, columns);
    const auto gradient = b.random("gradient", 1, rows, columns);
    const auto momentum = b.random("momentum", 1, rows, columns);
    node n{"muon",
           {{"weight", "weight"}, {"gradient", "gradient"}, {"momentum", "momentum"}},
           {},
           {{"learning_rate", 0.5},
            {"momentum", 0.95},
            {"nesterov", true},
            {"weight_decay", 0.1},
            {"rms", 0.18},
            {"epsilon", 1e-7}}};
    for (const auto& s : dsv4::newton_schulz_hybrid) n.parameters["steps"].push_back({s.a, s.b, s.c});
    const dsv4::muon_matrix<T> matrix{weight, gradient, momentum};
    dsv4::muon(b.policy.inner, b.scratch, std::span<const dsv4::muon_matrix<T>>(&matrix, 1), 0.5);
    b.next("stepped");
    b.to().output(n, "weight", weight, "row channel", comparison::scaled);
    b.to().output(n, "momentum", momentum, "row channel", comparison::scaled);
    b.to().nodes.push_back(std::move(n));
  };
  f("muon.wide", "momentum, ten Newton-Schulz steps, an update of RMS 0.18", {"64"},
    [=](auto& b) { step(b, 4, 9); });
  f("muon.tall", "the same of a tall matrix", {"64"}, [=](auto& b) { step(b, 10, 3); });
  f("adamw.step", "the third step, decoupled decay, corrected moments", {"64"}, [](auto& b) {
    using T = scalar_of<decltype(b)>;
    const auto gradient = b.random("gradient", 1, 6);
    const auto weight = b.random("weight", 1, 6);
    const auto first = b.random("first", 1, 6);
    const auto second = b.given(
        "second", [](std::int64_t i) { return double(i + 1) / 16; }, 6);
    node n{"adamw",
           {{"gradient", "gradient"}, {"weight", "weight"}, {"first", "first"}, {"second", "second"}},
           {},
           {{"learning_rate", 0.25},
            {"step", 3},
            {"beta1", 0.9},
            {"beta2", 0.95},
            {"epsilon", 1e-20},
            {"weight_decay", 0.1}}};
    dsv4::adamw<T>::forward(b.policy, {gradient, 0.25, 3}, {weight, first, second});
    b.next("stepped");
    b.to().output(n, "weight", weight, "channel", comparison::scaled);
    b.to().output(n, "first", first, "channel", comparison::scaled);
    b.to().output(n, "second", second, "channel", comparison::scaled);
    b.to().nodes.push_back(std::move(n));
  });
}

template <class F>
void for_each_training_vector(const F& f) {
  for_each_row_gradient_vector(f);
  for_each_attention_gradient_vector(f);
  for_each_stream_gradient_vector(f);
  for_each_optimizer_vector(f);
}

}  // namespace conformance
