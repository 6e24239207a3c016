#!/usr/bin/env python3
"""Time and memory of a forward pass against the number of sequences and against their length, as tables and a plot.

    scripts/bench-sizes.py --device cuda --size 650M --dtype bf16 [--out build/bench-sizes]

Runs `turboesm bench prefill` (random weights) at 1, 2, 4 ... --max-sequences sequences of --length tokens, and at one
sequence of 64, 128 ... --max-residues residues. Slopes are those of log(cost) over log(size), by least squares over the
upper half of the points: 1 is proportional to the size, 2 to its square. A series ends early where a point does not fit
in memory, or where the next one would take longer than --point-seconds a pass. Writes sizes.svg, sizes.md and sizes.json.
Needs Python's standard library alone.
"""

import argparse
import json
import math
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
PANEL_WIDTH, PANEL_HEIGHT, LEFT, TOP, GAP = 380, 260, 70, 60, 90
COLOUR, GREY = "#2a78b5", "#666666"


def measure(arguments, batch, length):
    """The report of one point; None where it does not fit in the device's memory."""
    command = [arguments.turboesm, "bench", "prefill", "--device", arguments.device, "--dtype", arguments.dtype]
    command += ["--size", arguments.size] if arguments.size else []
    command += ["--batch", str(batch), "--length", str(length), "--seconds", str(arguments.seconds)]
    output = subprocess.run([*command, "--quiet", "--json", "-"], capture_output=True, text=True)
    if output.returncode == 4:  # a device or memory failure
        print(f"{batch} x {length}: {output.stderr.strip()}", file=sys.stderr)
        return None
    if output.returncode != 0:
        sys.exit(output.stderr)
    return json.loads(output.stdout)


def series(arguments, name, sizes, power, shape):
    """Points of growing size; `shape(size)` is a point's (sequences, tokens of each). Time grows at most by the size's
    power `power`."""
    points, reports = [], []
    for size in sizes:
        if points and points[-1]["seconds"] * (size / points[-1]["size"]) ** power > arguments.point_seconds:
            print(f"{name}: ended before {size}, which could take more than {arguments.point_seconds} s", file=sys.stderr)
            break
        report = measure(arguments, *shape(size))
        if report is None:
            break
        time, memory = report["prefill"]["device_time"], report["memory"]
        points.append(
            {
                "size": size,
                "seconds": time["median_s"],
                "fastest_s": time["fastest_s"],
                "slowest_s": time["slowest_s"],
                "activation_bytes": memory["activations"]["peak"],
                "total_bytes": memory["total"]["peak"],
            }
        )
        reports.append(report)
        print(f"{name} {size}: {time['median_s'] * 1e3:.3g} ms, {memory['total']['peak'] / 1e6:.0f} MB", file=sys.stderr)
    return {"name": name, "points": points, "reports": reports}


