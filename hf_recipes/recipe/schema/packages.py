"""The installed packages: their folders, versions and files, without importing any.

Only the top-level package is looked up with `find_spec`, which does not run it; the files below it are opened by path.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec

from hf_recipes.errors import RecipeError

VERSIONED = ("transformers", "trl", "peft", "datasets", "accelerate", "tokenizers", "bitsandbytes", "evaluate", "torch")


@cache
def package_folder(package: str) -> str:
    """Folder of an installed top-level package. Raises RecipeError if it is not installed."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise RecipeError.at("this environment", f"{package} is not installed", f"pip install {package}")
    return os.fspath(next(iter(spec.submodule_search_locations)))


@cache
def version(package: str) -> str:
    """Installed version, or "" if the package is absent.

    Read from the name of the .dist-info folder beside the package, because importlib.metadata costs ten times as much;
    that is asked only where the folder's name is not clear (an editable install, two versions side by side).
    """
    try:
        beside = os.path.dirname(package_folder(package))
    except RecipeError:
        return ""
    pattern = re.compile(re.escape(package) + r"-([0-9][^-]*)\.dist-info", re.IGNORECASE)
    found = [m.group(1) for m in map(pattern.fullmatch, os.listdir(beside)) if m]
    if len(found) == 1:
        return found[0]
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


_recorders: list[set[tuple[str, str]]] = []


@contextmanager
def recorded_sources() -> Iterator[set[tuple[str, str]]]:
    """The (package, path) of every file that is read inside of the `with`."""
    used: set[tuple[str, str]] = set()
    _recorders.append(used)
    try:
        yield used
    finally:
        _recorders.remove(used)


def source_path(package: str, path: str) -> str:
    return os.path.join(package_folder(package), *path.split("/"))


def text(package: str, path: str) -> str:
    """Text of one file of an installed package; "" if that version has no such file."""
    for used in _recorders:
        used.add((package, path))
    return _text(package, path)


@cache
def _text(package: str, path: str) -> str:
    try:
        with open(source_path(package, path), encoding="utf-8") as file:
            return file.read()
    except OSError:
        return ""
