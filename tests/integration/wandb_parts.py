"""What the tests of the sink ``wandb`` share: W&B's files read back, and a server that answers its client.

A W&B server is a product of its own and cannot run here; this one does what the client relies on: it keeps the lines of a
run's history where the client says they belong, and tells it the last of them when the run goes on.
"""

from __future__ import annotations

import gzip
import json
import struct
import threading
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

_BLOCK = 32768


def records(path: Path) -> Iterator[Any]:
    """Yield the records of a ``.wandb`` file: LevelDB's log format behind a header of seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, parts = path.read_bytes(), 7, b""
    assert data.startswith(b":W&B"), data[:7]
    while at < len(data):
        left = _BLOCK - at % _BLOCK
        if left < 7:
            at += left
            continue
        checksum, length, kind = struct.unpack_from("<IHB", data, at)
        chunk = data[at + 7 : at + 7 + length]
        if len(chunk) < length:
            return  # torn by a crash
        assert zlib.crc32(bytes([kind]) + chunk) == checksum
        at += 7 + length
        parts = chunk if kind in (1, 2) else parts + chunk
        if kind in (1, 4):
            yield Record.FromString(parts)


def offline_file(folder: Path) -> Path:
    """Return the one file that the run in ``folder`` has left for ``wandb sync``."""
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    return file


def rows(path: Path) -> list[dict[str, float]]:
    """Return the rows of a run's history, each with its ``_step``; without what is no number."""
    whole = whole_rows(path)
    return [{name: float(value) for name, value in row.items() if not isinstance(value, dict)} for row in whole]


def whole_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's history, each with its ``_step``, as W&B keeps them."""
    found = []
    for record in records(path):
        if record.WhichOneof("record_type") == "history":
            row: dict[str, Any] = {}
            for item in record.history.item:
                name, *inside = item.nested_key or [item.key]
                value = json.loads(item.value_json)
                if inside:  # W&B takes objects apart
                    row.setdefault(name, {})["/".join(inside)] = value
                else:
                    row[name] = value
            assert row["_step"] == record.history.step.num
            found.append(row)
    return found


def summary(path: Path) -> dict[str, Any]:
    """Return the last value of each key of a run's summary."""
    found = {}
    for record in records(path):
        if record.WhichOneof("record_type") == "summary":
            found |= {
                item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.summary.update
            }
    return found


class Server:
    """Answers the client at ``url`` until ``stop``; ``history`` of a run is what it has got of it."""

    def __init__(self, port: int = 0) -> None:
        self.lines: dict[str, dict[int, str]] = {}
        self.summaries: dict[str, str] = {}
        self.buckets: dict[str, dict[str, Any]] = {}
        self.exit_codes: dict[str, int] = {}
        self.uploads: dict[str, bytes] = {}
        self._connections: list[Any] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                server._connections.append(self.connection)

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                data = json.dumps(server._answer(self.path, body)).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PUT = answer

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, address: object) -> None:
                """A client that was killed."""

        self._http = Quiet(("127.0.0.1", port), Handler)
        self.port = self._http.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def stop(self) -> None:
        """Answer nobody any more, not even on connections that are open."""
        self._http.shutdown()
        self._http.server_close()
        for connection in self._connections:
            connection.close()

    def history(self, run_id: str) -> list[dict[str, Any]]:
        """Return the rows of a run in their order."""
        return [json.loads(line) for _, line in sorted(self.lines.get(run_id, {}).items())]

    def _answer(self, path: str, body: bytes) -> Any:
        if path == "/graphql":
            query = json.loads(body)
            return {"data": self._graphql(query.get("operationName"), query.get("variables") or {})}
        if path.endswith("/file_stream"):
            run_id, told = path.split("/")[-2], json.loads(body)
            for name, chunk in told.get("files", {}).items():
                if name == "wandb-history.jsonl":
                    self.lines.setdefault(run_id, {}).update(enumerate(chunk["content"], chunk["offset"]))
                elif name == "wandb-summary.json":
                    self.summaries[run_id] = chunk["content"][-1]
            if told.get("complete"):
                self.exit_codes[run_id] = told["exitcode"]
        elif path.startswith("/upload/"):
            self.uploads[path.removeprefix("/upload/")] = body
        return {}

    def _graphql(self, operation: str, asked: dict[str, Any]) -> Any:
        run_id = asked.get("name")
        if operation == "RunResumeStatus":
            bucket = self._status(run_id) if run_id in self.buckets else None
            return {
                "model": {"id": "m", "name": asked["project"], "entity": {"id": "e", "name": "me"}, "bucket": bucket}
            }
        if operation == "UpsertBucket":
            inserted = run_id not in self.buckets
            bucket = self.buckets.setdefault(run_id, {})
            bucket.update({key: value for key, value in asked.items() if value is not None})
            project = {"id": "m", "name": asked["project"], "entity": {"id": "e", "name": "me"}}
            made = {
                "id": "b", "name": run_id, "displayName": bucket.get("displayName", run_id), "description": "",
                "config": bucket.get("config", "{}"), "sweepName": None, "project": project,
                "historyLineCount": len(self.lines.get(run_id, {})),
            }  # fmt: skip
            return {"upsertBucket": {"bucket": made, "inserted": inserted}}
        if operation == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in asked["files"]]
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        return {}

    def _status(self, run_id: str) -> dict[str, Any]:
        bucket, lines = self.buckets[run_id], self.lines.get(run_id, {})
        return {
            "id": "b", "name": run_id, "summaryMetrics": self.summaries.get(run_id, "{}"), "eventsTail": "[]",
            "displayName": bucket.get("displayName"), "logLineCount": 0, "historyLineCount": len(lines),
            "eventsLineCount": 0, "historyTail": json.dumps([lines[max(lines)]] if lines else []),
            "config": bucket.get("config", "{}"), "tags": bucket.get("tags", []), "notes": bucket.get("notes"),
            "wandbConfig": '{"t": 1}',
        }  # fmt: skip
