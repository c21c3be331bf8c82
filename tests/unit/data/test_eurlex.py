from __future__ import annotations

import functools
import gzip
import http.server
import io
import json
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from altgrad_core.errors import AltgradError

Write = Callable[[str, str | bytes], Path]


def document(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "celex_id": f"3197{number}",
        "title": "never\n",
        "header": f"header {number}",
        "recitals": ",\nrecitals é",
        "main_body": ["article 1", "article 2"],
        "attachments": "annex",
        **changes,
    }


def text(number: int, attachments: bool = False) -> bytes:
    return f"header {number}\n,\nrecitals é\narticle 1\narticle 2{chr(10) + 'annex' if attachments else ''}".encode()


def tokens(*numbers: int, **options: Any) -> list[int]:
    return [token for number in numbers for token in [*text(number, **options), 256]]


def lines(*numbers: int) -> bytes:
    return b"".join(json.dumps(document(number)).encode() + b"\n" for number in numbers)


def zipped(**files: bytes) -> bytes:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return memory.getvalue()


def check(data: Any, train: list[int], val: list[int]) -> None:
    assert data.train.tolist() == train
    assert data.val.tolist() == val


def test_a_folder_of_json_files_by_split(place: Any, write: Write, tmp_path: Path) -> None:
    for split, numbers in {"train": (2, 1), "dev": (3,), "test": (4,)}.items():
        for number in numbers:
            write(f"dataset/{split}/{number}.json", json.dumps(document(number)))
    write("dataset/EURLEX57K.json", "{}")
    data = place.build("eurlex", path=str(tmp_path / "dataset"))
    check(data, tokens(1, 2), tokens(3))
    assert (data.name, data.documents) == ("eurlex", 3)
    assert any("1 files" in line and "left out" in line for line in place.said)


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz"])
def test_a_folder_of_json_lines(place: Any, write: Write, tmp_path: Path, suffix: str) -> None:
    pack = gzip.compress if suffix.endswith("gz") else bytes
    write(f"d/train.{suffix}", pack(lines(5, 3) + b"\n"))
    write(f"d/dev.{suffix}", pack(lines(4)))
    write(f"d/test.{suffix}", pack(lines(6)))
    check(place.build("eurlex", path=str(tmp_path / "d")), tokens(5, 3), tokens(4))


def test_the_official_zip(place: Any, write: Write) -> None:
    names = {"dataset/train/2.json": 2, "dataset/train/1.json": 1, "dataset/dev/3.json": 3, "dataset/test/4.json": 4}
    files = {name: json.dumps(document(number)).encode() for name, number in names.items()}
    path = write("datasets.zip", zipped(**files, **{"__MACOSX/dataset/train/._1.json": b"\0", "dataset/": b""}))
    check(place.build("eurlex", path=str(path)), tokens(1, 2), tokens(3))


def test_without_a_dev_split_the_last_documents_validate(place: Any, write: Write, tmp_path: Path) -> None:
    path = write("train.jsonl", lines(*range(10)))
    check(place.build("eurlex", path=str(path), val_fraction=0.2), tokens(*range(8)), tokens(8, 9))
    check(place.build("eurlex", path=str(path), val_fraction=0.01), tokens(*range(9)), tokens(9))
    check(place.build("eurlex", path=str(path), val_fraction=0.99), tokens(0), tokens(*range(1, 10)))
    for number in range(4):
        write(f"flat/{number}.json", json.dumps(document(number)))
    check(place.build("eurlex", path=str(tmp_path / "flat"), val_fraction=0.25), tokens(0, 1, 2), tokens(3))


def test_attachments_are_a_choice(place: Any, write: Write) -> None:
    path = write("all.jsonl", lines(1, 2))
    data = place.build("eurlex", path=str(path), attachments=True)
    check(data, tokens(1, attachments=True), tokens(2, attachments=True))
    assert place.build("eurlex", path=str(path)).path != data.path


