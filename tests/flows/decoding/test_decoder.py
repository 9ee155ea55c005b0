"""The sandboxed decoder process: its output, its limits, its rights, and its end."""

import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import time
import timeit
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import IO

import numpy as np
import pytest
from PIL import ExifTags, Image

from dreamcore import images
from dreamcore.errors import ImageError, Unavailable
from dreamcore.image_formats import load_plugins
from flows.decoding.decoder import CLOCK_FACTOR, MEMORY, SECONDS, Decoder, Decoders, thread_safe_cache
from tests.support.decoding import (
    ENDLESS,
    GOOD,
    cpu_seconds,
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

pytestmark = pytest.mark.slow

CASES = Path(__file__).parents[2] / "fixtures" / "cases"


@pytest.fixture(scope="module")
def shared() -> Iterator[Decoder]:
    decoder = Decoder()
    yield decoder
    decoder.close()


@pytest.fixture
def decoder() -> Iterator[Decoder]:
    """A decoder for one test, which may break it."""
    decoder = Decoder(seconds=30)
    yield decoder
    decoder.close()


@contextmanager
def parent_process(code: str) -> Iterator[tuple[int, int, IO[str]]]:
    """Start a process that runs `code`. Yield its pid, the pid of its child, which `code` prints, and its output."""
    code = f"from tests.support.decoding import *\n{code}"
    with subprocess.Popen([sys.executable, "-u", "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        try:
            yield parent.pid, int(parent.stdout.readline()), parent.stdout
        finally:
            parent.kill()


# --- the same results as the core


def rotated() -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 5
    return exif


COLOURS = Image.fromarray(photo(40, 30))
load_plugins()
RICH = {"exif": rotated(), "icc_profile": rgb_profile(DISPLAY_P3)}
FRAMES = {"save_all": True, "append_images": [Image.new("RGB", (40, 30))]}
PICTURES = {
    **{format: saved(COLOURS, format, **LOSSLESS.get(format, {})) for format in images.FORMATS},
    **{f"rich {format}": saved(COLOURS, format, **RICH) for format in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF")},
    **{format: saved(COLOURS, format) for format in ("HEIF", "JXL")},
    "animation": saved(COLOURS, "GIF", **FRAMES),
    "several images": saved(COLOURS, "MPO", **FRAMES),
    "cmyk": saved(COLOURS.convert("CMYK"), "JPEG", progressive=True),
    "palette": saved(COLOURS.convert("P"), "PNG", transparency=3),
    "gray with alpha": saved(COLOURS.convert("LA"), "TIFF", compression="tiff_lzw"),
    "16 bit": saved(Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50), "PNG"),
    "floats": saved(Image.fromarray(np.linspace(-1, 1, 1200, dtype=np.float32).reshape(30, 40)), "TIFF"),
    "one pixel": saved(Image.new("RGB", (1, 1)), "BMP"),
    "panorama": saved(Image.new("RGB", (20_000, 10), (1, 2, 3)), "JPEG"),
}


@pytest.mark.parametrize("name", PICTURES)
def test_pixels_and_errors_are_those_of_decoding_in_process(shared: Decoder, name: str) -> None:
    """The whole file, the file truncated at 20 offsets, and with a changed byte in 30 places."""
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
def test_bytes_that_are_not_an_image_are_reported(shared: Decoder, data: bytes) -> None:
    assert failure(shared, data).kind == "not_an_image"
    assert works(shared)


def test_pixels_are_writeable_and_the_source_size_is_returned(shared: Decoder) -> None:
    photograph = shared.decode(saved(Image.fromarray(photo(300, 200)), "JPEG"), max_pixels=600)
    assert (photograph.width, photograph.height) == (300, 200)
    assert photograph.pixels.shape == (20, 30, 3)
    assert photograph.pixels.flags.writeable


def test_threads_share_the_child_processes() -> None:
    decoders = Decoders(2)
    expected = [photo(50 + seed, 40, seed) for seed in range(40)]
    with ThreadPoolExecutor(4) as threads:
        found = list(
            threads.map(lambda pixels: decoders.decode(saved(Image.fromarray(pixels), "PNG")).pixels, expected)
        )
    for pixels, original in zip(found, expected, strict=True):
        np.testing.assert_array_equal(pixels, original)
    decoders.close()


def test_a_thread_safe_cache_makes_one_object_for_concurrent_first_calls() -> None:
    made: list[object] = []

    def make_slowly() -> object:
        time.sleep(0.2)
        made.append(object())
        return made[-1]

    get = thread_safe_cache(make_slowly)
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(lambda _: get(), range(4)))
    assert len(made) == 1
    assert all(result is made[0] for result in results)


def test_another_child_starts_only_if_an_image_would_wait() -> None:
    decoders = Decoders(3)
    for _ in range(3):
        assert np.array_equal(decoders.decode(GOOD).pixels, photo(60, 40))
    assert sum(decoder.child is not None for decoder in decoders.all) == 1
    with ThreadPoolExecutor(1) as thread:
        slow = thread.submit(decoders.decode, many_scans(200))  # about a second
        wait_until(lambda: decoders._idle.qsize() == 2)
        decoders.decode(GOOD)
        assert slow.result().width == 3000
    assert sum(decoder.child is not None for decoder in decoders.all) == 2
    decoders.close()


def test_the_child_that_was_started_early_decodes_the_image() -> None:
    decoders = Decoders(2)
    decoders.start()
    (early,) = (decoder.child for decoder in decoders.all if decoder.child)
    assert early.process.poll() is None
    assert np.array_equal(decoders.decode(GOOD).pixels, photo(60, 40))
    assert [decoder.child for decoder in decoders.all if decoder.child] == [early]
    decoders.close()


def test_one_child_decodes_all_images_in_milliseconds_each(shared: Decoder) -> None:
    child = pid(shared)
    photograph = saved(Image.fromarray(photo(450, 333)), "JPEG")
    seconds = timeit.repeat(lambda: shared.decode(photograph, max_pixels=1_000_000), number=1, repeat=50)
    assert median(seconds) < 0.05  # 1 to 4 ms each were measured
    assert pid(shared) == child


CHATTY = (CASES / "chatty.tif").read_bytes()
"""A fax with 231 malformed tags. libtiff prints two warnings for each, 65 KB in all, while it decodes the file."""
CHATTY_DIRECTORY = 20  # the offset of the two bytes that count the tags


@pytest.mark.parametrize(("tags", "times"), [(240, 100), (12, 5000)])
def test_warnings_of_libraries_never_block_the_child(decoder: Decoder, tags: int, times: int) -> None:
    """The warnings are 6 and 4 MB in all. A pipe holds 64 KiB. With few malformed tags, 5,000 images take seconds."""
    chatty = CHATTY[:CHATTY_DIRECTORY] + struct.pack("<H", tags) + CHATTY[CHATTY_DIRECTORY + 2 :]
    child = pid(decoder)
    fax = decoder.decode(chatty).pixels
    for _ in range(times):
        assert np.array_equal(decoder.decode(chatty).pixels, fax)
    assert works(decoder)
    assert pid(decoder) == child


def test_a_library_that_prints_does_not_disturb_the_replies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another plugin of Pillow stands for a library that prints to both standard streams."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os\n"
        "from PIL import ImageFile\n"
        "load = ImageFile.ImageFile.load\n"
        "def noisy(self):\n"
        "    os.write(1, b'a warning\\n' * 1000); os.write(2, b'a warning\\n' * 10_000)\n"
        "    return load(self)\n"
        "ImageFile.ImageFile.load = noisy\n"
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    decoder = Decoder(seconds=2)
    assert works(decoder)
    decoder.close()


# --- limits of time and memory


def test_the_limits_are_the_documented_ones() -> None:
    assert (SECONDS, SECONDS * CLOCK_FACTOR, MEMORY) == (10, 60, 2**30)


def test_an_image_with_too_many_pixels_is_refused_by_its_header(shared: Decoder) -> None:
    bomb = png(30_000, 30_000, 8, 2, bytes(1_000_000))
    before = pid(shared)
    assert min(timeit.repeat(lambda: failure(shared, bomb), number=1, repeat=5)) < 0.1
    assert failure(shared, bomb).kind == "too_large"
    assert pid(shared) == before


def test_an_image_over_the_time_limit_fails_and_the_next_one_does_not() -> None:
    decoder = Decoder(seconds=1)
    first = pid(decoder)
    started = time.monotonic()
    error = failure(decoder, ENDLESS)
    assert (error.kind, str(error)) == ("undecodable", "decoding takes longer than 1 s")
    assert 0.9 < time.monotonic() - started < SECONDS
    assert not running(first)
    assert works(decoder)
    assert pid(decoder) != first
    decoder.close()


def test_an_image_over_the_memory_limit_fails_and_the_next_one_does_not(shared: Decoder) -> None:
    bomb = small_bomb()
    assert len(bomb) == 34
    assert failure(shared, bomb).kind == "out_of_memory"
    assert works(shared)
    peak = Path(f"/proc/{pid(shared)}/status").read_text().partition("VmHWM:")[2].split()[0]
    assert int(peak) * 1024 < MEMORY + 100_000_000


def test_a_file_over_the_memory_limit_fails_and_the_next_one_does_not() -> None:
    decoder = Decoder(memory=100_000_000)
    assert failure(decoder, bytes(150_000_000)).kind == "out_of_memory"
    assert works(decoder)
    decoder.close()


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS])
def test_a_crash_of_the_child_fails_only_its_image(decoder: Decoder, number: signal.Signals) -> None:
    child = pid(decoder)
    killer = when_busy(child, lambda: os.kill(child, number))
    error = failure(decoder, ENDLESS)
    assert error.kind == "undecodable"
    assert str(signal.strsignal(number)) in str(error)
    killer.join()
    assert works(decoder)


