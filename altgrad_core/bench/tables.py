"""Results of a bench as tables in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

_HEADERS = {
    "ms": "ms", "gelem_per_s": "Gelem/s", "tflop_per_s": "TFLOP/s", "tokens_per_s": "tokens/s", "peak_gib": "peak GiB",
    "cast_share": "casts", "to_base": "x {base}",
}  # fmt: skip


def show(results: list[dict[str, Any]], facts: dict[str, Any], console: Console) -> None:
    """Print each result under the name of the hardware."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    where = f"{facts['device']}: {facts['device_name']} · torch {facts['packages']['torch']}"
    threads = f" · {facts['cpu_threads']} threads" if facts["device"] == "cpu" else ""
    console.print(f"{where}{threads}", markup=False)
    for result in results:
        console.print(f"\n{result['what']}, medians", markup=False)
        keys = [key for key in _HEADERS if any(key in row for row in result["rows"].values())]
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        table.add_column("")
        for key in keys:
            table.add_column(_HEADERS[key].format(base=result["base"]), justify="right", no_wrap=True)
        for name, row in result["rows"].items():
            table.add_row(name, *(_number(key, row.get(key)) for key in keys))
        console.print(table, soft_wrap=False)
        for name, why in result["absent"].items():
            console.print(f"not measured: {name} ({why})", markup=False)


def _number(key: str, value: float | None) -> str:
    if value is None:
        return "-"
    if key == "cast_share":
        return f"{100 * value:.1f} %"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"
