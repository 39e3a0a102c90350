// SPDX-License-Identifier: Apache-2.0
#include "session.hpp"

namespace runner {
const compiled_model v4_nano_model = make_compiled_model<dsv4::v4_nano>("v4_nano");
const compiled_model v4_bench_model = make_compiled_model<dsv4::v4_bench>("v4_bench");
}  // namespace runner
