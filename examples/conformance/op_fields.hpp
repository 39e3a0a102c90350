// SPDX-License-Identifier: Apache-2.0
/// The arguments of every op that the suite covers, under the names that files and manifest use.
#pragma once

#include "recorder.hpp"
#include <dsv4/ops/broadcast_add.hpp>
#include <dsv4/ops/compress_pool.hpp>
#include <dsv4/ops/cross_entropy.hpp>
#include <dsv4/ops/embedding.hpp>
#include <dsv4/ops/expert_dispatch.hpp>
#include <dsv4/ops/hadamard.hpp>
#include <dsv4/ops/hyper_connection.hpp>
#include <dsv4/ops/index_topk.hpp>
#include <dsv4/ops/indexer_loss.hpp>
#include <dsv4/ops/linear.hpp>
#include <dsv4/ops/quantise.hpp>
#include <dsv4/ops/rms_norm.hpp>
#include <dsv4/ops/rope.hpp>
#include <dsv4/ops/route.hpp>
#include <dsv4/ops/sparse_attention.hpp>
#include <dsv4/ops/swiglu.hpp>

#include <algorithm>
#include <cmath>

namespace conformance {

using dsv4::space;

template <class T, space S, class W>
struct describe<dsv4::embedding<T, S, W>> {
  static constexpr const char* name = "embedding";
  static constexpr bool has_backward = true;
  static void in(const auto& v, const auto& in, const auto& out) {
    v("tokens", in.tokens), v("table", in.table);
    v.set("streams", out.x.extent[1]);
  }
  static void out(const auto& v, const auto&, const auto& out) { v("x", out.x, "token stream channel"); }
  static void back_in(const auto& v, const auto& in, const auto& up, const auto&) {
    v("tokens", in.tokens), v("table", in.table), v("dx", up.dx);
  }
  static void back_out(const auto& v, const auto&, const auto&, const auto& g) {
    v("dtable", g.dtable, "entry channel");
  }
};

template <class T, space S, class W, class X>
struct describe<dsv4::linear<T, S, W, X>> {
  static constexpr const char* name = "linear";
  static constexpr bool has_backward = true;
  static void in(const auto& v, const auto& in, const auto&) { v("x", in.x), v("weight", in.weight); }
  static void out(const auto& v, const auto&, const auto& out) { v("y", out.y, "token channel"); }
  static void back_in(const auto& v, const auto& in, const auto& up, const auto&) {
    v("x", in.x), v("weight", in.weight), v("dy", up.dy);
  }
  static void back_out(const auto& v, const auto&, const auto&, const auto& g) {
    v("dx", g.dx, "token channel"), v("dweight", g.dweight, "row channel");
  }
};

template <class T, space S, class W>
struct describe<dsv4::batched_linear<T, S, W>> {
  static constexpr const char* name = "batched_linear";
  static constexpr bool has_backward = true;
  static void in(const auto& v, const auto& in, const auto&) { v("x", in.x), v("weight", in.weight); }
  static void out(const auto& v, const auto&, const auto& out) { v("y", out.y, "token group channel"); }
  static void back_in(const auto& v, const auto& in, const auto& up, const auto&) {
    v("x", in.x), v("weight", in.weight), v("dy", up.dy);
  }
  static void back_out(const auto& v, const auto&, const auto&, const auto& g) {
    v("dx", g.dx, "token group channel"), v("dweight", g.dweight, "group row channel");
  }
};

template <class T, space S, class W, class X>
struct describe<dsv4::grouped_linear<T, S, W, X>> {
  static constexpr const char* name = "grouped_linear";
  static constexpr bool has_backward = true;
  static void in(const auto& v, const auto& in, const auto&) {
    v("x", in.x), v("offsets", in.offsets), v("weight", in.weight);
  }
  static void out(const auto& v, const auto&, const auto& out) { v("y", out.y, "pair channel"); }
  static void back_in(const auto& v, const auto& in, const auto& up, const auto&) {
    v("x", in.x), v("offsets", in.offsets), v("weight", in.weight), v("dy", up.dy);
  }
  static void back_out(const auto& v, const auto&, const auto&, const auto& g) {
    v("dx", g.dx, "pair channel"), v("dweight", g.dweight, "expert row channel");
  }
};

template <class T, space S>
struct describe<dsv4::rms_norm<T, S>> {
  static constexpr const char* name = "rms_norm";
  static constexpr bool has_backward = true;
  static void in(const auto& v, const auto& in, const auto&) {
    v("x", in.x), v("weight", in.weight);
    v.set("eps", in.eps);
  }
  static void out(const auto& v, const auto&, const auto& out) { v("y", out.y, "token channel"); }
  static void back_in(const auto& v, const auto& in, const auto& up, const auto&) {
    v("x", in.x), v("weight", in.weight), v("dy", up.dy);
    v.set("eps", in.eps);
  }
  static void back_out(const auto& v, const auto&, const auto&, const auto& g) {
    v("dx", g.dx, "token channel"), v("dweight", g.dweight, "channel");
  }
};

template <class T, space S>
struct describe<dsv4::rope<T, S>> {
  static constexpr const char* name = "rope";
  static constexpr bool has_backward = true;
  static void in(const auto& v, const auto& in, const auto& out) {
    v("x", out.x);
    shared(v, in);
  }
  static void out(const auto& v, const auto&, const auto& out) { v("y", out.x, "token head channel"); }
  static void back_in(const auto& v, const auto& in, const auto& up, const auto&) {
    v("dy", up.dy);
    shared(v, in);
  }
  static void back_out(const auto& v, const auto&, const auto&, const auto& g) {
    v("dx", g.dx, "token head channel");
  }

