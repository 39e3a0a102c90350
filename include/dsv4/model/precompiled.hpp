// SPDX-License-Identifier: Apache-2.0
/// A model whose passes are only declared here, so that what uses it compiles fast.
#pragma once

#include <dsv4/exec/policy.hpp>
#include <dsv4/model/transformer.hpp>

#include <type_traits>
#include <utility>

namespace dsv4 {

/// `Model`, a transformer, with passes under policy `P` that are compiled in another file: one that includes
/// model/instantiate.hpp and says `template struct dsv4::precompiled<Model, P>;`. The CMake function
/// `dsv4_instantiate` writes that file. Without it the linker misses `precompiled<...>::forward`.
template <class Model, policy P>
struct precompiled : Model {
  using weights = std::remove_cvref_t<decltype(std::declval<typename Model::parameters&>().views())>;

  /// Model::forward, without an observer.
  static void forward(const P& p, basic_workspace<P::memory>& w, const weights& parameters,
                      const typename Model::inputs& in, const typename Model::outputs& out);

  /// Model::draft.
  static void draft(const P& p, basic_workspace<P::memory>& w, const weights& parameters,
                    const typename Model::inputs& in,
                    tensor_view<const typename Model::scalar, P::memory> streams,
                    const typename Model::outputs& out) requires(Model::config.num_nextn_predict_layers > 0);
};

}  // namespace dsv4
