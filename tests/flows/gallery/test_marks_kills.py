"""Two tabs rate dreams while the gallery is killed with -9 and started again: no acknowledged mark is lost."""

import http.client
import json
import random
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from urllib.parse import urlencode

import pytest

from dreamcore.settings import DreamSettings
from flows.destination.favourites import read_marks
from flows.gallery.site import slug_of
from flows.s3.storage import Storage
from tests.support.command import DREAMGRID
from tests.support.gallery import make_row, write_part


class Gallery:
    """The command `dreamgrid gallery` on one port, in a process that can be killed."""

    def __init__(self, destination: str) -> None:
        self.base = f"/d/{slug_of(destination)}"
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self._command = [str(DREAMGRID), "gallery", destination, "--port", str(self.port), "--no-open", "--json"]

    @contextmanager
    def running(self) -> Iterator["subprocess.Popen[str]"]:
        """Run the gallery until the end of the block, and kill it with -9."""
        with subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                text = ""
                while not text.endswith("}\n"):
                    line = process.stdout.readline()
                    assert line, text
                    text += line
                assert json.loads(text)["url"].endswith(f":{self.port}/")
                yield process
            finally:
                process.send_signal(signal.SIGKILL)


class Tab(threading.Thread):
    """Sends marks one request after another, each until it is acknowledged."""

    def __init__(self, gallery: Gallery, marks: Sequence[tuple[str, int]]) -> None:
        super().__init__(daemon=True)
        self._gallery, self._marks = gallery, marks
        self._token = ""
        self.acknowledged: dict[str, int] = {}
        """The last acknowledged mark of each dream. A dream is left out while a mark of it is on its way."""

    def run(self) -> None:
        """Send all marks, one to three together."""
        rest, count = list(self._marks), random.Random(len(self._marks))
        while rest:
            together, rest = rest[: (number := count.randint(1, 3))], rest[number:]
            for name, _ in together:
                self.acknowledged.pop(name, None)
            body = urlencode([pair for name, mark in together for pair in (("id", name), ("mark", mark))])
            while not self._send(body):
                time.sleep(0.05)
            self.acknowledged.update(together)

    def _send(self, body: str) -> bool:
        """Return whether the marks were acknowledged."""
        try:
            code, _ = self._ask("POST", "/mark", body)
            if code == 403:  # a gallery that was started again has another token
                self._token = re.findall(r'name="csrf" content="([^"]+)"', self._ask("GET", "/failures")[1])[0]
        except (OSError, http.client.HTTPException):
            return False
        assert code in (204, 403)
        return code == 204

    def _ask(self, method: str, path: str, body: str | None = None) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self._gallery.port, timeout=60)
        try:
            connection.request(method, self._gallery.base + path, body, {"X-Dreamgrid-Token": self._token})
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()


@pytest.mark.parametrize(("dreams", "kills"), [(40, 1), pytest.param(500, 6, marks=pytest.mark.soak)])
def test_no_acknowledged_mark_of_two_tabs_is_lost(storage: Storage, destination: str, dreams: int, kills: int) -> None:
    points = [DreamSettings(seed=seed) for seed in range(10)]
    rows = [make_row(destination, f"{number // 10}.jpg", points[number % 10]) for number in range(dreams)]
    write_part(storage, destination, rows)
    ids = [str(row.result_id) for row in rows]
    chance = random.Random(1)
    gallery = Gallery(destination)
    tabs = []
    for half in (ids[::2], ids[1::2]):  # some dreams are marked twice
        order = half + chance.sample(half, len(half) // 4)
        tabs.append(Tab(gallery, [(name, chance.randint(-1, 5)) for name in order]))
    for number in range(kills):
        with gallery.running():
            for tab in tabs if number == 0 else ():
                tab.start()
            share = dreams * (number + 1) // (2 * (kills + 1))
            while any(tab.is_alive() and len(tab.acknowledged) < share for tab in tabs):
                time.sleep(0.01)
            time.sleep(chance.random() * 0.1)
        acknowledged = {name: mark for tab in tabs for name, mark in list(tab.acknowledged.items())}
        found = read_marks(destination, storage)
        assert {name: found.get(name, 0) for name in acknowledged} == acknowledged
        assert len(acknowledged) < dreams, "the gallery is killed in the middle"
    with gallery.running():
        for tab in tabs:
            tab.join(300)
            assert not tab.is_alive()
    expected = {name: mark for tab in tabs for name, mark in tab.acknowledged.items()}
    assert len(expected) == dreams
    assert read_marks(destination, storage) == {name: mark for name, mark in expected.items() if mark}