 private:
  static void shared(const auto& v, const auto& in) {
    v("frequencies", in.frequencies);
    v.set("first_position", in.first_position), v.set("position_step", in.position_step);
    v.set("inverse", in.inverse);
  }
};

template <class T, space S>
struct describe<dsv4::hadamard<T, S>> {
  static constexpr const char* name = "hadamard";
  static constexpr bool has_backward = true;
  static void in(const auto& v, const auto&, const auto& out) { v("x", out.x); }
  static void out(const auto& v, const auto&, const auto& out) { v("y", out.x, "row channel"); }
  static void back_in(const auto& v, const auto&, const auto& up, const auto&) { v("dy", up.dy); }
  static void back_out(const auto& v, const auto&, const auto&, const auto& g) {
    v("dx", g.dx, "row channel");
  }
};

/// "mxfp4", or the sizes of the blocks of an FP8 format.
template <class F>
std::string format_name() {
  if constexpr (F::packed) return "mxfp4";
  return "e4m3_" + std::to_string(F::block_rows) + "x" + std::to_string(F::block_columns);
}

template <class F, class T, space S>
struct describe<dsv4::round_trip<F, T, S>> {
  static constexpr const char* name = "round_trip";
  /// The rows as they lie: those of key-values go on beyond the rounded columns.
  static auto whole(const auto& x) { return dsv4::matrix_view<T, S>(x.data, x.extent[0], x.stride[0]); }
  static void in(const auto& v, const auto&, const auto& out) {
    v("x", out.x);
    v.set("format", format_name<F>()), v.set("columns", out.x.extent[1]);
  }
  static void out(const auto& v, const auto&, const auto& out) { v("y", whole(out.x), "row channel"); }
};

template <class F, class T, space S>
struct describe<dsv4::quantise<F, T, S>> {
  static constexpr const char* name = "quantise";
  static void in(const auto& v, const auto& in, const auto&) {
    v("x", in.x);
    v.set("format", format_name<F>());
  }
  static void out(const auto& v, const auto&, const auto& out) { v("code", out.quantised, "row channel"); }
};

template <class F, class T, space S>
struct describe<dsv4::dequantise<F, T, S>> {
  static constexpr const char* name = "dequantise";
  static void in(const auto& v, const auto& in, const auto&) {
    v("code", in.quantised);
    v.set("format", format_name<F>());
  }
  static void out(const auto& v, const auto&, const auto& out) {
    v("x", out.x, "row channel", comparison::relative);
  }
};

template <class T, space S>
struct describe<dsv4::compress_pool<T, S>> {
  static constexpr const char* name = "compress_pool";
  static constexpr bool has_backward = true;
  static void in(const auto& v, const auto& in, const auto&) { shared(v, in); }
  static void out(const auto& v, const auto&, const auto& out) { v("y", out.y, "entry channel"); }
  static void back_in(const auto& v, const auto& in, const auto& up, const auto&) {
    shared(v, in);
    v("dy", up.dy);
  }
  static void back_out(const auto& v, const auto&, const auto&, const auto& g) {
    v("dkv", g.dkv, "token channel"), v("dgate", g.dgate, "token channel");
    v("dbias", g.dbias, "place channel");
  }

 private:
  static void shared(const auto& v, const auto& in) {
    v("kv", in.kv), v("gate", in.gate), v("bias", in.bias);
    v.set("first_position", in.first_position), v.set("first_entry", in.first_entry);
    v.set("overlap", in.overlap);
  }
};

template <class T, space S>
struct describe<dsv4::index_topk<T, S>> {
  static constexpr const char* name = "index_topk";
  static void in(const auto& v, const auto& in, const auto& out) {
    v("q", in.q), v("keys", in.keys), v("weights", in.weights);
    v.set("first_position", in.first_position), v.set("ratio", in.ratio), v.set("k", out.selected.extent[1]);
  }
  static void out(const auto& v, const auto& in, const auto& out) {
    if (v.to.extras && v.to.watching)
      v.to.computed(v.n, "scores", scores(in), "token entry", comparison::scaled);
    v("selected", out.selected, "token slot", comparison::choice);
  }

