// SPDX-License-Identifier: Apache-2.0
#include "support/catch.hpp"
#include "support/compare.hpp"
#include <dsv4/config/presets.hpp>
#include <dsv4/train/cpu/adamw.hpp>
#include <dsv4/train/cpu/muon.hpp>
#include <dsv4/train/optimizer.hpp>

#include <cmath>
#include <cstring>
#include <map>
#include <set>
#include <string>
#include <type_traits>
#include <vector>

using namespace dsv4;
using namespace dsv4::testing;

namespace {
constexpr model_config config = v4_nano;
template <class T>
using store = parameter_store<config, T>;

/// All real parameters as one list of values, by name.
template <class T>
std::map<std::string, std::vector<T>> values(store<T>& s) {
  std::map<std::string, std::vector<T>> all;
  for_each_parameter<config>(s.views(), [&]<class U, int R>(const parameter_info& info, view<U, R>& v) {
    if constexpr (std::is_same_v<U, T>) all[info.name].assign(v.data, v.data + v.size());
  });
  return all;
}

/// Gradients from the parameters' names, another set for every step.
template <class T>
store<T> gradients(std::uint64_t step) {
  store<T> g;
  initialise_by_name(g, 1000 + step);
  return g;
}

template <class T>
bool same_values(store<T>& a, store<T>& b) {
  return values(a) == values(b);
}
}  // namespace

TEST_CASE("optimizer: each parameter gets its own rule") {
  using T = double;
  store<T> weights;
  initialise_by_name(weights);
  const auto g = gradients<T>(1);
  const auto before = values(weights);
  auto gradient_store = gradients<T>(1);
  const auto gradient = values(gradient_store);
  optimizer<config, T> o;
  workspace w;
  const double lr = 0.01, scale = 0.5;
  o.step(exec::cpu(2), w, weights, g, {lr, scale});
  CHECK(o.steps() == 1);
  const auto after = values(weights);

  for_each_parameter<config>(weights.views(), [&]<class U, int R>(const parameter_info& info, view<U, R>&) {
    if constexpr (std::is_same_v<U, T>) {
      INFO(info.name);
      const auto& old = before.at(info.name);
      const auto& now = after.at(info.name);
      const auto& grad = gradient.at(info.name);
      const parameter_rule rule = rule_of(config, info);
      double worst = 0;
      if (rule.rule == update_rule::adamw) {  // the first step is a sign
        for (std::size_t i = 0; i < old.size(); ++i) {
          const double sign = grad[i] > 0 ? 1 : grad[i] < 0 ? -1 : 0;
          worst =
              std::max(worst, std::abs(now[i] - ((1 - (rule.decay ? 0.1 * lr : 0)) * old[i] - lr * sign)));
        }
      } else if (rule.rule == update_rule::muon) {
        const std::int64_t columns = info.shape.back();
        std::size_t at = 0;
        for (std::int64_t rows : rule.rows) {
          buffer<T> u(rows * columns);
          for (std::int64_t i = 0; i < u.size(); ++i)
            u[i] = 1.95 * scale * grad[at + static_cast<std::size_t>(i)];
          newton_schulz<T>::forward(exec::cpu(1), w, {.x = u.as(1, rows, columns)}, {u.as(1, rows, columns)});
          const double factor = 0.18 * std::sqrt(double(std::max(rows, columns)));
          for (std::int64_t i = 0; i < u.size(); ++i, ++at)
            worst = std::max(worst, std::abs(now[at] - ((1 - 0.1 * lr) * old[at] - lr * factor * u[i])));
        }
        CHECK(at == old.size());
      } else {
        CHECK(now == old);
      }
      CHECK(worst < 1e-12);
    }
  });
}

