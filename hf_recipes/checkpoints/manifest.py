"""manifest.json: what a whole checkpoint consists of, and of which run it is. Light.

Keys: schema, step, run (one id from a run's start through all its resumptions), saved (UTC), hash (algorithm of the
digests), files {path: {bytes, digest}}, world_size, state (parts beside the weights: optimizer, scheduler, ...), recipe
(sections), data {split: fingerprint}, versions, device, threads, seal (digest of all the rest).

The digests tell decay and cut-off files, not an attacker: XXH3-128, twenty times as fast as SHA-256 (docs/torture.md).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

SCHEMA = 1
NAME = "manifest.json"
HASH = "xxh3_128"
PIECE = 2**22  # bytes that are read at a time
THREADS = 8  # they wait for the disk, which writes the journal once for several files; digests are taken meanwhile


class Damaged(ValueError):
    """The manifest itself cannot be trusted; the message says why."""


def digest(path: Path) -> str:
    """Hexadecimal digest of a file. Raises OSError."""
    import xxhash

    found = xxhash.xxh3_128()
    with open(path, "rb", buffering=0) as file:
        while piece := file.read(PIECE):
            found.update(piece)
    return found.hexdigest()


def flushed(folder: Path) -> dict[str, dict[str, Any]]:
    """Flushes every file under `folder` to the disk and returns {path: {bytes, digest}}; `write` flushes the folder.

    Digests are taken by other threads meanwhile: they wait for the CPU, the flush waits for the disk. Raises OSError.
    """
    paths = list(_files(folder))
    with ThreadPoolExecutor(THREADS) as pool:
        inner = [path for path in folder.rglob("*") if path.is_dir()]
        flushes = [pool.submit(flush, path) for path in (*(folder / path for path in paths), *inner)]
        digests = [pool.submit(digest, folder / path) for path in paths]
        for done in flushes:
            done.result()
        return {
            path: {"bytes": (folder / path).stat().st_size, "digest": found.result()}
            for path, found in zip(paths, digests, strict=True)
        }


def flush(path: Path) -> None:
    """fsync of a file or of a folder's entries. Raises OSError (a folder on a system that cannot is passed over)."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _files(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != NAME:
            yield path.relative_to(folder).as_posix()


def write(folder: Path, facts: Mapping[str, Any], files: Mapping[str, Any]) -> dict[str, Any]:
    """Writes the manifest and flushes it; the last file of a checkpoint. Raises OSError."""
    body = {"schema": SCHEMA, **facts, "hash": HASH, "files": dict(files)}
    body = json.loads(json.dumps(body, default=str))
    body["seal"] = _seal(body)
    path = folder / NAME
    path.write_text(json.dumps(body, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    flush(path)
    flush(folder)
    return body


def _seal(body: Mapping[str, Any]) -> str:
    import xxhash

    text = json.dumps({k: v for k, v in body.items() if k != "seal"}, sort_keys=True, ensure_ascii=False)
    return xxhash.xxh3_128(text.encode()).hexdigest()


def read(folder: Path) -> dict[str, Any] | None:
    """The manifest; None if there is none. Raises Damaged."""
    try:
        body = json.loads((folder / NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as problem:
        raise Damaged(f"{NAME} cannot be read ({problem})") from problem
    if not isinstance(body, dict) or body.get("seal") != _seal(body):
        raise Damaged(f"{NAME} has other content than was written")
    return body


def errors(folder: Path, body: Mapping[str, Any], *, hashes: bool = True) -> Iterator[str]:
    """What is wrong with the checkpoint's files, each by its name. `hashes=False` looks at sizes only."""
    known = hashes and body["hash"] == HASH
    for name, expected in body["files"].items():
        path = folder / name
        try:
            size = path.stat().st_size
            if not path.is_file() or size != expected["bytes"]:
                yield f"{name} has {size:,} of {expected['bytes']:,} bytes"
            elif known and digest(path) != expected["digest"]:
                yield f"{name} has other content than was written"
        except FileNotFoundError:
            yield f"{name} is missing"
        except OSError as problem:
            yield f"{name} cannot be read ({problem.strerror})"


def total_bytes(body: Mapping[str, Any]) -> int:
    """Bytes of the checkpoint's files."""
    return sum(int(file["bytes"]) for file in body["files"].values())