def test_an_image_is_tried_again_if_its_child_is_killed_once(decoder: Decoder) -> None:
    child = pid(decoder)
    killer = when_busy(child, lambda: os.kill(child, signal.SIGKILL))
    assert decoder.decode(many_scans(200)).width == 3000
    killer.join()


def test_an_image_fails_if_its_child_is_killed_twice(decoder: Decoder) -> None:
    """The system does that if it has less memory than the limit."""
    first = pid(decoder)

    def kill_twice() -> None:
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: decoder.child is not None and decoder.child.process.pid != first)
        assert decoder.child is not None
        second = decoder.child.process.pid
        when_busy(second, lambda: os.kill(second, signal.SIGKILL)).join()

    killer = when_busy(first, kill_twice)
    assert failure(decoder, ENDLESS).kind == "out_of_memory"
    killer.join()
    assert works(decoder)


def test_a_child_that_was_killed_while_idle_is_replaced(decoder: Decoder) -> None:
    os.kill(pid(decoder), signal.SIGKILL)
    assert works(decoder)


def test_the_time_of_a_suspended_machine_does_not_count() -> None:
    """Decoding takes less than a second of CPU time. The clock passes its limit while both processes are stopped."""
    code = "decoder = Decoder(3, clock_factor=1); "
    code += "print(pid(decoder)); print(decoder.decode(many_scans(100)).width)"
    with parent_process(code) as (parent, child, output):

        def send_both(number: signal.Signals) -> None:
            os.kill(parent, number)
            os.kill(child, number)

        when_busy(child, lambda: send_both(signal.SIGSTOP)).join()
        time.sleep(3.5)
        send_both(signal.SIGCONT)
        assert output.readline() == "3000\n"


