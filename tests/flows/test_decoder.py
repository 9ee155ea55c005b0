"""The process that decodes: what it gives, what it gives up, and what a picture that breaks it leaves behind."""

import os
import resource
import signal
import socket
import subprocess
import sys
import time
import timeit
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from statistics import median
from typing import IO

import numpy as np
import pytest
from PIL import ExifTags, Image

from dreamcore import images
from dreamcore.errors import ImageError, Unavailable
from flows import decoder as flows_decoder
from flows.decoder import MEMORY, SECONDS, WAITING, Decoder, Decoders
from tests.support.decoding import (
    ENDLESS,
    GOOD,
    failure,
    many_scans,
    pid,
    running,
    small_bomb,
    wait_until,
    when_busy,
    works,
)
from tests.support.pictures import DISPLAY_P3, LOSSLESS, photo, png, rgb_profile, saved


@pytest.fixture(scope="module")
def shared() -> Iterator[Decoder]:
    decoder = Decoder()
    yield decoder
    decoder.close()


@pytest.fixture
def decoder() -> Iterator[Decoder]:
    """One of the test's own, to be broken."""
    decoder = Decoder(seconds=30)
    yield decoder
    decoder.close()


@contextmanager
def another_process(code: str) -> Iterator[tuple[int, int, IO[str]]]:
    """A process that runs `code`, to be killed: its pid, that of its child, which it tells, and what else it says."""
    code = f"from tests.support.decoding import *\n{code}"
    with subprocess.Popen([sys.executable, "-u", "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        try:
            yield parent.pid, int(parent.stdout.readline()), parent.stdout
        finally:
            parent.kill()


# --- it decodes as the core does


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 5
    return exif


COLOURS = Image.fromarray(photo(40, 30))
RICH = {"exif": turned(), "icc_profile": rgb_profile(DISPLAY_P3)}
FRAMES = {"save_all": True, "append_images": [Image.new("RGB", (40, 30))]}
PICTURES = {
    **{format: saved(COLOURS, format, **LOSSLESS.get(format, {})) for format in images.FORMATS},
    **{f"rich {format}": saved(COLOURS, format, **RICH) for format in ("JPEG", "PNG", "WEBP", "TIFF")},
    "frames": saved(COLOURS, "GIF", **FRAMES),
    "several pictures": saved(COLOURS, "MPO", **FRAMES),
    "inks": saved(COLOURS.convert("CMYK"), "JPEG", progressive=True),
    "palette": saved(COLOURS.convert("P"), "PNG", transparency=3),
    "gray and alpha": saved(COLOURS.convert("LA"), "TIFF", compression="tiff_lzw"),
    "16 bit": saved(Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50), "PNG"),
    "floats": saved(Image.fromarray(np.linspace(-1, 1, 1200, dtype=np.float32).reshape(30, 40)), "TIFF"),
    "one pixel": saved(Image.new("RGB", (1, 1)), "BMP"),
    "panorama": saved(Image.new("RGB", (20_000, 10), (1, 2, 3)), "JPEG"),
}


@pytest.mark.parametrize("name", PICTURES)
def test_pixels_and_errors_are_those_of_decoding_in_process(shared: Decoder, name: str) -> None:
    """Whole, truncated at 20 offsets, and with a byte changed in 30 places: the child can open no file by then."""
    data = PICTURES[name]
    random = np.random.default_rng(1)
    variants = [data, *(data[:offset] for offset in np.linspace(0, len(data) - 1, 20).astype(int))]
    for place in random.integers(min(len(data), 2000), size=30):
        variants.append(data[:place] + bytes([random.integers(256)]) + data[place + 1 :])
    for variant in variants:
        assert outcome(shared.decode, variant) == outcome(images.decode, variant)
    assert shared.child is not None
    assert shared.child.process.poll() is None


def outcome(decode: Callable[..., images.Photograph], data: bytes) -> tuple[object, ...]:
    try:
        photograph = decode(data, max_pixels=1000)
    except ImageError as error:
        return error.kind, str(error)
    return photograph.width, photograph.height, photograph.pixels.shape, photograph.pixels.tobytes()


@pytest.mark.parametrize("data", [b"", b"<!DOCTYPE html><html>403 Forbidden</html>", bytes(1000)])
def test_what_is_no_picture_is_told(shared: Decoder, data: bytes) -> None:
    assert failure(shared, data).kind == "not_an_image"
    assert works(shared)


def test_pixels_can_be_written_to_and_sizes_are_those_of_the_source(shared: Decoder) -> None:
    photograph = shared.decode(saved(Image.fromarray(photo(300, 200)), "JPEG"), max_pixels=600)
    assert (photograph.width, photograph.height) == (300, 200)
    assert photograph.pixels.shape == (20, 30, 3)
    assert photograph.pixels.flags.writeable


def test_threads_share_the_children() -> None:
    decoders = Decoders(2)
    truth = [photo(50 + seed, 40, seed) for seed in range(40)]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda pixels: decoders.decode(saved(Image.fromarray(pixels), "PNG")).pixels, truth))
    for pixels, expected in zip(found, truth, strict=True):
        np.testing.assert_array_equal(pixels, expected)
    decoders.close()