def slope(points, key):
    """Of log(points[key]) over log(size), least squares over the upper half; None for fewer than two points."""
    upper = points[len(points) // 2 :] if len(points) > 2 else points
    if len(upper) < 2:
        return None
    xs, ys = [math.log(p["size"]) for p in upper], [math.log(p[key]) for p in upper]
    x_mean, y_mean = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((x - x_mean) * (y - y_mean) for x, y in zip(xs, ys)) / sum((x - x_mean) ** 2 for x in xs)


def slope_text(points, key):
    value = slope(points, key)
    return "no slope" if value is None else f"slope {value:.2f}"


class Panel:
    """One pair of logarithmic axes."""

    def __init__(self, column, row, xs, ys):
        self.left, self.top = LEFT + column * (PANEL_WIDTH + GAP), TOP + row * (PANEL_HEIGHT + GAP)
        self.x_low, self.x_high = min(xs), max(max(xs), 2 * min(xs))
        self.y_low, self.y_high = 10 ** math.floor(math.log10(min(ys))), 10 ** math.ceil(math.log10(max(ys)))
        if self.y_low == self.y_high:
            self.y_high *= 10

    def x(self, value):
        return self.left + PANEL_WIDTH * math.log(value / self.x_low) / math.log(self.x_high / self.x_low)

    def y(self, value):
        return self.top + PANEL_HEIGHT * (1 - math.log(value / self.y_low) / math.log(self.y_high / self.y_low))

    def grid(self, sizes, unit):
        parts = []
        value = self.y_low
        while value <= self.y_high * 1.001:
            y = self.y(value)
            parts.append(f'<line x1="{self.left}" y1="{y:.1f}" x2="{self.left + PANEL_WIDTH}" y2="{y:.1f}" stroke="#ddd"/>')
            parts.append(text(self.left - 8, y + 4, "end", f"{value:,.10g} {unit}"))
            value *= 10
        for size in sizes[:: 1 if len(sizes) <= 6 else 2]:
            parts.append(text(self.x(size), self.top + PANEL_HEIGHT + 18, "middle", f"{size:,}"))
        return parts

    def curve(self, points, key, scale, colour, dashes=""):
        places = [(self.x(p["size"]), self.y(p[key] * scale)) for p in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts = [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2" {dashes}/>']
        return parts + [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]


def text(x, y, anchor, content, size=12, colour="black"):
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{colour}">{content}</text>'


def plot(title, all_series):
    width, height = LEFT + 2 * PANEL_WIDTH + GAP + 30, TOP + 2 * PANEL_HEIGHT + GAP + 60
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif">',
        '<rect width="100%" height="100%" fill="white"/>',
        text(width / 2, 24, "middle", title, 14),
    ]
    for column, one in enumerate(all_series):
        points = one["points"]
        if not points:
            continue
        sizes = [p["size"] for p in points]
        time = Panel(column, 0, sizes, [p["seconds"] * 1e3 for p in points])
        parts += time.grid(sizes, "ms") + time.curve(points, "seconds", 1e3, COLOUR)
        parts.append(text(time.left + 8, time.top - 8, "start", f"time, {slope_text(points, 'seconds')}", 13, COLOUR))
        megabytes = [p[key] / 1e6 for p in points for key in ["activation_bytes", "total_bytes"]]
        memory = Panel(column, 1, sizes, megabytes)
        parts += memory.grid(sizes, "MB") + memory.curve(points, "activation_bytes", 1e-6, COLOUR)
        parts += memory.curve(points, "total_bytes", 1e-6, GREY, 'stroke-dasharray="5 4"')
        label = f"activations, {slope_text(points, 'activation_bytes')}"
        parts.append(text(memory.left + 8, memory.top - 8, "start", label, 13, COLOUR))
        parts.append(text(memory.left + PANEL_WIDTH, memory.top - 8, "end", "with the weights", 13, GREY))
        parts.append(text(memory.left + PANEL_WIDTH / 2, memory.top + PANEL_HEIGHT + 42, "middle", one["name"], 13))
    return "\n".join([*parts, "</svg>"]) + "\n"


def tables(title, all_series):
    lines = [title]
    for one in all_series:
        points = one["points"]
        lines += ["", f"| {one['name']} | ms | activations, MB | with the weights, MB |", "| --- | --- | --- | --- |"]
        for p in points:
            megabytes = f"{p['activation_bytes'] / 1e6:.1f} | {p['total_bytes'] / 1e6:.1f}"
            lines.append(f"| {p['size']:,} | {p['seconds'] * 1e3:.4g} | {megabytes} |")
        slopes = [slope_text(points, key) for key in ["seconds", "activation_bytes", "total_bytes"]]
        lines.append("| upper half | " + " | ".join(slopes) + " |")
    return "\n".join(lines) + "\n"


def doubling(first, last):
    return [first << i for i in range(64) if first << i <= last]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--turboesm", default=str(ROOT / "build/release/bin/turboesm"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--size", default="", help="8M to 15B (default: the model that ships)")
    parser.add_argument("--dtype", default="f32")
    parser.add_argument("--length", type=int, default=256, help="tokens of each of the sequences")
    parser.add_argument("--max-sequences", type=int, default=1024)
    parser.add_argument("--max-residues", type=int, default=16384)
    parser.add_argument("--seconds", type=float, default=1.0, help="to spend on a point's repeats")
    parser.add_argument("--point-seconds", type=float, default=10.0, help="a series ends before a pass takes longer")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "build/bench-sizes", help="folder for the results")
    arguments = parser.parse_args()
    if not os.access(arguments.turboesm, os.X_OK):
        sys.exit(f"{arguments.turboesm}: there is no such program; build it with scripts/build.sh, or name one by --turboesm")

    by_number = series(
        arguments,
        f"sequences of {arguments.length} tokens",
        doubling(1, arguments.max_sequences),
        1,
        lambda n: (n, arguments.length),
    )
    by_length = series(
        arguments, "residues of one sequence", doubling(64, arguments.max_residues), 2, lambda n: (1, n + 2)
    )
    all_series = [by_number, by_length]
    reports = [report for one in all_series for report in one["reports"]]
    if not reports:
        sys.exit("no point could be measured")
    device = reports[0]["device"]
    model = arguments.size or "the model that ships"
    title = f"{model} {arguments.dtype}, {device['name']} ({device['driver']}), turboesm {reports[0]['turboesm']}"
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "sizes.svg").write_text(plot(title, all_series))
    (arguments.out / "sizes.md").write_text(tables(title, all_series))
    (arguments.out / "sizes.json").write_text(json.dumps({"title": title, "series": all_series}, indent=1) + "\n")
    print(tables(title, all_series), end="")


if __name__ == "__main__":
    main()
