// SPDX-License-Identifier: Apache-2.0
/// Everything that a model remembers of one sequence.
#pragma once

#include <dsv4/blocks/attention_cache.hpp>
#include <dsv4/core/expects.hpp>
#include <dsv4/exec/reference.hpp>

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

namespace dsv4 {

/// The caches of all layers, and of the multi-token-prediction block where there is one. Extended by
/// `transformer::forward`. Move-only; `snapshot` copies.
template <model_config C, class T, space S = space::host>
class sequence_state {
 public:
  static constexpr int layers = C.num_hidden_layers() + C.num_nextn_predict_layers;

  /// An empty sequence. The last `rewind` tokens can always be dropped by `truncate`; fewer often can.
  explicit sequence_state(std::int64_t rewind = 0) : rewind_(rewind) {
    expect(rewind >= 0, "sequence_state", "rewind", "a number of tokens, not negative", rewind);
    caches_.reserve(layers);
    for (int i = 0; i < layers; ++i) caches_.emplace_back(C.attention, C.kind(i), rewind);
  }

  std::int64_t length() const { return length_; }
  /// How many positions the multi-token-prediction block has seen; at most length().
  std::int64_t mtp_length() const { return mtp_length_; }
  std::int64_t rewind() const { return rewind_; }

  /// Forgets everything.
  void reset() { length_ = mtp_length_ = newest_ = mtp_newest_ = 0; }

  /// The shortest non-zero length that truncate accepts.
  std::int64_t shortest() const {
    std::int64_t n = 0;
    for (int i = 0; i < C.num_hidden_layers(); ++i) n = std::max(n, cache(i).shortest(newest_));
    for (int i = C.num_hidden_layers(); i < layers; ++i) n = std::max(n, cache(i).shortest(mtp_newest_));
    return n;
  }

  /// Forgets all but the first `n` tokens. Throws cannot_rewind, and changes nothing, when the rings no
  /// longer hold what token n would need; n = 0 and n = length() always work.
  void truncate(std::int64_t n) {
    if (n < 0 || n > length_ || (n != 0 && n != length_ && n < shortest()))
      throw cannot_rewind(n, shortest(), length_);
    if (n == 0) return reset();
    length_ = n;
    mtp_length_ = std::min(mtp_length_, n);
  }

  /// A copy that later changes to this one do not touch.
  sequence_state snapshot() const requires(S == space::host) {
    sequence_state copy(rewind_);
    copy.restore(*this);
    return copy;
  }
  void restore(const sequence_state& saved) requires(S == space::host) { restore(exec::reference{}, saved); }
  /// Becomes what `saved` is. Both must have been made with the same `rewind`.
  template <policy P>
  void restore(const P& p, const sequence_state& saved) {
    expect_extent("sequence_state::restore", "rewind", saved.rewind_, rewind_);
    for (int i = 0; i < layers; ++i) {
      const std::int64_t used = saved.position(i);
      auto& to = cache(i);
      to.reserve(p, used, 0);
      std::vector<matrix_view<T, S>> targets;
      attention_cache<T, S>::for_each_array(to, used,
                                            [&](matrix_view<T, S> m, std::int64_t) { targets.push_back(m); });
      auto target = targets.begin();
      attention_cache<T, S>::for_each_array(saved.cache(i), used,
                                            [&](matrix_view<const T, S> m, std::int64_t rows) {
                                              copy_rows<T, S>::forward(p, {m, 0, 0, rows}, {*target++});
                                            });
    }
    length_ = saved.length_, mtp_length_ = saved.mtp_length_;
    newest_ = saved.newest_, mtp_newest_ = saved.mtp_newest_;
  }

  /// Bytes of window rows, compressed entries and index keys that the stored tokens occupy (docs/cost.md,
  /// without compressor tails), in the storage type `T`.
  std::int64_t bytes() const {
    std::int64_t sum = 0;
    for (int i = 0; i < layers; ++i) sum += attention_cache<T, S>::bytes(C.attention, C.kind(i), position(i));
    return sum;
  }

  attention_cache<T, S>& cache(int layer) { return caches_[static_cast<std::size_t>(layer)]; }
  const attention_cache<T, S>& cache(int layer) const { return caches_[static_cast<std::size_t>(layer)]; }
  /// Tokens that the layer's cache holds.
  std::int64_t position(int layer) const { return layer < C.num_hidden_layers() ? length_ : mtp_length_; }

  /// The lengths that the rings have reached since they were empty: what those overwrote, truncate cannot
  /// bring back.
  std::int64_t newest() const { return newest_; }
  std::int64_t mtp_newest() const { return mtp_newest_; }

  /// For code that fills the caches: transformer, and readers of saved states.
  void set_lengths(std::int64_t length, std::int64_t mtp_length) {
    length_ = length, mtp_length_ = mtp_length;
    newest_ = std::max(newest_, length), mtp_newest_ = std::max(mtp_newest_, mtp_length);
  }

 private:
  std::vector<attention_cache<T, S>> caches_;
  std::int64_t length_ = 0, mtp_length_ = 0, newest_ = 0, mtp_newest_ = 0, rewind_ = 0;
};

}  // namespace dsv4
