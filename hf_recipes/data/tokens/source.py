"""The rows of a split as they are loaded, read in units of about the same size, and what they contain as one digest."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_recipes.common.files import put

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset

UNIT = 2**23  # bytes of text that are tokenized at once, and lost when the process is killed


class IdError(Exception):
    """What is wrong with a column of token ids."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of a split: texts, or lists of token ids."""

    rows: Dataset
    name: str

    @property
    def size(self) -> int:
        """Bytes of its values, estimated by those of the table."""
        values = self.rows.data.column(self.name)
        return int(values.nbytes * self.rows.num_rows / max(1, len(values)))

    @property
    def rows_of_unit(self) -> int:
        return max(1, self.rows.num_rows * UNIT // max(1, self.size))

    @property
    def units(self) -> int:
        return -(-self.rows.num_rows // self.rows_of_unit)

    def read(self, unit: int) -> Any:
        """An Arrow array of the unit's values."""
        import pyarrow as pa

        begin = unit * self.rows_of_unit
        rows = self.rows.select_columns([self.name]).with_format("arrow")
        values = rows[begin : begin + self.rows_of_unit].column(0)
        return pa.concat_arrays(values.chunks) if values.num_chunks != 1 else values.chunk(0)

    def digest(self) -> str:
        """BLAKE2b-128 of the values in order, whatever files and batches they lie in."""
        lengths, contents = blake2b(digest_size=16), blake2b(digest_size=16)
        for unit in range(self.units):
            for one, content in _contents(self.read(unit)):
                lengths.update(one)
                contents.update(content)
        lengths.update(contents.digest())
        return lengths.hexdigest()

    def known_digest(self, folder: Path) -> str:
        """The digest, read from `folder` if the same files gave these rows before."""
        files = [one["filename"] for one in self.rows.cache_files]
        if not files:
            return self.digest()
        facts = [self.rows._fingerprint, self.name, *([name, *file_state(name)] for name in files)]
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
    """(lengths, values) of texts or of lists of ids; the length of a missing one is -1."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as compute

    if pa.types.is_null(values.type):
        yield np.full(len(values), -1, np.int64).tobytes(), b""
        return
    texts = not pa.types.is_nested(values.type)
    measure = compute.binary_length if texts else compute.list_value_length
    lengths = compute.fill_null(measure(values).cast(pa.int64()), -1)
    if texts:
        whole = compute.fill_null(values.cast(pa.large_string()), "")
        buffer = whole.buffers()[2]
        ends = np.frombuffer(whole.buffers()[1], np.int64)[whole.offset : whole.offset + len(whole) + 1]
        yield lengths.to_numpy().tobytes(), memoryview(buffer or b"")[ends[0] : ends[-1]] if len(whole) else b""
        return
    yield lengths.to_numpy().tobytes(), flat_ids(values).tobytes()


def flat_ids(values: Any) -> np.ndarray:
    """The ids of an array of lists, one after the other."""
    import numpy as np
    import pyarrow as pa

    flat = values.flatten()
    if pa.types.is_floating(flat.type) or flat.null_count:
        raise IdError("has a list of token ids with a value that is no id")
    found: np.ndarray = flat.cast(pa.int64()).to_numpy(zero_copy_only=False).astype(np.int64, copy=False)
    return found
