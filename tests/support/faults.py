"""An HTTP proxy in front of a real S3 server that injects faults into chosen calls.

The proxy also works in front of Prefect's server. There the path of a call takes the place of the S3 address.

The Host header is passed on unchanged, because S3 signatures cover it: the store verifies the signature for the
address of the proxy.
"""

import http.client
import itertools
import random
import re
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
    """What the proxy does to a call."""

    SLOW_DOWN = "503; the call does not reach the store"
    GONE = "404; the call does not reach the store"
    UNKNOWN = "501; the call does not reach the store"
    EXPIRED = "400 ExpiredToken; the call does not reach the store"
    KEYS_DENIED = "200 with AccessDenied for each object that was to be deleted; the call does not reach the store"
    KEYS_BUSY = "200 with SlowDown for each object that was to be deleted; the call does not reach the store"
    RESPONSE_LOST = "500 after the store has executed the call"
    RESET = "the connection is reset; the call does not reach the store"
    RESET_AFTER = "the connection is reset after the store has executed the call"
    TRUNCATED = "half of the response's body"
    FLIPPED = "one bit of a downloaded object is flipped, another one each time"
    CORRUPT = "one bit of a downloaded object is flipped, always the same one"
    CORRUPT_UPLOAD = "one bit of an uploaded object is flipped"
    DELAYED = "the response is delayed by 0.2 s"
    HANG = "the connection is accepted, and no response is ever sent"


_CODES = {
    Fault.SLOW_DOWN: (503, "SlowDown"),
    Fault.GONE: (404, "NotFound"),
    Fault.UNKNOWN: (501, "NotImplemented"),
    Fault.EXPIRED: (400, "ExpiredToken"),
    Fault.RESPONSE_LOST: (500, "InternalError"),
}


@dataclass(frozen=True)
class Call:
    """A request that the proxy received."""

    number: int
    """Number among all received requests, from 0."""
    method: str
    uri: str
    """Address of the object, or the prefix of a listing."""


Choice = Callable[[Call], Fault | None]


def some(seed: int, **shares: float) -> Choice:
    """Choose random faults. `shares` are the share of all calls for each fault, by its name in lower case."""
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
    """Choose the fault for the first calls of this method to addresses that contain `part`."""
    left = [fault] * times
    return lambda call: left.pop() if left and call.method == method and part in call.uri else None


def after(fault: Fault, calls: int, method: str, part: str) -> Choice:
    """Choose the fault for every call after `calls` calls of this method to addresses that contain `part`."""
    matching = itertools.count()
    started = threading.Event()

    def choose(call: Call) -> Fault | None:
        if call.method == method and part in call.uri and next(matching) >= calls:
            started.set()
        return fault if started.is_set() else None

    return choose


class Proxy(ThreadingHTTPServer):
    """The proxy. A test may change `choose` at any time."""

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
        """Return the variables of a stack with the proxy in front of its store."""
        url = f"http://127.0.0.1:{self.server_port}"
        return {**stack, "AWS_ENDPOINT_URL": url, "AWS_ENDPOINT_URL_S3": url}

    def count(self, *faults: Fault) -> int:
        """Return the number of calls with one of these faults; without arguments, the number of all calls."""
        return sum(not faults or fault in faults for _, fault in list(self.calls))

    def receive(self, method: str, path: str) -> tuple[Call, Fault | None]:
        """Record a call and choose its fault."""
        with self.lock:
            target = urlsplit(path)
            prefix = parse_qs(target.query).get("prefix")
            uri = "s3:/" + unquote(target.path) + (f"/{prefix[0]}" if prefix else "")
            call = Call(len(self.calls), method, uri)
            fault = self.choose(call)
            self.calls.append((call, fault))
        return call, fault

    def handle_error(self, *_: object) -> None:
        """Ignore connections of clients that were killed or gave up."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def handle_call(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        call, fault = self.server.receive(self.command, self.path)
        if fault is Fault.HANG:
            self.server.closing.wait()
        if fault in (Fault.HANG, Fault.RESET):
            return self.reset()
        if fault in (Fault.SLOW_DOWN, Fault.GONE, Fault.UNKNOWN, Fault.EXPIRED):
            return self.send_fault(*_CODES[fault])
        if fault in (Fault.KEYS_DENIED, Fault.KEYS_BUSY):
            return self.send_key_errors(body, "AccessDenied" if fault is Fault.KEYS_DENIED else "SlowDown")
        response, data = self.forward(_flip_bit(body, call.number) if fault is Fault.CORRUPT_UPLOAD else body)
        if fault is Fault.RESPONSE_LOST:
            return self.send_fault(*_CODES[fault])
        if fault is Fault.RESET_AFTER:
            return self.reset()
        if fault is Fault.DELAYED:
            time.sleep(0.2)
        if fault in (Fault.FLIPPED, Fault.CORRUPT) and self.command == "GET" and "list-type" not in self.path:
            data = _flip_bit(data, call.number if fault is Fault.FLIPPED else 0)
        if fault is Fault.TRUNCATED:
            data, self.close_connection = data[: len(data) // 2], True
        return self.send(response, data)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = do_PATCH = handle_call

    def forward(self, body: bytes) -> tuple[http.client.HTTPResponse, bytes]:
        connection = http.client.HTTPConnection(self.server.store, timeout=60)
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in ("expect", "connection"):
                connection.putheader(name, value)
        connection.endheaders(body)
        response = connection.getresponse()
        data = response.read()
        connection.close()
        return response, data

    def send(self, response: http.client.HTTPResponse, data: bytes) -> None:
        """Send the store's headers, including its Content-Length, with this body."""
        self.send_response_only(response.status, response.reason)
        for name, value in response.getheaders():
            if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                self.send_header(name, value)
        length = response.getheader("Content-Length")
        self.send_header("Content-Length", length if length is not None else str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def send_key_errors(self, body: bytes, code: str) -> None:
        """Answer DeleteObjects as a store does that refuses to delete each of the objects."""
        keys = re.findall("<Key>(.*?)</Key>", body.decode())
        errors = "".join(f"<Error><Key>{key}</Key><Code>{code}</Code><Message>no</Message></Error>" for key in keys)
        text = f"<?xml version='1.0'?><DeleteResult>{errors}</DeleteResult>".encode()
        self.send_response_only(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def send_fault(self, status: int, code: str) -> None:
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
        """Do not log."""


def _flip_bit(data: bytes, seed: int) -> bytes:
    if not data:
        return data
    byte, bit = divmod(random.Random(seed).randrange(8 * len(data)), 8)
    return data[:byte] + bytes([data[byte] ^ 1 << bit]) + data[byte + 1 :]
