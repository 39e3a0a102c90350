// SPDX-License-Identifier: Apache-2.0
/// What model/precompiled.hpp declares: for the one file that instantiates it, with the kernels of its
/// policy.
#pragma once

#include <dsv4/model/precompiled.hpp>

namespace dsv4 {

template <class Model, policy P>
void precompiled<Model, P>::forward(const P& p, basic_workspace<P::memory>& w, const weights& parameters,
                                    const typename Model::inputs& in, const typename Model::outputs& out) {
  Model::forward(p, w, parameters, in, out);
}

template <class Model, policy P>
void precompiled<Model, P>::draft(
    const P& p, basic_workspace<P::memory>& w, const weights& parameters, const typename Model::inputs& in,
    tensor_view<const typename Model::scalar, P::memory> streams,
    const typename Model::outputs& out) requires(Model::config.num_nextn_predict_layers > 0) {
  Model::draft(p, w, parameters, in, streams, out);
}

}  // namespace dsv4
