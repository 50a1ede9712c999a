"""A proxy before an S3 server on loopback that does to requests and answers what networks and busy servers do.

Which request meets which fault is a script: a list of :class:`Fault`, each for the requests that it is for, in order.
"""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

ERRORS = {
    "slow down": (503, "SlowDown"),
    "unavailable": (503, "ServiceUnavailable"),
    "internal error": (500, "InternalError"),
    "denied": (403, "AccessDenied"),
}
LEFT_OUT = {"expect", "connection", "transfer-encoding", "keep-alive"}


@dataclass
class Fault:
    """What happens to requests: ``how``, to ``times`` of those that it is for, after the first ``after``.

    ``slow down``, ``unavailable``, ``internal error``, ``denied``: answered so, and not passed on. ``refused``: the
    connection is closed at once. ``slow``: passed on after ``seconds``. ``cut``: half of the answer's body, then the
    connection is closed. ``lost``: passed on, and the connection closed without an answer. ``flipped``: a bit of the
    answer's body.
    ``stale``: a listing as it was answered first. ``unconditional``: the server never sees If-None-Match.
    ``no such upload``: passed on, and answered as if the server had done it before and forgotten it.
    ``method``, ``ending``: of requests that it is for; empty for any. ``listing``: only for listings.
    """

    how: str
    times: int = 1
    method: str = ""
    ending: str = ""
    listing: bool = False
    after: int = 0
    seconds: float = 0.5
    query: str = ""
    met: int = 0

    def meets(self, method: str, path: str, query: dict[str, list[str]], headers: object) -> bool:
        """Return whether the request meets the fault."""
        parts = urlsplit(path)
        fits = (
            (not self.method or method == self.method)
            and parts.path.endswith(self.ending)
            and (not self.listing or "list-type" in query)
            and (not self.query or self.query in query)
        )
        if self.how in ("flipped", "cut") and method != "GET":
            fits = False
        if self.how == "stale" and "list-type" not in query:
            fits = False
        if self.how == "unconditional" and not headers.get("If-None-Match"):  # type: ignore[attr-defined]
            fits = False
        if not fits:
            return False
        self.met += 1
        return self.after < self.met <= self.after + self.times


@dataclass
class Weather:
    """Faults drawn by a seed: each request meets one of ``hows`` with a probability, at most ``most`` in a row."""

    hows: Sequence[str]
    share: float
    seed: int
    most: int = 2
    row: int = 0
    draw: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.draw = random.Random(self.seed)

    def next(self, method: str, query: dict[str, list[str]]) -> Fault | None:
        """Return the fault that a request meets."""
        how = self.draw.choice(self.hows) if self.draw.random() < self.share else ""
        if how in ("flipped", "cut") and method != "GET":
            how = "lost"
        if not how or self.row >= self.most:
            self.row = 0
            return None
        self.row += 1
        return Fault(how, seconds=0.2)


class Proxy:
    """The proxy of a server at ``port``; ``faults`` and ``weather`` may be changed at any time; ``injected`` counts."""

    def __init__(self, port: int) -> None:
        self.upstream, self.faults, self.weather = port, list[Fault](), None
        self.injected: Counter[str] = Counter()
        self.seen: list[tuple[str, str]] = []
        self._first: dict[str, tuple[int, list[tuple[str, str]], bytes]] = {}
        self._lock = threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                """Say nothing."""

            def handle_one(self) -> None:
                proxy.handle(self)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_one

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]

    weather: Weather | None

    def _fault(self, method: str, path: str, headers: object) -> Fault | None:
        query = parse_qs(urlsplit(path).query, keep_blank_values=True)
        with self._lock:
            self.seen.append((method, path))
            found = next((f for f in self.faults if f.meets(method, path, query, headers)), None)
            if found is None and self.weather is not None:
                found = self.weather.next(method, query)
            if found is not None:
                self.injected[found.how] += 1
            return found

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        """Answer one request."""
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        fault = self._fault(request.command, request.path, request.headers)
        how = fault.how if fault else ""
        if how in ERRORS:
            self._error(request, *ERRORS[how])
            return
        if how == "refused":
            _close(request)
            return
        if fault is not None and how == "slow":
            time.sleep(fault.seconds)
        status, headers, answer = self._asked(request, body, how)
        if how == "lost":
            _close(request)
            return
        if how == "no such upload":
            self._error(request, 404, "NoSuchUpload")
            return
        if how == "flipped" and answer:
            middle = len(answer) // 2
            answer = answer[:middle] + bytes([answer[middle] ^ 1]) + answer[middle + 1 :]
        request.send_response_only(status)
        for name, value in headers:
            request.send_header(name, value)
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(answer[: len(answer) // 2] if how == "cut" else answer)
        if how == "cut":
            request.wfile.flush()
            _close(request)

    def _asked(
        self, request: BaseHTTPRequestHandler, body: bytes, how: str
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        if how == "stale" and request.path in self._first:
            return self._first[request.path]
        left_out = LEFT_OUT | ({"if-none-match"} if how == "unconditional" else set())
        with contextlib.closing(HTTPConnection("127.0.0.1", self.upstream, timeout=60)) as server:
            server.putrequest(
                request.command, request.path, skip_host=True, skip_accept_encoding=True
            )
            for name, value in request.headers.items():
                if name.lower() not in left_out:
                    server.putheader(name, value)
            server.endheaders(body)
            answer = server.getresponse()
            data = answer.read()
            headers = [
                (n, v)
                for n, v in answer.getheaders()
                if n.lower() not in (*LEFT_OUT, "content-length")
            ]
            size = (
                answer.getheader("Content-Length") if request.command == "HEAD" else str(len(data))
            )
            headers.append(("Content-Length", size or "0"))
        if "list-type=2" in request.path:
            self._first.setdefault(request.path, (answer.status, headers, data))
        return answer.status, headers, data

    def _error(self, request: BaseHTTPRequestHandler, status: int, code: str) -> None:
        text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>Please try again</Message></Error>"
        data = b"" if request.command == "HEAD" else text.encode()
        request.send_response_only(status)
        request.send_header("Content-Type", "application/xml")
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data)

    def __enter__(self) -> Proxy:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def _close(request: BaseHTTPRequestHandler) -> None:
    request.close_connection = True
    with contextlib.suppress(OSError):
        request.connection.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def behind(proxy: Proxy, *faults: Fault) -> Iterator[Proxy]:
    """Let requests meet faults for a while; all must have been met."""
    proxy.faults = list(faults)
    try:
        yield proxy
        assert all(fault.met > fault.after for fault in faults), f"not met: {faults}"
    finally:
        proxy.faults = []
