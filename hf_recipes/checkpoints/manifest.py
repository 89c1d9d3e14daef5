"""manifest.json: the files of a complete checkpoint, and the run that it belongs to.

Imports neither torch nor transformers.

Keys: schema, step, run (one id from a run's start through all its resumptions), session (a number that grows from one
start in this folder to the next: which checkpoint is the latest does not depend on a clock), saved (UTC), finite
(weights and optimizer were looked at when they were saved), hash (algorithm of the digests), files {path: {bytes,
digest}}, world_size, state (parts beside the weights: optimizer, scheduler, ...), recipe (sections), data {split:
fingerprint}, versions, device, threads, sessions (of the run so far, as in its record; the last one wrote the
checkpoint), ruined (what the next step showed of the weights: nothing is resumed from them), seal (digest of all the
rest).

The digests detect decay and truncated files, not an attacker: XXH3-128, twenty times as fast as SHA-256
(docs/torture.md).
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

SCHEMA = 1
LARGEST = 2**26  # bytes of a manifest
KINDS = {  # of the values, where they are there
    **{
        "files": dict,
        "recipe": dict,
        "data": dict,
        "versions": dict,
        "sessions": list,
        "state": list,
        "run": str,
        "saved": str,
        "hash": str,
    },
    **{"session": int, "step": int, "world_size": int, "device": str, "finite": bool, "ruined": str},
}
MANIFEST = "manifest.json"
HASH = "xxh3_128"
READ_BYTES = 2**22  # at a time
THREADS = 8  # they wait for the disk, which writes the journal once for several files; digests are taken meanwhile


RECIPE: dict[str, type] = {"trainer": str, "arguments": dict, "sections": dict}


class ManifestError(ValueError):
    """The manifest itself cannot be trusted; the message says why."""


def compute_digest(path: Path) -> str:
    """Hexadecimal digest of a file. Raises OSError."""
    import xxhash

    found = xxhash.xxh3_128()
    with open(path, "rb", buffering=0) as file:
        while piece := file.read(READ_BYTES):
            found.update(piece)
    return found.hexdigest()


def flush_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Flushes every file under `folder` to the disk and returns {path: {bytes, digest}}; `write_manifest` flushes
    the folder.

    Digests are taken by other threads meanwhile: they wait for the CPU, the flush waits for the disk. Raises OSError.
    """
    paths = list(_list_files(folder))
    with ThreadPoolExecutor(THREADS) as pool:
        inner = [path for path in folder.rglob("*") if path.is_dir()]
        flushes = [pool.submit(flush_to_disk, path) for path in (*(folder / path for path in paths), *inner)]
        digests = [pool.submit(compute_digest, folder / path) for path in paths]
        for done in flushes:
            done.result()
        return {
            path: {"bytes": (folder / path).stat().st_size, "digest": found.result()}
            for path, found in zip(paths, digests, strict=True)
        }


def flush_to_disk(path: Path) -> None:
    """fsync of a file or of a folder's entries. Raises OSError (a folder is skipped where it cannot be flushed)."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _list_files(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != MANIFEST:
            yield path.relative_to(folder).as_posix()


def write_manifest(folder: Path, facts: Mapping[str, Any], files: Mapping[str, Any]) -> dict[str, Any]:
    """Writes the manifest and flushes it; the last file of a checkpoint. Raises OSError."""
    body = {"schema": SCHEMA, **facts, "hash": HASH, "files": dict(files)}
    body = json.loads(json.dumps(body, default=str))
    body["seal"] = _compute_seal(body)
    path = folder / MANIFEST
    path.write_text(json.dumps(body, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    flush_to_disk(path)
    flush_to_disk(folder)
    return body


def mark_ruined(folder: Path, why: str) -> None:
    """Nothing is resumed from this checkpoint any more. Raises OSError and ManifestError."""
    body = read_manifest(folder)
    if body is not None:
        write_manifest(folder, {**body, "ruined": why}, body["files"])


def _compute_seal(body: Mapping[str, Any]) -> str:
    import xxhash

    text = json.dumps({k: v for k, v in body.items() if k != "seal"}, sort_keys=True, ensure_ascii=False)
    return xxhash.xxh3_128(text.encode()).hexdigest()


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest; None if there is none. Raises ManifestError."""
    path = folder / MANIFEST
    try:
        if not stat.S_ISREG(path.stat().st_mode) or path.stat().st_size > LARGEST:
            raise ManifestError(f"{MANIFEST} is no file of a checkpoint")
        body = json.loads(path.read_text(encoding="utf-8"))
        sealed = isinstance(body, dict) and body.get("seal") == _compute_seal(body)
    except FileNotFoundError:
        return None
    except RecursionError:
        raise ManifestError(f"{MANIFEST} cannot be read (nested too deeply)") from None
    except (OSError, ValueError) as problem:
        if isinstance(problem, ManifestError):
            raise
        raise ManifestError(f"{MANIFEST} cannot be read ({problem})") from problem
    if not sealed:
        raise ManifestError(f"{MANIFEST} has other content than was written")
    odd = next((key for key, kind in KINDS.items() if key in body and not _is(body[key], kind)), None)
    if odd is None and not all(
        _is(body["recipe"].get(key, kind()), kind) for key, kind in RECIPE.items() if "recipe" in body
    ):
        odd = "recipe"
    if odd is None and not _are_files(body.get("files")):
        odd = "files"
    if odd is not None:
        raise ManifestError(f"{MANIFEST} has no usable {odd}")
    found: dict[str, Any] = body
    return found


def _is(value: Any, kind: type) -> bool:
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63
    return isinstance(value, kind)


def _are_files(files: Any) -> bool:
    """Names inside the folder, each with its size and digest."""
    return isinstance(files, dict) and all(
        isinstance(one, dict)
        and _is(one.get("bytes"), int)
        and isinstance(one.get("digest"), str)
        and not (name.startswith("/") or ".." in PurePosixPath(name).parts or "\0" in name)
        for name, one in files.items()
    )


def find_errors(folder: Path, body: Mapping[str, Any], *, hashes: bool = True) -> Iterator[str]:
    """What is wrong with the checkpoint's files, each by its name. `hashes=False` looks at sizes only."""
    known = hashes and body.get("hash") == HASH
    for name, expected in body["files"].items():
        path = folder / name
        try:
            size = path.stat().st_size
            if not path.is_file() or size != expected["bytes"]:
                yield f"{name} has {size:,} of {expected['bytes']:,} bytes"
            elif known and compute_digest(path) != expected["digest"]:
                yield f"{name} has other content than was written"
        except FileNotFoundError:
            yield f"{name} is missing"
        except OSError as problem:
            yield f"{name} cannot be read ({problem.strerror})"


def total_bytes(body: Mapping[str, Any]) -> int:
    """Bytes of the checkpoint's files."""
    return sum(int(file["bytes"]) for file in body["files"].values())
