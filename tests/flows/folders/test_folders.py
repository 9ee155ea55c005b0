"""Folders that are uploaded and downloaded: names, what is new, hostile keys, and processes that are killed."""

import hashlib
import json
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamcore.errors import InvalidInput, Unavailable
from flows.folders import transfers
from flows.folders.download import RemoteObject, download_objects, find_objects, refusal
from flows.folders.transfers import TransferReport, name_filter
from flows.folders.upload import find_files, upload_files
from flows.jobs.job import DreamJob
from flows.local.stack import Stack
from flows.machine.pace import TransferState
from flows.machine.terminal import transfer_progress
from flows.s3.objects import ObjectInfo
from flows.s3.storage import RetryPolicy, Storage
from flows.s3.transfers import file_md5
from tests.support.command import DREAMGRID, Command
from tests.support.faults import Fault, Proxy, first

LARGE = 2**24 + 5
"""Bytes of a file that is copied in two parts."""
EVERYTHING = name_filter((), ())


def upload(folder: Path, prefix: str, storage: Storage, *, all_files: bool = False) -> TransferReport:
    report = TransferReport()
    files = find_files(folder, EVERYTHING, report, all_files=all_files)
    upload_files(files, prefix, storage, report, on_listed=lambda _count: None, on_progress=lambda _state: None)
    return report


def download(prefix: str, folder: Path, storage: Storage) -> TransferReport:
    report = TransferReport()
    objects = find_objects(prefix, storage, EVERYTHING, report, lambda _count: None)
    download_objects(objects, folder, storage, report, lambda _state: None)
    return report


def files_in(folder: Path) -> dict[str, str]:
    """Return the MD5 of each file by its path in the folder."""
    return {str(path.relative_to(folder)): file_md5(path) for path in folder.rglob("*") if path.is_file()}


def write(folder: Path, names: dict[str, bytes]) -> Path:
    for name, data in names.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def counts(report: TransferReport) -> tuple[int, int, int]:
    return report.copied, report.unchanged, len(report.problems)


def test_a_folder_comes_back_as_it_was_and_only_new_files_are_copied(
    tmp_path: Path, storage: Storage, source: str
) -> None:
    original = write(tmp_path / "in", {"large.png": os.urandom(LARGE), "a/b/small.JPG": b"1", "empty.png": b""})
    assert counts(upload(original, source, storage)) == (3, 0, 0)
    assert counts(upload(original, source, storage)) == (0, 3, 0)
    assert counts(download(source, tmp_path / "out", storage)) == (3, 0, 0)
    assert files_in(tmp_path / "out") == files_in(original)
    assert counts(download(source, tmp_path / "out", storage)) == (0, 3, 0)
    assert counts(download(source, original, storage)) == (0, 3, 0), "other times, but the same content"

    write(original, {"a/b/small.JPG": b"2"})
    assert counts(upload(original, source, storage)) == (1, 2, 0)
    write(tmp_path / "out", {"empty.png": b"edited"})
    assert counts(download(source, tmp_path / "out", storage)) == (2, 1, 0)
    assert files_in(tmp_path / "out") == files_in(original)


def test_an_object_whose_etag_is_no_md5_is_known_by_the_recorded_md5(
    tmp_path: Path, storage: Storage, source: str
) -> None:
    folder = write(tmp_path / "in", {"large.png": os.urandom(LARGE)})
    upload(folder, source, storage)
    (info,) = storage.list(source)
    assert info.etag != file_md5(folder / "large.png")
    assert storage.recorded_md5(info.uri) == file_md5(folder / "large.png")
    assert storage.recorded_md5(f"{source}missing.png") is None


def test_files_that_are_no_pictures_of_the_folder_are_counted(tmp_path: Path, storage: Storage, source: str) -> None:
    folder = write(
        tmp_path / "in",
        {"cat.png": b"1", "notes.txt": b"2", ".trash/x.png": b"3", "movie.mp4": b"4", ".dreamgrid/x": b"5"},
    )
    write(tmp_path, {"outside.png": b"secret"})
    for name, target in {
        "same.png": "cat.png",
        "out.png": "../outside.png",
        "absolute.png": "/etc/passwd",
        "folder.png": "..",
        "sub": "sub",
        "gone.png": "nothing.png",
        "here.png": ".",
    }.items():
        (folder / name).symlink_to(target)
    os.mkfifo(folder / "pipe.png")
    report = upload(folder, source, storage)
    assert counts(report) == (2, 0, 0)
    assert {info.uri.removeprefix(source) for info in storage.list(source)} == {"cat.png", "same.png"}
    assert report.skipped == {
        "symbolic link out of the folder": 3,
        "symbolic link to a folder": 1,
        "broken symbolic link": 2,
        "neither file nor folder": 1,
        "hidden": 1,
        "*.mp4": 1,
        "*.txt": 1,
        ".dreamgrid*": 1,
    }
    upload(folder, source, storage, all_files=True)
    names = {info.uri.removeprefix(source) for info in storage.list(source)}
    assert names == {"cat.png", "same.png", "notes.txt", ".trash/x.png", "movie.mp4"}