def test_threads_that_are_the_first_to_ask_share_the_children_too(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Decoders] = []

    def slowly(count: int) -> Decoders:
        time.sleep(0.2)
        made.append(Decoders(count))
        return made[-1]

    monkeypatch.setattr(flows_decoder, "Decoders", slowly)
    monkeypatch.setattr(flows_decoder, "_decoders", cache(flows_decoder._decoders.__wrapped__))
    with ThreadPoolExecutor(4) as threads:
        assert {each.width for each in threads.map(flows_decoder.decode, [GOOD] * 4)} == {60}
    (decoders,) = made
    decoders.close()


def test_a_child_more_starts_only_for_a_picture_that_would_wait() -> None:
    decoders = Decoders(3)
    for _ in range(3):
        assert np.array_equal(decoders.decode(GOOD).pixels, photo(60, 40))
    assert sum(decoder.child is not None for decoder in decoders.all) == 1
    with ThreadPoolExecutor(1) as thread:
        long = thread.submit(decoders.decode, many_scans(500))  # some seconds
        wait_until(lambda: decoders._idle.qsize() == 2)
        decoders.decode(GOOD)
        assert long.result().width == 3000
    assert sum(decoder.child is not None for decoder in decoders.all) == 2
    decoders.close()


def test_one_child_serves_all_pictures_and_each_costs_milliseconds(shared: Decoder) -> None:
    child = pid(shared)
    photograph = saved(Image.fromarray(photo(450, 333)), "JPEG")
    seconds = timeit.repeat(lambda: shared.decode(photograph, max_pixels=1_000_000), number=1, repeat=50)
    assert median(seconds) < 0.05  # 1 to 4 ms each were measured
    assert pid(shared) == child


# --- what a picture can take


def test_the_limits_are_the_published_ones() -> None:
    assert (SECONDS, SECONDS * WAITING, MEMORY) == (10, 60, 2**30)


def test_a_bomb_is_refused_by_its_header(shared: Decoder) -> None:
    bomb = png(30_000, 30_000, 8, 2, bytes(1_000_000))
    before = pid(shared)
    assert min(timeit.repeat(lambda: failure(shared, bomb), number=1, repeat=5)) < 0.1
    assert failure(shared, bomb).kind == "too_large"
    assert pid(shared) == before


def test_a_picture_that_takes_too_long_fails_and_the_next_one_does_not() -> None:
    decoder = Decoder(seconds=1)
    first = pid(decoder)
    started = time.monotonic()
    error = failure(decoder, ENDLESS)
    assert (error.kind, str(error)) == ("undecodable", "decoding it takes longer than 1 s")
    assert 0.9 < time.monotonic() - started < SECONDS
    assert not running(first)
    assert works(decoder)
    assert pid(decoder) != first
    decoder.close()


def test_a_picture_that_takes_too_much_memory_fails_and_the_next_one_does_not(shared: Decoder) -> None:
    bomb = small_bomb()
    assert len(bomb) == 34
    assert failure(shared, bomb).kind == "out_of_memory"
    assert works(shared)
    peak = Path(f"/proc/{pid(shared)}/status").read_text().partition("VmHWM:")[2].split()[0]
    assert int(peak) * 1024 < MEMORY + 100_000_000


