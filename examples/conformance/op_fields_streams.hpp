// SPDX-License-Identifier: Apache-2.0
/// The arguments of the ops of residual streams and experts. Included by op_fields.hpp.
#pragma once

#include "op_fields.hpp"

namespace conformance {

template <class T, space S>
struct describe<dsv4::hyper_connection_gates<T, S>> {
  static constexpr const char* name = "hyper_connection_gates";
  static constexpr bool has_backward = true;
  static void in(const auto& v, const auto& in, const auto&) { shared(v, in); }
  static void out(const auto& v, const auto&, const auto& out) {
    v("pre", out.pre, "token stream"), v("post", out.post, "token stream");
    v("comb", out.comb, "token source destination");
  }
  static void back_in(const auto& v, const auto& in, const auto& up, const auto&) {
    shared(v, in);
    v("dpre", up.dpre), v("dpost", up.dpost), v("dcomb", up.dcomb);
  }
  static void back_out(const auto& v, const auto&, const auto&, const auto& g) {
    v("dx", g.dx, "token stream channel"), v("dz", g.dz, "token channel");
    v("dbase", g.dbase, "channel"), v("dscale", g.dscale, "segment");
  }

 private:
  static void shared(const auto& v, const auto& in) {
    v("x", in.x), v("z", in.z), v("base", in.base), v("scale", in.scale);
    v.set("norm_eps", in.norm_eps), v.set("eps", in.eps), v.set("sinkhorn_iters", in.sinkhorn_iters);
  }
};

template <class T, space S>
struct describe<dsv4::hyper_connection_collapse<T, S>> {
  static constexpr const char* name = "hyper_connection_collapse";
  static constexpr bool has_backward = true;
  static void in(const auto& v, const auto& in, const auto&) { v("x", in.x), v("pre", in.pre); }
  static void out(const auto& v, const auto&, const auto& out) { v("u", out.u, "token channel"); }
  static void back_in(const auto& v, const auto& in, const auto& up, const auto&) {
    v("x", in.x), v("pre", in.pre), v("du", up.du);
  }
  static void back_out(const auto& v, const auto&, const auto&, const auto& g) {
    v("dx", g.dx, "token stream channel"), v("dpre", g.dpre, "token stream");
  }
};

template <class T, space S>
struct describe<dsv4::hyper_connection_expand<T, S>> {
  static constexpr const char* name = "hyper_connection_expand";
  static constexpr bool has_backward = true;
  static void in(const auto& v, const auto& in, const auto&) {
    v("x", in.x), v("v", in.v), v("post", in.post), v("comb", in.comb);
  }
  static void out(const auto& v, const auto&, const auto& out) { v("y", out.x, "token stream channel"); }
  static void back_in(const auto& v, const auto& in, const auto& up, const auto&) {
    v("x", in.x), v("v", in.v), v("post", in.post), v("comb", in.comb), v("dy", up.dx);
  }
  static void back_out(const auto& v, const auto&, const auto&, const auto& g) {
    v("dx", g.dx, "token stream channel"), v("dv", g.dv, "token channel");
    v("dpost", g.dpost, "token stream"), v("dcomb", g.dcomb, "token source destination");
  }
};

template <class T, space S>
struct describe<dsv4::broadcast_add<T, S>> {
  static constexpr const char* name = "broadcast_add";
  static constexpr bool has_backward = true;
  static void in(const auto& v, const auto& in, const auto& out) { v("x", out.x), v("e", in.e); }
  static void out(const auto& v, const auto&, const auto& out) { v("y", out.x, "token stream channel"); }
  static void back_in(const auto& v, const auto&, const auto& up, const auto&) { v("dy", up.dy); }
  static void back_out(const auto& v, const auto&, const auto&, const auto& g) {
    v("de", g.de, "token channel");
  }
};

template <class T, space S>
struct describe<dsv4::route<T, S>> {
  static constexpr const char* name = "route";
  static constexpr bool has_backward = true;
  static void in(const auto& v, const auto& in, const auto& out) {
    v("logits", in.logits), v("bias", in.bias), v("table", in.table);
    if (in.table.data) v("tokens", in.tokens);
    v.set("factor", in.factor), v.set("k", out.experts.extent[1]);
  }
  static void out(const auto& v, const auto&, const auto& out) {
    v("experts", out.experts, "token slot", comparison::choice);
    v("weights", out.weights, "token slot", comparison::slots);
  }
  static void back_in(const auto& v, const auto& in, const auto& kept, const auto& up, const auto&) {
    v("logits", in.logits), v("experts", kept.experts), v("dweights", up.dweights);
    v.set("factor", in.factor);
  }
  static void back_out(const auto& v, const auto&, const auto&, const auto&, const auto& g) {
    v("dlogits", g.dlogits, "token expert");
  }
};

/// `order` is left out: it depends on the order of the slots, which is not fixed.
template <class T, space S>
struct describe<dsv4::expert_dispatch<T, S>> {
  static constexpr const char* name = "expert_dispatch";
  static void in(const auto& v, const auto& in, const auto&) {
    v("x", in.x), v("experts", in.experts), v("weights", in.weights);
  }
  static void out(const auto& v, const auto&, const auto& out) {
    v("offsets", out.offsets, "expert"), v("x_sorted", out.x_sorted, "pair channel");
    v("weight_sorted", out.weight_sorted, "pair");
  }
};

template <class T, space S>
struct describe<dsv4::expert_combine<T, S>> {
  static constexpr const char* name = "expert_combine";
  static void in(const auto& v, const auto& in, const auto&) { v("y", in.y), v("shared", in.shared); }
  static void out(const auto& v, const auto&, const auto& out) { v("out", out.out, "token channel"); }
};

template <class T, space S>
struct describe<dsv4::swiglu<T, S>> {
  static constexpr const char* name = "swiglu";
  static constexpr bool has_backward = true;
  static void in(const auto& v, const auto& in, const auto&) {
    v("gate", in.gate), v("up", in.up), v("row_weight", in.row_weight);
    v.set("limit", in.limit);
  }
  static void out(const auto& v, const auto&, const auto& out) { v("h", out.h, "row channel"); }
  static void back_in(const auto& v, const auto& in, const auto& up, const auto&) {
    v("gate", in.gate), v("up", in.up), v("row_weight", in.row_weight), v("dh", up.dh);
    v.set("limit", in.limit);
  }
  static void back_out(const auto& v, const auto&, const auto&, const auto& g) {
    v("dgate", g.dgate, "row channel"), v("dup", g.dup, "row channel");
    v("drow_weight", g.drow_weight, "row");
  }
};

}  // namespace conformance
