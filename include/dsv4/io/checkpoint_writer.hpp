// SPDX-License-Identifier: Apache-2.0
/// Weights to safetensors in the layout of released checkpoints: one file, or shards under an index.
#pragma once

#include <dsv4/core/error.hpp>
#include <dsv4/io/checkpoint_layout.hpp>
#include <dsv4/io/safetensors_index.hpp>
#include <dsv4/io/safetensors_writer.hpp>
#include <dsv4/model/parameters.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <deque>
#include <filesystem>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace dsv4::io {

/// The size that shards of released checkpoints stay under, in bytes.
inline constexpr std::int64_t default_shard_bytes = 5'000'000'000;

namespace detail {

/// The tensors of a model's weights, as they go into files.
template <class T, numerics_config Q>
class tensor_collector {
 public:
  struct tensor {
    tensor_spec spec;
    std::span<const std::byte> bytes;
  };
  const std::vector<tensor>& tensors() const { return tensors_; }

  template <class U, int R>
  void operator()(const parameter_info& info, const view<U, R>& v) {
    using V = std::remove_const_t<U>;
    const auto add = [&](const std::string& name, std::vector<std::int64_t> shape, const U* data,
                         std::int64_t count) {
      if constexpr (std::is_same_v<V, std::int32_t>) {
        std::vector<std::int64_t> wide(data, data + count);
        tensors_.push_back({{name, dtype::i64, std::move(shape)}, own(wide)});
      } else {
        dtype type = plain_dtype<T, Q, V>(name);
        auto bytes = std::as_bytes(std::span(data, static_cast<std::size_t>(count)));
        if constexpr (!std::is_same_v<V, bf16>) {
          if (std::vector<bf16> narrow; type == dtype::bf16 && exactly(data, count, narrow))
            bytes = own(narrow);
          else if (std::vector<float> single;
                   sizeof(V) > 4 && type != dtype::f64 && exactly(data, count, single))
            type = dtype::f32, bytes = own(single);
          else
            type = std::is_same_v<V, double> ? dtype::f64 : dtype::f32;
        }
        tensors_.push_back({{name, type, std::move(shape)}, bytes});
      }
    };
    if constexpr (R == 1)
      add(info.name, info.shape, v.data, v.size());
    else
      for_each_part(info,
                    [&](const std::string& name, std::int64_t rows, std::int64_t columns, std::int64_t i) {
                      add(name, {rows, columns}, v.data + i * rows * columns, rows * columns);
                    });
  }

  template <class F>
  void operator()(const parameter_info& info, const block_scaled_matrix<const F>& m) {
    add_blocks(info.name, m, info.shape[0]);
  }

  template <class F>
  void operator()(const parameter_info& info, const block_scaled_stack<const F>& stack) {
    for_each_part(info, [&](const std::string& name, std::int64_t rows, std::int64_t, std::int64_t i) {
      add_blocks(name, stack[i], rows);
    });
  }

 private:
  /// The first `rows` rows from m's first one on: groups lie below each other.
  template <class F>
  void add_blocks(const std::string& name, const block_scaled_matrix<const F>& m, std::int64_t rows) {
    const std::int64_t columns = m.extent[1];
    if (m.row_stride != F::row_bytes(columns) || m.scale_row_stride != F::scale_columns(columns))
      throw contract_error("save_parameters", "weight \"" + name + "\"", "dense rows", "strided ones");
    const auto bytes = [](const auto* data, std::int64_t count) {
      return std::span(reinterpret_cast<const std::byte*>(data), static_cast<std::size_t>(count));
    };
    tensors_.push_back({element_spec<F>(name, rows, columns), bytes(m.codes, rows * m.row_stride)});
    tensors_.push_back(
        {scale_spec<F>(name, rows, columns), bytes(m.scales, F::scale_rows(rows) * m.scale_row_stride)});
  }

  /// Whether all values survive as To, which `to` then holds.
  template <class To, class V>
  static bool exactly(const V* data, std::int64_t count, std::vector<To>& to) {
    to.reserve(static_cast<std::size_t>(count));
    for (std::int64_t i = 0; i < count; ++i) {
      to.push_back(To(data[i]));
      const V back = static_cast<V>(to.back());
      if (std::memcmp(&back, data + i, sizeof back) != 0) return false;
    }
    return true;
  }

  template <class V>
  std::span<const std::byte> own(const std::vector<V>& values) {
    const auto bytes = std::as_bytes(std::span(values));
    return owned_.emplace_back(bytes.begin(), bytes.end());
  }

