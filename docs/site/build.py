"""Builds the documentation's site into .site/html: python docs/site/build.py [--serve]

README.md, docs/, recipes/ and accelerate_configs/ are copied side by side into .site/source, then mkdocs builds them
strictly: a broken link or anchor, or a page that the navigation lacks, is an error. Needs the `docs` extra.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SOURCE = ROOT / ".site" / "source"
FILES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "constraints.txt")
FOLDERS = ("docs", "recipes", "accelerate_configs", "benchmarks/results", "benchmarks/published")
LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.py", "mkdocs.yml", "austen", "names", "sentiment", "*.jinja")


def collect() -> None:
    """Copies what the site is made of."""
    shutil.rmtree(SOURCE, ignore_errors=True)
    SOURCE.mkdir(parents=True)
    for name in FILES:
        shutil.copy(ROOT / name, SOURCE / name)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, SOURCE / name, ignore=LEFT_OUT)


def main() -> None:
    collect()
    action = ["serve"] if "--serve" in sys.argv else ["build", "--strict", "--clean"]
    command = [sys.executable, "-m", "mkdocs", *action, "--config-file", str(HERE / "mkdocs.yml")]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    sys.exit(subprocess.run(command, check=False, env=quiet).returncode)


if __name__ == "__main__":
    main()
