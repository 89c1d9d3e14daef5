"""What was read from the sources of the installed packages, kept in the user's cache folder as JSON.

An entry is valid for the versions, folders, sizes and times of the files that it was made from, the modules of this
folder included. A cache that cannot be written costs the time of reading again, and nothing else.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import sys
import zlib
from collections.abc import Callable, Iterable
from typing import Any

from hf_recipes.errors import RecipeError
from hf_recipes.recipe.schema.packages import package_folder, recorded_sources, source_path, version

_READERS = (
    "corrections.py",
    "fields.py",
    "from_source.py",
    "own_keys.py",
    "packages.py",
    "read_upstream.py",
    "static_source.py",
)


# What reading an entry raises whatever is in it: no file, no JSON, other types, packages that cannot be named or found.
DAMAGE = (OSError, ValueError, TypeError, LookupError, AttributeError, ImportError, RecursionError, RecipeError)


def cache_folder() -> str:
    """This package's folder in the user's cache; "" where the user has no home."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA", "")
    elif sys.platform == "darwin":
        base = os.path.expanduser("~/Library/Caches")
    else:
        base = os.environ.get("XDG_CACHE_HOME", "")
        base = base if os.path.isabs(base) else os.path.expanduser("~/.cache")
    return os.path.join(base, "hf_recipes") if os.path.isabs(base) else ""


def cached(name: str, read: Callable[[], Any]) -> Any:
    """What `read` gives, as JSON: from the cache where its entry still holds, else read and written there."""
    folder = cache_folder()
    environment = f"{zlib.crc32(os.path.realpath(sys.prefix).encode()):08x}"  # each environment has entries of its own
    path = os.path.join(folder, "schema", environment, f"{name}.json") if folder else ""
    kept = _load(path)
    if kept is not None:
        return kept[0]
    with recorded_sources() as used:
        value = read()
    text = json.dumps(value)
    if path:
        _write(path, f"{json.dumps({'key': _key(used), 'crc32': zlib.crc32(text.encode())})}\n{text}")
    return json.loads(text)


def _key(used: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """What an entry depends on: the packages with their folders and versions, and the state of each file."""
    files = sorted(used)
    packages = {package: [package_folder(package), version(package)] for package in sorted({p for p, _ in files})}
    here = os.path.dirname(__file__)
    ours = [[name, *_state(os.path.join(here, name))] for name in _READERS]
    return {
        "python": list(sys.version_info[:2]),
        "packages": packages,
        "files": [[package, path, *_state(source_path(package, path))] for package, path in files],
        "readers": [here, *ours],
    }


def _state(path: str) -> list[int]:
    """[size in bytes, time of the last change in ns] of a file; [-1, -1] where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return [-1, -1]
    return [found.st_size, found.st_mtime_ns]


def _load(path: str) -> tuple[Any] | None:
    """(value,) if the entry is complete and everything that it was made from is as it was."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a FIFO would wait for ever
            return None
        with open(path, "rb") as file:
            head, _, text = file.read().partition(b"\n")
        entry = json.loads(head)
        if entry["crc32"] != zlib.crc32(text):
            return None
        used = [(str(package), str(source)) for package, source, _, _ in entry["key"]["files"]]
        return (json.loads(text),) if entry["key"] == _key(used) else None
    except DAMAGE:  # absent, damaged, made by somebody else, or a package has gone: the sources are read again
        return None


def _write(path: str, text: str) -> None:
    """Complete or not at all."""
    draft = f"{path}.{os.getpid()}.part"
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(draft, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(draft, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(draft)
