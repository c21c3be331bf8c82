"""One measurement as a plain table: a row a cast (``layer.operand``), then a row a parameter, the mean over each first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

CASTS = ("overflow_rate", "underflow_rate", "sqnr_db", "scale_log2")
PARAMETERS = ("grad_norm_l2", "grad_cos_sim", "shadow_grad_snr_db", "bit_stall_rate", "zero_update_frac")


def layer_table(metrics: Mapping[str, float], *, title: str) -> str:
    """Return the table, as wide as it has to be; ``metrics`` holds ``<metric>/<layer>`` and means under the bare name."""
    tables = [_table(metrics, columns, what) for columns, what in ((CASTS, "cast"), (PARAMETERS, "parameter"))]
    return "\n\n".join([title, *(table for table in tables if table)])


def _table(metrics: Mapping[str, float], columns: Sequence[str], what: str) -> str:
    columns = [column for column in columns if any(name.startswith(f"{column}/") for name in metrics)]
    parts = [name.partition("/") for name in metrics]
    rows = dict.fromkeys(row for column, slash, row in parts if slash and column in columns)
    if not rows:
        return ""
    lines = [(what, *columns), ("mean", *(_number(metrics.get(column)) for column in columns))]
    lines += [(row, *(_number(metrics.get(f"{column}/{row}")) for column in columns)) for row in rows]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns) + 1)]
    return "\n".join(_line(line, widths) for line in lines)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = zip(cells, widths, strict=True)
    return "  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]).rstrip()


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
