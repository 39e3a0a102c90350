// SPDX-License-Identifier: Apache-2.0
#include "session.hpp"

namespace runner {
const compiled_model v4_flash_model = make_compiled_model<dsv4::v4_flash>("v4_flash");
const compiled_model v4_pro_model = make_compiled_model<dsv4::v4_pro>("v4_pro");
}  // namespace runner
