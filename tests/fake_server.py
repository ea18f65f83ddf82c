"""A web server on loopback that misbehaves on demand, for tests of downloads."""

import http.server
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class FakeServer:
    """What the server holds and has seen.

    Parameters
    ----------
    files : path -> body, such as {"/a.bin": b"..."}
    faults : path -> what befalls its next requests, one after the other; then all goes well. One of
        "ok", "cut" (half of what was asked for), "corrupt" (last byte changed), "stall" (silence after half),
        "drop" (no answer at all), "html" (a login page), "no-range" (Range is ignored), "no-length" (no Content-Length),
        a status such as 404 or 503, (status, {header: value}), or ("redirect", url)
    headers : path -> further headers of a good answer
    log : (method, path, Range or "") of every request
    """

    files: dict[str, bytes]
    faults: dict[str, Iterable] = field(default_factory=dict)
    headers: dict[str, dict[str, str]] = field(default_factory=dict)
    log: list[tuple[str, str, str]] = field(default_factory=list)
    port: int = 0
    closed: threading.Event = field(default_factory=threading.Event)
    delay: float = 0.0  # s before every answer, so that requests overlap

    def __post_init__(self):
        self.lock = threading.Lock()
        self.faults = {path: iter(faults) for path, faults in self.faults.items()}

    def url(self, path: str = "") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def next_fault(self, path: str) -> object:
        with self.lock:
            return next(self.faults.get(path, iter(())), "ok")


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: FakeServer

    def log_message(self, *words):
        pass

    def do_HEAD(self):
        self.answer(False)

    def do_GET(self):
        self.answer(True)

    def head(self, status: int, length: int | None, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (headers if length is None else {"Content-Length": str(length)} | headers).items():
            self.send_header(name, value)
        if length is None:
            self.close_connection = True
            self.send_header("Connection", "close")
        self.end_headers()

    def answer(self, with_body: bool) -> None:
        state, path = self.state, self.path.split("?")[0]
        state.log.append((self.command, self.path, self.headers.get("Range", "")))
        time.sleep(state.delay)
        fault = state.next_fault(path)
        if fault == "drop":
            self.close_connection = True
            return
        if isinstance(fault, tuple) and fault[0] == "redirect":
            return self.head(302, 0, {"Location": fault[1]})
        status, extra = fault if isinstance(fault, tuple) else (fault, {}) if isinstance(fault, int) else (404, {})
        if not isinstance(fault, str) or path not in state.files:
            return self.head(status, 0, extra)
        self.body(state.files[path], path, fault, with_body)

    def body(self, data: bytes, path: str, fault: str, with_body: bool) -> None:
        headers = {"ETag": f'"{hash(data):x}"', "Content-Type": "application/octet-stream"} | self.state.headers.get(path, {})
        if fault == "html":
            data, headers["Content-Type"] = b"<html>Please log in</html>", "text/html; charset=utf-8"
        if fault == "corrupt":
            data = data[:-1] + bytes([data[-1] ^ 1])
        start, wanted = 0, self.headers.get("Range", "")
        same = self.headers.get("If-Range", headers["ETag"]) == headers["ETag"]
        if wanted and same and fault != "no-range":
            start = int(wanted.removeprefix("bytes=").split("-")[0])
            if start >= len(data):
                return self.head(416, 0, {"Content-Range": f"bytes */{len(data)}"})
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        data = data[start:]
        self.head(206 if start else 200, None if fault == "no-length" else len(data), headers)
        if not with_body:
            return
        if fault in ("cut", "stall"):
            data, self.close_connection = data[: len(data) // 2], True
        try:
            self.wfile.write(data)
        except OSError:
            return
        if fault == "stall":
            self.state.closed.wait(20)


@contextmanager
def serve(files: dict[str, bytes], faults: dict[str, Iterable] | None = None, *, handler: type[Handler] = Handler,
          **options) -> Iterator[FakeServer]:
    """Run a `FakeServer` while the block lasts."""
    state = FakeServer(files, faults or {}, **options)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (handler,), {"state": state}))
    server.daemon_threads, state.port = True, server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        state.closed.set()
        server.shutdown()
        server.server_close()