def test_files_that_cannot_be_uploaded_are_named_and_the_others_are(
    tmp_path: Path, storage: Storage, source: str
) -> None:
    folder = write(tmp_path / "in", {"cat.png": b"1", "a\\b.png": b"2", "d/" * 5 + "é" * 120 + ".png": b"3"})
    (folder / os.fsdecode(b"\xff.png")).write_bytes(b"4")
    report = TransferReport()
    files = find_files(folder, EVERYTHING, report, all_files=False)
    (folder / "gone.png").touch()
    files += find_files(folder / "gone.png", EVERYTHING, report, all_files=False)
    (folder / "gone.png").unlink()
    prefix = f"{source}{'p' * 240}/{'q' * 240}/{'r' * 240}/"
    upload_files(files, prefix, storage, report, on_listed=lambda _count: None, on_progress=lambda _state: None)
    assert [info.uri.removeprefix(prefix) for info in storage.list(source)] == ["cat.png"]
    assert [(problem.name[:7], problem.why.partition(":")[0]) for problem in report.problems] == [
        ("\\xff.pn", "the name is not UTF-8, as keys in S3 are"),
        ("a\\b.png", "the store takes a backslash in a key for a slash"),
        ("d/d/d/d", report.problems[2].why.partition(":")[0]),
        ("gone.pn", "the file cannot be read"),
    ]
    assert "S3 allows 1,024" in report.problems[2].why


names = st.text(st.characters(exclude_characters="/\\\0", exclude_categories=["Cs"]), min_size=1, max_size=60).filter(
    lambda name: name not in (".", "..") and not name.startswith(".dreamgrid")
)


@settings(max_examples=6)
@given(paths=st.lists(st.lists(names, min_size=1, max_size=3).map("/".join), max_size=20))
def test_names_with_any_characters_round_trip(
    paths: list[str], stack: Stack, tmp_path_factory: pytest.TempPathFactory
) -> None:
    storage, folder = Storage(environment=stack.environment()), tmp_path_factory.mktemp("names")
    storage.create_bucket("s3://photos")
    prefix = f"s3://photos/{uuid.uuid4().hex}/"
    write(folder / "in", {"always.png": b"x"})
    for number, name in enumerate(paths):
        with suppress(FileExistsError, NotADirectoryError, IsADirectoryError):  # a file and a folder of one name
            write(folder / "in", {name: str(number).encode()})
    assert upload(folder / "in", prefix, storage, all_files=True).problems == []
    assert download(prefix, folder / "out", storage).problems == []
    assert files_in(folder / "out") == files_in(folder / "in")


@given(st.lists(st.sampled_from(["..", ".", "", "a", "\0", "~", ".dreamgrid-x", "c:"]), max_size=5).map("/".join))
def test_a_key_that_is_accepted_stays_in_the_folder(name: str) -> None:
    path = os.path.normpath(f"/folder/{name}")
    assert refusal(name) is not None or (path == f"/folder/{name}" and "\0" not in name and "/.dreamgrid" not in path)


