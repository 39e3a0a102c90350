// SPDX-License-Identifier: Apache-2.0
/// Routed experts in a given amount of memory, fetched from where a mapped checkpoint has them.
#pragma once

#include <dsv4/core/error.hpp>
#include <dsv4/io/mapped_file.hpp>
#include <dsv4/model/parameters.hpp>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

namespace dsv4::io {

/// Keeps the experts used last, up to a number of bytes; the others stay in the mapping that the weights are
/// bound to, and their pages are given back. Results are those of experts in memory, bit for bit. Serves one
/// call of the model at a time. The weights must outlive it; its end gives them their experts back.
template <model_config C, class T, numerics_config Q>
class expert_cache final : public expert_source<T, typename storage_types<T, Q>::expert> {
  using format = typename storage_types<T, Q>::expert;
  static_assert(block_format<format>, "dsv4: expert_cache holds block-scaled experts (FP8 or FP4)");
  using matrix = block_scaled_matrix<const format>;

 public:
  /// Takes over the experts of all layers of `weights`, which load_parameters bound to a mapped source.
  /// Throws contract_error when `budget_bytes` does not hold one expert.
  expert_cache(model_parameters<T, Q>& weights, std::int64_t budget_bytes) {
    for (auto& l : weights.layers) take(l.ffn);
    if constexpr (C.num_nextn_predict_layers > 0) take(weights.mtp.layer.ffn);
    const std::int64_t slots = std::min<std::int64_t>(budget_bytes / expert_bytes(), total_experts());
    if (slots < 1)
      throw contract_error("expert_cache", "budget_bytes",
                           "at least " + std::to_string(expert_bytes()) + ", the bytes of one expert",
                           std::to_string(budget_bytes));
    memory_ = buffer<std::uint8_t>(slots * expert_bytes());
    slots_.resize(static_cast<std::size_t>(slots));
    for (auto* stack : {&w1_, &w2_, &w3_}) stack->resize(static_cast<std::size_t>(C.moe.n_routed_experts));
  }
  expert_cache(const expert_cache&) = delete;
  expert_cache& operator=(const expert_cache&) = delete;
  ~expert_cache() override {
    for (auto& l : layers_) *l.owner = l.restore;
  }

  /// Bytes of one expert: three matrices with their scales.
  static constexpr std::int64_t expert_bytes() {
    constexpr std::int64_t d = C.hidden_size, inner = C.moe.moe_intermediate_size;
    return 2 * format::bytes(inner, d) + format::bytes(d, inner);
  }
  static constexpr std::int64_t total_experts() {
    return std::int64_t{C.num_hidden_layers() + C.num_nextn_predict_layers} * C.moe.n_routed_experts;
  }
  std::int64_t slots() const { return static_cast<std::int64_t>(slots_.size()); }
  /// Whether even one token's experts, of all layers, do not fit: then every token reads them all again.
  bool always_misses() const {
    return slots() < std::int64_t{C.num_hidden_layers()} * C.moe.num_experts_per_tok;
  }
  std::int64_t hits() const { return hits_; }
  std::int64_t misses() const { return misses_; }

  std::int64_t acquire(int layer, std::span<const std::int64_t> needed,
                       expert_stacks<T, format>& stacks) override {
    const std::int64_t count = std::min<std::int64_t>(static_cast<std::int64_t>(needed.size()), slots());
    const std::uint64_t oldest_pinned = clock_;  // what is used from here on stays
    for (const std::int64_t e : needed.first(static_cast<std::size_t>(count)))
      if (const auto found = where_.find(key(layer, e)); found != where_.end())
        slots_[found->second].used = ++clock_;
    for (const std::int64_t e : needed.first(static_cast<std::size_t>(count))) {
      const auto found = where_.find(key(layer, e));
      ++(found == where_.end() ? misses_ : hits_);
      const std::size_t slot = found == where_.end() ? fetch(layer, e, oldest_pinned) : found->second;
      point(slot, e, layer);
    }
    const std::int64_t n = C.moe.n_routed_experts, d = C.hidden_size, inner = C.moe.moe_intermediate_size;
    stacks.w1 = {w1_.data(), {n, inner, d}};
    stacks.w2 = {w2_.data(), {n, d, inner}};
    stacks.w3 = {w3_.data(), {n, inner, d}};
    return count;
  }

 private:
  using moe_weights = moe_parameters<T, Q>;
  struct layer_source {
    moe_weights* owner;
    moe_weights restore;
  };
  struct slot {
    std::uint64_t key = ~std::uint64_t{0}, used = 0;
  };
  static std::uint64_t key(int layer, std::int64_t expert) {
    return static_cast<std::uint64_t>(layer) << 32 | static_cast<std::uint64_t>(expert);
  }

  void take(moe_weights& m) {
    layers_.push_back({&m, m});
    m.source = this;
    m.layer = static_cast<int>(layers_.size()) - 1;
  }

  /// Brings an expert into the slot unused for longest.
  std::size_t fetch(int layer, std::int64_t expert, std::uint64_t oldest_pinned) {
    std::size_t victim = slots_.size();
    for (std::size_t i = 0; i < slots_.size(); ++i)
      if (slots_[i].used <= oldest_pinned &&
          (victim == slots_.size() || slots_[i].used < slots_[victim].used))
        victim = i;
    where_.erase(slots_[victim].key);
    std::uint8_t* to = memory_.data() + static_cast<std::int64_t>(victim) * expert_bytes();
    const auto& from = layers_[static_cast<std::size_t>(layer)].restore.experts;
    for (const matrix* m : {&from.w1[expert], &from.w2[expert], &from.w3[expert]}) {
      to = copy_out(m->codes, m->extent[0] * m->row_stride, to);
      to = copy_out(m->scales, format::scale_rows(m->extent[0]) * m->scale_row_stride, to);
    }
    slots_[victim] = {key(layer, expert), ++clock_};
    where_[slots_[victim].key] = victim;
    return victim;
  }
  template <class U>
  static std::uint8_t* copy_out(const U* from, std::int64_t bytes, std::uint8_t* to) {
    static_assert(sizeof(U) == 1);
    std::memcpy(to, from, static_cast<std::size_t>(bytes));
    release_pages({reinterpret_cast<const std::byte*>(from), static_cast<std::size_t>(bytes)});
    return to + bytes;
  }

  /// Lets the stacks' matrices of expert `e` point into a slot.
  void point(std::size_t slot, std::int64_t e, int layer) {
    const std::uint8_t* at = memory_.data() + static_cast<std::int64_t>(slot) * expert_bytes();
    const auto& from = layers_[static_cast<std::size_t>(layer)].restore.experts;
    const auto place = [&](const matrix& original, matrix& m) {
      const std::int64_t codes = original.extent[0] * original.row_stride;
      m = matrix(at, reinterpret_cast<const e8m0*>(at + codes), original.extent[0], original.extent[1]);
      at += codes + format::scale_rows(original.extent[0]) * original.scale_row_stride;
    };
    place(from.w1[e], w1_[static_cast<std::size_t>(e)]);
    place(from.w2[e], w2_[static_cast<std::size_t>(e)]);
    place(from.w3[e], w3_[static_cast<std::size_t>(e)]);
  }

  std::vector<layer_source> layers_;
  buffer<std::uint8_t> memory_;
  std::vector<slot> slots_;
  std::unordered_map<std::uint64_t, std::size_t> where_;
  std::vector<matrix> w1_, w2_, w3_;
  std::uint64_t clock_ = 0;
  std::int64_t hits_ = 0, misses_ = 0;
};

}  // namespace dsv4::io
