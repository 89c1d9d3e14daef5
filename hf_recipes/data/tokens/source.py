"""The rows of a split as they are loaded, read in units of about the same size, and what they contain as one digest."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_recipes.common.files import put

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset

UNIT = 2**23  # bytes of text, at most, that are tokenized at once, and lost when the process is killed
LEAST, SHARES = 2**20, 64  # less text in 64 shares, of a megabyte or more: the processes then end together


class IdError(Exception):
    """What is wrong with a column of token ids."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns of a split that are read."""

    rows: Dataset
    names: tuple[str, ...]

    @cached_property
    def size(self) -> int:
        """Bytes of their values, estimated by those of the table."""
        values = [self.rows.data.column(name) for name in self.names]
        return sum(int(one.nbytes * self.rows.num_rows / max(1, len(one))) for one in values)

    @cached_property
    def rows_of_unit(self) -> int:
        unit = min(UNIT, max(LEAST, self.size // SHARES))
        return max(1, self.rows.num_rows * unit // max(1, self.size))

    @property
    def units(self) -> int:
        return -(-self.rows.num_rows // self.rows_of_unit)

    def arrays(self, unit: int) -> list[Any]:
        """An Arrow array of the unit's values for each column."""
        import pyarrow as pa

        begin = unit * self.rows_of_unit
        rows = self._tables[begin : begin + self.rows_of_unit]
        columns = [rows.column(name) for name in self.names]
        return [pa.concat_arrays(one.chunks) if one.num_chunks != 1 else one.chunk(0) for one in columns]

    def beginnings(self, rows: int, characters: int) -> list[str]:
        """The first characters of the first texts, without the empty ones; a long text is not read as a whole."""
        import pyarrow as pa
        import pyarrow.compute as compute

        column = self._tables[:rows].column(self.names[0])
        if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            column = column.cast(pa.large_string())  # all texts are missing, or lie in views
        return [text for text in compute.utf8_slice_codeunits(column, 0, characters).to_pylist() if text]

    def values(self, unit: int) -> tuple[int, dict[str, list[Any]]]:
        """The number of the unit's first row, and the values of each column as `datasets` gives them."""
        begin = unit * self.rows_of_unit
        return begin, self._selected[begin : begin + self.rows_of_unit]

    @cached_property
    def _selected(self) -> Dataset:
        return self.rows.select_columns(list(self.names))

    @cached_property
    def _tables(self) -> Dataset:
        return self._selected.with_format("arrow")

    def digest(self) -> str:
        """BLAKE2b-128 of the values in order, whatever files and batches they lie in."""
        found = [blake2b(digest_size=16) for _ in (*self.names, "contents")]
        for unit in range(self.units):
            for lengths, values in zip(found, self.arrays(unit), strict=False):
                for one, content in _contents(values):
                    lengths.update(one)
                    found[-1].update(content)
        whole = blake2b(json.dumps(self.names).encode() if len(self.names) > 1 else b"", digest_size=16)
        for digest in found:
            whole.update(digest.digest())
        return whole.hexdigest()

    def known_digest(self, folder: Path) -> str:
        """The digest, read from `folder` if the same files gave these rows before."""
        files = [one["filename"] for one in self.rows.cache_files]
        if not files:
            return self.digest()
        facts = [self.rows._fingerprint, *self.names, *([name, *file_state(name)] for name in files)]
        path = folder / f"{blake2b(json.dumps(facts).encode(), digest_size=16).hexdigest()}.txt"
        with contextlib.suppress(OSError):
            found = path.read_text(encoding="utf-8")
            if len(found) == 32:
                return found
        found = self.digest()
        folder.mkdir(parents=True, exist_ok=True)
        put(path, found)
        return found


def file_state(name: str | Path) -> list[int]:
    """Of a file; whoever writes into it changes one of these, and cannot set the last one back."""
    found = os.stat(name)
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _contents(values: Any) -> Iterator[tuple[bytes, Any]]:
    """(lengths, values) of texts, numbers, and lists and mappings of them, one after the other, so that units joined
    are as one; the length of a missing value is -1."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as compute

    values = values.storage if isinstance(values, pa.ExtensionArray) else values
    kind = values.type
    here = np.where(values.is_null().to_numpy(zero_copy_only=False), -1, 1).astype(np.int64)
    if pa.types.is_null(kind):
        yield here.tobytes(), b""
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        lengths = compute.fill_null(compute.binary_length(values).cast(pa.int64()), -1)
        whole = compute.fill_null(values.cast(pa.large_string()), "")
        buffer = whole.buffers()[2]
        ends = np.frombuffer(whole.buffers()[1], np.int64)[whole.offset : whole.offset + len(whole) + 1]
        yield lengths.to_numpy().tobytes(), memoryview(buffer or b"")[ends[0] : ends[-1]] if len(whole) else b""
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        lengths = compute.fill_null(compute.list_value_length(values).cast(pa.int64()), -1)
        yield str(len(values)).encode() + lengths.to_numpy().tobytes(), b""
        yield from _contents(values.flatten())
    elif pa.types.is_struct(kind):
        yield f"{len(values)}{kind}".encode() + here.tobytes(), b""
        for child in values.flatten():
            yield from _contents(child)
    elif pa.types.is_integer(kind):
        yield here.tobytes(), compute.fill_null(values, 0).cast(pa.int64(), safe=False).to_numpy().tobytes()
    else:
        yield here.tobytes() + str(kind).encode(), repr(values.to_pylist()).encode()


def flat_ids(values: Any) -> np.ndarray:
    """The ids of an array of lists, one after the other."""
    import numpy as np
    import pyarrow as pa

    flat = values.flatten()
    if pa.types.is_floating(flat.type) or flat.null_count:
        raise IdError("has a list of token ids with a value that is no id")
    found: np.ndarray = flat.cast(pa.int64()).to_numpy(zero_copy_only=False).astype(np.int64, copy=False)
    return found
