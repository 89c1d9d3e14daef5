"""One run a folder: a lock on a file in it, held for the life of the process and released by the kernel.

flock belongs to an open file: no other process can take it while that is open, and a process that is killed leaves
nothing to clean up. Forked workers close their copy, so that they cannot outlive the run with its lock; the supervisor
of `--restart` gives its open file to the run that it starts, so that the two hold one lock together. The file says who
holds it. A run that ends by itself removes it. Imports neither torch nor transformers.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from hf_recipes.common.environment import timestamp
from hf_recipes.errors import OutputDirError

try:
    import fcntl
except ImportError:  # Windows: no flock
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"  # in output_dir; a name with a dot is no checkpoint and is never pushed
INHERITED = "HF_RECIPES_LOCK"  # environment: the number of the open file that a supervisor gave this process
NOT_SUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
NO_RUN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR)  # of a folder where none can be
PATIENCE = 0.5  # seconds: whoever only asks whether a folder is in use holds its lock for a moment


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Who holds a lock, as its file says."""

    pid: int
    host: str
    command: str
    began: str
    launch: str = ""  # the same for all ranks of one launch

    def __str__(self) -> str:
        where = f" on {self.host}" if self.host != platform.node() else ""
        return f"process {self.pid}{where} ({self.command}, since {self.began})"


@dataclass(frozen=True, kw_only=True)
class FolderLock:
    """A lock that this process holds. `file`: its open file; None where the file system has no locks."""

    path: Path
    file: int | None
    shared: bool = False  # with the supervisor, who removes the file

    def sign(self) -> None:
        """Writes who holds it. A disk that is full has no room for this; the lock holds all the same."""
        if self.file is None:
            return
        with contextlib.suppress(OSError):
            os.ftruncate(self.file, 0)
            os.pwrite(self.file, (json.dumps(asdict(_this_process())) + "\n").encode(), 0)


_held: dict[tuple[int, int], int] = {}  # (device, inode) of a lock's file -> its open file
_locks: dict[str, FolderLock] = {}  # of hold_folder, by the folder's absolute path


def _forget_in_child() -> None:
    """A forked worker does not hold its parent's locks."""
    for file in _held.values():
        with contextlib.suppress(OSError):
            os.close(file)
    _held.clear()
    _locks.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)


@contextmanager
def hold_folder(
    folder: Path, where: str, say: Callable[[str], None] = print, *, for_writing: bool = True
) -> Iterator[FolderLock | None]:
    """Keeps every other run out of `folder`, which is made if it is missing. Raises OutputDirError, before anything is
    changed, if another process holds it, or if nothing can be written there.

    `for_writing=False`: None for a folder that is missing or cannot be written, since no run can be in it.
    `where`: of output_dir.
    """
    made = make_folder(folder, where) if for_writing else []
    try:
        lock = _acquire(folder, where, say)
    except OSError as problem:
        _remove_empty(made)
        if not for_writing and problem.errno in NO_RUN:
            yield None
            return
        raise _not_writable(folder, where, problem) from None
    except OutputDirError:
        _remove_empty(made)
        raise
    name = os.path.abspath(folder)
    if lock.file is not None:
        _locks[name] = lock
    try:
        yield lock
    finally:
        _release(_locks.pop(name, lock))
        _remove_empty(made)


def keep_folder(folder: Path, where: str, say: Callable[[str], None] = print) -> None:
    """Before this process writes into a folder that it holds: the lock is taken again where somebody removed it, or the
    whole folder, and made another. Raises OutputDirError if another run is in it by now, OSError if it is gone."""
    name = os.path.abspath(folder)
    lock = _locks.get(name)
    if lock is None or lock.file is None or _is_at(lock.file, lock.path):
        return
    _locks[name] = _acquire(folder, where, say)
    _release(lock)


