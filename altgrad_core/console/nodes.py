"""GPUs by node, where there is no room for each of them in figures: a mark a GPU, and the sick ones in words.

Every GPU is accounted for: as a mark, or in a row that counts what has no room. The sickest come first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby

from altgrad_core.console.canvas import DIM, SEVERITIES, WARN, Line
from altgrad_core.console.health import Health, fullness, mean, worst
from altgrad_core.console.state import RunState
from altgrad_core.console.words import reading
from altgrad_core.experiments.hardware import Gpu

Nodes = Mapping[str, Sequence[Gpu]]

LABEL = 7  # cells, at most, that a node's name gets beside its marks
ROW = 64  # cells of a node's row with figures and a finding
_FINDING = 39  # cells of a finding in words
_FINDING_ROWS = 4  # of them, where others want rows, too
_GAP = 2


def short_name(node: str, width: int) -> str:
    """Return a host's name in at most ``width`` cells: without its domain, and of what remains the end, which differs."""
    host = node if node[:1].isdigit() else node.partition(".")[0]
    return host if len(host) <= width else f"…{host[1 - width :]}"


def node_row(run: RunState, node: str, health: Mapping[int, Health], gpus: Sequence[Gpu], width: int) -> Line:
    """Return a node in one line: its marks, its means, and its sickest GPU or the one that has least to do."""
    samples = [run.samples[gpu.rank] for gpu in gpus if gpu.rank in run.samples]
    line = Line(" ").field(short_name(node, LABEL), LABEL, DIM).add(" ").extend(_marks(gpus, health))
    line.add(f" {reading(mean([s.utilization for s in samples]), '%'):>5}")
    line.add(f" {reading(mean([fullness(run.gpus[s.rank], s) for s in samples]), '%'):>5}")
    line.add(
        f" {reading(max((s.temperature_c for s in samples if s.temperature_c is not None), default=None), '°C'):>6}"
    )
    here = {gpu.rank: health[gpu.rank] for gpu in gpus}
    sickest = worst(here)
    if sickest is not None:
        others = sum(one.severity > 0 for one in here.values()) - 1
        more = f", and {others} more" if others else ""
        line.add(f"  {_finding(sickest, here[sickest])}{more}", SEVERITIES[here[sickest].severity])
    elif samples:
        slowest = min(samples, key=lambda s: math.inf if s.utilization is None else s.utilization)
        line.add(f"  lowest: rank {slowest.rank} {reading(slowest.utilization, '%')}", DIM)
    return line.within(width)


