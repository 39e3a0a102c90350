// SPDX-License-Identifier: Apache-2.0
/// Our own dump of a suite: what any engine writes, from any policy and scalar type. Inputs of single ops are
/// made again by their rule; models are loaded.
#pragma once

#include "model_runs.hpp"
#include "op_vectors.hpp"
#include "training_run.hpp"
#include <dsv4/io/checkpoint.hpp>
#include <dsv4/io/config_json.hpp>

#include <map>
#include <string>
#include <utility>
#include <vector>

namespace conformance {

/// The computed tensors of a recording, as `T` holds them.
template <class T>
tensor_map results(const recorder& from) {
  tensor_map out;
  for (const auto& [name, e] : from.expected) {
    tensor t = from.tensors.at(name);
    if (t.type == dtype::f32 && sizeof(T) == 8) t.type = dtype::f64;
    out.emplace(name, std::move(t));
  }
  return out;
}
template <class T>
tensor_map results(tensor_map all) {
  for (auto& [name, t] : all) t.type = sizeof(T) == 8 ? dtype::f64 : dtype::f32;
  return all;
}

template <class T, class P>
void dump_ops(const P& p, const fs::path& folder) {
  for_each_op_vector(
      [&](const std::string& name, const char*, const std::vector<std::string>&, const auto& body) {
        recorder to;
        to.extras = false;
        workbench<T, P> bench(p, to, name);
        body(bench);
        write_tensors(folder / "ops" / (name + ".safetensors"), results<T>(to));
      });
}

/// A model of the suite, read as any checkpoint is.
template <dsv4::model_config C, class T, dsv4::numerics_config Q>
void load_model(const fs::path& folder, dsv4::parameter_store<C, T, Q>& weights) {
  dsv4::io::check_config<C>(folder / "config.json");
  dsv4::io::load_parameters<C, T, Q>(dsv4::io::safetensors_file(folder / "model.safetensors"), weights);
}

/// Opens every file that must be refused, and lists those that were.
inline void dump_refused(const fs::path& from, const fs::path& folder) {
  json refused = json::array();
  for (const refused_file& r : read_suite(from).refuse) try {
      if (r.file.ends_with(".json"))
        dsv4::io::check_config<mixed_model>(from / r.file);
      else
        const dsv4::io::safetensors_file accepted(from / r.file);
    } catch (const dsv4::format_error&) {
      refused.push_back(r.file);
    }
  write_text(folder / "refused.json", refused.dump(1) + "\n");
}

template <class T, class P>
void dump_mixed(const P& p, const fs::path& from, const fs::path& folder) {
  constexpr auto Q = dsv4::numerics::bf16;
  dsv4::parameter_store<mixed_model, T, Q> weights;
  load_model(from / "models/mixed", weights);
  const fs::path path = folder / "models/mixed";
  recorder to;
  to.extras = false;
  record_mixed(p, to, weights);
  auto whole = results<T>(to);
  whole.erase("packed.logits");
  write_tensors(path / "whole.safetensors", whole);
  const auto ids = mixed_tokens();
  for (const model_run& run : mixed_runs())
    if (!run.chunks.empty() && run.name != "whole")
      write_tensors(path / (run.name + ".safetensors"),
                    results<T>(run_in_chunks<mixed_model, T, Q>(p, weights, ids, run.chunks)));
  write_tensors(path / "rollback.safetensors",
                results<T>(run_in_chunks<mixed_model, T, Q>(p, weights, ids, {mixed_length}, 13)));
  write_tensors(path / "packed.safetensors",
                results<T>(tensor_map{
                    {"logits", run_packed<mixed_model, T, Q>(p, weights, {ids, {}, packed_tokens()})}}));
}

template <class T, class P>
void dump_training(const P& p, const fs::path& from, const fs::path& folder) {
  dsv4::parameter_store<trained_model, T> weights;
  load_model(from / "models/trained", weights);
  recorder to;
  record_training(p, to, weights);
  write_tensors(folder / "models/trained/step.safetensors", results<T>(to));
}

template <class T, class P>
void dump_released(const P& p, const fs::path& from, const fs::path& folder) {
  constexpr auto Q = dsv4::numerics::v4_released;
  dsv4::parameter_store<released_model, T, Q> weights;
  load_model(from / "models/released", weights);
  const auto ids = draw_tokens(released_seed, released_length, released_model.vocab_size);
  recorder to;
  to.extras = false;
  record_model<released_model, T, Q>(p, to, weights, ids);
  const fs::path path = folder / "models/released";
  write_tensors(path / "whole.safetensors", results<T>(to));
  for (const model_run& run : released_runs())
    if (run.name != "whole")
      write_tensors(path / (run.name + ".safetensors"),
                    results<T>(run_in_chunks<released_model, T, Q>(p, weights, ids, run.chunks)));
}

}  // namespace conformance