def test_a_parquet_file_with_finished_text(place: Any, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install 'altgrad[parquet]'")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = {"celex_id": list("abc"), "title": ["t"] * 3, "text": ["one", "two", "three é"]}
    parquet.write_table(pyarrow.table(rows), tmp_path / "x.parquet")
    check(
        place.build("eurlex", path=str(tmp_path / "x.parquet")),
        [*b"one", 256, *b"two", 256],
        [*"three é".encode(), 256],
    )
    with pytest.raises(AltgradError, match="needs EURLEX57K's own files"):
        place.build("eurlex", path=str(tmp_path / "x.parquet"), attachments=True)
    parquet.write_table(pyarrow.table({"title": ["t", "t"]}), tmp_path / "y.parquet")
    with pytest.raises(
        AltgradError, match=r"y\.parquet, row 1: 'header' must be a string, got no such key \(keys: title\)"
    ):
        place.build("eurlex", path=str(tmp_path / "y.parquet"))
    (tmp_path / "z.parquet").write_bytes(b"PAR1 but not really PAR1")
    with pytest.raises(AltgradError, match=r"z\.parquet is not a readable Parquet file"):
        place.build("eurlex", path=str(tmp_path / "z.parquet"))


def test_parquet_without_pyarrow_names_the_pip_line(place: Any, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(AltgradError, match=r"pip install 'altgrad\[parquet\]'"):
        place.build("eurlex", path=str(write("x.parquet", b"PAR1")))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lines(1) + b'\n{"header": "x",\n', r"bad\.jsonl, line 3, column 16: malformed JSON: Expecting"),
        (lines(1) + b"[1]\n", r"line 2: expected a JSON object, got list"),
        (lines(1) + b'{"header": "\xff"}\n', r"line 2: not UTF-8 at byte 12"),
        (lines(1) + b'{"header": "x"}\n', r"line 2: 'recitals' must be a string, got no such key \(keys: header\)"),
        (
            json.dumps(document(1, header=None)).encode() + b"\n" + lines(2),
            r"line 1: 'header' must be a string, got NoneType",
        ),
        (
            json.dumps(document(1, main_body="x")).encode() + b"\n" + lines(2),
            r"'main_body' must be a list of strings, got str",
        ),
        (lines(1), "has 1 documents; two are needed"),
        (b"\n", "has 0 documents; two are needed"),
    ],
)
def test_a_broken_source_is_named(place: Any, write: Write, content: bytes, message: str) -> None:
    with pytest.raises(AltgradError, match=message):
        place.build("eurlex", path=str(write("bad.jsonl", content)))
    assert not list((place.workspace.cache / "tokens").glob("*")), "nothing half-made stays in the cache"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl.gz", gzip.compress(lines(1, 2, 3))[:-20], r"a\.jsonl\.gz could not be read, it may be damaged"),
        ("a.jsonl.gz", b"no gzip", r"a\.jsonl\.gz could not be read, it may be damaged"),
        ("a.zip", b"no zip", r"a\.zip is not a readable zip archive"),
        ("a.csv", b"x", r"not of a known kind. Expected a folder or one of .zip, .json, .jsonl"),
        ("test.jsonl", lines(1, 2), "is the test split, which is not for training"),
        ("a.zip", zipped(**{"test/1.json": b"{}"}), r"no file with training documents .* 1 files of a test split"),
    ],
)
def test_a_file_that_cannot_be_used(place: Any, write: Write, name: str, content: bytes, message: str) -> None:
    with pytest.raises(AltgradError, match=message):
        place.build("eurlex", path=str(write(name, content)))


def test_a_damaged_member_of_a_zip_is_named(place: Any, write: Write) -> None:
    content = zipped(**{f"train/{n}.json": json.dumps(document(n)).encode() for n in (1, 2)})
    path = write("a.zip", content.replace(b"header 2", b"header 9"))
    with pytest.raises(AltgradError, match=r"a\.zip:train/2\.json could not be read, it may be damaged"):
        place.build("eurlex", path=str(path))


def test_no_path_says_where_the_data_is(place: Any) -> None:
    with pytest.raises(ValueError, match=r"Chalkidis et al\., ACL 2019") as raised:
        place.build("eurlex")
    assert "http://nlp.cs.aueb.gr/software_and_datasets/EURLEX57K/datasets.zip" in str(raised.value)
    assert "--set data.path='\"datasets.zip\"'" in str(raised.value)
    with pytest.raises(AltgradError, match="does not exist"):
        place.build("eurlex", path="/nowhere/datasets.zip")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    folder = tmp_path / "served"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/short.jsonl":
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(b"{}")
            else:
                super().do_GET()

        def log_message(self, *arguments: Any) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder))) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


def test_a_url_is_fetched_once(place: Any, server: str, tmp_path: Path) -> None:
    (tmp_path / "served" / "some data.jsonl").write_bytes(lines(1, 2))
    url = f"{server}/some%20data.jsonl?download=true"
    check(place.build("eurlex", path=url), tokens(1), tokens(2))
    assert place.said[0].startswith(f"Downloading {url} (0.0 MB)")
    (tmp_path / "served" / "some data.jsonl").unlink()
    check(place.build("eurlex", path=url), tokens(1), tokens(2))


@pytest.mark.parametrize(("name", "message"), [("none.zip", "HTTPError"), ("short.jsonl", "2 of 1000 bytes")])
def test_a_failed_download_leaves_nothing(place: Any, server: str, name: str, message: str) -> None:
    with pytest.raises(AltgradError, match=f"could not be downloaded .*{message}.*set data.path to the file"):
        place.build("eurlex", path=f"{server}/{name}")
    assert not [path for path in (place.workspace.cache / "downloads").rglob("*") if path.is_file()]


def test_a_url_without_a_network(place: Any) -> None:
    with pytest.raises(AltgradError, match=r"could not be downloaded \(URLError") as raised:
        place.build("eurlex", path="http://127.0.0.1:9/datasets.zip")
    assert str(place.workspace.cache) in str(raised.value)
    with pytest.raises(AltgradError, match="not of a known kind"):
        place.build("eurlex", path="http://127.0.0.1:9/datasets")


# EURLEX57K itself; the counts were made with another program


def test_gpt2_tokens_of_the_dev_sample(place: Any, sample: Path, gpt2_cache: Path) -> None:
    data = place.build("eurlex", path=str(sample / "dev.jsonl.gz"), tokenizer="gpt2")
    assert len(data.train) + len(data.val) == 407_173
    assert data.documents == 600
    assert int((data.val == 50256).sum()) == 60


@pytest.mark.slow
@pytest.mark.parametrize(("attachments", "train", "val"), [(False, 3_365_275, 407_173), (True, 4_866_480, 629_055)])
def test_gpt2_tokens_of_the_whole_sample(
    place: Any, sample: Path, gpt2_cache: Path, attachments: bool, train: int, val: int
) -> None:
    data = place.build("eurlex", path=str(sample), tokenizer="gpt2", attachments=attachments)
    assert (len(data.train), len(data.val), data.documents) == (train, val, 5100)