  std::vector<tensor> tensors_;
  std::deque<std::vector<std::byte>> owned_;
};

/// How tensors are spread over shards of at most `limit` bytes: the end of each.
inline std::vector<std::size_t> shard_ends(std::span<const tensor_spec> specs, std::int64_t limit) {
  std::vector<std::size_t> ends;
  std::uint64_t filled = 0;
  for (std::size_t i = 0; i < specs.size(); ++i) {
    const std::uint64_t size = *tensor_bytes(specs[i].dtype, specs[i].shape);
    if (filled > 0 && filled + size > static_cast<std::uint64_t>(limit)) ends.push_back(i), filled = 0;
    filled += size;
  }
  ends.push_back(specs.size());
  return ends;
}

inline std::string shard_name(std::size_t i, std::size_t count) {
  char name[64];
  std::snprintf(name, sizeof name, "model-%05zu-of-%05zu.safetensors", i + 1, count);
  return name;
}

inline void write_index(const std::filesystem::path& folder, std::span<const tensor_spec> specs,
                        std::span<const std::size_t> ends) {
  nlohmann::json index;
  std::uint64_t total = 0;
  for (std::size_t shard = 0, i = 0; shard < ends.size(); ++shard)
    for (; i < ends[shard]; ++i) {
      index["weight_map"][specs[i].name] = shard_name(shard, ends.size());
      total += *tensor_bytes(specs[i].dtype, specs[i].shape);
    }
  index["metadata"]["total_size"] = total;
  const std::string text = index.dump(2) + "\n";
  aside_file out(folder / checkpoint_index_name);
  out.write(std::as_bytes(std::span(text)));
  out.commit();
}

/// Writes the files of a checkpoint; add(writer, i) adds tensor i.
template <class Add>
void write_shards(const std::filesystem::path& folder, std::span<const tensor_spec> specs,
                  std::int64_t shard_bytes, const Add& add) {
  std::filesystem::create_directories(folder);
  for (const auto name : {checkpoint_index_name, checkpoint_single_name})  // shards of two must not mix
    if (std::filesystem::exists(folder / name))
      throw io_error((folder / name).string(), "write", "a checkpoint is there already");
  const auto ends = shard_ends(specs, shard_bytes);
  for (std::size_t shard = 0, i = 0; shard < ends.size(); ++shard) {
    safetensors_writer writer;
    writer.set_metadata("format", "pt");
    for (; i < ends[shard]; ++i) add(writer, i);
    writer.write(folder /
                 (ends.size() == 1 ? std::string(checkpoint_single_name) : shard_name(shard, ends.size())));
  }
  if (ends.size() > 1) write_index(folder, specs, ends);
}

}  // namespace detail

/// Writes the weights into one file under their released names, dtypes and shapes (for_each_tensor; a value
/// that its released dtype would round keeps its own). The file is written aside and renamed: it is there
/// whole or not at all. Throws io_error.
template <model_config C, class T, numerics_config Q>
void save_parameters(const std::filesystem::path& file, parameter_store<C, T, Q>& store) {
  detail::tensor_collector<T, Q> collector;
  for_each_parameter<C>(store.views(), collector);
  safetensors_writer writer;
  writer.set_metadata("format", "pt");
  for (const auto& t : collector.tensors()) writer.add(t.spec.name, t.spec.dtype, t.spec.shape, t.bytes);
  writer.write(file);
}

/// Writes a checkpoint folder: model.safetensors, or shards of at most `shard_bytes` with their index, which
/// comes last, so that a folder without it is not a checkpoint yet. Throws io_error, also where the folder
/// holds a checkpoint already.
template <model_config C, class T, numerics_config Q>
void save_checkpoint(const std::filesystem::path& folder, parameter_store<C, T, Q>& store,
                     std::int64_t shard_bytes = default_shard_bytes) {
  detail::tensor_collector<T, Q> collector;
  for_each_parameter<C>(store.views(), collector);
  const auto& tensors = collector.tensors();
  std::vector<tensor_spec> specs;
  for (const auto& t : tensors) specs.push_back(t.spec);
  detail::write_shards(folder, specs, shard_bytes, [&](safetensors_writer& writer, std::size_t i) {
    writer.add(specs[i].name, specs[i].dtype, specs[i].shape, tensors[i].bytes);
  });
}

/// Writes the same folder without data: every shard is its header alone, for planning (file_contents::
/// headers_only). Needs no weights, so it works at any size. Throws io_error.
template <model_config C, class T, numerics_config Q>
void save_headers(const std::filesystem::path& folder, std::int64_t shard_bytes = default_shard_bytes) {
  std::vector<tensor_spec> specs;
  for_each_tensor<C, T, Q>([&](const tensor_spec& t) { specs.push_back(t); });
  detail::write_shards(folder, specs, shard_bytes, [&](safetensors_writer& writer, std::size_t i) {
    writer.add_header(specs[i].name, specs[i].dtype, specs[i].shape);
  });
}

}  // namespace dsv4::io
