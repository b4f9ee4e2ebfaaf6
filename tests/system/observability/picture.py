"""A dashboard drawn without Grafana: its JSON, Prometheus' data and a few lines of SVG; Chromium makes a PNG of it."""

from __future__ import annotations

import asyncio
import json
import math
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final, NamedTuple

from ops.grafana import queries
from ops.grafana.promql import WINDOW
from tests.system.observability.prometheus import Prometheus

COLUMN, ROW, GAP = 62, 38, 8
"""Pixels of the grid; a panel leaves a gap."""
COLORS: Final = ["#3b7dd8", "#e0752d", "#3f9b4f", "#b04fc4", "#c4a000", "#17a2a2", "#d64570", "#7a6a58"]
SIGNALS: Final = {"red": "#d02a3a", "orange": "#e08a1e", "green": "#2f9e44", "blue": "#2f6fd0"}
LEFT, RIGHT, TOP, BOTTOM = 56, 10, 8, 20
CHROMIUM_SECONDS: Final = 60.0
STYLE: Final = """body{margin:0;background:#f1f2f4;font:13px 'DejaVu Sans',sans-serif;color:#24292e;position:relative}
h1{font-size:17px;margin:0;position:absolute;left:12px;top:10px}
.panel{position:absolute;background:#fff;border:1px solid #d8dade;border-radius:3px;overflow:hidden}
.row{position:absolute;font-weight:bold;left:12px;font-size:14px;padding-top:10px}
.title{font-weight:bold;padding:6px 10px 2px}.legend{padding:0 10px;font-size:12px;line-height:17px}
.legend span{margin-right:14px;white-space:nowrap;display:inline-block}
.many{font-size:10.5px;line-height:14px}
.values{display:flex;gap:4px 22px;padding:6px 12px}
.values b{display:block;line-height:30px;white-space:nowrap}
.values small{font-size:12px;color:#57606a}.none{padding:14px;color:#8a919a}
.crowd{flex-wrap:wrap;gap:0 14px;padding:2px 12px}.crowd small{font-size:10.5px}
.crowd div b{display:inline;line-height:17px;margin-left:5px}
text{font:11px 'DejaVu Sans',sans-serif;fill:#57606a}"""


class Line(NamedTuple):
    name: str
    points: list[tuple[float, float]]


class Span(NamedTuple):
    """What is drawn: from when until when."""

    since: float
    until: float


async def paint(prometheus: Prometheus, board: str, since: float, rate_interval: str, file: Path) -> None:
    """Write the board as HTML to `file` and, where Chromium is installed, as PNG beside it."""
    document = json.loads((Path(queries.__file__).parent / f"{board}.json").read_text())
    span = Span(since, time.time())
    parts = [f"<h1>{escape(document['title'])}</h1>"]
    for panel in document["panels"]:
        lines = [
            Line(_legend(target["legendFormat"], series.labels), series.points)
            for target in panel.get("targets", [])
            for series in await prometheus.range(target["expr"].replace(WINDOW, rate_interval), since)
        ]
        parts.append(_panel(panel, lines, span))
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in document["panels"]) * ROW + 60
    page = f"<!doctype html><meta charset=utf-8><style>{STYLE}</style><body>{''.join(parts)}"
    await asyncio.to_thread(file.write_text, page)
    await _photograph(file, 24 * COLUMN + 2 * GAP, height)


