"""No figure in README or docs is typed by hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_every_table_is_what_the_records_say(root: Path) -> None:
    command = [sys.executable, "benchmarks/tables.py", "--check"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.returncode) == ("", 0), done.stderr
