"""Writes the real output of a command into README.md and docs: no output is typed by hand.

    python benchmarks/outputs.py             run every command and rewrite the blocks
    python benchmarks/outputs.py --check     exit 1 if a block differs from what its command prints
    python benchmarks/outputs.py --only plan only the commands that contain this text

A block begins with a marker that names its command, `<!-- output: hf-recipes check docs/examples/typo.yaml -->`, and
ends with `<!-- end -->`. Commands run offline, without a GPU, in the repository's root, with this checkout's package.
tests/test_docs.py runs the quick ones; those that load a model (`plan`, `run`) are in its slow test.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"<!-- output: (?P<command>[^\n]+) -->\n(?P<body>.*?)<!-- end -->", re.DOTALL)
SLOW = re.compile(r"hf-recipes (plan|run) ")
AGE = re.compile(r" +(age|\d+ (s|min|h|d))$", re.MULTILINE)  # the last column of `hf-recipes runs`
PRELUDE = 'hf-recipes() { "$DOCS_PYTHON" -m hf_recipes "$@"; }\n'


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def commands() -> Iterator[tuple[Path, str]]:
    """(page, command) of every block."""
    for path in pages():
        for found in BLOCK.finditer(path.read_text(encoding="utf-8")):
            yield path, found["command"]


def is_slow(command: str) -> bool:
    return SLOW.search(command) is not None


@cache
def output(command: str) -> str:
    """What the command prints, standard error included. Raises CalledProcessError for a command that is not found."""
    variables = {
        **os.environ,
        "DOCS_PYTHON": sys.executable,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "COLUMNS": "120",
    }
    done = subprocess.run(
        ["bash", "-c", PRELUDE + command],
        cwd=ROOT,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )
    if done.returncode not in (0, 1, 2):
        raise subprocess.CalledProcessError(done.returncode, command, done.stdout)
    return done.stdout.rstrip() + "\n"


def block(command: str) -> str:
    return f"```console\n$ {command}\n{output(command)}```\n"


def same(one: str, other: str) -> bool:
    """Are two blocks equal, but for the age of a run?"""
    return AGE.sub("", one) == AGE.sub("", other)


def filled(text: str, wanted: Callable[[str], bool]) -> str:
    """The page's text with the blocks of the wanted commands as they must be."""

    def new(found: re.Match[str]) -> str:
        command = found["command"]
        if not wanted(command) or same(found["body"], fresh := block(command)):
            return found[0]
        return f"<!-- output: {command} -->\n{fresh}<!-- end -->"

    return BLOCK.sub(new, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="exit 1 instead of writing")
    parser.add_argument("--only", default="", help="only commands that contain this text")
    words = parser.parse_args()
    differ = []
    for path in pages():
        old = path.read_text(encoding="utf-8")
        text = filled(old, lambda command: words.only in command)
        if text != old:
            differ.append(path.relative_to(ROOT))
            if not words.check:
                path.write_text(text, encoding="utf-8")
    for name in differ:
        print(f"{name} {'differs: run python benchmarks/outputs.py' if words.check else 'written'}")
    if words.check and differ:
        sys.exit(1)


if __name__ == "__main__":
    main()
