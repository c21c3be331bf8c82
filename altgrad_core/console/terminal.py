"""The live area of a terminal: the last rows, drawn over in place, with log lines scrolling above them.

Lines are overwritten and the rest of each is erased after its text, inside a synchronized update where the terminal
knows it, so nothing flickers. After the width changed, the rows that the old frame takes now are counted as terminals
count that wrap anew (tmux, VTE, kitty, iTerm2 and the others of today), and erased before the new one is drawn.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

from rich.cells import cell_len
from rich.color import ColorSystem
from rich.console import Console

from altgrad_core.console.canvas import Line, Look

UNBOUND = 10_000  # cells of a line in a file
_HIDE, _SHOW = "\x1b[?25l", "\x1b[?25h"
_BEGIN, _END = "\x1b[?2026h", "\x1b[?2026l"
_ERASE_LINE, _ERASE_BELOW = "\x1b[K", "\x1b[J"
_SYSTEMS = {
    "standard": ColorSystem.STANDARD,
    "256": ColorSystem.EIGHT_BIT,
    "truecolor": ColorSystem.TRUECOLOR,
    "windows": ColorSystem.WINDOWS,
}


def look_of(console: Console) -> Look:
    """Return what the terminal or file behind ``console`` can show; ``NO_COLOR``, ``TERM`` and the locale are obeyed."""
    # Python speaks UTF-8 in the C locale and says so in LC_CTYPE, but who asks for that locale may have a terminal that
    # shows nothing else.
    kind = os.environ.get("LC_CTYPE", "")
    locale = os.environ.get("LC_ALL") or (kind if kind != "C.UTF-8" else "") or os.environ.get("LANG")
    return Look(
        unicode=console.encoding.lower().startswith("utf") and locale not in ("C", "POSIX"),
        color=None if console.no_color else _SYSTEMS.get(console.color_system or ""),
    )


def is_live(console: Console) -> bool:
    """Tell whether the output is a terminal that can be drawn on; a file with ``FORCE_COLOR`` is none."""
    return console.file.isatty() and not console.is_dumb_terminal


class LiveArea:
    """The rows at the cursor. ``draw`` replaces them; ``print`` puts lines above them."""

    def __init__(self, file: TextIO, look: Look) -> None:
        self._file, self.look = file, look
        self._widths: list[int] = []  # of the lines that stand there
        self._columns = 0
        self._hidden = False

    def size(self) -> tuple[int, int]:
        """Return the columns and rows of the terminal; 80 x 24 when it does not say."""
        try:
            columns, rows = os.get_terminal_size(self._file.fileno())
        except (OSError, ValueError):
            return 80, 24
        return columns or 80, rows or 24

    def draw(self, lines: Sequence[Line], above: Sequence[Line] = ()) -> None:
        """Print the lines ``above``, then show ``lines``, each cut to the width; at most a screen of them."""
        columns, rows = self.size()
        lines = [line.within(columns - 1) for line in lines[: rows - 1]]
        out = [_BEGIN, "" if self._hidden else _HIDE, self._to_top(columns)]
        for line in above:
            out.append(f"{line.drawn(self.look)}{_ERASE_LINE}\r\n")
        out.append("\r\n".join(f"{line.drawn(self.look)}{_ERASE_LINE}" for line in lines))
        out += [_ERASE_BELOW, _END]
        # Before it is written: a signal that waits for that goes on from within.
        self._hidden = True
        self._widths, self._columns = [cell_len(line.plain) for line in lines], columns
        self._write("".join(out))

    def close(self, last: Sequence[Line] = ()) -> None:
        """Take the area away, print ``last`` in its place and give the cursor back; may be called again."""
        if not self._hidden and not last:
            return
        columns, _ = self.size()
        out = [self._to_top(columns, erase=True)]
        out += [f"{line.drawn(self.look)}\r\n" for line in last]
        self._widths, self._hidden = [], False
        self._write("".join([*out, _SHOW]))

    def _to_top(self, columns: int, *, erase: bool = False) -> str:
        """Return the codes that bring the cursor to the first row of what stands there."""
        if not self._widths:
            return "\r"
        rows = sum(max(1, -(-width // columns)) for width in self._widths)
        up = f"\x1b[{rows - 1}A" if rows > 1 else ""
        if not erase and columns == self._columns:
            return f"\r{up}"
        # Row by row: a terminal that is asked to erase all of the screen may keep a copy of it in its history.
        return f"\r{up}" + "\x1b[B".join(["\x1b[2K"] * rows) + up

    def _write(self, text: str) -> None:
        rest = text.encode(self._file.encoding, self._file.errors or "strict")
        with _writing.whole():
            self._file.flush()
            while rest:  # by the system's call: the file's own buffer loses what a signal interrupts
                rest = rest[os.write(self._file.fileno(), rest) :]


class _Writing:
    """Whether something is being written. A signal that would cut it in two waits until it is whole; the next does not.

    Half a frame would leave the terminal within a synchronized update, in which some show nothing more.
    """

    def __init__(self) -> None:
        self.going_on = False
        self.waiting = ""  # name of the signal

    @contextmanager
    def whole(self) -> Iterator[None]:
        self.going_on = True
        try:
            yield
        finally:
            self.going_on = False
        if self.waiting:
            self.interrupt(self.waiting)

    def interrupt(self, name: str) -> None:
        if self.going_on and not self.waiting:
            self.waiting = name
        else:
            self.waiting = ""
            raise KeyboardInterrupt(name)


_writing = _Writing()


@contextmanager
def restored(close: Callable[[], None]) -> Iterator[None]:
    """Call ``close`` at the end, whatever it is; SIGTERM and SIGHUP end like Ctrl-C, with their own exit status."""

    def end(number: int, frame: object) -> None:
        received.append(number)
        _writing.interrupt(signal.Signals(number).name)

    received: list[int] = []
    ending = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    numbers = [number for number in ending if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, end) for number in numbers}
    try:
        try:
            yield
        finally:
            close()
    except KeyboardInterrupt:  # the next one may come while it closes
        raise SystemExit(128 + (received[0] if received else signal.SIGINT)) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Raise the error: rich would end the process, with a status that means that a run failed."""
        raise  # noqa: PLE0704 - rich calls this while it handles the error


def terminal() -> Console:
    """Return the console for standard output; what its encoding has no character for is shown as an escape."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    return _Console(file=sys.stdout, highlight=False, markup=False)


def table_width(console: Console) -> int:
    """Return how wide a table may be: what the terminal has; without one, where nobody folds lines, as much as it needs."""
    return console.width if console.is_terminal or os.environ.get("COLUMNS") else UNBOUND
