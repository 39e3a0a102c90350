// SPDX-License-Identifier: Apache-2.0
/// All vectors of single ops.
#pragma once

#include "op_vectors_attention.hpp"
#include "op_vectors_formats.hpp"
#include "op_vectors_streams.hpp"
#include "op_vectors_training.hpp"

namespace conformance {

/// Calls f(name, title, rows of the list of reported bugs, body), body(workbench) records the vector.
template <class F>
void for_each_op_vector(const F& f) {
  for_each_attention_vector(f);
  for_each_stream_vector(f);
  for_each_format_vector(f);
  for_each_training_vector(f);
}

}  // namespace conformance
