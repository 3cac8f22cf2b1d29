"""Downloads, from a server on the loopback that fails in every way a mirror does."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import re
import socketserver
import tarfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from idx_files import idx_bytes, write_source

from genlab.data import download, idx
from genlab.data.sources import CIFAR10
from genlab.errors import DataError
from genlab.runs.files import replacing

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (4000, 2, 3), dtype=np.uint8)
LABELS = RNG.integers(0, 2, 4000, dtype=np.uint8)


class Mirror(ThreadingHTTPServer):
    """Serves `files` by name; sends at most `cut` bytes of an answer, and notes every request."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.cut: int | None = None
        self.ranges = True
        self.requests: list[tuple[str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"


class Handler(BaseHTTPRequestHandler):
    server: Mirror

    def do_GET(self) -> None:
        name, asked = self.path.lstrip("/"), self.headers.get("Range")
        self.server.requests.append((name, asked))
        if name not in self.server.files:
            self.send_error(404)
            return
        content = self.server.files[name]
        start = 0
        if asked and self.server.ranges:
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
            if start >= len(content):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = None if self.server.cut is None else start + self.server.cut
        self.wfile.write(content[start:end])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    with Mirror() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def source(tmp_path, mirror):
    """A small data set that only the mirror has."""
    cls = write_source(tmp_path / "published" / "small", PIXELS, LABELS)
    mirror.files = {
        f"{path.name}.gz": gzip.compress(path.read_bytes(), mtime=0)
        for path in (tmp_path / "published" / "small").iterdir()
    }
    cls.mirrors = (mirror.url,)
    return cls()


def assert_complete(source, data_dir):
    source.prepare(data_dir)
    np.testing.assert_array_equal(source.load(data_dir, "train").pixels[:, 0], PIXELS)
    np.testing.assert_array_equal(source.load(data_dir, "test").labels, LABELS)
    assert {p.name for p in (data_dir / "small").iterdir()} == set(source.sha256)


def test_downloaded_once(tmp_path, mirror, source):
    assert_complete(source, tmp_path)
    assert len(mirror.requests) == 4
    source.prepare(tmp_path)
    assert len(mirror.requests) == 4


def test_files_found_gzipped_are_not_downloaded(tmp_path, mirror, source):
    (tmp_path / "small").mkdir()
    for name, content in mirror.files.items():
        # Other compression, same content.
        (tmp_path / "small" / name).write_bytes(gzip.compress(gzip.decompress(content), 1))
    source.prepare(tmp_path)
    np.testing.assert_array_equal(source.load(tmp_path, "train").pixels[:, 0], PIXELS)
    assert mirror.requests == []


def test_a_cut_connection_is_resumed(tmp_path, mirror, source):
    mirror.cut = 10_000
    assert_complete(source, tmp_path)
    ranges = [asked for name, asked in mirror.requests if name.startswith("train-images")]
    assert ranges == [None, "bytes=10000-", "bytes=20000-"]


def test_a_part_file_is_resumed_by_a_later_run(tmp_path, mirror, source):
    name = "train-images-idx3-ubyte"
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / f"{name}.part").write_bytes(mirror.files[f"{name}.gz"][:5000])
    assert_complete(source, tmp_path)
    assert mirror.requests[0] == (f"{name}.gz", "bytes=5000-")


@pytest.mark.parametrize("extra", [-3000, 0, 10])
def test_a_wrong_part_file_is_downloaded_anew(tmp_path, mirror, source, extra):
    name = "train-images-idx3-ubyte"
    (tmp_path / "small").mkdir()
    part = tmp_path / "small" / f"{name}.part"
    part.write_bytes(bytes(len(mirror.files[f"{name}.gz"]) + extra))
    assert_complete(source, tmp_path)


def test_a_server_without_ranges_sends_everything_again(tmp_path, mirror, source):
    mirror.ranges = False
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "train-images-idx3-ubyte.part").write_bytes(b"x" * 100)
    assert_complete(source, tmp_path)


def test_the_second_mirror_is_used(tmp_path, mirror, source):
    with Mirror() as broken:
        threading.Thread(target=broken.serve_forever, args=(0.01,), daemon=True).start()
        broken.files = {name: gzip.compress(b"other") for name in list(mirror.files)[:2]}
        type(source).mirrors = ("http://127.0.0.1:1/", broken.url, mirror.url)
        assert_complete(source, tmp_path)
        broken.shutdown()


def test_wrong_content_is_refused_and_does_not_stay(tmp_path, mirror, source):
    altered = idx_bytes(np.zeros_like(PIXELS))
    for content in (gzip.compress(altered), b"<html>not here</html>", b""):
        mirror.files["train-images-idx3-ubyte.gz"] = content
        with pytest.raises(DataError, match=r"could not be downloaded \(http://127.0.0.1"):
            source.prepare(tmp_path)
        assert list((tmp_path / "small").iterdir()) == []


def test_no_network_is_one_clear_error(tmp_path, source):
    type(source).mirrors = ("http://127.0.0.1:1/",)
    with pytest.raises(DataError, match=r"refused.*put it there yourself or set data.data_dir"):
        source.prepare(tmp_path)


