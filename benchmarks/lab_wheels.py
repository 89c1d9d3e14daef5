"""`python benchmarks/lab_wheels.py DIR`: wheels of what a machine without network lacks, for `hf-recipes lab` there."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from hf_recipes.errors import RecipeError

GLIBC = ("2_34", "2_28", "2_27", "2_24", "2_17")  # manylinux tags that wheels of today bear; pip matches them exactly
PLATFORMS = (*(f"manylinux_{version}_x86_64" for version in GLIBC), "manylinux2014_x86_64", "manylinux1_x86_64")
PACKAGE = "hf_recipes"
# Gigabytes that are of the machine's own CUDA; and what no cell uses (reports and span F1, of which there is no wheel).
NOT_CARRIED = ("torch", "tensorboard", "seqeval")


def pack(folder: str, *, there: str | None, python: str, say: Callable[[str], None]) -> list[str]:
    """Downloads wheels (Linux, x86-64) of every requirement that the other machine lacks; returns their names.

    there: a file with what `pip list --format=freeze` prints on that machine: what it has in a version that will do is
    not carried (to carry it all the same, delete its line); python: its version, as "3.12". Raises RecipeError for a
    file that cannot be read, and with pip's words where a wheel is not to be had.
    """
    has = _listed(there) if there is not None else {}
    lacking = sorted(_lacking(has))
    versions = [f"{name}=={metadata.version(name)}" for name in lacking]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "-d", folder]
    command += ["--python-version", python, "--implementation", "cp"]
    command += [word for platform in PLATFORMS for word in ("--platform", platform)]
    done = subprocess.run([*command, *versions], capture_output=True, text=True) if versions else None
    if done is not None and done.returncode:
        words = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["pip failed"]
        told = words[-1].removeprefix("ERROR: ")
        raise RecipeError.at("lab_wheels.py", told, "try another --python, or install it there")
    size = sum(path.stat().st_size for path in Path(folder).glob("*.whl")) / 2**20
    say(f"{len(lacking)} wheels, {size:.0f} MiB, in {folder}: {', '.join(lacking)}")
    say("on the other machine, in a copy of this repository with that folder:")
    say(f"  python3 -m pip install --no-index --no-deps --target /tmp/site {folder}/*.whl")
    say("  PYTHONPATH=/tmp/site:. python3 -m hf_recipes lab")
    return lacking


def _listed(path: str) -> dict[str, str]:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as problem:
        raise RecipeError.at("argument '--there'", f"{path!r} cannot be read ({problem.strerror})") from None
    pairs = [line.partition("==") for line in lines if "==" in line]
    return {canonicalize_name(name.strip()): version.strip() for name, _, version in pairs}


def _lacking(has: Mapping[str, str]) -> set[str]:
    """The requirements, and theirs in turn, that `has` does not satisfy. What is there brings its own along."""
    found, waiting = set[str](), [PACKAGE]
    while waiting:
        for text in metadata.requires(waiting.pop()) or ():
            requirement = Requirement(text)
            name = canonicalize_name(requirement.name)
            if name in found or name in NOT_CARRIED:
                continue
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
                continue
            if name in has and requirement.specifier.contains(has[name], prereleases=True):
                continue
            found.add(name)
            waiting.append(name)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", help="where the wheels go")
    parser.add_argument("--there", metavar="FILE", help="`pip list --format=freeze` of that machine")
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    parser.add_argument("--python", default=python, help="that machine's version, such as 3.12")
    words = parser.parse_args()
    try:
        pack(words.folder, there=words.there, python=words.python, say=print)
    except RecipeError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
