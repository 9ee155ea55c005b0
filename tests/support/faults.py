"""A bad way to a good store: an HTTP proxy before a real S3 server that harms the calls it is told to harm.

It stands before Prefect's server as well, whose paths it takes for addresses.

Signatures cover the Host header, which is passed on as it came: the store signs for the proxy's address.
"""

import http.client
import itertools
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


class Fault(Enum):
    """What can happen to a call."""

    SLOW_DOWN = "503 instead of an answer"
    GONE = "404 instead of an answer"
    UNKNOWN = "501 instead of an answer"
    EXPIRED = "400 ExpiredToken instead of an answer"
    LOST = "500 instead of the answer, after the store did what it was asked"
    RESET = "the connection is reset before the store hears of it"
    CUT = "the connection is reset after the store did what it was asked"
    TRUNCATED = "half of the answer's body"
    FLIPPED = "one bit of the object is another, each time elsewhere"
    ROTTEN = "one bit of the object is another, always the same"
    SPOILT = "one bit of the object is another, on its way to the store"
    LATE = "the answer comes late"
    SILENT = "accepted, and never answered"


_CODES = {
    Fault.SLOW_DOWN: (503, "SlowDown"),
    Fault.GONE: (404, "NotFound"),
    Fault.UNKNOWN: (501, "NotImplemented"),
    Fault.EXPIRED: (400, "ExpiredToken"),
    Fault.LOST: (500, "InternalError"),
}


@dataclass(frozen=True)
class Call:
    """A request as the proxy sees it."""

    number: int
    """Of all that were received, from 0."""
    method: str
    uri: str
    """Address of the object, or of what is listed."""


Choice = Callable[[Call], Fault | None]


def some(seed: int, **shares: float) -> Choice:
    """Faults by their names in lower case, each with its share of all calls."""
    draw, lock = random.Random(seed), threading.Lock()

    def choose(_call: Call) -> Fault | None:
        with lock:
            chance = draw.random()
        for name, share in shares.items():
            chance -= share
            if chance < 0:
                return Fault[name.upper()]
        return None

    return choose


def first(fault: Fault, method: str, part: str, times: int = 1) -> Choice:
    """The fault for the first calls of this method to addresses that contain `part`."""
    left = [fault] * times
    return lambda call: left.pop() if left and call.method == method and part in call.uri else None


def after(fault: Fault, calls: int, method: str, part: str) -> Choice:
    """The fault for every call at all, once so many of this method went to addresses that contain `part`."""
    seen = itertools.count()
    past = threading.Event()

    def choose(call: Call) -> Fault | None:
        if call.method == method and part in call.uri and next(seen) >= calls:
            past.set()
        return fault if past.is_set() else None

    return choose


class Proxy(ThreadingHTTPServer):
    """The proxy; `choose` may be set anew at any time."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, store: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.store = urlsplit(store).netloc
        self.choose: Choice = lambda _call: None
        self.calls: list[tuple[Call, Fault | None]] = []
        self.closing = threading.Event()
        self.lock = threading.Lock()

    def __enter__(self) -> "Proxy":
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()

    def environment(self, stack: Mapping[str, str]) -> dict[str, str]:
        """The variables of a stack, with the proxy before its store."""
        url = f"http://127.0.0.1:{self.server_port}"
        return {**stack, "AWS_ENDPOINT_URL": url, "AWS_ENDPOINT_URL_S3": url}

    def count(self, *faults: Fault) -> int:
        """How many calls were harmed so; without faults, how many were received."""
        return sum(not faults or fault in faults for _, fault in list(self.calls))

    def receive(self, method: str, path: str) -> tuple[Call, Fault | None]:
        """Note a call and choose what happens to it."""
        with self.lock:
            target = urlsplit(path)
            prefix = parse_qs(target.query).get("prefix")
            uri = "s3:/" + unquote(target.path) + (f"/{prefix[0]}" if prefix else "")
            call = Call(len(self.calls), method, uri)
            fault = self.choose(call)
            self.calls.append((call, fault))
        return call, fault

    def handle_error(self, *_: object) -> None:
        """Clients that were killed, or gave up, are part of the game."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def handle_call(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        call, fault = self.server.receive(self.command, self.path)
        if fault is Fault.SILENT:
            self.server.closing.wait()
        if fault in (Fault.SILENT, Fault.RESET):
            return self.reset()
        if fault in (Fault.SLOW_DOWN, Fault.GONE, Fault.UNKNOWN, Fault.EXPIRED):
            return self.answer_error(*_CODES[fault])
        answer, data = self.pass_on(_flipped(body, call.number) if fault is Fault.SPOILT else body)
        if fault is Fault.LOST:
            return self.answer_error(*_CODES[fault])
        if fault is Fault.CUT:
            return self.reset()
        if fault is Fault.LATE:
            time.sleep(0.2)
        if fault in (Fault.FLIPPED, Fault.ROTTEN) and self.command == "GET" and "list-type" not in self.path:
            data = _flipped(data, call.number if fault is Fault.FLIPPED else 0)
        if fault is Fault.TRUNCATED:
            data, self.close_connection = data[: len(data) // 2], True
        return self.answer(answer, data)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = do_PATCH = handle_call

    def pass_on(self, body: bytes) -> tuple[http.client.HTTPResponse, bytes]:
        connection = http.client.HTTPConnection(self.server.store, timeout=60)
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in ("expect", "connection"):
                connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        return answer, data

    def answer(self, answer: http.client.HTTPResponse, data: bytes) -> None:
        """The store's answer, its length as the store gave it, with these bytes."""
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                self.send_header(name, value)
        length = answer.getheader("Content-Length")
        self.send_header("Content-Length", length if length is not None else str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def answer_error(self, status: int, code: str) -> None:
        text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>by the proxy</Message></Error>".encode()
        self.send_response_only(status)
        self.send_header("Content-Length", "0" if self.command == "HEAD" else str(len(text)))
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else text)

    def reset(self) -> None:
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Says nothing."""


def _flipped(data: bytes, seed: int) -> bytes:
    place = random.Random(seed).randrange(8 * len(data)) if data else 0
    return data[: place // 8] + bytes([data[place // 8] ^ 1 << place % 8]) + data[place // 8 + 1 :] if data else data
