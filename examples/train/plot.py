# SPDX-License-Identifier: Apache-2.0
"""Draws losses of dsv4-train's logs over tokens, as an SVG file.

usage: plot.py FILE.svg NAME=LOG.csv...

Each log gets two curves: on text that was held out, and (thin) on the text that is trained on, smoothed. Needs Python alone.
"""
import csv
import html
import math
import pathlib
import sys

COLOURS = "#0b6fb8", "#c2410c", "#15803d", "#7e22ce", "#a16207", "#4c4c4c"


def read_log(path):
    """{"held_out": [(million tokens, nats per byte)], "training": the same, smoothed}"""
    with open(path) as lines:
        rows = list(csv.DictReader(lines))
    smooth, before, last, held_out, training = None, 0.0, 0.0, [], []
    for row in rows:
        loss, tokens = float(row["loss"]), float(row["targets"]) / 1e6
        if tokens < last:  # a resumed run counts its own
            before += last
        last = tokens
        smooth = loss if smooth is None else 0.95 * smooth + 0.05 * loss
        training.append((before + tokens, smooth))
        if row["held_out"]:
            held_out.append((before + tokens, float(row["held_out"])))
    return {"held_out": held_out, "training": training[:: max(1, len(training) // 200)]}


def draw(file, title, curves, low=None, high=None):
    """Curves are (name or None, colour, thickness, [(million tokens, nats per byte)]); those with a name have it at their right end.
    The losses shown are all but those of the first eighth, unless given."""
    width, height, left, right, top, bottom = 760, 440, 76, 176, 48, 56
    most_x = max(points[-1][0] for *_, points in curves)
    shown = [y for *_, points in curves for x, y in points if x >= most_x / 8]
    low = math.floor(min(shown) * 10) / 10 if low is None else low
    high = math.ceil(max(shown) * 10) / 10 if high is None else high

    def place(x, y):
        return left + x / most_x * (width - left - right), height - bottom - (y - low) / (high - low) * (height - top - bottom)

    def text(x, y, anchor, words, more=""):
        return f'<text x="{x:.6g}" y="{y:.6g}" text-anchor="{anchor}"{more}>{html.escape(words)}</text>'

    def line(a, b, colour):
        return f'<line x1="{a[0]:.6g}" y1="{a[1]:.6g}" x2="{b[0]:.6g}" y2="{b[1]:.6g}" stroke="{colour}"/>'

    def ticks(span, count):
        power = 10 ** math.floor(math.log10(span / count))
        return next(m * power for m in (1, 2, 5, 10) if span <= m * power * count)

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="13">',
           '<rect width="100%" height="100%" fill="#ffffff"/>',
           f'<clipPath id="inside"><rect x="{left}" y="{top}" width="{width - left}" height="{height - top - bottom}"/></clipPath>',
           text(left, 24, "start", title, ' font-size="16" font-weight="bold"')]
    step = ticks(high - low, 8)
    for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1):
        out += [line(place(0, i * step), place(most_x, i * step), "#e0e0e0"),
                text(left - 8, place(0, i * step)[1] + 4, "end", f"{i * step:.3g}")]
    step = ticks(most_x, 6)
    for i in range(math.floor(most_x / step + 1e-9) + 1):
        x, base = place(i * step, low)
        out += [line((x, base), (x, base + 5), "#808080"), text(x, base + 20, "middle", f"{i * step:.3g}")]
    out += [line(place(0, low), place(most_x, low), "#808080"),
            text((left + width - right) / 2, height - 12, "middle", "million tokens"),
            text(0, 0, "middle", "nats per byte", f' transform="translate(20 {(top + height - bottom) / 2}) rotate(-90)"')]
    for _, colour, thickness, points in curves:
        out.append(f'<polyline clip-path="url(#inside)" fill="none" stroke-width="{thickness}" stroke="{colour}" points="'
                   + " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*p) for p in points)) + '"/>')
    below = height  # names are moved apart where curves end close to each other
    for name, colour, _, points in sorted((c for c in curves if c[0]), key=lambda c: c[3][-1][1]):
        x, y = place(*points[-1])
        below = min(y + 4, below - 17)
        out += [f'<rect x="{x + 5:.6g}" y="{below - 12:.6g}" width="{7.5 * len(name):.6g}" height="16" fill="#ffffff" opacity="0.8"/>',
                text(x + 8, below, "start", name, f' fill="{colour}"')]
    pathlib.Path(file).write_text("\n".join(out) + "\n</svg>\n")


def main():
    if len(sys.argv) < 3 or any("=" not in a for a in sys.argv[2:]):
        sys.exit(__doc__)
    curves = []
    for colour, (name, log) in zip(COLOURS, (a.split("=", 1) for a in sys.argv[2:])):
        losses = read_log(log)
        curves += [(None, colour, 0.8, losses["training"]), (name, colour, 2.5, losses["held_out"])]
    draw(sys.argv[1], "Loss", curves)


if __name__ == "__main__":
    main()
