"""Output that cannot be written: a run continues without it, another command says so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FULL = Path("/dev/full")
pytestmark = pytest.mark.skipif(not FULL.exists(), reason="a device that is always full is Linux's")


def test_a_command_whose_output_is_on_a_full_disk_says_so_and_exits_with_2() -> None:
    with FULL.open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "hf_recipes", "schema"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2
    assert done.stderr == "warning: standard output cannot be written any more: No space left on device\n"


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    command = f"{sys.executable} -m hf_recipes schema | head -c 10; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.returncode, len(done.stdout), done.stderr) == (0, 10, "")


def test_what_is_printed_after_the_output_was_lost_goes_nowhere_and_the_program_continues() -> None:
    program = (
        "import sys\n"
        "from hf_recipes.common.output import lost_output, protect_output\n"
        "protect_output()\n"
        "for _ in range(3):\n    print('x' * 9000, flush=True)\n"
        "print('continues:', lost_output(), file=sys.stderr)\n"
    )
    with FULL.open("w") as full:
        done = subprocess.run([sys.executable, "-c", program], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0
    assert done.stderr.splitlines()[1:] == ["continues: No space left on device"]
