"""What runs measured, as one long table for other tools: CSV or Parquet, one value a row.

Of a step that was logged twice, because the run was resumed, the last value stands. Values that are not finite are kept: in
Parquet as they are, in CSV as ``nan``, ``inf`` and ``-inf``, which Python, pandas, R and DuckDB read.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import attrs

from altgrad_core.analysis.runs import Run, names_of
from altgrad_core.errors import AltgradError, unknown
from altgrad_core.files import write_whole

Kind = Literal["csv", "parquet"]
Cell = str | int | float | None
_Type = Literal["string", "int64", "double"]


@attrs.frozen(kw_only=True)
class Sheet:
    """One of the tables that can be exported."""

    columns: Mapping[str, _Type]
    """Name -> type, as Parquet calls it; ``run`` comes before them."""
    rows: Callable[[Run], Iterator[Sequence[Cell]]]
    """The rows of a run in step order."""


def _metrics(run: Run) -> Iterator[Sequence[Cell]]:
    for step, values in run.values.items():
        for metric, value in values.items():
            yield step, metric, value


def _alerts(run: Run) -> Iterator[Sequence[Cell]]:
    for event in run.alerts:
        value, threshold = (
            None if (number := event.get(key)) is None else float(number) for key in ("value", "threshold")
        )
        yield (
            int(event["step"]),
            event["alert"],
            event.get("action"),
            event.get("layer"),
            value,
            threshold,
            event.get("message"),
        )


def _checkpoints(run: Run) -> Iterator[Sequence[Cell]]:
    for event in run.checkpoints:
        facts = (event.get(key) for key in ("bytes", "seconds", "blocked_s", "state_hash"))
        yield int(event["step"]), event["kind"], event["path"], *facts


_FATES = ("elements", "zeros", "underflow", "subnormal", "overflow", "nan", "inf", "codes")


def _histograms(run: Run) -> Iterator[Sequence[Cell]]:
    for step, casts in run.histograms.items():
        for name, its in casts.items():
            facts = (step, name, its.format, *(getattr(its, fate) for fate in _FATES))
            # A cast of zeros alone has no binade and is a row all the same.
            for exponent, count in zip(its.edges[:-1], its.counts, strict=True) if its.counts else [(None, None)]:
                yield *facts, exponent, count


SHEETS: Mapping[str, Sheet] = {
    "metrics": Sheet(columns={"step": "int64", "metric": "string", "value": "double"}, rows=_metrics),
    "alerts": Sheet(
        columns={
            "step": "int64", "alert": "string", "action": "string", "layer": "string", "value": "double",
            "threshold": "double", "message": "string",
        },
        rows=_alerts,
    ),
    "checkpoints": Sheet(
        columns={
            "step": "int64", "kind": "string", "path": "string", "bytes": "int64", "seconds": "double",
            "blocked_s": "double", "state_hash": "string",
        },
        rows=_checkpoints,
    ),
    "histograms": Sheet(
        columns={
            "step": "int64", "cast": "string", "format": "string", **dict.fromkeys(_FATES, "int64"),
            "exponent": "int64", "count": "int64",
        },
        rows=_histograms,
    ),
}  # fmt: skip


def export(runs: Sequence[Run], to: str, what: str = "metrics") -> bytes:
    """Return the table ``what`` (a key of ``SHEETS``) of the runs as a ``csv`` or ``parquet`` file.

    Raises ``AltgradError`` for another ``to`` or ``what``, and when Parquet is asked for and pyarrow is not installed.
    """
    if what not in SHEETS:
        raise AltgradError(unknown("table", what, SHEETS))
    if to not in get_args(Kind):
        raise AltgradError(unknown("file format", to, get_args(Kind)))
    return (_csv if to == "csv" else _parquet)(runs, SHEETS[what])


def export_to(path: Path, runs: Sequence[Run], to: str, what: str = "metrics") -> None:
    """Write what ``export`` returns to ``path``, all of it or nothing; raises ``RunFailed`` when the disk is full."""
    write_whole(path, export(runs, to, what))


def _csv(runs: Sequence[Run], sheet: Sheet) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["run", *sheet.columns])
    for name, run in zip(names_of(runs), runs, strict=True):
        # A float's repr is the shortest text that is read back as the same float.
        writer.writerows([name, *row] for row in sheet.rows(run))
    return out.getvalue().encode(errors="backslashreplace")


def _parquet(runs: Sequence[Run], sheet: Sheet) -> bytes:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise AltgradError(
            "Writing Parquet needs pyarrow, which is not installed: pip install 'altgrad[parquet]'. --to csv needs nothing."
        ) from error
    types = {"string": pyarrow.string(), "int64": pyarrow.int64(), "double": pyarrow.float64()}
    schema = pyarrow.schema([("run", pyarrow.string()), *((name, types[kind]) for name, kind in sheet.columns.items())])
    out = pyarrow.BufferOutputStream()
    with pyarrow.parquet.ParquetWriter(out, schema) as writer:
        for name, run in zip(names_of(runs), runs, strict=True):
            columns = _transposed(([name, *row] for row in sheet.rows(run)), len(schema.names))
            cells = dict(zip(schema.names, columns, strict=True))
            writer.write_table(pyarrow.table(cells, schema=schema))
    made: bytes = out.getvalue().to_pybytes()
    return made


def _transposed(rows: Iterable[Sequence[Cell]], width: int) -> list[list[Any]]:
    columns: list[list[Any]] = [[] for _ in range(width)]
    for row in rows:
        for column, cell in zip(columns, row, strict=True):
            # Half a surrogate pair, which JSON lets through, is no UTF-8; CSV has it likewise.
            column.append(cell.encode(errors="backslashreplace").decode() if isinstance(cell, str) else cell)
    return columns