@settings(max_examples=40)
@given(keys=st.sets(st.lists(st.sampled_from("aAb"), min_size=1, max_size=3).map("/".join)))
def test_objects_that_are_left_have_a_place_each(keys: set[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    from flows.folders.download import _without_collisions

    report, folder = TransferReport(), tmp_path_factory.mktemp("places")
    objects = [RemoteObject(ObjectInfo("s3://x/y", "e", 0), name) for name in sorted(keys)]
    for fold in (str, str.casefold):
        kept = [each.name for each in _without_collisions(objects, fold, report)]
        assert len({fold(name) for name in kept}) == len(kept)
        for name in kept:
            path = folder / fold.__name__ / fold(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(exist_ok=False)
    assert len(report.problems) >= len(keys) - len(kept)


def test_hostile_keys_write_nothing_outside_the_folder(tmp_path: Path, storage: Storage, source: str) -> None:
    """This store refuses the worst keys, so another store lists them here."""
    accepted = [".dreamgrid/stack.json", "link/z.png", "fine.png", "fine.png/inside.png", "taken"]
    for key in accepted:
        storage.write(source + key, b"x", "image/png")
    hostile = ["../up.png", "/root.png", "a//b.png", "./c.png", "x/../../y.png", "n" * 300 + ".png", "a\0b.png"]
    folder = tmp_path / "deep" / "out"
    folder.mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (folder / "link").symlink_to(tmp_path / "outside")
    (folder / "taken").mkdir()
    report = TransferReport()
    objects = find_objects(source, storage, EVERYTHING, report, lambda _count: None)
    objects += [RemoteObject(objects[0].info, key) for key in hostile]
    download_objects(objects, folder, storage, report, lambda _state: None)
    assert counts(report) == (1, 0, len(hostile) + len(accepted) - 1)
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")} == {
        *("deep", "deep/out", "deep/out/link", "deep/out/taken", "deep/out/fine.png", "outside")
    }


@pytest.mark.parametrize("what", ["upload", "download"])
def test_a_killed_transfer_leaves_only_whole_files_and_goes_on(
    what: str, tmp_path: Path, storage: Storage, source: str
) -> None:
    small = {f"{n % 7}/{n}.png": b"%d" % n * 100 for n in range(1000)}
    folder, copy = write(tmp_path / "in", small), tmp_path / "out"
    write(folder, {"0/0-large.png": os.urandom(LARGE)})
    expected = files_in(folder)
    if what == "download":
        upload(folder, source, storage)
    arguments = [what, folder, source] if what == "upload" else [what, source, copy]

    def finished() -> dict[str, str]:
        if what == "download":
            return {name: md5 for name, md5 in files_in(copy).items() if not name.startswith(".dreamgrid")}
        objects = {info.uri.removeprefix(source): storage.read(info.uri) or b"" for info in storage.list(source)}
        return {name: hashlib.md5(data).hexdigest() for name, data in objects.items()}

    def count() -> int:
        return sum(1 for _ in storage.list(source)) if what == "upload" else sum(1 for _ in copy.rglob("*.png"))

    process = subprocess.Popen([DREAMGRID, *map(str, arguments)], start_new_session=True, stderr=subprocess.DEVNULL)
    while count() < 20 and process.poll() is None:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = finished()
    assert 20 <= len(before) < len(expected)
    assert before.items() <= expected.items()

    report = upload(folder, source, storage) if what == "upload" else download(source, copy, storage)
    assert (report.copied, report.unchanged) == (len(expected) - len(before), len(before))
    assert finished() == expected
    assert not list(copy.glob(".*")), "incomplete files are removed"


def test_a_stopped_upload_ends_soon_and_can_be_resumed(tmp_path: Path, storage: Storage, source: str) -> None:
    folder = write(tmp_path / "in", {f"{n}.png": b"%d" % n * 5000 for n in range(300)})
    process = subprocess.Popen([DREAMGRID, "upload", folder, source], stderr=subprocess.PIPE, text=True)
    while sum(1 for _ in storage.list(source)) < 20 and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    _, messages = process.communicate(timeout=60)
    assert process.returncode == 3
    assert messages.endswith("stopped\nNothing is lost. Give the same command to resume the upload.\n")
    before = sum(1 for _ in storage.list(source))
    assert 20 <= before < 300
    assert counts(upload(folder, source, storage)) == (300 - before, before, 0)


def test_two_downloads_into_one_folder_do_not_disturb_each_other(tmp_path: Path, storage: Storage, source: str) -> None:
    from flows.folders.download import _temporary_folder

    upload(write(tmp_path / "in", {"a.png": b"1"}), source, storage)
    with _temporary_folder(tmp_path / "out") as other:
        assert counts(download(source, tmp_path / "out", storage)) == (1, 0, 0)
        assert other.is_dir()
    assert not other.exists()


@pytest.mark.parametrize(
    ("size", "fault"),
    [
        *((LARGE, fault) for fault in (Fault.FLIPPED, Fault.TRUNCATED, Fault.SLOW_DOWN, Fault.RESET)),
        (1000, Fault.FLIPPED),
    ],
)
def test_a_damaged_download_is_read_again(
    size: int, fault: Fault, tmp_path: Path, stack: Stack, storage: Storage, source: str, proxy: Proxy
) -> None:
    storage.write(f"{source}a.png", os.urandom(size), "image/png")
    proxy.choose = first(fault, "GET", "a.png")
    through = Storage(RetryPolicy(20, 5), proxy.environment(stack.environment()))
    assert counts(download(source, tmp_path, through)) == (1, 0, 0)
    assert proxy.count(fault) == 1
    assert (tmp_path / "a.png").read_bytes() == storage.read(f"{source}a.png")


def test_the_commands_print_what_they_did(
    tmp_path: Path, stack: Stack, storage: Storage, source: str, dreamgrid_inprocess: Command
) -> None:
    write(tmp_path / "in", {"a.png": b"1" * 1000, "b.gif": b"2", "c.txt": b"3", "drafts/d.png": b"4"})
    done = dreamgrid_inprocess("upload", str(tmp_path / "in"), source, "--exclude", "drafts/")
    assert (done.returncode, done.stdout) == (
        0,
        "2 uploaded (1.0 kB), 0 unchanged.\nSkipped: 1 *.txt, 1 excluded\n",
    ), done.stderr
    one = dreamgrid_inprocess("download", f"{source}a.png", str(tmp_path / "one"), "--json")
    expected = {"copied": 1, "bytes": 1000, "unchanged": 0, "skipped": {}, "problems": []}
    assert json.loads(one.stdout) == expected
    some = dreamgrid_inprocess("download", source, str(tmp_path / "some"), "--include", "*.gif")
    assert (some.returncode, some.stdout) == (0, "1 downloaded (1 byte), 0 unchanged.\nSkipped: 1 excluded\n")
    (tmp_path / "some" / "a.png").mkdir()
    failed = dreamgrid_inprocess("download", source, str(tmp_path / "some"))
    assert (failed.returncode, failed.stdout) == (1, "0 downloaded (0 bytes), 1 unchanged, 1 failed.\n")
    assert "a.png: a folder has this name" in failed.stderr
    for arguments, message in (
        (("upload", str(tmp_path / "none"), source), "cannot be uploaded: No such file"),
        (("upload", str(tmp_path / "in"), "photos"), "is not an S3 address"),
        (("upload", str(tmp_path / "in"), source, "--include", ""), "is not a pattern"),
        (("download", f"{source}none/", str(tmp_path)), "there is nothing below"),
        (("download", source, str(tmp_path / "in" / "a.png")), "cannot be written"),
        (("upload", str(tmp_path / "in"), "s3://no-such-bucket/x/"), "there is no bucket"),
    ):
        wrong = dreamgrid_inprocess(*arguments)
        assert wrong.returncode == 2
        assert message in wrong.stderr


def test_a_bucket_is_created_only_in_the_embedded_store_of_this_folder(
    tmp_path: Path, stack: Stack, dreamgrid_inprocess: Command
) -> None:
    write(tmp_path / "in", {"a.png": b"1"})
    bucket = f"s3://new-{uuid.uuid4().hex}/"
    assert dreamgrid_inprocess("upload", "in", bucket).returncode == 2
    (tmp_path / ".dreamgrid").symlink_to(stack.folder)
    done = dreamgrid_inprocess("upload", "in", bucket)
    assert (done.returncode, done.stdout) == (0, "1 uploaded (1 byte), 0 unchanged.\n"), done.stderr


def test_a_transfer_stops_at_the_first_failure_of_the_store(tmp_path: Path, storage: Storage, source: str) -> None:
    calls: list[str] = []

    def copy(each: RemoteObject, on_bytes: Callable[[int], None]) -> bool:
        calls.append(each.name)
        raise Unavailable("the store is gone")

    objects = [RemoteObject(ObjectInfo("s3://x/y", "e", 1), str(number)) for number in range(1000)]
    with pytest.raises(Unavailable, match="gone"):
        transfers.copy_all(objects, copy, TransferReport(), lambda _state: None)
    assert len(calls) < 100


def test_progress_without_a_terminal_is_a_line_every_half_minute(capsys: pytest.CaptureFixture[str]) -> None:
    clock = iter([0.0, 10.0, 40.0, 40.0, 45.0])
    with transfer_progress("uploading", lambda: next(clock)) as show:
        for done in (10, 100, 110):
            show(TransferState(done, 400, done * 1000, 400_000))
    assert capsys.readouterr().err == "100 of 400 files, 100.0 kB of 400.0 kB, about 2 min left\n"


def test_a_local_path_in_a_job_names_the_commands() -> None:
    with pytest.raises(ValueError, match=r"dreamgrid upload './my photos' s3://BUCKET/PREFIX/") as error:
        DreamJob.model_validate({"source": "./my photos", "destination": "out"})
    assert "dreamgrid download s3://BUCKET/PREFIX/ out" in str(error.value)
    with pytest.raises(ValueError, match="is not an S3 address") as error:
        DreamJob.model_validate({"source": "https://example.org/", "destination": "s3://dreams/x/"})
    assert "upload" not in str(error.value)


def test_a_malformed_pattern_is_refused() -> None:
    with pytest.raises(InvalidInput, match="is not a pattern"):
        name_filter(["[z-a]"], ())
