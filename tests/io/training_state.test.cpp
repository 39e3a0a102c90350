// SPDX-License-Identifier: Apache-2.0
#include "support/catch.hpp"
#include "support/compare.hpp"
#include <dsv4/config/presets.hpp>
#include <dsv4/io/training_state.hpp>
#include <dsv4/train/byte_dataset.hpp>
#include <dsv4/train/cpu/adamw.hpp>
#include <dsv4/train/cpu/muon.hpp>
#include <dsv4/train/optimizer.hpp>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>
#include <random>
#include <string>
#include <type_traits>
#include <unistd.h>
#include <vector>

using namespace dsv4;
using namespace dsv4::testing;

namespace {
std::filesystem::path scratch_file(const std::string& name) {
  return std::filesystem::temp_directory_path() /
         ("dsv4_" + name + std::to_string(::getpid()) + ".safetensors");
}

constexpr model_config config = v4_nano;

/// A run whose gradients are hashes of its data and its generator, so that all of its state matters.
struct run {
  parameter_store<config, float> weights;
  optimizer<config, float, bf16> update;
  std::int64_t position = 0;
  std::mt19937_64 random{7};
  byte_dataset data;
  parameter_store<config, float> gradients;
  workspace w;

  explicit run(const std::string& text)
      : data(std::as_bytes(std::span(text)), {.row_tokens = 16, .separator = "|", .seed = 3}) {
    initialise_by_name(weights);
  }
  io::training_state state() {
    io::training_state s;
    s.add_parameters(weights);
    s.add_optimizer(update);
    s.add("position", position);
    s.add("random", random);
    s.require("data", data.fingerprint());
    return s;
  }
  void step(int threads) {
    packed_row row;
    data.training_row(position++, row);
    std::uint64_t seed = random();
    for (std::int32_t t : row.tokens) seed = dsv4::detail::splitmix64(seed + static_cast<std::uint64_t>(t));
    initialise_by_name(gradients, seed);
    update.step(exec::cpu(threads), w, weights, gradients, {1e-2});
  }
  std::vector<std::byte> bytes() {
    std::vector<std::byte> all;
    for_each_parameter<config>(weights.views(), [&]<class U, int R>(const parameter_info&, view<U, R>& v) {
      const auto part = std::as_bytes(std::span(v.data, static_cast<std::size_t>(v.size())));
      all.insert(all.end(), part.begin(), part.end());
    });
    update.for_each_state([&](const std::string&, auto v) {
      const auto part = std::as_bytes(std::span(v.data, static_cast<std::size_t>(v.size())));
      all.insert(all.end(), part.begin(), part.end());
    });
    return all;
  }
};
}  // namespace

TEST_CASE("training_state: a run that was interrupted ends with the same bits") {
  std::string text;
  for (int i = 0; i < 40; ++i) text += "a document with number " + std::to_string(i * i) + "|";
  const auto file = scratch_file("resume");
  run whole(text), first(text), second(text);
  for (int i = 0; i < 5; ++i) whole.step(2);
  for (int i = 0; i < 2; ++i) first.step(1);
  first.state().save(file);
  for (int i = 0; i < 3; ++i) second.step(1);  // whatever it did before
  second.state().load(file);
  CHECK(second.update.steps() == 2);
  CHECK(second.bytes() == first.bytes());
  for (int i = 0; i < 3; ++i) second.step(3);
  CHECK(second.bytes() == whole.bytes());
  CHECK(second.position == whole.position);
  std::filesystem::remove(file);
}

TEST_CASE("training_state: every bit comes back, those of NaN and of -0 too") {
  const auto file = scratch_file("bits");
  double d[] = {-0.0, std::numeric_limits<double>::denorm_min(), std::numeric_limits<double>::quiet_NaN(),
                1.0 / 3};
  float f[6] = {1.1f};
  bf16 b[] = {bf16(1.5f), bf16::from_bits(0x7fc1), bf16::from_bits(0xffff)};
  std::int32_t i = -5;
  struct generator {
    std::uint64_t a, b;
    char c[3];
  } g{1, ~0ull, {1, 2, 3}};
  io::training_state s;
  s.add("d", view<double, 2>(d, 2, 2));
  s.add("f", view<float, 3>(f, 1, 2, 3));
  s.add("b", vector_view<bf16>(b, 3));  // odd: what follows is misaligned in the file
  s.add("i", i);
  s.add("g", g);
  s.add("none", vector_view<float>(f, 0));
  CHECK(s.bytes() == sizeof d + sizeof f + sizeof b + sizeof i + sizeof g);
  s.save(file);
  double d0[4];
  std::memcpy(d0, d, sizeof d);
  std::memset(d, 0xab, sizeof d);
  f[0] = 0, b[2] = bf16(0.0f), i = 9, g = {};
  s.load(file);
  CHECK(std::memcmp(d, d0, sizeof d) == 0);
  CHECK(f[0] == 1.1f);
  CHECK(b[1].bits == 0x7fc1);
  CHECK(b[2].bits == 0xffff);
  CHECK(i == -5);
  CHECK(g.b == ~0ull);
  CHECK(g.c[2] == 3);
  std::filesystem::remove(file);
}

TEST_CASE("training_state: what does not fit is named, and nothing changes") {
  const auto file = scratch_file("refused");
  float a[] = {1, 2, 3};
  std::int64_t step = 4;
  io::training_state saved;
  saved.add("a", vector_view<float>(a, 3));
  saved.add("step", step);
  saved.require("config", "x");
  saved.save(file);

  float other[] = {7, 8, 9};
  double wide[] = {7, 8, 9};
  const auto refuses = [&](const io::training_state& s, const std::string& message) {
    CHECK_THROWS_WITH(s.load(file), contains(message));
    CHECK(other[0] == 7);
    CHECK(step == 4);
  };
  step = 4;
  io::training_state s;
  s.add("a", vector_view<float>(other, 3));
  refuses(s, "tensor 'step': expected a part of this training state");
  s.add("step", step);
  s.require("config", "y");
  refuses(s, "metadata 'required.config': expected 'y', found 'x'");
  s.require("config", "x");
  s.require("data", std::uint64_t{5});
  refuses(s, "metadata 'required.data': expected '5', found none");

  io::training_state shape, type, more;
  shape.add("step", step);
  shape.add("a", view<float, 2>(other, 1, 3));
  refuses(shape, "tensor 'a': expected F32 [1, 3], found F32 [3]");
  type.add("step", step);
  type.add("a", vector_view<double>(wide, 3));
  refuses(type, "tensor 'a': expected F64 [3], found F32 [3]");
  more.add("a", vector_view<float>(other, 3));
  more.add("step", step);
  std::int64_t extra = 0;
  more.add("extra", extra);
  refuses(more, "tensor 'extra'");
  CHECK_THROWS_WITH(more.add("a", extra), contains("training_state::add: name: expected a new name"));
  CHECK_THROWS_AS(more.load(scratch_file("is_not_there")), io_error);
  CHECK_THROWS_AS(more.save("/proc/no/such/folder"), io_error);
  std::filesystem::remove(file);
}