def test_the_time_of_other_processes_does_not_count() -> None:
    decoder = Decoder(seconds=2)
    child = pid(decoder)

    def starve() -> None:
        os.kill(child, signal.SIGSTOP)
        time.sleep(2.5)
        os.kill(child, signal.SIGCONT)

    starving = when_busy(child, starve)
    assert decoder.decode(many_scans(100)).width == 3000
    starving.join()
    decoder.close()


def test_a_child_that_does_not_run_is_killed_after_the_clock_limit() -> None:
    decoder = Decoder(seconds=0.3)
    os.kill(pid(decoder), signal.SIGSTOP)
    started = time.monotonic()
    assert failure(decoder, GOOD).kind == "undecodable"
    assert 0.8 * 0.3 * CLOCK_FACTOR < time.monotonic() - started < SECONDS
    assert works(decoder)
    decoder.close()


# --- the rights of the child


@pytest.fixture
def canaries(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "PREFECT_API_KEY", "HOME"):
        monkeypatch.setenv(name, "canary")


@pytest.mark.usefixtures("canaries")
def test_the_child_has_no_credentials_and_no_open_files_or_connections(decoder: Decoder) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.set_inheritable(True)
        child = pid(decoder)
    assert {entry.partition("=")[0] for entry in environment(child)} <= {"LD_LIBRARY_PATH", "PYTHONPATH", "LC_CTYPE"}
    assert b"canary" not in Path(f"/proc/{child}/environ").read_bytes()
    descriptors = [str(fd.readlink()).partition(":")[0] for fd in sorted(Path(f"/proc/{child}/fd").iterdir())]
    assert descriptors == ["pipe", "/dev/null", "/dev/null", "pipe", "pipe"]
    imported = Path(f"/proc/{child}/maps").read_text()
    assert "_imaging" in imported
    assert "torch" not in imported


def environment(process: int) -> list[str]:
    return Path(f"/proc/{process}/environ").read_text().strip("\0").split("\0")


def test_the_child_cannot_open_files_or_start_processes(shared: Decoder) -> None:
    child = pid(shared)
    for limit in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
        assert resource.prlimit(child, limit) == (0, 0)
    filtered = "Seccomp:\t2" in Path(f"/proc/{child}/status").read_text()
    assert filtered or resource.prlimit(child, resource.RLIMIT_NPROC) == (0, 0)
    virtual = 1024 * int(Path(f"/proc/{child}/status").read_text().partition("VmSize:")[2].split()[0])
    assert resource.prlimit(child, resource.RLIMIT_AS)[1] <= virtual + MEMORY


