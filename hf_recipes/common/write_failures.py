"""Why a file could not be written, in plain words: a full disk, no inodes, a limit, a folder that is gone or read-only.

safetensors, tokenizers and Arrow put the operating system's number into their messages; torch.save says only that a
write failed: then the folder is asked. Imports neither torch nor transformers.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hf_recipes.common.text import first_line, format_bytes

RESERVE = 2**20  # bytes below which a disk is full to torch.save
FULL = (errno.ENOSPC, errno.EDQUOT)
GONE = (errno.ENOENT, errno.ENOTDIR)
FORBIDDEN = (errno.EACCES, errno.EPERM)
BROKEN = tuple(
    getattr(errno, name)
    for name in ("EIO", "ESTALE", "ENOTCONN", "EHOSTDOWN", "ETIMEDOUT", "ENODEV", "ENXIO", "EREMOTEIO")
    if hasattr(errno, name)
)
IN_WORDS = {  # what libraries write without a number
    "No space left on device": errno.ENOSPC,
    "Disk quota exceeded": errno.EDQUOT,
    "File too large": errno.EFBIG,
    "Read-only file system": errno.EROFS,
}
NUMBER = re.compile(r"(?:os error|[Ee]rrno) (\d+)")
TORCH_SAVE = re.compile(  # how torch.save reports any failure of a disk
    r"write|unexpected pos \d+ vs|iostream error|Parent directory .* does not exist|inline_container|file in archive"
)
SHARED_MEMORY = re.compile(r"out of shared memory|shared memory\(shm\)|</?torch_\d+")
LOST_WORKER = re.compile(r"DataLoader worker .*(exited unexpectedly|Bus error)")
SHARED = Path("/dev/shm")
CACHES = {"HF_DATASETS_CACHE": "datasets", "HF_HUB_CACHE": "hub", "HF_MODULES_CACHE": "modules"}  # below HF_HOME


@dataclass(frozen=True, kw_only=True)
class WriteFailure:
    """`what` follows the name of a file or folder: "the disk is full"."""

    what: str
    fix: str


def find_failure(problem: BaseException, folder: Path) -> WriteFailure | None:
    """Why something in `folder` could not be written; None for a problem of another kind."""
    number = next(filter(None, map(_number_of, chain_of(problem))), None)
    unwritten = next(filter(_is_failed_write, chain_of(problem)), None) if number is None else None
    if unwritten is not None:
        number = _ask(folder)
        if number is None and "write" not in str(unwritten):
            what = f"a file could not be written completely ({first_line(unwritten)})"
            return WriteFailure(what=what, fix="check the disk and its limits")
    if number in FULL:
        if _has_no_inodes(folder):
            return WriteFailure(what="its disk has no inodes left (df -i)", fix="remove some files there")
        if number == errno.EDQUOT:
            return WriteFailure(what="the disk quota is used up", fix="make room there")
        return WriteFailure(what="its disk is full", fix="make room there")
    if number == errno.EFBIG:
        limit = _file_limit()
        size = f" than {format_bytes(limit)}" if limit is not None else ""
        return WriteFailure(what=f"no file may be larger{size} here (ulimit -f)", fix="raise that limit")
    if number == errno.EROFS:
        return WriteFailure(what="its disk is read-only", fix="make it writable again")
    if number in FORBIDDEN:
        return WriteFailure(what="this user may not write there (any more)", fix="give it back the right to write")
    if number in GONE and not _is_there(folder):
        return WriteFailure(what="the folder is gone: moved, removed or unmounted", fix="put it back")
    if number in BROKEN:
        return WriteFailure(what=f"its disk fails ({os.strerror(number or 0)})", fix="check the disk or its connection")
    return None


def find_shared_memory_failure(problem: BaseException) -> WriteFailure | None:
    """Whether a loader's workers had no room for a batch in /dev/shm, which containers make small."""
    chain = chain_of(problem)
    lost = any(LOST_WORKER.search(str(each)) for each in chain) and _is_nearly_full(SHARED)
    if not lost and not any(SHARED_MEMORY.search(str(each)) or _is_semaphore(each) for each in chain):
        return None
    size = ""
    with contextlib.suppress(OSError):
        size = f", of {format_bytes(shutil.disk_usage(SHARED).total)},"
    what = f"the loader's workers pass batches through {SHARED}{size} and it is full"
    fix = "set dataloader_num_workers: 0, or give the container more (docker run --shm-size)"
    return WriteFailure(what=what, fix=fix)


