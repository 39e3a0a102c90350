// SPDX-License-Identifier: Apache-2.0
// A user of V4-Flash whose passes are compiled in another file.
#include <dsv4/config/presets.hpp>
#include <dsv4/model/precompiled.hpp>

using model = dsv4::precompiled<dsv4::transformer<dsv4::v4_flash>, dsv4::exec::cpu>;

void run(const dsv4::exec::cpu& p, dsv4::workspace& w, const model::parameters& weights,
         const model::inputs& in, const model::outputs& out) {
  model::forward(p, w, weights.views(), in, out);
}