OK = b"HTTP/1.1 200 OK\r\n"
BOMB = gzip.compress(bytes(200_000))
#: What a server sends at once, and then again and again in small pieces until it is left alone.
MISBEHAVIOUR: dict[str, tuple[bytes, bytes]] = {
    "length is a word": (OK + b"Content-Length: many\r\n\r\nabc", b""),
    "length is negative": (OK + b"Content-Length: -5\r\n\r\nabc", b""),
    "length is endless": (OK + b"Content-Length: " + b"9" * 400 + b"\r\n\r\nabc", b""),
    "declares too much": (OK + b"Content-Length: 1000000\r\n\r\n", b""),
    "sends too much": (OK + b"\r\n" + bytes(200_000), b""),
    "sends more than declared": (OK + b"Content-Length: 3\r\n\r\n" + bytes(5000), b""),
    "unpacks to too much": (OK + b"\r\n" + BOMB, b""),
    "redirects nowhere": (b"HTTP/1.1 302 Found\r\nLocation: http://[bad\r\n\r\n", b""),
    "redirects to no port": (b"HTTP/1.1 302 Found\r\nLocation: http://a:99999999/\r\n\r\n", b""),
    "redirects to a file": (b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n", b""),
    "redirects to itself": (b"HTTP/1.1 302 Found\r\nLocation: /again\r\n\r\n", b""),
    "redirects without a place": (b"HTTP/1.1 302 Found\r\n\r\n", b""),
    "speaks no HTTP": (b"SSH-2.0-OpenSSH_9.6\r\n", b""),
    "says nothing": (b"", b""),
    "drips its header": (OK, b"X"),
    "drips its body": (OK + b"Content-Length: 5000\r\n\r\n", b"x"),
    "drips a length of a chunk": (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"0"),
    "falls silent": (OK + b"Content-Length: 5000\r\n\r\nabc", b"wait"),
}


class Misbehaving(socketserver.ThreadingTCPServer):
    """Answers every request in the same wrong way."""

    daemon_threads = True

    def __init__(self, misbehaviour: str) -> None:
        super().__init__(("127.0.0.1", 0), Wrong)
        self.first, self.drop = MISBEHAVIOUR[misbehaviour]
        self.ends = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"


class Wrong(socketserver.BaseRequestHandler):
    server: Misbehaving

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            self.request.recv(4096)
            self.request.sendall(self.server.first)
            while self.server.drop and not self.server.ends.wait(0.02):
                if self.server.drop != b"wait":
                    self.request.sendall(self.server.drop)


@pytest.fixture
def misbehaving(request: pytest.FixtureRequest) -> Iterator[Misbehaving]:
    with Misbehaving(request.param) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.ends.set()
        server.shutdown()


@pytest.mark.parametrize("misbehaving", MISBEHAVIOUR, indirect=True)
def test_whatever_a_mirror_does_the_next_one_is_tried(
    tmp_path, mirror, source, misbehaving, monkeypatch
):
    monkeypatch.setattr(download, "_SECONDS_PER_BLOCK", 0.3)
    monkeypatch.setattr(download, "MOST_BYTES", 100_000)
    monkeypatch.setattr(idx, "MOST_BYTES", 100_000)
    type(source).mirrors = (misbehaving.url,)
    with pytest.raises(DataError, match=r"could not be downloaded \(http://127.0.0.1") as refused:
        source.prepare(tmp_path)
    assert str(refused.value).count("put it there yourself") == 1
    if misbehaving.first and misbehaving.drop != b"":
        assert "too slow" in str(refused.value)
    assert list((tmp_path / "small").iterdir()) == []

    type(source).mirrors = (misbehaving.url, mirror.url)
    assert_complete(source, tmp_path)


@pytest.mark.parametrize("error", [TimeoutError(), urllib.error.URLError(TimeoutError())])
def test_a_socket_that_notices_first_says_the_same(tmp_path, mirror, source, monkeypatch, error):
    def urlopen(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    with pytest.raises(DataError, match="too slow"):
        source.prepare(tmp_path)


def test_a_download_has_an_end_however_many_blocks_come_in_time(
    tmp_path, mirror, source, monkeypatch
):
    monkeypatch.setattr(download, "_SECONDS", 0.0)
    with pytest.raises(DataError, match="too slow"):
        source.prepare(tmp_path)


def test_a_full_disk_is_no_fault_of_a_mirror(tmp_path, source, monkeypatch):
    def refuse(self: Path, *_: object) -> None:
        raise OSError(28, "No space left on device", str(self))

    with monkeypatch.context() as full:
        full.setattr(Path, "open", refuse)
        with pytest.raises(DataError, match=r"part cannot be written \(No space left.*make room"):
            source.prepare(tmp_path)


def test_an_interrupted_write_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "file") as out:
        out.write(b"half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


RECORDS = 3


def cifar_files() -> dict[str, bytes]:
    names = [name for names in CIFAR10.files.values() for name in names]
    return {
        name: np.concatenate(
            [
                np.arange(RECORDS, dtype=np.uint8)[:, None],
                np.full((RECORDS, 3072), i, dtype=np.uint8),
            ],
            axis=1,
        ).tobytes()
        for i, name in enumerate(names)
    }


def tar_gz(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


def cifar(archive: bytes, *mirrors: str) -> CIFAR10:
    class Small(CIFAR10):
        records_per_file = RECORDS
        sha256 = hashlib.sha256(archive).hexdigest()

    Small.mirrors = mirrors
    return Small()


ARCHIVE = tar_gz({f"cifar-10-batches-bin/{n}": c for n, c in cifar_files().items()})


def assert_cifar(source: CIFAR10, data_dir) -> None:
    source.prepare(data_dir)
    train, test = source.load(data_dir, "train"), source.load(data_dir, "test")
    assert train.pixels.shape == (5 * RECORDS, 3, 32, 32)
    assert train.pixels[:, 0, 0, 0].tolist() == [i for i in range(5) for _ in range(RECORDS)]
    assert (test.pixels == 5).all()
    assert train.labels.tolist() == 5 * list(range(RECORDS))


def test_cifar_is_downloaded_and_unpacked(tmp_path, mirror):
    mirror.files = {"cifar-10-binary.tar.gz": ARCHIVE}
    assert_cifar(cifar(ARCHIVE, mirror.url), tmp_path)
    assert len(mirror.requests) == 1
    assert [p.name for p in (tmp_path / "cifar10").iterdir()] == ["cifar-10-batches-bin"]


def test_cifar_is_found_as_archive_or_unpacked(tmp_path):
    for place, files in (
        ("a/cifar10", {"cifar-10-binary.tar.gz": ARCHIVE}),
        ("b/cifar10", cifar_files()),
        ("c/cifar10/cifar-10-batches-bin", cifar_files()),
    ):
        (tmp_path / place).mkdir(parents=True)
        for name, content in files.items():
            (tmp_path / place / name).write_bytes(content)
        assert_cifar(cifar(ARCHIVE), tmp_path / place[0])


def test_colours_and_rows_of_cifar_are_where_its_page_says(tmp_path):
    record = np.concatenate([[7], np.arange(3072) % 251]).astype(np.uint8)
    for name in cifar_files():
        (tmp_path / "cifar10").mkdir(exist_ok=True)
        (tmp_path / "cifar10" / name).write_bytes(np.tile(record, RECORDS).tobytes())
    images = cifar(ARCHIVE).load(tmp_path, "test")
    # Red, green, blue planes of 1024, in row-major order.
    channel, row, column = 2, 5, 9
    assert images.pixels[1, channel, row, column] == (1024 * channel + 32 * row + column) % 251
    assert images.labels.tolist() == [7] * RECORDS


@pytest.mark.parametrize(
    ("archive", "complaint"),
    [
        (tar_gz({"../evil.bin": b"x"} | cifar_files()), "'../evil.bin'.*outside"),
        (tar_gz({"/tmp/data_batch_1.bin": b"x"} | cifar_files()), "outside"),
        (tar_gz({k: v for k, v in cifar_files().items() if k != "test_batch.bin"}), "lacks test"),
        (ARCHIVE[:-300], "cannot be unpacked"),
        (b"no archive", "cannot be unpacked"),
    ],
    ids=["leads up", "leads elsewhere", "lacks a file", "torn", "no archive"],
)
def test_a_bad_archive_is_refused(tmp_path, archive, complaint):
    (tmp_path / "cifar10").mkdir()
    (tmp_path / "cifar10" / "cifar-10-binary.tar.gz").write_bytes(archive)
    with pytest.raises(DataError, match=complaint):
        cifar(archive).prepare(tmp_path)
    assert [p.name for p in (tmp_path / "cifar10").iterdir()] == ["cifar-10-binary.tar.gz"]
    assert [p.name for p in tmp_path.iterdir()] == ["cifar10"]


def test_an_altered_archive_is_refused(tmp_path):
    (tmp_path / "cifar10").mkdir()
    (tmp_path / "cifar10" / "cifar-10-binary.tar.gz").write_bytes(ARCHIVE[:-1] + b"?")
    with pytest.raises(DataError, match=r"tar.gz is truncated or altered"):
        cifar(ARCHIVE).prepare(tmp_path)


def test_damaged_cifar_files_are_refused(tmp_path):
    home = tmp_path / "cifar10"
    home.mkdir()
    with pytest.raises(DataError, match=r"holds neither cifar-10-binary.tar.gz nor"):
        cifar(ARCHIVE).load(tmp_path, "train")
    for damage, complaint in (
        (lambda b: b[:-1], "bytes instead of"),
        (lambda b: b"\x0a" + b[1:], "label 10 of image 0"),
    ):
        for name, content in cifar_files().items():
            (home / name).write_bytes(damage(content))
        with pytest.raises(DataError, match=complaint):
            cifar(ARCHIVE).load(tmp_path, "train")
