"""Paths and numbers on the command line that mean nothing: one message each, nothing opened."""

from __future__ import annotations

import os
import socket
import stat

import pytest

from hf_recipes.cli import main

COMMANDS = {
    "check": ["check", "{}"],
    "run": ["run", "{}"],
    "plan": ["plan", "{}", "--memory", "8GiB"],
    "upgrade": ["upgrade", "{}"],
    "sweep": ["sweep", "{}", "--set", "TrainingArguments.seed=1,2"],
    "compare": ["compare", "a", "{}"],
    "runs": ["runs", "{}"],
    "verify": ["verify", "{}"],
    "push": ["push", "{}"],
    "lab": ["lab", "--recipes", "{}"],
}


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """A folder with a FIFO, a socket, a circle of links, and a link to nothing."""
    folder = tmp_path_factory.mktemp("odd")
    os.mkfifo(folder / "fifo")
    (folder / "circle").symlink_to("circle")
    (folder / "dangling").symlink_to("nothing")
    with socket.socket(socket.AF_UNIX) as one:
        before = os.getcwd()
        os.chdir(folder)  # the path of a socket has 107 bytes at most
        one.bind("socket")
        os.chdir(before)
        yield folder


def message(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    said = capsys.readouterr()
    return (said.out + said.err).strip().removeprefix("error: ")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("fifo", "is a pipe (FIFO), not a file"),
        ("socket", "is a socket, not a file"),
        ("circle", "is a symbolic link that leads back to itself"),
        ("dangling", "is a symbolic link to a file that is not there"),
        ("/dev/zero", "is a device, not a file"),
        ("a" * 5000, "is longer than a path may be"),
    ],
    ids=["fifo", "socket", "circle", "dangling", "device", "long"],
)
def test_every_command_names_what_is_no_file_and_does_not_open_it(odd, monkeypatch, capsys, command, name, what):
    monkeypatch.chdir(odd)
    found = message(capsys, *(part.format(name) for part in COMMANDS[command]))
    assert f"{what}; name another path" in found and "\n" not in found


@pytest.mark.parametrize(
    "arguments",
    [
        ["compare", "a", "b", "--seed", "-1"],
        ["compare", "a", "b", "--seed", "4294967296"],
        ["compare", "a", "b", "--resamples", "1000000000"],
        ["lab", "--minutes", "nan"],
        ["lab", "--minutes", "inf"],
        ["plan", "r.yaml", "--price", "nan"],
        ["plan", "r.yaml", "--price", "-1"],
        ["plan", "r.yaml", "--seconds", "1e400"],
        ["plan", "r.yaml", "--length", "99999999999999999999"],
        ["plan", "r.yaml", "--processes", "0"],
        ["plan", "r.yaml", "--memory", "nanGiB"],
        ["plan", "r.yaml", "--memory", "-1GiB"],
        ["plan", "r.yaml", "--memory", "8GiB", "--compute-capability", "nan"],
        ["run", "r.yaml", "--restart", "-1"],
        ["run", "r.yaml", "--restart", "99999999999999999999"],
        ["sweep", "r.yaml", "--set", "a=1", "--seeds", "0"],
        ["verify", "x", "--steps", "-3"],
    ],
    ids=" ".join,
)
def test_a_number_that_means_nothing_is_one_message(tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.chdir(tmp_path)
    assert message(capsys, *arguments).count("rror:") <= 1


@pytest.mark.parametrize("arguments", [["check", "\udced\udcb3\udca9"], ["plan", "r.yaml", "--gpu", "\ud800"]])
def test_an_argument_that_is_not_utf_8_is_one_message(capsys, arguments):
    assert message(capsys, *arguments).endswith("it is not UTF-8 text; write it in UTF-8")


def test_an_argument_with_a_nul_character_is_one_message(capsys):
    assert message(capsys, "check", "a\0b").endswith("it holds a NUL character; leave it out")


def test_upgrade_keeps_the_mode_of_a_file_and_writes_through_a_link(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    real = tmp_path / "real" / "a.yaml"
    real.parent.mkdir()
    real.write_text("TrainingArguments: {evaluation_strategy: epoch}\n")
    real.chmod(0o640)
    (tmp_path / "link.yaml").symlink_to("real/a.yaml")
    main(["upgrade", "link.yaml"])
    assert (tmp_path / "link.yaml").is_symlink() and real.read_text() == "TrainingArguments: {eval_strategy: epoch}\n"
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert sorted(path.name for path in real.parent.iterdir()) == ["a.yaml"]


def test_an_end_of_file_error_is_no_wish_to_stop(monkeypatch, capsys):
    def cut_off(*_: object, **__: object) -> None:
        raise EOFError("Compressed file ended before the end-of-stream marker was reached")

    monkeypatch.setattr("hf_recipes.commands.check.check", cut_off)
    with pytest.raises(EOFError):
        main(["check", __file__])
    assert "stopped" not in capsys.readouterr().err
