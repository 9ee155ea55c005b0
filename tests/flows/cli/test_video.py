"""`dreamgrid video` on the command line: a clip with sound, one that is killed, and files that are no videos."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import av
import pytest
from PIL import Image

from dreamcore.images import read_metadata
from tests.support.command import DREAMGRID, Command
from tests.support.movies import moving, write_movie

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

QUICK = ("--octaves", "1", "--layers", "blocks.2")


def frames_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.png"))}


def test_a_clip_with_sound_becomes_a_movie_with_sound(dreamgrid_inprocess: Command, tmp_path: Path) -> None:
    write_movie(tmp_path / "cat.mp4", moving(8, size=(48, 66)), sound="aac")
    done = dreamgrid_inprocess("video", "cat.mp4", "dream.mp4", *QUICK, "--start", "0.2", "--seconds", "0.5")
    assert done.returncode == 0, done.stderr
    assert "5 frames of 66 x 48; about " in done.stderr, "the estimate"
    assert "5 of 5 frames, " in done.stderr, "the progress"
    assert done.stdout.splitlines()[0] == "dream.mp4: 5 frames, 66 x 48, 10 fps, with sound"
    with av.open(tmp_path / "dream.mp4") as movie:
        assert [stream.type for stream in movie.streams] == ["video", "audio"]
        assert len(list(movie.decode(video=0))) == 5
    with Image.open(tmp_path / "dream.preview.webp") as preview:
        assert (preview.size, getattr(preview, "n_frames", 1)) == ((66, 48), 5)
    frames = frames_of(tmp_path / "dream.frames")
    metadata = read_metadata(next(iter(frames.values()))) or {}
    assert metadata["frame"] == next(iter(frames))
    again = dreamgrid_inprocess("video", "cat.mp4", "dream.mp4", *QUICK, "--start", "0.2", "--seconds", "0.6", "--json")
    report = json.loads(again.stdout)
    assert (report["frames"], report["dreamt"], report["sound"]) == (6, 1, True)


def test_a_killed_command_goes_on_at_its_frame(dreamgrid_inprocess: Command, tmp_path: Path) -> None:
    write_movie(tmp_path / "cat.mp4", moving(100, 1))
    command = ("video", "cat.mp4", "dream.mp4", *QUICK)
    process = subprocess.Popen([DREAMGRID, *command], cwd=tmp_path, stderr=subprocess.DEVNULL, env=os.environ)
    folder, deadline = tmp_path / "dream.frames", time.monotonic() + 120
    try:
        while len(frames_of(folder)) < 3:
            assert process.poll() is None, "the command ended early"
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    killed = frames_of(folder)
    assert not (tmp_path / "dream.mp4").exists()
    seconds = f"{(len(killed) + 2) / 10:.4f}"
    report = json.loads(dreamgrid_inprocess(*command, "--seconds", seconds, "--json").stdout)
    assert (report["dreamt"], report["frames"], report["sound"]) == (2, len(killed) + 2, False)
    assert all(frames_of(folder)[name] == data for name, data in killed.items())
    assert (tmp_path / "dream.mp4").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("text.mp4", "out.mp4"), 1, "text.mp4: not a video, or damaged"),
        (("nowhere.mp4", "out.mp4"), 2, "IN: nowhere.mp4 cannot be read: No such file or directory"),
        ((".", "out.mp4"), 2, "IN: . is not a file"),
        (("text.mp4", "text.mp4"), 2, "text.mp4 is an input"),
        (("text.mp4", "out.gif"), 2, "out.gif: the name of the movie must end with .mp4"),
        (("text.mp4", "out.mp4", "--persistence", "1"), 2, "persistence: input should be less than or equal to 0.98"),
    ],
)
def test_wrong_input_is_one_message(
    dreamgrid_inprocess: Command, tmp_path: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    (tmp_path / "text.mp4").write_text("no video" * 100)
    done = dreamgrid_inprocess("video", *arguments)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("*.frames"))


def test_a_truncated_video_is_dreamt_up_to_its_damage(dreamgrid_inprocess: Command, tmp_path: Path) -> None:
    path = write_movie(tmp_path / "cat.mkv", moving(8), codec="mjpeg", pix_fmt="yuvj420p")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    done = dreamgrid_inprocess("video", "cat.mkv", "dream.mp4", *QUICK, "--json")
    assert done.returncode == 0, done.stderr
    assert 2 <= json.loads(done.stdout)["frames"] < 8
    assert (tmp_path / "dream.mp4").exists()
