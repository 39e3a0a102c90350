// SPDX-License-Identifier: Apache-2.0
/// Turns groups of tokens into compressed entries, one chunk of a sequence at a time.
#pragma once

#include <dsv4/blocks/attention_cache.hpp>
#include <dsv4/config/numerics.hpp>
#include <dsv4/exec/workspace.hpp>
#include <dsv4/ops/compress_pool.hpp>
#include <dsv4/ops/hadamard.hpp>
#include <dsv4/ops/norm_rope.hpp>
#include <dsv4/ops/quantise.hpp>
#include <dsv4/ops/rms_norm.hpp>
#include <dsv4/ops/rope.hpp>

#include <type_traits>

namespace dsv4 {

template <class T, space S = space::host, class W = T>
struct compressor_parameters {
  weight_matrix<T, W, S> kv, gate;  // (D or 2D, hidden)
  matrix_view<T, S> position_bias;  // (m, D or 2D)
  vector_view<T, S> norm;           // (D)
};

/// Rounds entries of the KV cache as they are stored; the last `rope_dim` channels stay as they are.
struct round_to_kv {
  int rope_dim;
  template <policy P, class T, space S>
  void operator()(const P& p, const matrix_view<T, S>& x) const {
    round_trip<fp8_kv, T, S>::forward(p, {}, {x.columns(0, x.extent[1] - rope_dim)});
  }
};

/// Rounds indexer queries or keys: Hadamard transform, then MXFP4.
struct round_to_index {
  template <policy P, class T, space S>
  void operator()(const P& p, const matrix_view<T, S>& x) const {
    hadamard<T, S>::forward(p, {}, {x});
    round_trip<mxfp4, T, S>::forward(p, {}, {x});
  }
};

/// Leaves what is stored as it is.
struct round_nothing {
  template <policy P, class T, space S>
  void operator()(const P&, const matrix_view<T, S>&) const {}
};

/// What the numerics do to KV entries, and to the indexer's queries and keys.
template <numerics_config Q>
constexpr auto kv_rounding([[maybe_unused]] int rope_dim) {
  if constexpr (Q.kv_fp8)
    return round_to_kv{rope_dim};
  else
    return round_nothing();
}
template <numerics_config Q>
using index_rounding = std::conditional_t<Q.index_fp4, round_to_index, round_nothing>;

/// Entries from `first` on, from their pooled groups: normalised, rotated at position i m, then rounded as
/// they are stored. May be in place.
template <class T, space S, class W, policy P, class Rounding>
void finish_entries(const P& p, const compressor_parameters<T, S, W>& parameters,
                    const rope_frequencies& frequencies, double norm_eps, std::int64_t first,
                    matrix_view<const T, S> pooled, matrix_view<T, S> entries, const Rounding& round) {
  const std::int64_t m = parameters.position_bias.extent[0];
  if (entries.extent[0] == 0) return;
  const std::int64_t count = entries.extent[0], width = entries.extent[1];
  norm_rope<T, S>::forward(
      p, {pooled.reshape(count, 1, width), parameters.norm, norm_eps, frequencies, first * m, m},
      {entries.reshape(count, 1, width)});
  round(p, entries);
}

/// The backward of a whole document's entries, from those of its tokens' projections: back through pool, norm
/// and rotation. Rounding is passed straight through. `dentries` is overwritten on the way.
template <class T, space S, class W, policy P>
void compress_backward(const P& p, basic_workspace<S>& w, const compressor_parameters<T, S, W>& parameters,
                       const rope_frequencies& frequencies, double norm_eps, bool overlap,
                       matrix_view<const T, S> kv, matrix_view<const T, S> gate,
                       matrix_view<const T, S> pooled, matrix_view<T, S> dentries,
                       const compressor_parameters<T, S, T>& gradients, matrix_view<T, S> dkv,
                       matrix_view<T, S> dgate) {
  const auto range = detail::named_range(p, "compress_backward");
  const std::int64_t m = parameters.position_bias.extent[0], entries = dentries.extent[0];
  if (entries > 0) {
    const auto heads = dentries.reshape(entries, 1, dentries.extent[1]);
    rope<T, S>::backward(p, w, {frequencies, 0, m}, {heads}, {heads});
    rms_norm<T, S>::backward(p, w, {pooled, parameters.norm, norm_eps}, {dentries},
                             {dentries, gradients.norm});
  }
  compress_pool<T, S>::backward(p, w, {kv, gate, parameters.position_bias, 0, 0, overlap}, {dentries},
                                {dkv, dgate, gradients.position_bias});
}

/// Takes the projections (rows of kv and gate, the first at `position`) of the next tokens of one sequence,
/// appends the entries that they complete to the cache, and remembers what later entries need
/// (docs/blocks/kv-compressor.md). Entry i is the pool of group i, finished.
template <class T, space S, class W, policy P, class Rounding>
void compress(const P& p, basic_workspace<S>& w, const compressor_parameters<T, S, W>& parameters,
              const rope_frequencies& frequencies, double norm_eps, bool overlap, std::int64_t position,
              matrix_view<const T, S> kv, matrix_view<const T, S> gate, compressor_cache<T, S>& cache,
              const Rounding& round) {
  const workspace_scope scope(w);
  const auto range = detail::named_range(p, "compress");
  const std::int64_t m = parameters.position_bias.extent[0], rows = kv.extent[0], width = kv.extent[1];
  const std::int64_t first = position / m, entries = (position + rows) / m - first;
  if (entries > 0) {
    const std::int64_t oldest = std::max<std::int64_t>(0, first - (overlap ? 1 : 0)) * m,
                       before = position - oldest;
    auto all_kv = kv, all_gate = gate;
    if (before > 0) {
      const auto joined_kv = take<T>(w, before + rows, width), joined_gate = take<T>(w, before + rows, width);
      cache.kv.load(p, oldest, position, joined_kv.rows(0, before));
      cache.gate.load(p, oldest, position, joined_gate.rows(0, before));
      copy_rows<T, S>::forward(p, {kv, 0, before, rows}, {joined_kv});
      copy_rows<T, S>::forward(p, {gate, 0, before, rows}, {joined_gate});
      all_kv = joined_kv, all_gate = joined_gate;
    }
    cache.entries.reserve(p, first + entries, first);
    const auto fresh = cache.entries.view().rows(first, entries);
    compress_pool<T, S>::forward(p, {all_kv, all_gate, parameters.position_bias, oldest, first, overlap},
                                 {fresh});
    finish_entries<T, S>(p, parameters, frequencies, norm_eps, first, fresh, fresh, round);
  }
  cache.kv.store(p, kv, position);
  cache.gate.store(p, gate, position);
}

}  // namespace dsv4
