"""Downloads are whole or absent, whatever the server does (see nbs/00e_download.ipynb)."""

import hashlib
import itertools
import os
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from email.utils import formatdate
from pathlib import Path

import pytest
from fake_server import serve

from spectra_nn import download as module
from spectra_nn.download import DownloadError, download, download_many, git_blob_of, is_intact, is_offline

DATA = hashlib.shake_256(b"a spectrum").digest(700_000)
SHA = "sha256:" + hashlib.sha256(DATA).hexdigest()
QUICK = dict(backoff=0.01, timeout=5.0, progress=False)


@pytest.fixture(autouse=True)
def online(monkeypatch):
    monkeypatch.delenv("SPECTRA_NN_OFFLINE", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)


def left(folder: Path) -> list[str]:
    """Names in a folder, locks apart."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


@pytest.mark.parametrize("faults, requests", [
    (["ok"], [""]),
    (["cut"], ["", "bytes=350000-"]),
    (["cut", "cut", "cut", "cut", "cut", "cut"], None),          # every try gains ground: more breaks than `retries`
    (["cut", "no-range"], ["", "bytes=350000-"]),                # the server starts again: so do we
    (["corrupt"], ["", ""]),                                     # same size, one byte wrong: thrown away whole
    (["cut", "corrupt"], ["", "bytes=350000-", ""]),
    ([503, 429, 500], ["", "", "", ""]),
    ([(503, {"Retry-After": "0"}), "cut", 502], ["", "", "bytes=350000-", "bytes=350000-"]),
    (["drop", "drop"], ["", "", ""]),
    ([("redirect", "/moved.bin")], ["", ""]),
    (["no-length"], [""]),
], ids=str)
def test_gets_through(tmp_path, faults, requests):
    with serve({"/a.bin": DATA, "/moved.bin": DATA}, {"/a.bin": faults}) as server:
        path = download(server.url("/a.bin"), tmp_path / "deep" / "a.bin", expected=SHA, size=len(DATA), **QUICK)
        assert requests is None or [wanted for _, _, wanted in server.log] == requests
        seen = len(server.log)
        assert download(server.url("/a.bin"), path, expected=SHA) == path and len(server.log) == seen
    assert path.read_bytes() == DATA and [p.name for p in path.parent.iterdir()] == ["a.bin"]


@pytest.mark.parametrize("faults, options, words, status, n_request", [
    ([404], {}, "no such file", 404, 1),
    ([403], {}, "not public", 403, 1),
    (itertools.repeat(503), dict(retries=2), "in 3 tries.*503", 503, 3),
    ([(429, {"Retry-After": "86400"})], {}, "429", 429, 1),                       # a day: reported, not slept through
    ([(503, {"Retry-After": formatdate(4e9, usegmt=True)})], {}, "503", 503, 1),
    (itertools.repeat("corrupt"), {}, "not what was expected", None, 2),
    (["ok", "ok"], dict(expected="sha256:" + 64 * "0"), "not what was expected", None, 2),
    (["ok"], dict(size=5), "expected were 5", None, 1),
    (["ok"], dict(max_size=1e5), "limit is 0.1 MB", None, 1),
    (["no-length"], dict(max_size=1e5, expected=None), "more than 100000 bytes", None, 1),
    (["html"], {}, "web page", None, 1),
    ([("redirect", "file:///etc/hostname")], {}, "not (followed|allowed)", 302, 1),
    (["stall", "stall"], dict(retries=1, timeout=0.2, resume=False), "timed out", None, None),
], ids=str)
def test_gives_up_and_leaves_nothing(tmp_path, faults, options, words, status, n_request):
    with serve({"/a.bin": DATA}, {"/a.bin": faults}) as server, pytest.raises(DownloadError, match=f"(?s){words}") as caught:
        download(server.url("/a.bin"), tmp_path / "a.bin", **(QUICK | dict(expected=SHA) | options))
    assert server.url("/a.bin") in str(caught.value) and caught.value.status == status
    assert n_request in (None, len(server.log)) and left(tmp_path) == []


def test_silence_is_resumed_by_the_next_call(tmp_path):
    with serve({"/a.bin": DATA}, {"/a.bin": ["stall"]}) as server:
        with pytest.raises(DownloadError, match="timed out"):
            download(server.url("/a.bin"), tmp_path / "a.bin", **(QUICK | dict(timeout=0.2, retries=0)))
        assert left(tmp_path) == [".a.bin.note", ".a.bin.part"]
        download(server.url("/a.bin"), tmp_path / "a.bin", **QUICK)
        assert server.log[-1][2].startswith("bytes=") and (tmp_path / "a.bin").read_bytes() == DATA
    assert left(tmp_path) == ["a.bin"]


def test_a_part_of_an_older_version_is_not_continued(tmp_path):
    """No checksum is known: only the ETag tells that the file has changed between two calls."""
    newer = DATA[::-1]
    with serve({"/a.bin": DATA}, {"/a.bin": ["cut", 404]}) as server:
        with pytest.raises(DownloadError):
            download(server.url("/a.bin"), tmp_path / "a.bin", **(QUICK | dict(retries=0)))
        server.files["/a.bin"], server.faults = newer, {}
        assert download(server.url("/a.bin"), tmp_path / "a.bin", **QUICK).read_bytes() == newer


def test_a_file_that_is_there(tmp_path):
    path = tmp_path / "a.bin"
    with serve({"/a.bin": DATA}) as server:
        path.write_bytes(b"damaged")
        with pytest.raises(DownloadError, match="not the file expected, and we are offline"):
            download(server.url("/a.bin"), path, expected=SHA, offline=True)
        assert download(server.url("/a.bin"), path, **QUICK).read_bytes() == b"damaged" and not server.log  # nothing is known of it
        for expected in (SHA, "git:" + hashlib.sha1(b"blob 700000\0" + DATA).hexdigest(), "prefix:" + SHA[7:15]):
            path.write_bytes(DATA[:-1] + b"?")
            assert download(server.url("/a.bin"), path, expected=expected, **QUICK).read_bytes() == DATA
        assert len(server.log) == 3


def test_offline_makes_no_request(tmp_path, monkeypatch):
    with serve({"/a.bin": DATA}) as server:
        for name in ("SPECTRA_NN_OFFLINE", "HF_HUB_OFFLINE"):
            monkeypatch.setenv(name, "1")
            assert is_offline() and not is_offline(False)
            with pytest.raises(DownloadError, match="is not there, and we are offline"):
                download(server.url("/a.bin"), tmp_path / "a.bin")
            monkeypatch.delenv(name)
        assert not is_offline() and not server.log and left(tmp_path) == []
    source = tmp_path / "source with space.bin"
    source.write_bytes(DATA)
    assert download(source.as_uri(), tmp_path / "a.bin", offline=True, expected=SHA, progress=False).read_bytes() == DATA


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/a", "a.bin", "data:,a", "/etc/hostname"])
def test_other_addresses_are_refused(tmp_path, url):
    with pytest.raises(DownloadError, match="no address"):
        download(url, tmp_path / "a.bin", **QUICK)


def test_a_redirect_never_leaves_https():
    request = module.urllib.request.Request("https://archive.example/a")
    with pytest.raises(DownloadError, match="not followed"):
        module._Redirects().redirect_request(request, None, 302, "", {}, "http://archive.example/a")
    assert module._Redirects().redirect_request(request, None, 302, "", {}, "https://mirror.example/a").host == "mirror.example"


def test_no_space_is_said_and_nothing_is_left(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    (tmp_path / "a.bin").write_bytes(b"old")
    with serve({"/a.bin": DATA}) as server:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 10**6, 1000))  # known beforehand
        with pytest.raises(DownloadError, match="no space left, 0.0 MB free"):
            download(server.url("/a.bin"), tmp_path / "a.bin", expected=SHA, **QUICK)
        monkeypatch.undo()
        monkeypatch.setattr(module, "open", disk_full, raising=False)                      # found out while writing
        with pytest.raises(DownloadError, match="no space left"):
            download(server.url("/a.bin"), tmp_path / "a.bin", expected=SHA, **QUICK)
    assert left(tmp_path) == ["a.bin"] and (tmp_path / "a.bin").read_bytes() == b"old"


def disk_full(path, mode="r"):
    """Open a file on a disk that takes nothing more."""
    return open("/dev/full", mode, buffering=0) if "w" in mode else open(path, mode)


SCRIPT = "import sys\nfrom spectra_nn.download import download\ndownload(sys.argv[1], sys.argv[2], expected=sys.argv[3], progress=False)"


def test_two_processes_download_once(tmp_path):
    with serve({"/a.bin": DATA}, delay=0.3) as server:
        command = [sys.executable, "-c", SCRIPT, server.url("/a.bin"), str(tmp_path / "a.bin"), SHA]
        environment = os.environ | {"PYTHONPATH": str(Path(module.__file__).parents[1])}
        running = [subprocess.Popen(command, env=environment) for _ in range(3)]
        assert [process.wait(60) for process in running] == [0, 0, 0] and len(server.log) == 1
    assert is_intact(tmp_path / "a.bin", SHA)


def test_a_killed_download_is_continued(tmp_path):
    with serve({"/a.bin": DATA}, {"/a.bin": ["stall"]}) as server:
        environment = os.environ | {"PYTHONPATH": str(Path(module.__file__).parents[1])}
        process = subprocess.Popen([sys.executable, "-c", SCRIPT, server.url("/a.bin"), str(tmp_path / "a.bin"), SHA], env=environment)
        part = tmp_path / ".a.bin.part"
        deadline = time.monotonic() + 30
        while not (part.is_file() and part.stat().st_size > 0) and time.monotonic() < deadline: time.sleep(0.01)
        process.kill()
        process.wait()
        assert left(tmp_path) == [".a.bin.note", ".a.bin.part"]
        assert download(server.url("/a.bin"), tmp_path / "a.bin", expected=SHA, **QUICK).read_bytes() == DATA
        assert server.log[-1][2].startswith("bytes=") and left(tmp_path) == ["a.bin"]


def test_many_name_what_fails_and_get_the_rest(tmp_path):
    files = {f"/{k}.bin": DATA[k : k + 1000] for k in range(12)}
    with serve(files, {"/3.bin": itertools.repeat(404), "/5.bin": ["cut", 503], "/7.bin": itertools.repeat("corrupt")}) as server:
        items = [(server.url(name), tmp_path / name[1:], hashlib.sha256(data).hexdigest()) for name, data in files.items()]
        paths, reasons = download_many(items, workers=3, **QUICK)
    assert [k for k, path in enumerate(paths) if path is None] == [3, 7]
    assert set(reasons) == {items[3][0], items[7][0]} and "404" in reasons[items[3][0]]
    assert all(path.read_bytes() == DATA[k : k + 1000] for k, path in enumerate(paths) if path)
    assert download_many([]) == ([], {})


def test_a_dead_archive_does_not_cost_a_night(tmp_path):
    items = [(f"http://127.0.0.1:9/{k}", tmp_path / str(k)) for k in range(60)]  # the discard port: refused
    paths, reasons = download_many(items, workers=2, retries=0, progress=False)
    assert paths == [None] * 60 and len(reasons) == 60
    assert 20 <= sum("could not be fetched" in reason for reason in reasons.values()) <= 22
    assert sum("not tried, for 20 files in a row" in reason for reason in reasons.values()) >= 38


def test_git_names_its_files_so(tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    assert git_blob_of(tmp_path / "empty") == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"