def findings(nodes: Nodes, health: Mapping[int, Health], width: int, height: int) -> list[Line]:
    """Return the sick GPUs, the sickest first, in at most ``height`` rows: in words, those without room by rank and mark."""
    host = {gpu.rank: node for node, gpus in nodes.items() for gpu in gpus}
    sick = sorted((rank for rank in host if health[rank].severity), key=lambda rank: -health[rank].severity)
    columns = max(1, width // _FINDING)
    room = columns * height
    shown = sick if len(sick) <= room else sick[: max(0, room - 1)]
    cells = []
    for rank in shown:
        where = f"  {host[rank]}" if len(nodes) > 1 else ""
        cells.append(Line(f" {_finding(rank, health[rank])}{where}", SEVERITIES[health[rank].severity]))
    if len(shown) < len(sick) and room:
        cells.append(_in_short(sick[len(shown) :], health, width // columns - 1))
    return _in_columns(cells, columns, width // columns)


def marks(nodes: Nodes, health: Mapping[int, Health], width: int, height: int) -> list[Line]:
    """Return a mark a GPU, several nodes side by side, and the sick ones in words, in at most ``height`` rows."""
    columns, cell, cells = _cells(nodes, health, width)
    tall, told = -(-len(cells) // columns), _finding_rows(health, width)
    if tall + min(told, 1) <= height:
        told = min(told, height - tall)
    else:
        told = min(told, height, max(1, height // 2))
    lines = _in_columns([line for _, line in cells], columns, cell)
    if tall > height - told:
        lines = _the_sickest(nodes, health, cells, columns, cell, height - told)
    return [*lines, *findings(nodes, health, width, told)]


def marks_rows(nodes: Nodes, health: Mapping[int, Health], width: int) -> int:
    """Return how many rows ``marks`` should have: a mark for every GPU, and one to four rows of findings."""
    columns, _, cells = _cells(nodes, health, width)
    return -(-len(cells) // columns) + min(max(1, _finding_rows(health, width)), _FINDING_ROWS)


def _cells(nodes: Nodes, health: Mapping[int, Health], width: int) -> tuple[int, int, list[tuple[str, Line]]]:
    """Return how many nodes stand side by side, the cells that one takes, and each with its marks.

    A node with more GPUs than a line has room for takes several, all but the first without its name.
    """
    label = min(LABEL, max(map(len, nodes)))
    room = width - label - 2
    most = max(1, min(max(map(len, nodes.values())), room if room < 8 else room // 8 * 8))
    cells = []
    for node, gpus in nodes.items():
        for start in range(0, len(gpus), most):
            name = short_name(node, label) if start == 0 else ""
            line = Line(" ").field(name, label, DIM).add(" ").extend(_marks(gpus[start : start + most], health))
            cells.append((node, line))
    cell = label + most + 2 + _GAP
    columns = max(1, (width + _GAP) // cell)
    return columns, cell, cells


def _the_sickest(
    nodes: Nodes,
    health: Mapping[int, Health],
    cells: Sequence[tuple[str, Line]],
    columns: int,
    cell: int,
    height: int,
) -> list[Line]:
    """Return the cells of the sickest nodes, in their order, and one row that counts the others."""
    if height < 1:
        return []
    severity = {node: max(health[gpu.rank].severity for gpu in gpus) for node, gpus in nodes.items()}
    room, chosen = (height - 1) * columns, set()
    for node in sorted(nodes, key=lambda node: -severity[node]):
        number = sum(of == node for of, _ in cells)
        if number <= room:
            chosen.add(node)
            room -= number
    drawn = [line for node, line in cells if node in chosen]
    rest = [gpu for node, gpus in nodes.items() if node not in chosen for gpu in gpus]
    sick = sum(health[gpu.rank].severity > 0 for gpu in rest)
    said = f"{sick} of them not well" if sick else "all well"
    number, others = len(nodes) - len(chosen), " more" if chosen else ""
    text = f" … {number}{others} node{'s' if number > 1 else ''}, {len(rest)} GPUs, {said}"
    return [*_in_columns(drawn, columns, cell), Line(text, WARN if sick else DIM)]


def _in_short(ranks: Sequence[int], health: Mapping[int, Health], width: int) -> Line:
    """Return GPUs by rank and mark, and how many there are beyond those that fit."""
    line = Line()
    for number, rank in enumerate(ranks):
        left = len(ranks) - number
        text, rest = f" {rank}{health[rank].mark}", f" and {left} more"
        after = f" and {left - 1} more" if left > 1 else ""
        if line.width + len(text) + len(after) > width:
            return line.add(rest, SEVERITIES[health[rank].severity])
        line.add(text, SEVERITIES[health[rank].severity])
    return line


def _finding_rows(health: Mapping[int, Health], width: int) -> int:
    return -(-sum(one.severity > 0 for one in health.values()) // max(1, width // _FINDING))


def _finding(rank: int, health: Health) -> str:
    return f"rank {rank} {health.mark}: {health.text}"


def _marks(gpus: Sequence[Gpu], health: Mapping[int, Health]) -> Line:
    line = Line()
    for severity, alike in groupby((health[gpu.rank] for gpu in gpus), lambda one: one.severity):
        line.add("".join(one.mark for one in alike), SEVERITIES[severity] or DIM)
    return line


def _in_columns(cells: Sequence[Line], columns: int, cell: int) -> list[Line]:
    lines = []
    for start in range(0, len(cells), columns):
        line = Line()
        for number, one in enumerate(cells[start : start + columns]):
            line.to(number * cell).extend(one.within(cell - 1))
        lines.append(line)
    return lines
