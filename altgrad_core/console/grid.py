"""The GPU grid: from one card in detail to a mark for each of hundreds, always in the rows there are.

Every GPU is accounted for in all of them, and the sick ones are named where there is room for a word.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import attrs

from altgrad_core.console.canvas import BAD, DIM, SEVERITIES, STRONG, WARN, Line, bar
from altgrad_core.console.health import MARKS, Health, diagnose, fullness, mean
from altgrad_core.console.nodes import LABEL, ROW, findings, marks, marks_rows, node_row, short_name
from altgrad_core.console.state import RunState
from altgrad_core.console.words import gib, reading
from altgrad_core.experiments.hardware import Gpu, GpuSample

Mode = Literal["detail", "line", "tile", "node", "marks"]

_NODE = LABEL + 2  # cells for a node's name before its tiles
_DETAIL, _LINE = 78, 64  # cells that a GPU needs there
_TILES = (18, 13, 8)  # rank, utilization, temperature, memory; without memory; without temperature


@attrs.frozen
class Layout:
    """How a grid is drawn."""

    mode: Mode
    """What stands for a GPU: two rows, one row, a tile, a part of its node's row, or a mark among others."""
    columns: int
    """GPUs side by side; in ``node`` mode, nodes. ``marks`` finds its own."""
    cell: int
    """Cells of one of them."""
    rows: int
    """Rows it takes, its heading included; never more than there are, and at least 1."""


