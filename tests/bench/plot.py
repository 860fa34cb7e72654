"""The plots: seconds over the number of agents, as an SVG without any library."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from bench.records import Record

_Scale = Callable[[float], float]
_END, _HEIGHT = 610, 460
"""Where the lines end, and the labels begin."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 150, 40, 55
COLOURS = {
    "api-floor": "#888888",
    "kubernetes": "#326ce5",
    "c10d": "#d9480f",
    "c10d-tuned": "#f59f00",
    "etcd": "#2b8a3e",
    "etcd-v2": "#862e9c",
    "etcd-v3": "#0b7285",
}
_LABEL_HEIGHT, _LETTER = 14.0, 6.5


def plot(records: Sequence[Record], title: str, colours: Mapping[str, str] = COLOURS) -> str:
    """Both axes logarithmic; a line for each `backend`. What ended at the time limit is an open circle: it takes longer than that."""
    sizes = sorted({record.n for record in records})
    values = [record.median for record in records]
    width = _END + max(_RIGHT, 12 + _LETTER * max(len(record.backend) for record in records))
    low, high = 10 ** math.floor(math.log10(min(values))), 10 ** math.ceil(math.log10(max(values)))

    def x(size: float) -> float:
        share = math.log(size / sizes[0]) / max(math.log(sizes[-1] / sizes[0]), 1e-9)
        return _LEFT + share * (_END - _LEFT)

    def y(seconds: float) -> float:
        return _HEIGHT - _BOTTOM - math.log(seconds / low) / math.log(high / low) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {_HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width:g}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="22" font-size="15">{title}</text>',
        f'<text x="{(_LEFT + _END) / 2}" y="{_HEIGHT - 12}" text-anchor="middle">agents</text>',
        f'<text x="16" y="{_HEIGHT / 2}" text-anchor="middle" transform="rotate(-90 16 {_HEIGHT / 2})">seconds</text>',
    ]
    decade = low
    while decade <= high * 1.01:
        parts.append(_line(_LEFT, y(decade), _END, y(decade), "#dddddd"))
        parts.append(f'<text x="{_LEFT - 8}" y="{y(decade) + 4:.1f}" text-anchor="end">{decade:g}</text>')
        decade *= 10
    for size in sizes:
        parts.append(_line(x(size), _TOP, x(size), _HEIGHT - _BOTTOM, "#eeeeee"))
        parts.append(f'<text x="{x(size):.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{size}</text>')
    ends: list[tuple[float, str, str]] = []
    for backend, colour in colours.items():
        line = sorted((record for record in records if record.backend == backend), key=lambda record: record.n)
        if line:
            parts += _series(line, colour, x, y)
            ends.append((y(line[-1].median), backend, colour))
    parts += _labels(ends)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _series(line: Sequence[Record], colour: str, x: _Scale, y: _Scale) -> list[str]:
    points = " ".join(f"{x(record.n):.1f},{y(record.median):.1f}" for record in line)
    parts = [f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>']
    for record in line:
        place = f'cx="{x(record.n):.1f}" cy="{y(record.median):.1f}"'
        fill = "white" if record.timeout else colour
        parts.append(f'<circle {place} r="4" fill="{fill}" stroke="{colour}" stroke-width="2"/>')
        if record.runs > 1:
            parts.append(_line(x(record.n), y(record.min), x(record.n), y(record.max), colour))
    return parts


def _labels(ends: list[tuple[float, str, str]]) -> list[str]:
    """Names at the lines' ends, moved apart where they would cover each other."""
    parts, last = [], -math.inf
    for height, backend, colour in sorted(ends):
        last = max(height, last + _LABEL_HEIGHT)
        place = f'x="{_END + 12}" y="{last + 4:.1f}"'
        parts.append(f'<text {place} fill="{colour}">{backend}</text>')
    return parts


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'