def test_a_file_that_is_larger_than_the_memory_fails_and_the_next_one_does_not() -> None:
    decoder = Decoder(memory=100_000_000)
    assert failure(decoder, bytes(150_000_000)).kind == "out_of_memory"
    assert works(decoder)
    decoder.close()


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS])
def test_a_child_that_crashes_is_the_failure_of_its_picture_alone(decoder: Decoder, number: signal.Signals) -> None:
    child = pid(decoder)
    killer = when_busy(child, lambda: os.kill(child, number))
    error = failure(decoder, ENDLESS)
    assert error.kind == "undecodable"
    assert str(signal.strsignal(number)) in str(error)
    killer.join()
    assert works(decoder)


def test_a_picture_whose_child_was_killed_gets_another_one(decoder: Decoder) -> None:
    child = pid(decoder)
    killer = when_busy(child, lambda: os.kill(child, signal.SIGKILL))
    assert decoder.decode(many_scans(200)).width == 3000
    killer.join()


def test_a_picture_whose_child_is_killed_each_time_fails(decoder: Decoder) -> None:
    """As where the system has less memory than the limit, and kills what takes it."""
    first = pid(decoder)

    def twice() -> None:
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: decoder.child is not None and decoder.child.process.pid != first)
        assert decoder.child is not None
        second = decoder.child.process.pid
        when_busy(second, lambda: os.kill(second, signal.SIGKILL)).join()

    killer = when_busy(first, twice)
    assert failure(decoder, ENDLESS).kind == "out_of_memory"
    killer.join()
    assert works(decoder)


def test_a_child_that_died_between_two_pictures_is_nobodys_fault(decoder: Decoder) -> None:
    os.kill(pid(decoder), signal.SIGKILL)
    assert works(decoder)


def test_the_time_of_a_stopped_machine_does_not_count() -> None:
    """It computes for less than a second, far from its limit; the clock is beyond its own when the machine goes on."""
    code = "flows_decoder.WAITING = 1; decoder = Decoder(4); "
    code += "print(pid(decoder)); print(decoder.decode(many_scans(200)).width)"
    with another_process(code) as (parent, child, says):

        def both(number: signal.Signals) -> None:
            os.kill(parent, number)
            os.kill(child, number)

        when_busy(child, lambda: both(signal.SIGSTOP)).join()
        time.sleep(5)
        both(signal.SIGCONT)
        assert says.readline() == "3000\n"


def test_the_time_that_others_take_does_not_count() -> None:
    decoder = Decoder(seconds=3)
    child = pid(decoder)

    def starve() -> None:
        os.kill(child, signal.SIGSTOP)
        time.sleep(3.5)
        os.kill(child, signal.SIGCONT)

    starving = when_busy(child, starve)
    assert decoder.decode(many_scans(200)).width == 3000
    starving.join()
    decoder.close()


def test_a_child_that_sleeps_is_not_waited_for() -> None:
    decoder = Decoder(seconds=0.3)
    os.kill(pid(decoder), signal.SIGSTOP)
    started = time.monotonic()
    assert failure(decoder, GOOD).kind == "undecodable"
    assert 0.8 * 0.3 * WAITING < time.monotonic() - started < SECONDS
    assert works(decoder)
    decoder.close()


# --- what it has given up


@pytest.fixture
def canaries(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "PREFECT_API_KEY", "HOME"):
        monkeypatch.setenv(name, "canary")


@pytest.mark.usefixtures("canaries")
def test_it_has_no_credentials_and_no_open_files_or_connections(decoder: Decoder) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.set_inheritable(True)
        child = pid(decoder)
    assert {entry.partition("=")[0] for entry in environment(child)} <= {"LD_LIBRARY_PATH", "PYTHONPATH", "LC_CTYPE"}
    assert b"canary" not in Path(f"/proc/{child}/environ").read_bytes()
    descriptors = {fd.name: str(fd.readlink()).partition(":")[0] for fd in Path(f"/proc/{child}/fd").iterdir()}
    assert descriptors == {"0": "pipe", "1": "pipe", "2": "pipe"}
    imported = Path(f"/proc/{child}/maps").read_text()
    assert "_imaging" in imported
    assert "torch" not in imported


def environment(process: int) -> list[str]:
    return Path(f"/proc/{process}/environ").read_text().strip("\0").split("\0")


