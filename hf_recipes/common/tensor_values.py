"""What a checkpoint's files hold: numbers that are not finite, and code where there should be tensors.

Nothing of a file is run: a pickle's names are read and stand for nothing. Imports neither torch nor transformers.
"""

from __future__ import annotations

import json
import pickle
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

HEADER_BYTES = 100_000_000  # of a safetensors file, as its own reader allows
PICKLE_BYTES = 2**28  # of the part of a torch file that is no tensor
READ_BYTES = 2**24  # at a time
LARGEST_WEIGHT = 2.0**60  # about 1e18: no model has such weights, and their products are not finite
# Of each kind of number, as integers: the bits of the exponent (all are set where it is not finite), and those of
# LARGEST_WEIGHT.
EXPONENTS = {
    "F64": ("<u8", 0x7FF << 52, (1023 + 60) << 52),
    "F32": ("<u4", 0xFF << 23, (127 + 60) << 23),
    "F16": ("<u2", 0x1F << 10, 0x1F << 10),
    "BF16": ("<u2", 0xFF << 7, (127 + 60) << 7),
}
STORAGES = {"DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16"}
# Packages whose names stand in optimizer, schedule and random states. torch has its own list of what it loads.
TENSOR_PACKAGES = ("torch", "torchao", "numpy", "collections", "_codecs", "bitsandbytes", "transformers", "accelerate")


class ValuesError(ValueError):
    """A file that holds something else than it should; the message says what."""


def is_regular_file(path: Path) -> bool:
    """Whether reading it ends: no FIFO, no device. Follows symbolic links."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


def read_safetensors_header(path: Path) -> tuple[dict[str, Any], int]:
    """The tensors by name and where their bytes begin. Raises ValuesError and OSError."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > HEADER_BYTES:
            raise ValuesError("its header is too long")
        text = file.read(length)
    try:
        header = json.loads(text)
        tensors = {name: one for name, one in header.items() if name != "__metadata__"}
        for one in tensors.values():
            begin, end = one["data_offsets"]
            if not (isinstance(begin, int) and isinstance(end, int) and 0 <= begin <= end):
                raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValuesError("its header cannot be read") from None
    return tensors, 8 + length


def count_in_safetensors(path: Path) -> tuple[int, int]:
    """Weights that are not finite, and those that are above LARGEST_WEIGHT. Raises ValuesError and OSError."""
    tensors, start = read_safetensors_header(path)
    lost = above = 0
    with open(path, "rb") as file:
        for one in tensors.values():
            kind, (begin, end) = one.get("dtype"), one["data_offsets"]
            if kind in EXPONENTS:
                file.seek(start + begin)
                counts = _count(file, end - begin, kind)
                lost, above = lost + counts[0], above + counts[1]
    return lost, above


def describe_lost(lost: int, above: int) -> str:
    """ "80,579 weights are not finite"; "" where there are none."""
    if lost:
        return f"{lost:,} weights are not finite"
    return f"{above:,} weights are above 1e18" if above else ""


def count_in_torch_file(path: Path) -> int:
    """Numbers that are not finite, of a file of torch.save. Raises ValuesError and OSError."""
    found = 0
    with _opened(path) as archive:
        folder = _find_pickle(archive).removesuffix("data.pkl")
        for kind, key in _read_storages(archive):
            name = f"{folder}data/{key}"
            if kind in STORAGES:
                try:
                    with archive.open(name) as data:
                        found += _count(data, archive.getinfo(name).file_size, STORAGES[kind])[0]
                except (KeyError, zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError) as problem:
                    raise ValuesError(f"it lacks a tensor ({problem})") from None
    return found


def find_error_in_torch_file(path: Path) -> str | None:
    """Why a file is no file of tensors and numbers; None if it looks like one."""
    try:
        with _opened(path) as archive:
            _read_storages(archive)
    except ValuesError as problem:
        return f"{path.name} {problem}"
    except OSError as problem:
        return f"{path.name} cannot be read ({problem.strerror})"
    return None


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError):
        raise ValuesError("is no file of torch.save") from None


def _find_pickle(archive: zipfile.ZipFile) -> str:
    found = [name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(found) != 1:
        raise ValuesError("is no file of torch.save")
    return found[0]


def _read_storages(archive: zipfile.ZipFile) -> list[tuple[str, str]]:
    """Type and name of each tensor's storage."""
    name = _find_pickle(archive)
    if archive.getinfo(name).file_size > PICKLE_BYTES:
        raise ValuesError("is too large for a state")
    try:
        with archive.open(name) as file:
            reader = _NamesOnly(file)
            reader.load()
    except ValuesError:
        raise
    except Exception as problem:  # a pickle can be wrong in any way
        raise ValuesError(f"is damaged ({type(problem).__name__})") from None
    return reader.storages


class _Nothing:
    """Stands for whatever a pickle names: takes everything, does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> _Nothing:
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def take(self, *args: Any) -> None:
        pass

    __setstate__ = __setitem__ = append = extend = add = take


class _NamesOnly(pickle._Unpickler):  # in Python: the C version would make room for any memo index that a file names
    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)
        self.storages: list[tuple[str, str]] = []

    def find_class(self, module: str, name: str) -> Any:
        if str(module).partition(".")[0] not in TENSOR_PACKAGES:
            raise ValuesError(f"holds code ({module}.{name}), which is not run")
        return type(str(name), (_Nothing,), {})

    def persistent_load(self, pid: Any) -> Any:
        kind, key = getattr(pid[1], "__name__", ""), str(pid[2])
        self.storages.append((kind, key))
        return _Nothing()


def _count(file: IO[bytes], length: int, kind: str) -> tuple[int, int]:
    """Numbers that are not finite, and other ones above LARGEST_WEIGHT."""
    import numpy as np

    form, bits, large = EXPONENTS[kind]
    size, lost, above = int(form[-1]), 0, 0
    for piece in _pieces(file, length - length % size):
        numbers = np.frombuffer(piece[: len(piece) - len(piece) % size], form)
        exponents = numbers & numbers.dtype.type(bits)
        lost += int(np.count_nonzero(exponents == bits))
        above += int(np.count_nonzero(exponents >= large))
    return lost, above - lost


def _pieces(file: IO[bytes], length: int) -> Iterator[bytes]:
    while length > 0 and (piece := file.read(min(length, READ_BYTES))):
        length -= len(piece)
        yield piece
