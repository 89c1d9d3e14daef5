"""The recipes, launch files and data that come with this package: in a clone beside it, else in share/hf_recipes of the
Python installation (setup.cfg's data_files).

Imports neither torch nor transformers.
"""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[1]
FOLDERS = {"recipe": "recipes", "launch file": "accelerate_configs"}


@cache
def root() -> Path | None:
    """The folder that has `recipes` and `accelerate_configs`; None where neither came with the package."""
    share = Path("share", "hf_recipes")
    installed = {PACKAGE.parent, *PACKAGE.parents[3:4], Path(sysconfig.get_path("data"))}  # --target, a venv, a system
    places = (PACKAGE.parent, *(place / share for place in installed))
    return next((place for place in places if (place / "recipes" / "quickstart.yaml").is_file()), None)


def names(kind: str) -> dict[str, Path]:
    """Name -> file of every "recipe" or "launch file" that came with the package."""
    place = root()
    found = sorted((place / FOLDERS[kind]).glob("*.yaml")) if place is not None else []
    return {path.stem: path for path in found}


def find(name: str, kind: str) -> str:
    """A path as it is given; a bare name that no file has, and that a built-in one has, as the path of that."""
    if os.sep in name or os.path.lexists(name):
        return name
    ours = names(kind).get(name.removesuffix(".yaml"))
    return name if ours is None else str(ours)


def is_ours(path: str) -> bool:
    """Whether the file is one of the recipes that came with the package."""
    place = root()
    return place is not None and Path(os.path.realpath(path)).parent == (place / "recipes").resolve()


def place_files(values: Any) -> Any:
    """Data files as a built-in recipe names them ("recipes/data/..."), in any working directory: a path that is not
    here and that came with the package becomes the path there. Other values stay."""
    place = root()
    if isinstance(values, Mapping):
        return {key: place_files(value) for key, value in values.items()}
    if isinstance(values, list):
        return [place_files(value) for value in values]
    if place is not None and isinstance(values, str) and values.startswith("recipes/") and not os.path.exists(values):
        there = place / values
        return str(there) if there.exists() else values
    return values
