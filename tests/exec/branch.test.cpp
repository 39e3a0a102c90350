// SPDX-License-Identifier: Apache-2.0
// Branches of policies that do one thing at a time; tests/cuda/exec.test.cu has those of the GPU.
#include "support/catch.hpp"
#include <dsv4/exec/branch.hpp>
#include <dsv4/exec/reference.hpp>

using namespace dsv4;

TEST_CASE("branch: where nothing can run beside, the policy is the same and a workspace gives back") {
  const exec::reference p;
  workspace w;
  const auto taken = [&] {
    const workspace_scope scope(w);
    return take<float>(w, 64).data;
  };
  for (const bool wanted : {true, false}) {
    detail::branch<exec::reference, space::host> aside(p, w, wanted);
    CHECK(&aside.policy() == &p);
    CHECK(taken() == taken());
    aside.catch_up();
    aside.join();
    CHECK(&aside.policy() == &p);
  }
}

TEST_CASE("workspace: on hold, scopes give nothing back before the one around them ends") {
  workspace w;
  const auto taken = [&] {
    const workspace_scope scope(w);
    return take<float>(w, 64).data;
  };
  const float* const first = taken();
  {
    const workspace_scope scope(w);
    w.hold();
    const float *a = taken(), *b = taken();
    CHECK(a == first);
    CHECK(b != a);
    w.release_hold();
    const float* const c = taken();
    CHECK((c != a && c != b));
    CHECK(taken() == c);
  }
  CHECK(taken() == first);
}
