"""The GPU grid: from one card in detail to hundreds as one row a node, always in the rows there are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import attrs

from altgrad_core.console.canvas import BAD, DIM, PLAIN, STRONG, WARN, Line, bar
from altgrad_core.console.health import MARKS, Health, diagnose, worst
from altgrad_core.console.state import RunState
from altgrad_core.console.words import gib
from altgrad_core.experiments.hardware import Gpu, GpuSample

Mode = Literal["detail", "line", "tile", "node"]

_SEVERITY = (PLAIN, WARN, BAD)
_LABEL = 9  # cells for a node's name before its tiles
_DETAIL, _LINE = 78, 64  # cells that a GPU needs there
_TILES = (18, 13, 8)  # rank, utilization, temperature, memory; without memory; without temperature
_NODE = 64  # cells that a node's row needs with a finding in it


@attrs.frozen
class Layout:
    """How a grid is drawn."""

    mode: Mode
    """What stands for a GPU: two rows, one row, a tile, or a part of its node's row."""
    columns: int
    """GPUs side by side; in ``node`` mode, nodes."""
    cell: int
    """Cells of one of them."""
    rows: int
    """Rows it takes, its heading included; never more than there are, and at least 1."""


def layout(gpus: int, nodes: int, width: int, height: int) -> Layout:
    """Return the most detailed way to draw ``gpus`` on ``nodes`` in ``width`` x ``height`` cells."""
    each = math.ceil(gpus / nodes)
    headings = nodes if nodes > 1 else 0
    for mode, cell, tall in (("detail", _DETAIL, 2), ("line", _LINE, 1)):
        columns = min(each, width // cell)
        if columns:
            rows = 1 + headings + nodes * math.ceil(each / columns) * tall
            if rows <= height:
                return Layout(mode, columns, width // columns, rows)  # type: ignore[arg-type]
    for cell in _TILES:
        columns = min(each, (width - _LABEL) // cell)
        if columns > 0:
            rows = 1 + nodes * math.ceil(each / columns)
            if rows <= height:
                return Layout("tile", columns, cell, rows)
    columns = max(1, min(nodes, width // _NODE))
    return Layout("node", columns, width // columns, max(1, min(height, 1 + math.ceil(nodes / columns))))


def least_rows(nodes: int) -> int:
    """Return the rows that a grid should get when others want them, too: its heading and a few nodes."""
    return 1 + min(nodes, 4)


def draw_grid(run: RunState, width: int, height: int) -> list[Line]:
    """Return the grid of a run with GPUs in at most ``height`` rows, at least one."""
    health = diagnose(run.gpus, run.samples)
    nodes: dict[str, list[Gpu]] = {}
    for gpu in run.gpus.values():
        nodes.setdefault(gpu.node, []).append(gpu)
    plan = layout(len(run.gpus), len(nodes), width, height)
    lines = [_heading(run, health, len(nodes), width)]
    if plan.mode == "node":
        lines += _node_rows(run, nodes, health, plan)
    for node, gpus in nodes.items() if plan.mode != "node" else ():
        if plan.mode == "tile":
            lines += _tiles(node, gpus, run, health, plan)
            continue
        if len(nodes) > 1:
            lines.append(Line(f" {node}", DIM))
        for start in range(0, len(gpus), plan.columns):
            row = gpus[start : start + plan.columns]
            draw = _detail if plan.mode == "detail" else _line
            cells = [draw(gpu, run.samples.get(gpu.rank), health[gpu.rank], plan.cell - 1) for gpu in row]
            for parts in zip(*cells, strict=True):
                line = Line()
                for number, part in enumerate(parts):
                    line.to(number * plan.cell).extend(part.within(plan.cell - 1))
                lines.append(line)
    sickest = worst(health)
    if plan.mode == "tile" and sickest is not None:
        one, style = health[sickest], _SEVERITY[health[sickest].severity]
        lines.append(Line(f"rank {sickest} on {run.gpus[sickest].node}: {MARKS[one.mark]}, {one.text}", style))
    return [line.within(width) for line in lines[:height]]


def _heading(run: RunState, health: dict[int, Health], nodes: int, width: int) -> Line:
    samples, gpus = list(run.samples.values()), run.gpus
    where = f" on {nodes} nodes" if nodes > 1 else ""
    line = Line(f"{len(gpus)} GPU{'s' if len(gpus) > 1 else ''}{where}", STRONG)
    sick = [health[rank] for rank in gpus if health[rank].severity]
    for mark, word in MARKS.items():
        number = sum(one.mark == mark for one in sick)
        if number:
            text = f"  {mark} {number} {word}" if width >= 90 else f"  {mark} {number}"
            line.add(text, WARN if mark == "S" else BAD)
    if samples and not sick:
        line.add("  all well", DIM)
    line.add(f"  util {_percent(_mean([s.utilization for s in samples]))}")
    line.add(f"  mem {_percent(_mean([_fullness(gpus[s.rank], s) for s in samples if s.rank in gpus]))}")
    hottest = max((s.temperature_c for s in samples if s.temperature_c is not None), default=None)
    line.add(f"  max {_unit(hottest, '°C')}")
    powers = [s.power_w for s in samples if s.power_w is not None]
    return line.add(f"  {sum(powers) / 1000:.1f} kW" if powers else "  N/A kW")


def _detail(gpu: Gpu, sample: GpuSample | None, health: Health, width: int) -> list[Line]:
    sample = sample or GpuSample(rank=gpu.rank)
    style = _SEVERITY[health.severity]
    bars = (width - 62) // 2
    full = _fullness(gpu, sample)
    first = Line(f"{gpu.rank:>3} ").add(health.mark, style or DIM).add(" ").field(gpu.name, 15)
    first.add("  util ").extend(bar((sample.utilization or 0) / 100, bars)).add(f" {_percent(sample.utilization):>5}")
    first.add("  mem ").extend(bar((full or 0) / 100, bars)).add(f" {_memory(gpu, sample)}")
    second = Line("      ").add(f"{_unit(sample.temperature_c, '°C'):>6}")
    second.add(f" of {_unit(gpu.slowdown_c, '°C')}  {_of(sample.power_w, gpu.power_limit_w, 'W')}")
    second.add(f"  {_of(sample.sm_mhz, gpu.sm_max_mhz, 'MHz')}")
    if health.severity:
        return [first, second.add(f"  {health.text}", style)]
    reasons = "N/A" if sample.throttle is None else ", ".join(sample.throttle) or "none"
    second.add(f"  throttle {reasons}  ECC {'N/A' if sample.ecc is None else sample.ecc}", DIM)
    return [first, second]


def _line(gpu: Gpu, sample: GpuSample | None, health: Health, width: int) -> list[Line]:
    sample = sample or GpuSample(rank=gpu.rank)
    style = _SEVERITY[health.severity]
    line = Line(f"{gpu.rank:>3} ").add(health.mark, style or DIM).add(f" {_percent(sample.utilization):>5}")
    line.add(f"  {_memory(gpu, sample)}  {_unit(sample.temperature_c, '°C'):>6}")
    line.add(f" {_unit(sample.power_w, 'W'):>6} {_unit(sample.sm_mhz, 'MHz'):>8}")
    if health.severity:
        line.add(f"  {health.text}", style)
    elif width >= line.width + 16:
        reasons = "N/A" if sample.throttle is None else ", ".join(sample.throttle)
        line.add(f"  {reasons}", DIM)
    return [line]


def _tiles(node: str, gpus: Sequence[Gpu], run: RunState, health: dict[int, Health], plan: Layout) -> list[Line]:
    lines = []
    for start in range(0, len(gpus), plan.columns):
        line = Line().field(node if start == 0 else "", _LABEL - 1, DIM).to(_LABEL)
        for gpu in gpus[start : start + plan.columns]:
            sample, one = run.samples.get(gpu.rank) or GpuSample(rank=gpu.rank), health[gpu.rank]
            style = _SEVERITY[one.severity]
            tile = Line(f"{gpu.rank:>3}", style).add(one.mark, style or DIM)
            small = plan.cell < _TILES[1]
            tile.add(_short(sample.utilization, "" if small else "%"), style)
            if not small:
                tile.add(_short(sample.temperature_c, "°"))
            if plan.cell >= _TILES[0]:
                tile.add(_short(_fullness(gpu, sample), "%"), DIM)
            start_of_next = line.width + plan.cell
            line.extend(tile.within(plan.cell - 1)).to(start_of_next)
        lines.append(line)
    return lines


def _node_rows(run: RunState, nodes: dict[str, list[Gpu]], health: dict[int, Health], plan: Layout) -> list[Line]:
    """One cell a node; when there are more nodes than cells, the sickest, and one cell for all others."""
    names, cells = list(nodes), (plan.rows - 1) * plan.columns
    if len(names) > cells:
        names.sort(key=lambda node: -max(health[gpu.rank].severity for gpu in nodes[node]))  # stable
        names = sorted(names[: max(0, cells - 1)], key=list(nodes).index)
    drawn = [_node_row(run, node, nodes[node], health, plan.cell - 1) for node in names]
    rest = [gpu for node, gpus in nodes.items() if node not in names for gpu in gpus]
    if rest and cells:
        sick = sum(health[gpu.rank].severity > 0 for gpu in rest)
        said = f"{sick} GPUs there are not well" if sick else "all well"
        drawn.append(Line(f" … and {len(nodes) - len(names)} more nodes, {said}", WARN if sick else DIM))
    tall = plan.rows - 1
    lines = []
    for row in range(min(tall, len(drawn))):
        line = Line()
        for column, cell in enumerate(drawn[row::tall]):
            line.to(column * plan.cell).extend(cell.within(plan.cell - 1))
        lines.append(line)
    return lines


def _node_row(run: RunState, node: str, gpus: Sequence[Gpu], health: dict[int, Health], width: int) -> Line:
    samples = [run.samples[gpu.rank] for gpu in gpus if gpu.rank in run.samples]
    line = Line(" ").field(node, _LABEL - 2, DIM).add(" ")
    for gpu in gpus:
        one = health[gpu.rank]
        line.add(one.mark, _SEVERITY[one.severity] or DIM)
    hottest = max((s.temperature_c for s in samples if s.temperature_c is not None), default=None)
    line.add(f" {_percent(_mean([s.utilization for s in samples])):>5}")
    if width >= 60:
        line.add(f" {_percent(_mean([_fullness(run.gpus[s.rank], s) for s in samples])):>5}")
        line.add(f" {_unit(hottest, '°C'):>6}")
    sickest = worst({gpu.rank: health[gpu.rank] for gpu in gpus})
    if sickest is not None:
        line.add(
            f"  rank {sickest} {health[sickest].mark}: {health[sickest].text}", _SEVERITY[health[sickest].severity]
        )
    elif width >= 60 and samples:
        slowest = min(samples, key=lambda s: math.inf if s.utilization is None else s.utilization)
        line.add(f"  lowest: rank {slowest.rank} {_percent(slowest.utilization)}", DIM)
    return line


def _fullness(gpu: Gpu, sample: GpuSample) -> float | None:
    return None if sample.used_mib is None or not gpu.total_mib else 100 * sample.used_mib / gpu.total_mib


def _memory(gpu: Gpu, sample: GpuSample) -> str:
    return f"{gib(sample.used_mib):>5}/{gib(gpu.total_mib)} GiB {_percent(_fullness(gpu, sample)):>5}"


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _percent(value: float | None) -> str:
    return "N/A" if value is None else f"{value:.0f} %"


def _unit(value: float | None, unit: str) -> str:
    return "N/A" if value is None else f"{value:.0f} {unit}"


def _short(value: float | None, unit: str) -> str:
    return "N/A".rjust(3 + len(unit)) if value is None else f"{value:3.0f}{unit}"


def _of(value: float | None, limit: float | None, unit: str) -> str:
    if value is None:
        return f"N/A {unit}"
    return f"{value:.0f} {unit}" if limit is None else f"{value:.0f}/{limit:.0f} {unit}"
