"""The ports of a server."""

import socket
import threading
import time

import pytest

from flows.local import servers
from flows.local.servers import HOST, Server


def test_a_server_keeps_its_ports_if_they_become_free_shortly() -> None:
    """The ports of a killed process may be taken for some more milliseconds."""
    server = Server("a server", {"http": 0}).with_free_ports()
    listener = socket.create_server((HOST, server.ports["http"]))
    threading.Timer(0.3, listener.close).start()
    assert server.with_free_ports() == server


def test_a_port_that_stays_taken_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "PORT_SECONDS", 0.2)
    server = Server("a server", {"http": 0, "admin": 0}).with_free_ports()
    with socket.create_server((HOST, server.ports["http"])):
        started = time.monotonic()
        moved = server.with_free_ports()
    assert moved.ports["http"] != server.ports["http"]
    assert moved.ports["admin"] == server.ports["admin"]
    assert time.monotonic() - started < 5
