// SPDX-License-Identifier: Apache-2.0
/// A row of layers in training: forward into a context, and backward out of it, sublayer by sublayer.
#pragma once

#include <dsv4/blocks/attention_backward.hpp>
#include <dsv4/blocks/moe_backward.hpp>
#include <dsv4/model/parameters.hpp>
#include <dsv4/model/training_context.hpp>

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

namespace dsv4 {

/// Gradients of a model's parameters, in the scalar type whatever the weights are stored in: the views of a
/// parameter_store<C, T>, say. Added to; an empty view is skipped.
template <class T, space S = space::host>
using model_gradients = model_parameters<T, numerics::float32, S>;

/// The layers of one stack of a training context: the trunk's, or the multi-token-prediction block's.
template <model_config C, class T, numerics_config Q, recompute_policy R, space S>
class training_layers {
 public:
  using context = training_context<C, T, R, S>;
  using stack = typename context::stack;
  using weights = model_parameters<T, Q, S>;
  using gradients = model_gradients<T, S>;

  /// From s.streams.front() to s.last.
  template <policy P>
  static void forward(const P& p, basic_workspace<S>& w, const weights& m,
                      vector_view<const std::int32_t, S> tokens, const context& c, const stack& s) {
    const workspace_scope scope(w);
    const auto between = R.streams_every > 1 ? take_streams(w, c) : tensor_view<T, S>();
    auto x = s.streams.front();
    for (int i = 0; i < s.sublayers; ++i) {
      const int layer = s.first_layer + i / 2;
      const auto next = i + 1 == s.sublayers             ? s.last
                        : (i + 1) % R.streams_every == 0 ? s.streams[at((i + 1) / R.streams_every)]
                                                         : between;
      const auto& l = layer_of(m, layer);
      const auto& site = s.sites[at(i)];
      if (i % 2 == 0)
        hyper_connection_site<H, T, S>(p, w, l.attention_site, l.attention_norm, C.rms_norm_eps, x, next,
                                       site, [&](auto u, auto v) {
                                         const workspace_scope momentary(w);
                                         const auto kept = attention_context_of(w, c, layer);
                                         attention<C.attention, Q, T, S>(p, w, l.attention, C.rms_norm_eps,
                                                                         segments(c.segments), u, v, &kept);
                                       });
      else
        hyper_connection_site<H, T, S>(
            p, w, l.ffn_site, l.ffn_norm, C.rms_norm_eps, x, next, site, [&](auto u, auto v) {
              moe<C.moe, Q, T, S>(p, w, l.ffn, tokens, u, v, R.sublayers ? nullptr : &c.ffn[at(layer)]);
            });
      x = next;
    }
  }

  /// `dx` comes as the gradient of s.last and leaves as that of s.streams.front(). `dindexer_loss` may be
  /// empty.
  template <policy P, class RouterLoss>
  static void backward(const P& p, basic_workspace<S>& w, const weights& m,
                       vector_view<const std::int32_t, S> tokens, const context& c, const stack& s,
                       vector_view<const T, S> dindexer_loss, tensor_view<T, S> dx, const gradients& g,
                       const RouterLoss& router_loss) {
    for_each_sublayer_backwards(p, w, m, s, [&](int i, tensor_view<const T, S> x) {
      const int layer = s.first_layer + i / 2;
      const auto& l = layer_of(m, layer);
      const auto& d = layer_of(g, layer);
      const auto& site = s.sites[at(i)];
      if (i % 2 == 0)
        hyper_connection_site_backward<H, T, S>(
            p, w, l.attention_site, l.attention_norm, C.rms_norm_eps, x, site, dx, d.attention_site,
            d.attention_norm, [&](auto u, auto dv, auto du) {
              const workspace_scope momentary(w);
              const auto kept = attention_again(p, w, l.attention, c, layer, u);
              attention_backward<C.attention, Q, T, S>(p, w, l.attention, C.rms_norm_eps,
                                                       segments(c.segments), u, kept, dv, d.attention, du);
              if (dindexer_loss.data)
                indexer_backward<C.attention, Q, T, S>(p, w, l.attention, C.rms_norm_eps,
                                                       segments(c.segments), u, kept, dindexer_loss,
                                                       d.attention);
            });
      else
        hyper_connection_site_backward<H, T, S>(
            p, w, l.ffn_site, l.ffn_norm, C.rms_norm_eps, x, site, dx, d.ffn_site, d.ffn_norm,
            [&](auto u, auto dv, auto du) {
              const workspace_scope momentary(w);
              moe_context<T, S> kept = c.ffn[at(layer)];
              if (R.sublayers) {
                kept = moe_context<T, S>::take(w, C.moe, c.rows);
                moe<C.moe, Q, T, S>(p, w, l.ffn, tokens, u, {}, &kept);
              }
              moe_backward<C.moe, Q, T, S>(p, w, l.ffn, u, kept, dv, d.ffn, du,
                                           [&](const auto& logits, const auto& chosen, const auto& dlogits) {
                                             router_loss(layer, logits, chosen, dlogits);
                                           });
            });
    });
  }

