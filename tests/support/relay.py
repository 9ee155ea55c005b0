"""A TCP relay in front of a server, whose network can be taken down and up again."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

__all__ = ["Relay", "relay"]


class Relay:
    """Passes on bytes in both directions. While it is paused, connections stay open and no byte arrives."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._up = threading.Event()
        self._up.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open = [self._listener]
        self.port: int = self._listener.getsockname()[1]

    def pause(self) -> None:
        """Take the network down."""
        self._up.clear()

    def resume(self) -> None:
        """Take the network up again. What was sent in the meantime arrives late."""
        self._up.set()

    def serve(self) -> None:
        """Accept connections until the relay is closed."""
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._up.wait()
                server = socket.create_connection(("127.0.0.1", self._target))
                self._open += [client, server]
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=self._pump, args=pair, daemon=True).start()

    def close(self) -> None:
        """Close all connections."""
        self._up.set()
        for each in self._open:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                self._up.wait()
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


@contextmanager
def relay(port: int) -> Iterator[Relay]:
    """Run a relay in front of a port of this machine."""
    running = Relay(port)
    thread = threading.Thread(target=running.serve, daemon=True)
    thread.start()
    try:
        yield running
    finally:
        running.close()
        thread.join()