def test_it_can_open_and_start_nothing(shared: Decoder) -> None:
    child = pid(shared)
    for what in (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
        assert resource.prlimit(child, what) == (0, 0)
    virtual = 1024 * int(Path(f"/proc/{child}/status").read_text().partition("VmSize:")[2].split()[0])
    assert resource.prlimit(child, resource.RLIMIT_AS)[1] <= virtual + MEMORY


def test_it_is_small_and_starts_soon(decoder: Decoder) -> None:
    def start() -> None:
        decoder.close()
        pid(decoder)

    assert min(timeit.repeat(start, number=1, repeat=3)) < 1  # 0.15 s on an idle machine
    child = pid(decoder)
    resident = Path(f"/proc/{child}/status").read_text().partition("VmRSS:")[2].split()[0]
    assert int(resident) * 1024 < 80_000_000  # 36 MB


def test_no_folder_that_somebody_is_in_gives_it_modules(
    decoder: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("flows", "numpy", "PIL"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('the wrong one')")
    monkeypatch.setattr(sys, "path", [entry or str(Path.cwd()) for entry in sys.path])
    monkeypatch.chdir(tmp_path)
    assert works(decoder)


# --- how it ends


@pytest.mark.parametrize("picture", ["GOOD", "ENDLESS"])
def test_it_ends_with_a_parent_that_is_killed(picture: str) -> None:
    code = f"decoder = Decoder(60); print(pid(decoder)); decoder.decode({picture}); time.sleep(60)"
    with another_process(code) as (parent, child, _):
        if picture == "ENDLESS":
            when_busy(child, lambda: os.kill(parent, signal.SIGKILL)).join()
        else:
            os.kill(parent, signal.SIGKILL)
        wait_until(lambda: not running(child))


def test_it_ends_with_a_parent_that_has_done_its_work() -> None:
    code = "from tests.support.decoding import *; print(pid(Decoder()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    wait_until(lambda: not running(int(done.stdout)))
    assert done.stderr == ""


def test_what_stops_a_run_does_not_reach_it(decoder: Decoder) -> None:
    """The run decides: what is in flight may be finished, and must not fail because its decoder is gone."""
    child = pid(decoder)
    assert os.getsid(child) == child, "Ctrl-C goes to every process of a terminal's session"
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(child, number)
    assert pid(decoder) == child


def test_a_child_that_cannot_start_is_trouble_of_the_world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "numpy.py").write_text("raise ImportError('no numpy here')")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(Unavailable, match="ImportError: no numpy here"):
        Decoder().decode(GOOD)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(Unavailable, match="no process can be started"):
        Decoder().decode(GOOD)


# --- what a child that was taken over might say


@pytest.mark.parametrize(
    "answer",
    [
        b"\n",
        b"nonsense\n",
        b'{"size": [1',
        b'{"kind": "done", "error": "no such kind"}\n',
        b'{"kind": "damaged", "error": 7}\n',
        b'{"size": [10000000, 10000000], "shape": [1000, 1000]}\n' + bytes(3_000_000),
        b'{"size": [100, 100], "shape": [101, 100]}\n' + bytes(30_300),
        b'{"size": [100, 100], "shape": [-10, -10]}\n',
        b'{"size": [100, 100], "shape": [100]}\n',
        b"9" * 5000 + b"\n",
        b'{"size": [2, 2], "shape": [2, 2]}\n' + b"too few",
        b"",
    ],
)
def test_nonsense_is_a_failure_of_the_picture(
    decoder: Decoder, answer: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stranger's program stands in the child's place: a picture that takes it over cannot be had."""
    program = tmp_path / "flows" / "decoder.py"
    program.parent.mkdir()
    program.with_name("__init__.py").touch()
    program.write_text(
        "import sys\n"
        "sys.stdout.buffer.write(b'ready\\n'); sys.stdout.flush()\n"
        "sys.stdin.buffer.read(17)\n"
        f"sys.stdout.buffer.write({answer!r}); sys.stdout.flush()\n"
    )
    with monkeypatch.context() as patch:
        patch.setattr(sys, "path", [str(tmp_path), *sys.path])
        assert failure(decoder, b"x").kind == "undecodable"
    assert works(decoder)
