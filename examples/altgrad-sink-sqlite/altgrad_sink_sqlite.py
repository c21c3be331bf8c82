"""A metric sink: ``metrics.sqlite`` in the run's folder, a row a value."""

import sqlite3

from altgrad_core import hookimpl

ALTGRAD_HOOKSPEC = 1


class SqliteSink:
    """Writes ``path``; a run that goes on from a checkpoint first deletes the rows that came after it."""

    def __init__(self, path):
        self.path, self.rows = path, 0
        self.store = sqlite3.connect(path)
        self.store.execute("CREATE TABLE IF NOT EXISTS metrics (step INTEGER, metric TEXT, value TEXT)")

    def write(self, event):
        """Store the values of a ``metrics`` event, all or none."""
        if event["event"] == "metrics":
            rows = [(event["step"], name, str(value)) for name, value in event["values"].items()]
            with self.store:
                self.store.executemany("INSERT INTO metrics VALUES (?, ?, ?)", rows)
            self.rows += len(rows)

    def close(self):
        """End."""
        self.store.close()

    def state_dict(self):
        """Return what a checkpoint keeps."""
        return {"rows": self.rows}

    def load_state_dict(self, state):
        """Go on from there."""
        from altgrad_core.training.events import StateLost

        (rows,) = self.store.execute("SELECT COUNT(*) FROM metrics").fetchone()
        if rows < state["rows"]:
            raise StateLost(f"{self.path} has {rows} rows, not {state['rows']}")
        with self.store:
            self.store.execute("DELETE FROM metrics WHERE rowid > ?", [state["rows"]])
        self.rows = state["rows"]


@hookimpl
def altgrad_register_sinks(register):
    """Offer it."""
    register("sqlite", lambda options, run_folder: SqliteSink(run_folder / "metrics.sqlite"))
