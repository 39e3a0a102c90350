// SPDX-License-Identifier: Apache-2.0
/// Writes the whole suite, computed by the reference policy in double.
#pragma once

#include "make.hpp"
#include "make_refused.hpp"
#include "model_runs.hpp"
#include "op_vectors.hpp"
#include "training_run.hpp"
#include <dsv4/io/checkpoint_writer.hpp>
#include <dsv4/io/config_json.hpp>

#include <string>
#include <utility>
#include <vector>

namespace conformance {

template <dsv4::model_config C, dsv4::numerics_config Q, class Record>
test_vector make_model(const fs::path& folder, test_vector v, const Record& record) {
  dsv4::parameter_store<C, double, Q> weights;
  suite_weights<C, double, Q>(dsv4::exec::reference{}, weights);
  tensor_map files;
  v = make_vector(std::move(v), files, [&](recorder& to) { record(to, weights); });
  const fs::path path = folder / v.file;
  write_tensors(path, files);
  dsv4::io::save_parameters<C, double, Q>(path.parent_path() / "model.safetensors", weights);
  write_text(path.parent_path() / "config.json", dsv4::io::config_to_json<C>());
  return v;
}

inline test_vector make_training(const fs::path& folder) {
  dsv4::parameter_store<trained_model, double> weights;
  dsv4::parameter_store<trained_model, float> saved;  // F32 in the file
  trained_weights(weights), trained_weights(saved);
  tensor_map files;
  test_vector v{"trained",
                "a training step: losses, and the gradient of every parameter, of two packed documents",
                "models/trained/expected.safetensors",
                {"5", "15", "42", "43", "49", "60", "61", "63"},
                false,
                {{"step", "one training step, gradients as sums, not means", {}, ""}},
                {},
                {}};
  v = make_vector(std::move(v), files,
                  [&](recorder& to) { record_training(dsv4::exec::reference{}, to, weights); });
  const fs::path path = folder / v.file;
  write_tensors(path, files);
  dsv4::io::save_parameters<trained_model>(path.parent_path() / "model.safetensors", saved);
  write_text(path.parent_path() / "config.json", dsv4::io::config_to_json<trained_model>());
  return v;
}

inline suite make_suite(const fs::path& folder) {
  const dsv4::exec::reference policy;
  suite all;
  for_each_op_vector(
      [&](const char* name, const char* title, std::vector<std::string> rows, const auto& body) {
        tensor_map files;
        test_vector v{name, title, std::string("ops/") + name + ".safetensors", std::move(rows), false, {},
                      {},   {}};
        v = make_vector(std::move(v), files, [&](recorder& to) {
          workbench<double, dsv4::exec::reference> bench(policy, to, name);
          body(bench);
        });
        write_tensors(folder / v.file, files);
        all.vectors.push_back(std::move(v));
      });
  test_vector mixed{"mixed",
                    "four layers of all kinds and the drafting block, weights in bfloat16",
                    "models/mixed/expected.safetensors",
                    mixed_rows(),
                    false,
                    mixed_runs(),
                    {},
                    {}};
  all.vectors.push_back(make_model<mixed_model, dsv4::numerics::bf16>(
      folder, std::move(mixed), [&](recorder& to, auto& weights) { record_mixed(policy, to, weights); }));
  test_vector released{"released",
                       "V4-Pro's order of layers, weights and caches in the released formats",
                       "models/released/expected.safetensors",
                       released_rows(),
                       false,
                       released_runs(),
                       {},
                       {}};
  all.vectors.push_back(make_model<released_model, dsv4::numerics::v4_released>(
      folder, std::move(released), [&](recorder& to, auto& weights) {
        record_model<released_model, double, dsv4::numerics::v4_released>(
            policy, to, weights, draw_tokens(released_seed, released_length, released_model.vocab_size));
      }));
  all.vectors.push_back(make_training(folder));
  all.refuse = make_refused(folder, dsv4::io::config_to_json<mixed_model>());
  write_text(folder / "manifest.json", manifest_text(all));
  return all;
}

}  // namespace conformance