IN_A_SANDBOX = """
import os, sys, threading
from dreamcore.image_formats import load_plugins
from dreamcore.images import decode
from flows.decoding.sandbox import enter_sandbox
from tests.support.decoding import *
files = {files}
report = os.fdopen(os.dup(1), "w", 1)
load_plugins(one_thread=True)
enter_sandbox(2**30, threads={threads})
if os.getuid() == 0:  # root may exceed the limit of processes
    os.setgid(65534)
    os.setuid(65534)

def attempt(name, action):
    try:
        print(*filter(None, (name, "done", action())), file=report)
    except (OSError, RuntimeError) as error:
        print(name, "refused", file=report)

attempt("thread", lambda: threading.Thread(target=int).start())
attempt("process", os.fork)
attempt("program", lambda: os.execv("/bin/true", ["true"]))
attempt("file", lambda: os.open("/etc/passwd", os.O_RDONLY))
for name, data in files.items():
    attempt(name, lambda: decode(data).pixels.shape)
"""


@pytest.mark.parametrize("threads", [True, False])
def test_a_sandbox_has_no_processes_and_decodes_every_format(threads: bool) -> None:
    """The process is not root, as recommended. A thread is needed only for HEIC."""
    plugins = {"AVIF": "AVIF", "JPEG XL": "JXL"} | ({"HEIC": "HEIF"} if threads else {})
    load_plugins()
    files = {name.split()[0]: saved(COLOURS, format) for name, format in plugins.items()}
    code = IN_A_SANDBOX.format(files=files, threads=threads)
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:  # its standard error stays unread, as that of a decoder
        assert child.stdout is not None
        lines = child.stdout.read().splitlines()
    assert lines == [
        "thread done" if threads else "thread refused",
        *("process refused", "program refused", "file refused"),
        *(f"{name} done (30, 40, 3)" for name in files),
    ]


def test_the_child_is_small_and_starts_fast(decoder: Decoder) -> None:
    child = pid(decoder)
    assert cpu_seconds(child) < 0.8  # 0.27 s; the elapsed time depends on other processes
    resident = Path(f"/proc/{child}/status").read_text().partition("VmRSS:")[2].split()[0]
    assert int(resident) * 1024 < 80_000_000  # 41 MB


def test_the_child_imports_nothing_from_the_current_directory(
    decoder: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("flows", "numpy", "PIL"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('imported from the current directory')")
    monkeypatch.setattr(sys, "path", [entry or str(Path.cwd()) for entry in sys.path])
    monkeypatch.chdir(tmp_path)
    assert works(decoder)


# --- the end of the child


@pytest.mark.parametrize("image", ["GOOD", "ENDLESS"])
def test_the_child_ends_if_its_parent_is_killed(image: str) -> None:
    code = f"decoder = Decoder(60); print(pid(decoder)); decoder.decode({image}); time.sleep(60)"
    with parent_process(code) as (parent, child, _):
        if image == "ENDLESS":
            when_busy(child, lambda: os.kill(parent, signal.SIGKILL)).join()
        else:
            os.kill(parent, signal.SIGKILL)
        wait_until(lambda: not running(child))


def test_the_child_ends_if_its_parent_exits() -> None:
    code = "from tests.support.decoding import *; print(pid(Decoder()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    wait_until(lambda: not running(int(done.stdout)))
    assert done.stderr == ""


def test_signals_that_stop_a_run_do_not_stop_the_child(decoder: Decoder) -> None:
    """The run may finish the images in flight. They must not fail because their decoder has exited."""
    child = pid(decoder)
    assert os.getsid(child) == child, "a terminal sends Ctrl-C to every process of its session"
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(child, number)
    assert pid(decoder) == child


def test_a_child_that_cannot_start_is_unavailable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "numpy.py").write_text("raise ImportError('no numpy here')")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(Unavailable, match="ImportError: no numpy here"):
        Decoder().decode(GOOD)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(Unavailable, match="cannot start a process"):
        Decoder().decode(GOOD)


# --- malformed replies


@pytest.mark.parametrize(
    "reply",
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
def test_a_malformed_reply_fails_the_image(
    decoder: Decoder, reply: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program stands for a child that an image has taken control of."""
    program = tmp_path / "flows" / "decoding" / "decoder.py"
    program.parent.mkdir(parents=True)
    program.with_name("__init__.py").touch()
    program.parent.with_name("__init__.py").touch()
    program.write_text(
        "import sys\n"
        "sys.stdout.buffer.write(b'ready\\n'); sys.stdout.flush()\n"
        "sys.stdin.buffer.read(17)\n"
        f"sys.stdout.buffer.write({reply!r}); sys.stdout.flush()\n"
    )
    with monkeypatch.context() as patch:
        patch.setattr(sys, "path", [str(tmp_path), *sys.path])
        assert failure(decoder, b"x").kind == "undecodable"
    assert works(decoder)