TEST_CASE("optimizer: the same bits for any number of threads") {
  workspace w;
  store<float> one, three;
  initialise_by_name(one);
  initialise_by_name(three);
  optimizer<config> a, b;
  for (std::uint64_t step = 0; step < 3; ++step) {
    const auto g = gradients<float>(step);
    a.step(exec::cpu(1), w, one, g, {0.01});
    b.step(exec::cpu(3), w, three, g, {0.01});
  }
  CHECK(same_values(one, three));
  std::vector<std::vector<float>> states[2];
  const auto keep = [](std::vector<std::vector<float>>& all) {
    return [&all]<class U>(const std::string&, vector_view<U> v) {
      all.emplace_back(v.data, v.data + v.size());
    };
  };
  a.for_each_state(keep(states[0]));
  b.for_each_state(keep(states[1]));
  CHECK(states[0] == states[1]);
}

TEST_CASE("optimizer: state that is copied to another goes on in the same way") {
  workspace w;
  store<float> weights, resumed;
  initialise_by_name(weights);
  optimizer<config, float, bf16> a, b;
  for (std::uint64_t step = 0; step < 2; ++step)
    a.step(exec::cpu(2), w, weights, gradients<float>(step), {0.01});

  for_each_parameter<config>(weights.views(), [&]<class U, int R>(const parameter_info& info, view<U, R>& v) {
    for_each_parameter<config>(
        resumed.views(), [&]<class X, int N>(const parameter_info& other, view<X, N>& to) {
          if (other.name == info.name)
            std::memcpy(to.data, v.data, static_cast<std::size_t>(v.size()) * sizeof(U));
        });
  });
  std::map<std::string, std::pair<const void*, std::size_t>> saved;
  std::vector<std::string> order, again;
  a.for_each_state([&]<class U>(const std::string& name, vector_view<U> v) {
    saved[name] = {v.data, static_cast<std::size_t>(v.size()) * sizeof(U)};
    order.push_back(name);
  });
  b.for_each_state([&]<class U>(const std::string& name, vector_view<U> v) {
    const auto [data, bytes] = saved.at(name);
    REQUIRE(bytes == static_cast<std::size_t>(v.size()) * sizeof(U));
    std::memcpy(v.data, data, bytes);
    again.push_back(name);
  });
  CHECK(order == again);
  CHECK(std::set<std::string>(order.begin(), order.end()).size() == order.size());
  CHECK(b.steps() == 2);
  a.step(exec::cpu(2), w, weights, gradients<float>(7), {0.01});
  b.step(exec::cpu(1), w, resumed, gradients<float>(7), {0.01});
  CHECK(same_values(weights, resumed));
}

TEST_CASE("optimizer: what its state takes") {
  optimizer<config, float> wide;
  optimizer<config, float, bf16> narrow;
  std::int64_t moments = 0, momenta = 0;
  wide.for_each_state([&](const std::string& name, auto v) {
    if (name != "steps") (name.starts_with("momentum.") ? momenta : moments) += v.size();
  });
  const auto count = count_parameters(config).with_mtp();
  const std::int64_t biases = 4 * std::int64_t{config.moe.n_routed_experts};  // three layers and MTP
  CHECK(momenta + moments / 2 + biases == count);
  CHECK(wide.bytes() >= 4 * (momenta + moments));
  CHECK(wide.bytes() < 4 * (momenta + moments) * 1.05);  // padding
  CHECK(wide.bytes() - narrow.bytes() >= 2 * momenta);
}

TEST_CASE("optimizer: reference and cpu agree") {
  workspace w;
  store<float> a, b;
  initialise_by_name(a);
  initialise_by_name(b);
  optimizer<config> cpu, reference;
  const auto g = gradients<float>(3);
  cpu.step(exec::cpu(2), w, a, g, {0.01});
  reference.step(exec::reference{}, w, b, g, {0.01});
  const auto x = values(a), y = values(b);
  for (const auto& [name, v] : x) {
    INFO(name);
    double worst = 0;
    for (std::size_t i = 0; i < v.size(); ++i)
      worst = std::max(worst, std::abs(double(v[i]) - double(y.at(name)[i])));
    // Weights are at most 2; a Muon step is 0.01 times an update of about 0.18, whose float error by a
    // condition number of 100 is 1e-5.
    CHECK(worst < 2 * 1.2e-7 + 0.01 * 1e-4);
  }
}