async def _photograph(file: Path, width: int, height: int) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        return
    process = await asyncio.create_subprocess_exec(
        chromium,
        *(
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            f"--window-size={width},{height}",
        ),
        f"--screenshot={file.with_suffix('.png')}",
        file.as_uri(),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    async with asyncio.timeout(CHROMIUM_SECONDS):
        await process.wait()


def _panel(panel: Mapping[str, Any], lines: Sequence[Line], span: Span) -> str:
    at = panel["gridPos"]
    x, y = at["x"] * COLUMN + GAP, at["y"] * ROW + 40
    if panel["type"] == "row":
        return f'<div class=row style="top:{y}px">{escape(panel["title"])}</div>'
    width, height = at["w"] * COLUMN - GAP, at["h"] * ROW - GAP
    draw = _numbers if panel["type"] == "stat" else _graph
    body = draw(panel, lines, span, width, height - 30) if lines else "<div class=none>no data</div>"
    box = f"left:{x}px;top:{y}px;width:{width - 2}px;height:{height - 2}px"
    return f'<div class=panel style="{box}"><div class=title>{escape(panel["title"])}</div>{body}</div>'


def _numbers(panel: Mapping[str, Any], lines: Sequence[Line], span: Span, width: int, height: int) -> str:
    """The latest value of each line, in the colour of the limit that it is over, above how it came to be so."""
    defaults = panel["fieldConfig"]["defaults"]
    crowd = len(lines) > 4
    room = (width - 24) // len(lines) - 22
    values = []
    for line in lines:
        value = line.points[-1][1]
        color = _color(defaults["thresholds"]["steps"], value)
        name, shown = escape(line.name), _written(value, defaults["unit"])
        size = 12 if crowd else min(26, int(room / (0.75 * len(shown))))
        style = f"color:{color};font-size:{size}px"
        scale = _Scale(span, max(abs(each) for _, each in line.points) or 1.0, (0, 2, room, height - 72))
        sparks = "" if crowd else scale.drawn(line, [0.0] * len(line.points), color, filled=True)
        chart = "" if crowd else f'<svg width="{room}" height="{height - 70}">{sparks}</svg>'
        values.append(f'<div><small>{name}</small><b style="{style}">{shown}</b>{chart}</div>')
    return f'<div class="values{" crowd" if crowd else ""}">{"".join(values)}</div>'


def _color(steps: Sequence[Mapping[str, Any]], value: float) -> str:
    over = [step["color"] for step in steps if step["value"] is None or value >= step["value"]]
    return SIGNALS[over[-1]]


def _graph(panel: Mapping[str, Any], lines: Sequence[Line], span: Span, width: int, height: int) -> str:
    defaults = panel["fieldConfig"]["defaults"]
    stacked = defaults["custom"].get("stacking", {}).get("mode") == "normal"
    legend, legend_height = _legends(lines, width)
    height -= legend_height
    box = (LEFT, TOP, width - RIGHT, height - BOTTOM)
    drawn = _stacked(lines) if stacked else [(line, [0.0] * len(line.points)) for line in lines]
    top = max(low + value for line, lows in drawn for low, (_, value) in zip(lows, line.points, strict=True))
    ticks = _ticks(top)
    scale = _Scale(span, ticks[-1] or 1.0, box)
    parts = [_grid(scale, ticks, defaults["unit"])]
    for number, (line, lows) in reversed(list(enumerate(drawn))):
        parts.append(scale.drawn(line, lows, COLORS[number % len(COLORS)], filled=stacked))
    for step in defaults.get("thresholds", {}).get("steps", []):
        if step["value"] and step["value"] <= ticks[-1] and "thresholdsStyle" in defaults["custom"]:
            y = scale.y(step["value"])
            dashed = f'stroke="{SIGNALS[step["color"]]}" stroke-dasharray="5 4"'
            parts.append(f'<line x1="{box[0]}" x2="{box[2]}" y1="{y}" y2="{y}" {dashed}/>')
    return f'<svg width="{width}" height="{height}">{"".join(parts)}</svg>{legend}'


class _Scale:
    def __init__(self, span: Span, top: float, box: tuple[int, int, int, int]) -> None:
        self.span = span
        self.box = box
        self._top = top

    def x(self, at: float) -> float:
        left, _, right, _ = self.box
        return round(left + (at - self.span.since) / (self.span.until - self.span.since) * (right - left), 1)

    def y(self, value: float) -> float:
        _, top, _, bottom = self.box
        return round(bottom - max(value, 0.0) / self._top * (bottom - top), 1)

    def drawn(self, line: Line, lows: Sequence[float], color: str, *, filled: bool) -> str:
        """Broken where data is missing."""
        parts, run = [], list[tuple[float, float, float]]()
        for (at, value), low in zip(line.points, lows, strict=True):
            if run and at - run[-1][0] > 3:
                parts.append(self._run(run, color, filled=filled))
                run = []
            run.append((at, low, low + value))
        return "".join([*parts, self._run(run, color, filled=filled)])

    def _run(self, run: Sequence[tuple[float, float, float]], color: str, *, filled: bool) -> str:
        upper = " ".join(f"{self.x(at)},{self.y(high)}" for at, _, high in run)
        line = f'<polyline points="{upper}" fill="none" stroke="{color}" stroke-width="1.6"/>'
        if not filled:
            return line
        lower = " ".join(f"{self.x(at)},{self.y(low)}" for at, low, _ in reversed(run))
        return f'<polygon points="{upper} {lower}" fill="{color}" fill-opacity="0.35"/>{line}'


def _grid(scale: _Scale, ticks: Sequence[float], unit: str) -> str:
    left, _, right, bottom = scale.box
    parts = []
    for tick in ticks:
        y = scale.y(tick)
        parts.append(f'<line x1="{left}" x2="{right}" y1="{y}" y2="{y}" stroke="#e3e5e8"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4}" text-anchor="end">{_written(tick, unit)}</text>')
    minutes = (scale.span.until - scale.span.since) / 60
    every = next(each for each in (15, 30, 60, 120, 300, 600, 3600) if each >= minutes * 60 / 6)
    at = math.ceil(scale.span.since / every) * every
    while at < scale.span.until:
        if left + 20 < scale.x(at) < right - 20:
            clock = time.strftime("%H:%M:%S", time.gmtime(at))
            parts.append(f'<text x="{scale.x(at)}" y="{bottom + 15}" text-anchor="middle">{clock}</text>')
        at += every
    return "".join(parts)


def _stacked(lines: Sequence[Line]) -> list[tuple[Line, list[float]]]:
    """Each line with what lies under it at each of its times."""
    below: dict[float, float] = {}
    found = []
    for line in lines:
        found.append((line, [below.get(at, 0.0) for at, _ in line.points]))
        below |= {at: below.get(at, 0.0) + value for at, value in line.points}
    return found


def _legends(lines: Sequence[Line], width: int) -> tuple[str, int]:
    """And the pixels that they take: many are written small."""
    many = len(lines) > 6
    letter, row = (6.3, 14) if many else (7.5, 17)
    rows, used = 1, 0.0
    for line in lines:
        needed = len(line.name) * letter + 34
        rows, used = (rows + 1, needed) if used + needed > width - 20 else (rows, used + needed)
    names = "".join(
        f'<span><b style="color:{COLORS[number % len(COLORS)]}">▬</b> {escape(line.name)}</span>'
        for number, line in enumerate(lines)
    )
    return f'<div class="legend{" many" if many else ""}">{names}</div>', rows * row


def _legend(form: str, labels: Mapping[str, str]) -> str:
    return re.sub(r"{{(\w+)}}", lambda found: labels.get(found[1], ""), form).strip()


def _ticks(top: float) -> list[float]:
    """From 0 to `top` or above, in three to five round steps."""
    if top <= 0:
        return [0.0, 1.0]
    rough = top / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * each for each in (1, 2, 2.5, 5, 10) if power * each >= rough)
    return [step * number for number in range(math.ceil(top / step) + 1)]


def _written(value: float, unit: str) -> str:
    if unit == "percentunit":
        return f"{value * 100:,.0f} %" if abs(value) >= 10 else f"{value * 100:.3g} %"
    if unit == "s" and 0 < abs(value) < 1:
        return f"{value * 1000:.3g} ms"
    if unit == "bytes":
        power = min(3, int(math.log(max(value, 1), 1024)))
        return f"{value / 1024**power:.3g} {('B', 'KiB', 'MiB', 'GiB')[power]}"
    suffix = {"s": " s", "ops": "/s"}.get(unit, "")
    return f"{value:,.0f}{suffix}" if abs(value) >= 1000 else f"{value:.3g}{suffix}"
