"""What a tracing child answered, kept in the user's cache folder: the same plan a second time starts no child.

An answer is valid for the request without the lines of its recipe, for the files that the recipe names and for what is
installed: torch and the other packages by name and version, this package by the state of its files. A cache that cannot
be written costs the time of tracing again, and nothing else. Imports neither torch nor transformers.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import itertools
import json
import os
import re
import sys
import time
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import hf_recipes
from hf_recipes.recipe.schema.disk_cache import cache_folder

MOST = 300  # answers that are kept; the oldest go first
READ_BYTES = 2**20  # a file up to this size counts by its bytes, a larger one by its size and the time of its change
MOST_FILES = 2_000  # of a folder that are looked at
NOT_READ = ("output_dir", "logging_dir", "run_name")  # of a recipe: no trace reads what is there
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def load_answer(request: Mapping[str, Any]) -> dict[str, Any] | None:
    """The answer to an equal request, None where there is none."""
    path = _path(request)
    try:
        with open(path, "rb") as file:
            found = json.loads(zlib.decompress(file.read()))
    except (OSError, ValueError, zlib.error):
        return None
    return found if isinstance(found, dict) and found.get(request["kind"]) else None


def save_answer(request: Mapping[str, Any], answer: Mapping[str, Any]) -> None:
    """Keeps an answer that is no error."""
    path = _path(request)
    if not path or not {"trace", "lengths"} & set(answer):
        return
    draft = f"{path}.{os.getpid()}.part"
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(draft, "wb") as file:
            file.write(zlib.compress(json.dumps(answer).encode(), 1))
        os.replace(draft, path)
        _drop_oldest(os.path.dirname(path))
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(draft)


def _path(request: Mapping[str, Any]) -> str:
    folder = cache_folder()
    if not folder:
        return ""
    sections = request["recipe"]["sections"]
    key = {name: value for name, value in request.items() if name not in ("recipe", "folder")}
    key |= {"sections": sections, "files": sorted(_files(sections, request["folder"])), "installed": _installed()}
    name = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()
    return os.path.join(folder, "plans", f"{name}.json.z")


def _files(sections: Mapping[str, Any], folder: str) -> Iterator[list[Any]]:
    """The state of each file that a value of the recipe names, as it stands or below the dataset's folder."""
    dataset = sections.get("dataset")
    values = dataset if isinstance(dataset, Mapping) else {}
    above = [str(values.get(name) or "") for name in ("path", "data_dir")]
    bases = [folder, *(os.path.join(folder, one) for one in (*above, os.path.join(*above)) if one)]
    for text in set(_texts(sections)):
        yield from _hub_files(text)
        for base in bases:
            path = os.path.join(base, os.path.expanduser(text))
            for found in sorted(glob.glob(path, recursive=True)) if glob.has_magic(path) else [path]:
                yield from _states(found)


def _texts(value: Any, key: str = "") -> Iterator[str]:
    if isinstance(value, Mapping):
        for name, one in value.items():
            yield from _texts(one, name)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _texts(one, key)
    elif isinstance(value, str) and value and "\0" not in value and key not in NOT_READ:
        yield value


def _states(path: str) -> Iterator[list[Any]]:
    """Of a file, or of the files in a folder and below it. A folder of more than MOST_FILES has another state each
    time: what is traced with it is not kept."""
    try:
        walked = ((folder, name) for folder, _, names in os.walk(path, followlinks=True) for name in names)
        found = [os.path.join(*one) for one in itertools.islice(walked, MOST_FILES + 1)]
        if len(found) > MOST_FILES:
            yield [path, "many files", time.time_ns()]
            return
        for name in [path] if os.path.isfile(path) else sorted(filter(os.path.isfile, found)):
            state = os.stat(name)
            if state.st_size > READ_BYTES:
                yield [os.path.realpath(name), state.st_size, state.st_mtime_ns]
                continue
            with open(name, "rb") as file:
                yield [os.path.realpath(name), hashlib.sha256(file.read()).hexdigest(), 0]
    except OSError:
        yield [path, "unreadable", 0]


def _hub_files(name: str) -> Iterator[list[Any]]:
    """What the Hub's cache on this machine has of this name: the commits that its branches point to."""
    if not HUB_NAME.fullmatch(name):
        return
    home = os.environ.get("HF_HOME") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "huggingface"
    )
    cache = os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub")
    for kind in ("models", "datasets"):
        folder = os.path.join(cache, f"{kind}--{name.replace('/', '--')}")
        if os.path.isdir(folder):
            yield from _states(os.path.join(folder, "refs"))
            for commit in sorted(glob.glob(os.path.join(glob.escape(folder), "snapshots", "*"))):
                yield [commit, sorted(os.listdir(commit)), 0]


def _installed() -> list[Any]:
    """Python, the packages with their versions, and the files of this package."""
    here = os.path.dirname(os.path.abspath(hf_recipes.__file__))
    ours = [
        [os.path.relpath(entry.path, here), entry.stat().st_size, entry.stat().st_mtime_ns]
        for folder, _, _ in os.walk(here)
        if not folder.endswith("__pycache__")
        for entry in os.scandir(folder)
        if entry.is_file() and entry.name.endswith((".py", ".json", ".toml"))
    ]
    packages = {
        name
        for folder in sys.path
        if os.path.isdir(folder)
        for name in os.listdir(folder)
        if name.endswith((".dist-info", ".egg-info"))
    }
    return [sys.version_info[:3], sorted(packages), here, sorted(ours)]


def _drop_oldest(folder: str) -> None:
    entries = sorted(os.scandir(folder), key=lambda entry: entry.stat().st_mtime_ns)
    for entry in entries[: max(0, len(entries) - MOST)]:
        os.unlink(entry.path)
