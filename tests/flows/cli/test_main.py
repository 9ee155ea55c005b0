"""Exit codes and messages of commands that need no run."""

import json

import pytest

from flows.machine.terminal import print_message
from tests.support.command import Command


def test_usage_errors_exit_with_2(dreamgrid: Command, dreamgrid_inprocess: Command) -> None:
    process = dreamgrid("run", "--nonsense")
    assert (process.returncode, process.stdout) == (2, "")
    assert "Usage: dreamgrid run" in process.stderr
    for arguments in (
        ("run", "--nonsense"),
        ("run",),
        ("run", "job.yaml", "--resume", "s3://dreams/x/"),
        ("run", "--abandon", "--resume", "s3://dreams/x/"),
        ("manifest", "no-address"),
        ("layers", "--size", "64x48", "--preview", "a.png", "b.png"),
    ):
        done = dreamgrid_inprocess(*arguments)
        assert (done.returncode, done.stdout) == (2, ""), arguments
        assert done.stderr


def test_a_missing_field_is_reported_with_its_flag(dreamgrid_inprocess: Command) -> None:
    done = dreamgrid_inprocess("run", "--source", "s3://photos/a/")
    message = "dreamgrid: the job: destination: this field is required; give --destination\n"
    assert (done.returncode, done.stderr) == (2, message)


def test_a_repeated_flag_is_refused(dreamgrid_inprocess: Command) -> None:
    done = dreamgrid_inprocess("run", "--destination", "s3://dreams/a/", "--destination", "s3://dreams/b/")
    assert (done.returncode, done.stderr) == (2, "dreamgrid: --destination is given 2 times: give it once\n")


def test_models_are_listed_by_part_of_their_name(dreamgrid_inprocess: Command) -> None:
    assert "googlenet" in json.loads(dreamgrid_inprocess("models", "GoogLeNet", "--json").stdout)
    done = dreamgrid_inprocess("models", "zzz", "--json")
    message = "dreamgrid: no network has 'zzz' in its name: `dreamgrid models` lists all networks\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", message)


def test_a_folder_without_a_stack(dreamgrid_inprocess: Command) -> None:
    assert dreamgrid_inprocess("down").returncode == 0
    assert json.loads(dreamgrid_inprocess("status", "--json").stdout)["running"] is False
    done = dreamgrid_inprocess("env")
    assert done.returncode == 2
    assert "dreamgrid up" in done.stderr


def test_control_characters_do_not_reach_the_terminal(
    dreamgrid_inprocess: Command, destination: str, capsys: pytest.CaptureFixture[str]
) -> None:
    done = dreamgrid_inprocess("manifest", f"{destination}[red]1/")
    assert done.stdout == f"There is no manifest in {destination}[red]1/ yet.\n"
    done = dreamgrid_inprocess("manifest", "s3://nowhere/\x1b[31mred\x9b\u202e/")
    assert done.returncode == 2
    assert "s3://nowhere/ [31mred  /manifest/\n" in done.stderr
    print_message("a server did not start\nthe end of its log", "red")
    assert capsys.readouterr().err == "dreamgrid: a server did not start\nthe end of its log\n"
