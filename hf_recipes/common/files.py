"""Text files that are complete or absent, whenever the process is killed. Imports neither torch nor transformers."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from pathlib import Path


def identify(path: Path) -> tuple[int, ...]:
    """Equal as long as nobody writes the file again; () where there is none. No clock is asked."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def put(path: Path, text: str) -> Path:
    """Writes UTF-8 text beside the file and renames it into place; returns the path. Raises OSError that names it."""
    draft = path.with_name(f"{path.name}.part")
    try:
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, path)
    except OSError as problem:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise type(problem)(problem.errno, problem.strerror, str(path)) from problem
    return path


def remove(path: Path) -> None:
    """A file, a link or a folder with what is in it, as far as it can be removed; nothing if none is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def put_output(path: str, text: str) -> None:
    """`put` of a file that a user names: through a symbolic link, and to a device such as /dev/stdout as it is. Raises
    OSError."""
    real = Path(os.path.realpath(path))
    if real.exists() and not real.is_file():
        real.write_text(text, encoding="utf-8")
    else:
        put(real, text)


def describe_special_file(path: str | Path) -> str:
    """ "is a pipe (FIFO), not a file", ...: what a path is that is neither a file nor a folder, or why nothing
    can; "" for a file, a folder, and a path where nothing is. Nothing is opened: a FIFO would block."""
    try:
        mode = os.stat(path).st_mode
    except ValueError:
        return "is not a path"
    except OSError as problem:
        if problem.errno == errno.ELOOP:
            return "is a symbolic link that leads back to itself"
        if problem.errno == errno.ENAMETOOLONG:
            return "is longer than a path may be"
        return "is a symbolic link to a file that is not there" if os.path.islink(path) else ""
    kinds = {
        stat.S_IFIFO: "is a pipe (FIFO), not a file",
        stat.S_IFCHR: "is a device, not a file",
        stat.S_IFBLK: "is a device, not a file",
        stat.S_IFSOCK: "is a socket, not a file",
    }
    return kinds.get(stat.S_IFMT(mode), "")
