// SPDX-License-Identifier: Apache-2.0
/// Three tasks whose answers can be checked, each with a generator of problems.
#pragma once

#include <dsv4/core/hash.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <random>
#include <string>
#include <string_view>

namespace distill {

using random_bits = std::mt19937_64;

/// From 0 to n - 1, the same with every standard library.
inline int below(random_bits& random, int n) { return static_cast<int>(random() % static_cast<unsigned>(n)); }

/// A prompt ends with the sign of its task; the right answer follows from it and ends with a line feed.
struct task {
  std::string_view name;
  std::string (*make)(random_bits&);              ///< a prompt
  std::string (*solve)(std::string_view prompt);  ///< its right answer
};

/// "38+94=" -> "132\n"
inline std::string make_addition(random_bits& random) {
  const int a = below(random, 100), b = below(random, 100);
  return std::to_string(a) + "+" + std::to_string(b) + "=";
}
inline std::string solve_addition(std::string_view prompt) {
  const std::size_t plus = prompt.find('+');
  return std::to_string(std::stoi(std::string(prompt.substr(0, plus))) +
                        std::stoi(std::string(prompt.substr(plus + 1)))) +
         "\n";
}

/// "40613>" -> "01346\n"
inline std::string make_sorting(random_bits& random) {
  std::string digits(static_cast<std::size_t>(4 + below(random, 6)), '0');
  for (char& d : digits) d = static_cast<char>('0' + below(random, 10));
  return digits + ">";
}
inline std::string solve_sorting(std::string_view prompt) {
  std::string digits(prompt.substr(0, prompt.size() - 1));
  std::sort(digits.begin(), digits.end());
  return digits + "\n";
}

/// "([]{(|" -> ")})\n": what closes all that is open.
inline std::string make_brackets(random_bits& random) {
  std::string prompt, open;
  for (int left = 6 + below(random, 7); left > 0; --left) {
    if (!open.empty() && below(random, 5) < 2) {
      prompt += open.back();
      open.pop_back();
    } else {
      const auto kind = static_cast<std::size_t>(below(random, 3));
      prompt += "([{"[kind];
      open += ")]}"[kind];
    }
  }
  return prompt + "|";
}
inline std::string solve_brackets(std::string_view prompt) {
  std::string open;
  for (const char c : prompt.substr(0, prompt.size() - 1)) {
    const std::size_t kind = std::string_view("([{").find(c);
    if (kind != std::string_view::npos)
      open += ")]}"[kind];
    else
      open.pop_back();
  }
  std::reverse(open.begin(), open.end());
  return open + "\n";
}

inline constexpr std::array<task, 3> tasks{{{"addition", make_addition, solve_addition},
                                            {"sorting", make_sorting, solve_sorting},
                                            {"brackets", make_brackets, solve_brackets}}};

/// The longest answer: twelve brackets and a line feed.
inline constexpr std::int64_t longest_answer = 13;

/// The reward, which is all that GRPO learns from.
inline double reward(const task& t, std::string_view prompt, std::string_view answer) {
  return answer == t.solve(prompt) ? 1 : 0;
}

/// Every fifth prompt, by its hash, is for tests only.
inline bool held_out(std::string_view prompt) { return dsv4::detail::fnv1a64(prompt) % 5 == 0; }

inline std::string draw(const task& t, random_bits& random, bool from_held_out) {
  for (;;) {
    std::string prompt = t.make(random);
    if (held_out(prompt) == from_held_out) return prompt;
  }
}

}  // namespace distill
