// SPDX-License-Identifier: Apache-2.0
/// Curves over one axis as an SVG file, without any library.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

namespace cost_program {

struct point {
  double x, y;
};
struct curve {
  std::string name;
  std::vector<point> points;  ///< rising in x
};
struct chart {
  std::string title, x_label, y_label;
  std::vector<curve> curves;
};

namespace detail {
inline std::string number(double v) {
  char text[32];
  std::snprintf(text, sizeof text, "%.6g", v);
  return text;
}
inline std::string escaped(const std::string& text) {
  std::string out;
  for (char c : text) out += c == '&' ? "&amp;" : c == '<' ? "&lt;" : c == '>' ? "&gt;" : std::string(1, c);
  return out;
}
/// 1, 2 or 5 times a power of ten, so that about `count` of it reach `most`.
inline double tick_step(double most, int count) {
  const double rough = most / count, power = std::pow(10, std::floor(std::log10(rough)));
  for (double m : {1.0, 2.0, 5.0})
    if (rough <= m * power) return m * power;
  return 10 * power;
}
}  // namespace detail

/// Writes `c` with both axes from 0. Curves are named at their right ends.
inline void write_svg(const std::string& file, const chart& c) {
  using detail::number;
  constexpr double width = 760, height = 440, left = 76, right = 128, top = 48, bottom = 56;
  constexpr const char* colours[] = {"#4c4c4c", "#0b6fb8", "#c2410c", "#15803d", "#7e22ce", "#a16207"};
  double most_x = 0, most_y = 0;
  for (const curve& one : c.curves)
    for (const point& p : one.points) most_x = std::max(most_x, p.x), most_y = std::max(most_y, p.y);
  if (!(most_x > 0 && most_y > 0)) throw std::runtime_error("write_svg: nothing to draw");
  const double step_x = detail::tick_step(most_x, 6), step_y = detail::tick_step(most_y, 6);
  most_y = std::ceil(most_y / step_y) * step_y;
  const auto x_of = [&](double x) { return left + x / most_x * (width - left - right); };
  const auto y_of = [&](double y) { return height - bottom - y / most_y * (height - top - bottom); };

  std::string s = "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 " + number(width) + " " +
                  number(height) +
                  "\" font-family=\"sans-serif\" font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" "
                  "fill=\"#ffffff\"/>\n";
  const auto line = [&](double x0, double y0, double x1, double y1, const char* colour) {
    s += "<line x1=\"" + number(x0) + "\" y1=\"" + number(y0) + "\" x2=\"" + number(x1) + "\" y2=\"" +
         number(y1) + "\" stroke=\"" + colour + "\"/>\n";
  };
  const auto text = [&](double x, double y, const char* anchor, const std::string& words,
                        const std::string& more = "") {
    s += "<text x=\"" + number(x) + "\" y=\"" + number(y) + "\" text-anchor=\"" + anchor + "\"" + more + ">" +
         detail::escaped(words) + "</text>\n";
  };
  text(left, 24, "start", c.title, " font-size=\"16\" font-weight=\"bold\"");
  for (double y = 0; y <= most_y * 1.0001; y += step_y) {
    line(left, y_of(y), width - right, y_of(y), "#e0e0e0");
    text(left - 8, y_of(y) + 4, "end", number(y));
  }
  for (double x = 0; x <= most_x * 1.0001; x += step_x) {
    line(x_of(x), height - bottom, x_of(x), height - bottom + 5, "#808080");
    text(x_of(x), height - bottom + 20, "middle", number(x));
  }
  line(left, height - bottom, width - right, height - bottom, "#808080");
  text((left + width - right) / 2, height - 12, "middle", c.x_label);
  text(0, 0, "middle", c.y_label,
       " transform=\"translate(20 " + number((top + height - bottom) / 2) + ") rotate(-90)\"");

  // Names are moved apart where curves end close to each other.
  std::vector<std::size_t> order(c.curves.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return c.curves[a].points.back().y < c.curves[b].points.back().y;
  });
  double below = height;
  for (std::size_t i : order) {
    const curve& one = c.curves[i];
    const std::string colour = colours[i % std::size(colours)];
    s += "<polyline fill=\"none\" stroke-width=\"2.5\" stroke=\"" + colour + "\" points=\"";
    for (const point& p : one.points) s += number(x_of(p.x)) + "," + number(y_of(p.y)) + " ";
    s += "\"/>\n";
    const double at = std::min(y_of(one.points.back().y) + 4, below - 17);
    text(x_of(one.points.back().x) + 8, at, "start", one.name, " fill=\"" + colour + "\"");
    below = at;
  }
  s += "</svg>\n";
  std::ofstream out(file);
  out << s;
  if (!out) throw std::runtime_error(file + ": cannot write");
}

}  // namespace cost_program
