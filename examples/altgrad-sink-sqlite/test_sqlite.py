import contextlib
import sqlite3

from altgrad_sink_sqlite import SqliteSink

from altgrad_core.testing import SinkConformance


class TestSqlite(SinkConformance):
    def build(self, folder):
        return SqliteSink(folder / "metrics.sqlite")

    def stored(self, folder):
        with contextlib.closing(sqlite3.connect(folder / "metrics.sqlite")) as store:
            return [(step, name, float(value)) for step, name, value in store.execute("SELECT * FROM metrics")]