  /// The indexers' gradients alone: nothing else of the stack is differentiated.
  template <policy P>
  static void indexers_backward(const P& p, basic_workspace<S>& w, const weights& m, const context& c,
                                const stack& s, vector_view<const T, S> dindexer_loss, const gradients& g) {
    for_each_sublayer_backwards(p, w, m, s, [&](int i, tensor_view<const T, S> x) {
      const int layer = s.first_layer + i / 2;
      if (i % 2 != 0 || C.kind(layer) != attention_kind::csa) return;
      const workspace_scope momentary(w);
      const auto& l = layer_of(m, layer);
      const auto u = take<T>(w, c.rows, C.hidden_size);
      hyper_connection_input<H, T, S>(p, w, l.attention_site, l.attention_norm, C.rms_norm_eps, x,
                                      s.sites[at(i)], u);
      const auto kept = attention_again(p, w, l.attention, c, layer, u);
      indexer_backward<C.attention, Q, T, S>(p, w, l.attention, C.rms_norm_eps, segments(c.segments), u, kept,
                                             dindexer_loss, layer_of(g, layer).attention);
    });
  }

 private:
  using segments = std::span<const attention_segment<T, S>>;
  static constexpr hyper_connection_config H = C.hyper_connection;

  template <class Model>
  static auto& layer_of(Model& m, int layer) {
    return layer < C.num_hidden_layers() ? m.layers[at(layer)] : m.mtp.layer;
  }
  static std::size_t at(int i) { return static_cast<std::size_t>(i); }
  static tensor_view<T, S> take_streams(basic_workspace<S>& w, std::int64_t rows) {
    return take<T>(w, rows, H.hc_mult, C.hidden_size);
  }
  static tensor_view<T, S> take_streams(basic_workspace<S>& w, const context& c) {
    return take_streams(w, c.rows);
  }

  /// The kept context of a layer's attention; where none is kept, room for one.
  static attention_context<T, S> attention_context_of(basic_workspace<S>& w, const context& c, int layer) {
    attention_context<T, S> kept = c.attention[at(layer)];
    if (R.sublayers) {
      kept = context::attention_of(w, c, layer, false);
      kept.indexer_losses = c.indexer_losses[at(layer)];
    }
    return kept;
  }
  /// The same, filled.
  template <policy P>
  static attention_context<T, S> attention_again(const P& p, basic_workspace<S>& w,
                                                 const attention_parameters<T, Q, S>& parameters,
                                                 const context& c, int layer, matrix_view<const T, S> u) {
    attention_context<T, S> kept = attention_context_of(w, c, layer);
    if (R.sublayers) {
      kept.indexer_losses = {};  // known already
      attention<C.attention, Q, T, S>(p, w, parameters, C.rms_norm_eps, segments(c.segments), u, {}, &kept);
    }
    return kept;
  }

  /// Calls visit(i, x) for the sublayers of the stack, last one first, x being the streams that entered it:
  /// kept, or replayed from the last kept ones before.
  template <policy P, class Visit>
  static void for_each_sublayer_backwards(const P& p, basic_workspace<S>& w, const weights& m, const stack& s,
                                          const Visit& visit) {
    for (int block = static_cast<int>(s.streams.size()) - 1; block >= 0; --block) {
      const workspace_scope scope(w);
      const int first = block * R.streams_every, end = std::min(s.sublayers, first + R.streams_every);
      std::vector<tensor_view<T, S>> x{s.streams[at(block)]};
      for (int i = first; i + 1 < end; ++i) {
        x.push_back(take_streams(w, s.last.extent[0]));
        const auto& l = layer_of(m, s.first_layer + i / 2);
        hyper_connection_replay<H, T, S>(p, w, i % 2 == 0 ? l.attention_site : l.ffn_site, C.rms_norm_eps,
                                         x[at(i - first)], s.sites[at(i)], x.back());
      }
      for (int i = end - 1; i >= first; --i) visit(i, tensor_view<const T, S>(x[at(i - first)]));
    }
  }
};

}  // namespace dsv4