def layout(sizes: Sequence[int], width: int, height: int) -> Layout:
    """Return the most detailed way to draw nodes with so many GPUs each in ``width`` x ``height`` cells."""
    headings = len(sizes) if len(sizes) > 1 else 0

    def rows(columns: int, tall: int = 1) -> int:
        return sum(-(-size // columns) for size in sizes) * tall

    for mode, cell, tall in (("detail", _DETAIL, 2), ("line", _LINE, 1)):
        columns = min(max(sizes), width // cell)
        if columns and 1 + headings + rows(columns, tall) <= height:
            return Layout(mode, columns, width // columns, 1 + headings + rows(columns, tall))  # type: ignore[arg-type]
    for cell in _TILES:
        columns = min(max(sizes), (width - _NODE) // cell)
        if columns > 0 and 1 + rows(columns) <= height:
            return Layout("tile", columns, cell, 1 + rows(columns))
    columns = min(len(sizes), width // ROW)
    if columns and max(sizes) <= ROW // 4 and 1 + -(-len(sizes) // columns) <= height:
        return Layout("node", columns, width // columns, 1 + -(-len(sizes) // columns))
    return Layout("marks", 1, width, max(1, height))


class Grid:
    """The GPUs of a run at one moment."""

    def __init__(self, run: RunState) -> None:
        self.run, self.health = run, diagnose(run.gpus, run.samples)
        self.nodes: dict[str, list[Gpu]] = {}
        for gpu in run.gpus.values():
            self.nodes.setdefault(gpu.node, []).append(gpu)

    def least_rows(self, width: int) -> int:
        """Return the rows that it should get: a heading, a mark for every GPU, and a few rows of sick ones in words."""
        return 1 + marks_rows(self.nodes, self.health, width)

    def draw(self, width: int, height: int) -> list[Line]:
        """Return the grid in at most ``height`` rows, at least one."""
        run, nodes, health = self.run, self.nodes, self.health
        plan = layout([len(gpus) for gpus in nodes.values()], width, height)
        lines = [_heading(run, health, len(nodes), width)]
        match plan.mode:
            case "marks":
                lines += marks(nodes, health, width, height - 1)
            case "node":
                rows = [node_row(run, node, health, gpus, plan.cell - 1) for node, gpus in nodes.items()]
                lines += _beside(rows, plan)
            case "tile":
                for node, gpus in nodes.items():
                    lines += _tiles(node, gpus, run, health, plan)
                lines += findings(nodes, health, width, height - len(lines))
            case _:
                for node, gpus in nodes.items():
                    lines += [Line(f" {node}", DIM)] if len(nodes) > 1 else []
                    lines += _cards(gpus, run, health, plan)
        return [line.within(width) for line in lines[:height]]


def _beside(cells: Sequence[Line], plan: Layout) -> list[Line]:
    """Return cells side by side, the first ones below each other."""
    tall = -(-len(cells) // plan.columns)
    lines = []
    for row in range(tall):
        line = Line()
        for column, cell in enumerate(cells[row::tall]):
            line.to(column * plan.cell).extend(cell)
        lines.append(line)
    return lines


def _heading(run: RunState, health: Mapping[int, Health], nodes: int, width: int) -> Line:
    """Return all GPUs in one line: how many are sick of what, in words if there is room, then as much else as fits."""
    samples, gpus = list(run.samples.values()), run.gpus
    line = Line(f"{len(gpus)} GPU{'s' if len(gpus) > 1 else ''}", STRONG)
    if nodes > 1 and width >= 60:
        line.add(f" on {nodes} nodes", STRONG)
    sick = [health[rank].mark for rank in gpus if health[rank].severity]
    hottest = max((s.temperature_c for s in samples if s.temperature_c is not None), default=None)
    powers = [s.power_w for s in samples if s.power_w is not None]
    rest = [f"  util {reading(mean([s.utilization for s in samples]), '%')}"]
    rest += [f"  mem {reading(mean([fullness(gpus[s.rank], s) for s in samples if s.rank in gpus]), '%')}"]
    rest += [f"  max {reading(hottest, '°C')}", f"  {sum(powers) / 1000:.1f} kW" if powers else "  N/A kW"]
    counts = {mark: f"  {mark} {sick.count(mark)}" for mark in MARKS if mark in sick}
    words = {mark: f"{count} {MARKS[mark]}" for mark, count in counts.items()}
    if line.width + sum(map(len, [*words.values(), *rest])) <= width:
        counts = words
    for mark, count in counts.items():
        line.add(count, WARN if mark == "S" else BAD)
    if samples and not sick:
        line.add("  all well", DIM)
    for text in rest:
        if line.width + len(text) <= width:
            line.add(text)
    return line


def _cards(gpus: Sequence[Gpu], run: RunState, health: Mapping[int, Health], plan: Layout) -> list[Line]:
    """Return a node's GPUs in one or two rows each."""
    draw = _detail if plan.mode == "detail" else _line
    lines = []
    for start in range(0, len(gpus), plan.columns):
        row = gpus[start : start + plan.columns]
        cells = [draw(gpu, run.samples.get(gpu.rank), health[gpu.rank], plan.cell - 1) for gpu in row]
        for parts in zip(*cells, strict=True):
            line = Line()
            for number, part in enumerate(parts):
                line.to(number * plan.cell).extend(part.within(plan.cell - 1))
            lines.append(line)
    return lines


def _detail(gpu: Gpu, sample: GpuSample | None, health: Health, width: int) -> list[Line]:
    sample = sample or GpuSample(rank=gpu.rank)
    style = SEVERITIES[health.severity]
    bars = (width - 62) // 2
    full = fullness(gpu, sample)
    first = Line(f"{gpu.rank:>3} ").add(health.mark, style or DIM).add(" ").field(gpu.name, 15)
    first.add("  util ").extend(bar((sample.utilization or 0) / 100, bars)).add(
        f" {reading(sample.utilization, '%'):>5}"
    )
    first.add("  mem ").extend(bar((full or 0) / 100, bars)).add(f" {_memory(gpu, sample)}")
    second = Line("      ").add(f"{reading(sample.temperature_c, '°C'):>6}")
    second.add(f" of {reading(gpu.slowdown_c, '°C')}  {_of(sample.power_w, gpu.power_limit_w, 'W')}")
    second.add(f"  {_of(sample.sm_mhz, gpu.sm_max_mhz, 'MHz')}")
    if health.severity:
        return [first, second.add(f"  {health.text}", style)]
    reasons = "N/A" if sample.throttle is None else ", ".join(sample.throttle) or "none"
    second.add(f"  throttle {reasons}  ECC {'N/A' if sample.ecc is None else sample.ecc}", DIM)
    return [first, second]


def _line(gpu: Gpu, sample: GpuSample | None, health: Health, width: int) -> list[Line]:
    sample = sample or GpuSample(rank=gpu.rank)
    style = SEVERITIES[health.severity]
    line = Line(f"{gpu.rank:>3} ").add(health.mark, style or DIM).add(f" {reading(sample.utilization, '%'):>5}")
    line.add(f"  {_memory(gpu, sample)}  {reading(sample.temperature_c, '°C'):>6}")
    line.add(f" {reading(sample.power_w, 'W'):>6} {reading(sample.sm_mhz, 'MHz'):>8}")
    if health.severity:
        line.add(f"  {health.text}", style)
    elif width >= line.width + 16:
        reasons = "N/A" if sample.throttle is None else ", ".join(sample.throttle)
        line.add(f"  {reasons}", DIM)
    return [line]


def _tiles(node: str, gpus: Sequence[Gpu], run: RunState, health: Mapping[int, Health], plan: Layout) -> list[Line]:
    lines = []
    for start in range(0, len(gpus), plan.columns):
        line = Line().field(short_name(node, LABEL) if start == 0 else "", _NODE - 1, DIM).to(_NODE)
        for gpu in gpus[start : start + plan.columns]:
            sample, one = run.samples.get(gpu.rank) or GpuSample(rank=gpu.rank), health[gpu.rank]
            style = SEVERITIES[one.severity]
            tile = Line(f"{gpu.rank:>3}", style).add(one.mark, style or DIM)
            small = plan.cell < _TILES[1]
            tile.add(_short(sample.utilization, "" if small else "%"), style)
            if not small:
                tile.add(_short(sample.temperature_c, "°"))
            if plan.cell >= _TILES[0]:
                tile.add(_short(fullness(gpu, sample), "%"), DIM)
            start_of_next = line.width + plan.cell
            line.extend(tile.within(plan.cell - 1)).to(start_of_next)
        lines.append(line)
    return lines


def _memory(gpu: Gpu, sample: GpuSample) -> str:
    return f"{gib(sample.used_mib):>5}/{gib(gpu.total_mib)} GiB {reading(fullness(gpu, sample), '%'):>5}"


def _short(value: float | None, unit: str) -> str:
    return "N/A".rjust(3 + len(unit)) if value is None else f"{value:3.0f}{unit}"


def _of(value: float | None, limit: float | None, unit: str) -> str:
    if value is None:
        return f"N/A {unit}"
    return f"{value:.0f} {unit}" if limit is None else f"{value:.0f}/{limit:.0f} {unit}"