 private:
  /// NaN, which is compared with nothing, where an entry is not visible yet.
  static tensor scores(const auto& in) {
    const std::int64_t rows = in.q.extent[0], entries = (in.first_position + rows) / in.ratio;
    tensor t{dtype::f32, {rows, entries}, {}};
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t s = 0; s < entries; ++s) {
        double score = 0;
        for (std::int64_t h = 0; h < in.q.extent[1]; ++h) {
          double dot = 0;
          for (std::int64_t c = 0; c < in.q.extent[2]; ++c)
            dot += double(in.q(r, h, c)) * double(in.keys(s, c));
          score += double(in.weights(r, h)) * std::max(0.0, dot);
        }
        t.values.push_back((s + 1) * in.ratio <= in.first_position + r + 1 ? score : NAN);
      }
    return t;
  }
};

template <class T, space S>
struct describe<dsv4::sparse_attention<T, S>> {
  static constexpr const char* name = "sparse_attention";
  static constexpr bool has_backward = true;
  static void in(const auto& v, const auto& in, const auto&) { shared(v, in); }
  static void out(const auto& v, const auto&, const auto& out, const auto& keep) {
    v("o", out.o, "token head channel"), v("lse", keep.lse, "token head");
  }
  static void back_in(const auto& v, const auto& in, const auto& kept, const auto& up, const auto&) {
    shared(v, in);
    v("lse", kept.lse), v("o", kept.o), v("do", up.do_);
  }
  static void back_out(const auto& v, const auto&, const auto&, const auto&, const auto& g) {
    v("dq", g.dq, "token head channel"), v("dlocal", g.dlocal, "position channel");
    v("dcompressed", g.dcompressed, "entry channel"), v("dsinks", g.dsinks, "head");
  }

 private:
  static void shared(const auto& v, const auto& in) {
    v("q", in.q), v("local", in.local), v("compressed", in.compressed), v("selected", in.selected);
    v("sinks", in.sinks);
    v.set("first_position", in.first_position), v.set("first_local", in.first_local);
    v.set("window", in.window), v.set("ratio", in.ratio), v.set("scale", in.scale);
  }
};

template <class T, space S>
struct describe<dsv4::indexer_loss<T, S>> {
  static constexpr const char* name = "indexer_loss";
  static constexpr bool has_backward = true;
  static void in(const auto& v, const auto& in, const auto&) { shared(v, in); }
  static void out(const auto& v, const auto&, const auto& out) { v("loss", out.loss, "token"); }
  static void back_in(const auto& v, const auto& in, const auto& up, const auto&) {
    shared(v, in);
    v("dloss", up.dloss);
  }
  static void back_out(const auto& v, const auto&, const auto&, const auto& g) {
    v("dindex_q", g.dindex_q, "token head channel"), v("dindex_keys", g.dindex_keys, "entry channel");
    v("dindex_weights", g.dindex_weights, "token head");
  }

 private:
  static void shared(const auto& v, const auto& in) {
    v("q", in.q), v("compressed", in.compressed), v("selected", in.selected);
    if (in.target_includes_sink) v("sinks", in.sinks);
    v("index_q", in.index_q), v("index_keys", in.index_keys), v("index_weights", in.index_weights);
    v.set("first_position", in.first_position), v.set("ratio", in.ratio), v.set("scale", in.scale);
    v.set("index_scale", in.index_scale), v.set("target_includes_sink", in.target_includes_sink);
  }
};

template <class T, space S, class W>
struct describe<dsv4::cross_entropy<T, S, W>> {
  static constexpr const char* name = "cross_entropy";
  static constexpr bool has_backward = true;
  static void in(const auto& v, const auto& in, const auto&) {
    v("hidden", in.hidden), v("head", in.head), v("targets", in.targets);
  }
  static void out(const auto& v, const auto&, const auto& out, const auto& keep) {
    v("loss", out.loss, "token"), v("lse", keep.lse, "token");
  }
  static void back_in(const auto& v, const auto& in, const auto& kept, const auto& up, const auto&) {
    v("hidden", in.hidden), v("head", in.head), v("targets", in.targets);
    v("lse", kept.lse), v("dloss", up.dloss);
  }
  static void back_out(const auto& v, const auto&, const auto&, const auto&, const auto& g) {
    v("dhidden", g.dhidden, "token channel"), v("dhead", g.dhead, "entry channel");
  }
};

}  // namespace conformance

#include "op_fields_streams.hpp"