def find_holder(folder: Path) -> Holder | None:
    """Who holds the lock of `folder` now; None if nobody does, or nobody can tell. Changes nothing."""
    try:
        file = os.open(folder / LOCK, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        if _key(file) in _held or not _is_locked(file):
            return None
        return _read(file) or Holder(pid=0, host=platform.node(), command="unknown", began="unknown")
    finally:
        os.close(file)


def refuse_other_launch(folder: Path, where: str) -> None:
    """For a rank that leaves the lock to rank 0. Raises OutputDirError if another launch holds it."""
    deadline = time.monotonic() + PATIENCE
    while (holder := find_holder(folder)) is not None and holder.launch != launch_id():
        if time.monotonic() > deadline:  # rank 0 may have locked the file and not yet signed it
            raise _in_use(folder, where, holder)
        time.sleep(PATIENCE / 10)


def launch_id(environment: Mapping[str, str] = os.environ) -> str:
    """What the ranks of one launch have in common; "" without a launcher."""
    if "WORLD_SIZE" not in environment:
        return ""
    names = ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")
    return ":".join(environment.get(name, "") for name in names)


def _acquire(folder: Path, where: str, say: Callable[[str], None]) -> FolderLock:
    """Raises OSError, and OutputDirError if another process holds it."""
    path = folder / LOCK
    inherited = _take_inherited(path)
    if inherited is not None:
        return inherited
    deadline = time.monotonic() + PATIENCE
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
        try:
            if _key(file) in _held:  # this process has it already: a push at the end of its run
                os.close(file)
                return FolderLock(path=path, file=None)
            if fcntl is None:
                raise OSError(errno.ENOSYS, "no flock on this platform")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(file, path):
                break
            os.close(file)  # its holder removed it in this moment: the next one is another file
        except BlockingIOError:
            holder = _read(file)
            os.close(file)
            if time.monotonic() > deadline:
                raise _in_use(folder, where, holder) from None
            time.sleep(PATIENCE / 20)
        except OSError as problem:
            os.close(file)
            if problem.errno not in NOT_SUPPORTED:
                raise
            say(
                f"warning: {where}: the file system of {str(folder)!r} has no locks ({problem.strerror}): nothing "
                "keeps a second run out of it"
            )
            return FolderLock(path=path, file=None)
    _held[_key(file)] = file
    earlier = _read(file)
    if earlier is not None and earlier.host != platform.node():
        say(
            f"warning: {where}: {str(path)!r} was left by {earlier}: that run was killed, or it is still running on a "
            "disk whose locks do not reach this machine; make sure that it has ended"
        )
    lock = FolderLock(path=path, file=file)
    lock.sign()
    return lock


def _take_inherited(path: Path) -> FolderLock | None:
    """The supervisor's open file, if it is this folder's."""
    text = os.environ.pop(INHERITED, "")
    if not text.isdigit():
        return None
    file = int(text)
    try:
        os.set_inheritable(file, False)
        if not _is_at(file, path):
            return None
    except OSError:
        return None
    _held[_key(file)] = file
    lock = FolderLock(path=path, file=file, shared=True)
    lock.sign()
    return lock


def _release(lock: FolderLock) -> None:
    if lock.file is None or _held.pop(_key_of_open(lock.file), None) is None:
        return
    if not lock.shared:
        with contextlib.suppress(OSError):
            if _is_at(lock.file, lock.path):  # not where the folder was moved meanwhile
                lock.path.unlink()
    os.close(lock.file)


def _is_locked(file: int) -> bool:
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    fcntl.flock(file, fcntl.LOCK_UN)
    return False


def _key(file: int) -> tuple[int, int]:
    found = os.fstat(file)
    return found.st_dev, found.st_ino


def _key_of_open(file: int) -> tuple[int, int]:
    return next((key for key, other in _held.items() if other == file), (0, 0))


def _is_at(file: int, path: Path) -> bool:
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == _key(file)


def _read(file: int) -> Holder | None:
    try:
        return Holder(**json.loads(os.pread(file, 4096, 0)))
    except (OSError, ValueError, TypeError):
        return None


def _this_process() -> Holder:
    """Without the values of overrides, which may be anything: a token, too."""
    program = os.path.basename(sys.argv[0]) if sys.argv and sys.argv[0] else "python"
    program = {"__main__.py": "hf-recipes", "run.py": "hf-recipes run"}.get(program, program)
    words = [word if "=" not in word else f"{word.partition('=')[0]}=..." for word in sys.argv[1:]]
    command = f"{program} {shlex.join(words)}".strip()[:500]
    return Holder(pid=os.getpid(), host=platform.node(), command=command, began=timestamp(), launch=launch_id())


def _in_use(folder: Path, where: str, holder: Holder | None) -> OutputDirError:
    stop = f"stop it (kill {holder.pid})" if holder is not None and holder.host == platform.node() else "stop it"
    what = f"{str(folder)!r} is in use by {holder or 'another process'}"
    return OutputDirError.at(where, what, f"wait until it ends, or {stop}")


def make_folder(folder: Path, where: str) -> list[Path]:
    """Makes the folder; the folders that were missing, innermost first."""
    try:
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise _not_writable(folder, where, problem) from None
    return missing


def _remove_empty(made: list[Path]) -> None:
    """A run that is refused leaves no empty folder."""
    for path in made:
        try:
            path.rmdir()
        except OSError:
            return


def _not_writable(folder: Path, where: str, problem: OSError) -> OutputDirError:
    files = [str(part) for part in (folder, *folder.parents) if part.is_file()]
    why = f"{files[0]!r} is a file" if files else problem.strerror
    return OutputDirError.at(where, f"output_dir {str(folder)!r} is not writable ({why})", "choose another")
