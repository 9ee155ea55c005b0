"""`dreamgrid zoom` on the command line: keyframes, progress, JSON, errors, and a zoom that is stopped and killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from dreamcore.images import decode
from flows.machine.terminal import frame_progress
from tests.support.command import DREAMGRID, Command
from tests.support.tiny import pixels

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

SMALL = ("--width", "64", "--fps", "6", "--octaves", "1", "--layers", "blocks.2")
QUICK = (*SMALL, "--seconds", "0.5")


@pytest.fixture(autouse=True)
def cat(tmp_path: Path) -> Path:
    """A small photograph in the folder of the command."""
    Image.fromarray(pixels(48, 64)).save(tmp_path / "cat.png")
    return tmp_path / "cat.png"


def frames_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.png"))}


def test_a_zoom_reports_its_files(dreamgrid_inprocess: Command, tmp_path: Path) -> None:
    done = dreamgrid_inprocess("zoom", "cat.png", "cat.mp4", *QUICK)
    assert done.returncode == 0, done.stderr
    assert "3 frames of 64 x 48; about " in done.stderr, "the estimate"
    assert "3 of 3 frames, " in done.stderr, "the progress"
    lines = done.stdout.splitlines()
    assert lines[0] == "cat.mp4: 3 frames, 64 x 48, 6 fps"
    assert all((tmp_path / name).exists() for name in ("cat.mp4", "cat.poster.jpg", "cat.preview.webp"))
    again = dreamgrid_inprocess("zoom", "cat.png", "cat.mp4", *QUICK, "--json")
    assert "3 frames of 64 x 48, 3 of them finished earlier" in again.stderr
    report = json.loads(again.stdout)
    assert (report["movie"], report["frames"], report["dreamt"]) == ("cat.mp4", 3, 0)
    assert (report["width"], report["height"], report["fps"]) == (64, 48, 6.0)


def test_keyframes_come_from_a_file_and_from_flags(dreamgrid_inprocess: Command, tmp_path: Path) -> None:
    (tmp_path / "frames.yaml").write_text("- {at: 0, step_size: 0.001}\n- at: 0.5\n  layers: blocks.3\n")
    plain = dreamgrid_inprocess("zoom", "cat.png", "plain.mp4", *QUICK)
    file = dreamgrid_inprocess("zoom", "cat.png", "file.mp4", *QUICK, "--keyframes", "frames.yaml")
    flags = dreamgrid_inprocess(
        "zoom",
        "cat.png",
        "flags.mp4",
        *QUICK,
        *("--keyframe", "{at: 0, step_size: 0.001}"),
        *("--keyframe", "{at: 0.5, layers: blocks.3}"),
    )
    assert [each.returncode for each in (plain, file, flags)] == [0, 0, 0], plain.stderr + file.stderr + flags.stderr
    frames = [list(frames_of(tmp_path / f"{name}.frames")) for name in ("plain", "file", "flags")]
    assert frames[1] == frames[2]
    assert not set(frames[0]) & set(frames[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere.png", "cat.mp4"), "IN: nowhere.png cannot be read: No such file or directory"),
        (("cat.png", "cat.gif"), "cat.gif: the name of the movie must end with .mp4"),
        (("cat.png", "nowhere/cat.mp4"), "create it, or write cat.mp4 to another folder"),
        (("cat.png", "cat.mp4", "--seconds", "0"), "seconds: input should be greater than 0"),
        (("cat.png", "cat.mp4", "--zoom", "0"), "zoom: input should be greater than or equal to 0.1"),
        (("cat.png", "cat.mp4", "--center", "2,0"), "less than or equal to 1"),
        (("cat.png", "cat.mp4", "--layers", "blocks.33"), "blocks.33"),
        (("cat.png", "cat.mp4", "--preset", "nobody"), "there is no preset 'nobody'"),
        (("cat.png", "cat.mp4", "--keyframe", "{at: 5, layer: blocks.3}"), "did you mean layers?"),
        (("cat.png", "cat.mp4", "--keyframe", "{at: 5"), "--keyframe is not valid YAML"),
        (("cat.png", "cat.mp4", "--keyframes", "cat.png"), "cat.png is not UTF-8 text"),
        (("cat.png", "cat.mp4", "--keyframes", "one.yaml"), "one.yaml is not a list of keyframes"),
    ],
)
def test_wrong_input_starts_nothing(
    dreamgrid_inprocess: Command, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    (tmp_path / "one.yaml").write_text("at: 5\nlayers: blocks.3\n")
    done = dreamgrid_inprocess("zoom", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert not list(tmp_path.glob("*.frames"))


def test_without_the_extra_the_message_says_what_to_install(
    dreamgrid_inprocess: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    done = dreamgrid_inprocess("zoom", "cat.png", "cat.mp4", *QUICK)
    assert done.returncode == 2
    assert "pip install 'dreamgrid[video]'" in done.stderr


def test_progress_without_a_terminal_is_a_line_every_half_minute(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    with frame_progress(lambda: now) as show:
        for finished in range(11, 51):
            now += 2
            show(finished, 50)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "25 of 50 frames, 2.00 s each, about 50 s left",
        "40 of 50 frames, 2.00 s each, about 20 s left",
        "50 of 50 frames, 2.00 s each",
    ]


def test_a_file_in_the_place_of_the_frames_is_reported(dreamgrid_inprocess: Command, tmp_path: Path) -> None:
    (tmp_path / "cat.frames").write_text("")
    done = dreamgrid_inprocess("zoom", "cat.png", "cat.mp4", *QUICK)
    assert done.returncode == 2
    assert "cat.frames cannot be listed: Not a directory" in done.stderr


def stop_after(frames: int, number: signal.Signals, folder: Path, *arguments: str) -> tuple[int, str]:
    """Start the command, send it a signal when it has this many frames, and return exit code and messages."""
    process = subprocess.Popen([DREAMGRID, *arguments], cwd=folder, stderr=subprocess.PIPE, text=True, env=os.environ)
    deadline = time.monotonic() + 120
    while len(list(folder.glob("*.frames/*.png"))) < frames:
        assert process.poll() is None, "the command ended early"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    _, messages = process.communicate(timeout=60)
    return process.returncode, messages


def test_a_zoom_that_was_stopped_and_killed_goes_on_at_its_frame(dreamgrid_inprocess: Command, tmp_path: Path) -> None:
    command = ("zoom", "cat.png", "cat.mp4", *SMALL, "--seconds", "40")
    code, messages = stop_after(2, signal.SIGINT, tmp_path, *command)
    assert code == 3
    assert "stopped after frame " in messages
    assert "Give the same command to resume" in messages
    stopped = frames_of(tmp_path / "cat.frames")

    code, _ = stop_after(len(stopped) + 2, signal.SIGKILL, tmp_path, *command)
    assert code == -signal.SIGKILL
    killed = frames_of(tmp_path / "cat.frames")
    assert len(stopped) < len(killed) < 240
    assert not (tmp_path / "cat.mp4").exists()
    assert all(killed[name] == data for name, data in stopped.items()), "finished frames stay as they are"
    assert all(decode(data).pixels.shape == (48, 64, 3) for data in killed.values()), "no frame is incomplete"

    seconds = f"{(len(killed) + 2) / 6:.4f}"
    report = json.loads(dreamgrid_inprocess(*command[:-1], seconds, "--json").stdout)
    assert (report["dreamt"], report["frames"]) == (2, len(killed) + 2)
    resumed = frames_of(tmp_path / "cat.frames")
    assert len(resumed) == len(killed) + 2
    assert all(resumed[name] == data for name, data in killed.items())
    assert (tmp_path / "cat.mp4").exists()