def find_cache_failure(
    problem: BaseException, *, loading: bool = False, cache_dir: str | None = None
) -> tuple[str, WriteFailure] | None:
    """The cache of Hugging Face's libraries that could not be written: its name and folder, and why.

    `loading`: data, which Arrow writes into the first cache, and names no file where the disk is full. What it has
    written is removed before anybody can ask for the room on that disk. `cache_dir`: what load_dataset was given.
    """
    caches = [*([("dataset.cache_dir", _absolute(cache_dir))] if cache_dir else []), *list_caches()]
    for each in chain_of(problem):
        if not isinstance(each, OSError):
            continue
        for nth, (variable, folder) in enumerate(caches):
            names = [str(name) for name in (each.filename, each.filename2) if name]
            within = any(Path(name).is_relative_to(folder) or folder.is_relative_to(name) for name in names)
            of_arrow = loading and nth == 0 and each.errno in (*FULL, errno.EFBIG)
            mentioned = not names and (of_arrow or str(folder) in str(each))
            if not within and not mentioned:
                continue
            failure = find_failure(each, folder)
            if each.errno in (*GONE, errno.EEXIST):
                failure = WriteFailure(what="it is not a folder and cannot be made one", fix="name another folder")
            if failure is not None:
                return f"{variable} ({folder})", failure
    return None


def list_caches() -> Iterator[tuple[str, Path]]:
    """(variable, folder) of each cache, as the libraries find them."""
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    for variable, name in CACHES.items():
        own = os.environ.get(variable)
        yield (variable, _absolute(own)) if own else ("HF_HOME", _absolute(os.path.join(home, name)))


def chain_of(problem: BaseException) -> list[BaseException]:
    """A problem and what it was raised from or during, latest first."""
    found: list[BaseException] = []
    following: list[BaseException | None] = [problem]
    while following:
        one = following.pop(0)
        if one is not None and not any(one is each for each in found):
            found.append(one)
            following += [one.__cause__, one.__context__]
    return found


def _number_of(problem: BaseException) -> int | None:
    if isinstance(problem, OSError) and problem.errno:
        return problem.errno
    text = str(problem)
    found = NUMBER.search(text)
    return int(found[1]) if found else next((number for words, number in IN_WORDS.items() if words in text), None)


def _is_failed_write(problem: BaseException) -> bool:
    return isinstance(problem, RuntimeError) and TORCH_SAVE.search(str(problem)) is not None


def _ask(folder: Path) -> int | None:
    """Why a write failed, by the state of the folder."""
    if not _is_there(folder):
        return errno.ENOENT
    with contextlib.suppress(OSError):
        if shutil.disk_usage(folder).free < RESERVE:
            return errno.ENOSPC
    if not os.access(folder, os.W_OK):
        return errno.EROFS
    return errno.EFBIG if _file_limit() is not None else None


def _is_semaphore(problem: BaseException) -> bool:
    """Whether multiprocessing had no room for a lock."""
    if not isinstance(problem, OSError) or problem.errno not in FULL or problem.filename:
        return False
    last = problem.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return last is not None and "multiprocessing" in last.tb_frame.f_code.co_filename


def _is_nearly_full(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        return shutil.disk_usage(folder).free < RESERVE
    return False


def _is_there(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        return folder.is_dir()
    return False


def _has_no_inodes(folder: Path) -> bool:
    with contextlib.suppress(OSError, AttributeError):
        facts = os.statvfs(folder)
        return facts.f_files > 0 and facts.f_favail == 0 and facts.f_bavail * facts.f_frsize >= RESERVE
    return False


def _file_limit() -> int | None:
    """Bytes of the largest file that this process may write; None without a limit."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return None if limit == resource.RLIM_INFINITY else limit


def _absolute(path: str) -> Path:
    return Path(os.path.abspath(os.path.expanduser(os.path.expandvars(path))))
