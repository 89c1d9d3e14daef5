"""Documents of tokens to rows on disk: Arrow files that `datasets` maps into memory, and an index with the place of
every array in them, so that NumPy can read them alone (docs/data.md).

A folder of rows is complete or absent. What is in it is read again only while each file is what was written: the same
file by its inode, size and times, or else by its BLAKE2b.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_recipes.common.files import put, remove
from hf_recipes.data.row_ids import row_ids
from hf_recipes.data.tokens.encode import Documents, join
from hf_recipes.data.tokens.source import file_state

if TYPE_CHECKING:
    from datasets import Dataset

INDEX = "index.json"
FILE_BYTES = 2**29  # of one Arrow file
BYTES, IDS = "bytes.npy", "ids.npy"  # of rows that are evaluated


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How documents become rows. `join`: all documents of a group in one stream, else each on its own; `drop`: what
    does not fill a row is left out; `at_once`: tokens that
    make a group."""

    max_length: int
    join: bool
    drop: bool
    at_once: int


@dataclass(frozen=True, kw_only=True)
class Counts:
    documents: int
    empty: int
    tokens: int


@dataclass(frozen=True, kw_only=True)
class StoredRows:
    """`data` has `input_ids` and `labels`; `counts`: what was counted when they were made. `row_bytes` and `ids`: of
    rows that are evaluated, else empty."""

    folder: Path
    data: Dataset
    counts: Mapping[str, int]
    tokens: int
    row_bytes: list[int]
    ids: list[str]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows that are written at once: `lengths` of them, and of each column the values of all rows."""

    lengths: np.ndarray
    columns: Mapping[str, np.ndarray]


def write_documents(
    folder: Path, parts: Iterable[Documents], counts: Counts, cut: Cut, dtype: str, sized: bool
) -> None:
    """Documents cut into rows. Makes `folder`, which holds no row if no document fills one. Raises OSError."""
    sizes: list[np.ndarray] = []

    def batches() -> Iterator[Batch]:
        for documents in grouped(parts, cut.at_once):
            lengths, ids, row_bytes = cut_rows(documents, cut)
            sizes.append(row_bytes)
            yield Batch(lengths=lengths, columns={"input_ids": ids})

    def more(rows: Dataset | None) -> dict[str, np.ndarray]:
        if not sized:
            return {}
        names = row_ids(rows, ["input_ids"]) if rows else []
        return {BYTES: join(sizes, "int64"), IDS: np.array(names, dtype="S32")}

    write_rows(folder, batches(), {"input_ids": dtype}, asdict(counts), more)


def write_rows(
    folder: Path,
    batches: Iterable[Batch],
    dtypes: Mapping[str, str],
    counts: Mapping[str, int],
    more: Callable[[Dataset | None], Mapping[str, np.ndarray]],
) -> None:
    """`dtypes` of the columns; `more`: names of files to what is stored of all rows beside them. Raises OSError."""
    from datasets import DatasetInfo, Features, load_from_disk

    draft = folder.with_name(f"{folder.name}.part")
    remove(draft)
    draft.mkdir(parents=True)
    writer = _Writer(draft, dtypes)
    tokens = 0
    for batch in batches:
        if len(batch.lengths):
            writer.write(batch)
        tokens += int(batch.lengths.sum())
    files = writer.close()
    state: dict[str, Any] = {
        "_data_files": [{"filename": name} for name in files],
        "_fingerprint": folder.parent.name,
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }  # as Dataset.save_to_disk writes it
    put(draft / "state.json", json.dumps(state, indent=1))
    DatasetInfo(features=Features.from_arrow_schema(writer.schema)).write_to_directory(str(draft))
    for name, values in more(load_from_disk(str(draft), keep_in_memory=False) if files else None).items():
        np.save(draft / name, values)
    index = {
        "key": folder.parent.name,
        "dtype": dtypes["input_ids"],
        "rows": writer.rows,
        "tokens": tokens,
        "counts": counts,
        "files": {name: _places(draft / name) for name in files},
        "state": {one.name: [digest_file(one), *file_state(one)] for one in sorted(draft.iterdir())},
    }
    put(draft / INDEX, json.dumps({**index, "digest": _digest_of(index)}, indent=1))
    remove(folder)
    os.replace(draft, folder)


def read_rows(folder: Path) -> StoredRows | None:
    """None for a folder that is missing, damaged, or not what was written."""
    from datasets import Dataset, concatenate_datasets, load_from_disk

    index = _read_index(folder)
    if index is None:
        return None
    if not index["rows"]:
        data = Dataset.from_dict({"input_ids": [], "labels": []})
    else:
        data = load_from_disk(str(folder), keep_in_memory=False)
        if "labels" not in data.column_names:  # the same numbers in the same place of the disk
            data = concatenate_datasets([data, data.rename_column("input_ids", "labels")], axis=1)
    sized = (folder / BYTES).exists()
    return StoredRows(
        folder=folder,
        data=data,
        counts=index["counts"],
        tokens=index["tokens"],
        row_bytes=np.load(folder / BYTES).tolist() if sized else [],
        ids=[one.decode() for one in np.load(folder / IDS).tolist()] if sized else [],
    )


def _read_index(folder: Path) -> dict[str, Any] | None:
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        if index.pop("digest") != _digest_of(index) or index["key"] != folder.parent.name:
            return None
        moved = {name: one for name, one in index["state"].items() if one[1:] != file_state(folder / name)}
        if any(digest_file(folder / name) != one[0] for name, one in moved.items()):
            return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if moved:  # copied from elsewhere: what was read once is not read again
        index["state"] |= {name: [one[0], *file_state(folder / name)] for name, one in moved.items()}
        with contextlib.suppress(OSError):  # a store that may only be read
            put(folder / INDEX, json.dumps({**index, "digest": _digest_of(index)}, indent=1))
    found: dict[str, Any] = index
    return found


def _digest_of(index: dict[str, Any]) -> str:
    return blake2b(json.dumps(index, sort_keys=True).encode(), digest_size=16).hexdigest()


def digest_file(path: Path) -> str:
    digest = blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


# cutting --------------------------------------------------------------------------------------------------------------


def grouped(parts: Iterable[Documents], tokens: int) -> Iterator[Documents]:
    """The same documents in groups that end with the document that brings them to so many tokens."""
    waiting: Documents | None = None
    for part in parts:
        waiting = part if waiting is None else _concatenate(waiting, part)
        ends, begin, at = waiting.lengths.cumsum(), 0, 0
        while (last := int(np.searchsorted(ends, at + tokens))) < len(ends):
            yield _slice(waiting, begin, last + 1, at, int(ends[last]))
            begin, at = last + 1, int(ends[last])
        waiting = _slice(waiting, begin, len(ends), at, len(waiting.ids))
    if waiting is not None and len(waiting.lengths):
        yield waiting


def _slice(documents: Documents, begin: int, end: int, first: int, last: int) -> Documents:
    """`begin`, `end`: of the documents; `first`, `last`: of their tokens."""
    return Documents(
        ids=documents.ids[first:last], lengths=documents.lengths[begin:end], sizes=documents.sizes[first:last]
    )


def _concatenate(first: Documents, second: Documents) -> Documents:
    return Documents(
        ids=np.concatenate([first.ids, second.ids]),
        lengths=np.concatenate([first.lengths, second.lengths]),
        sizes=np.concatenate([first.sizes, second.sizes]),
    )


def cut_rows(documents: Documents, cut: Cut) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(tokens of each row, the ids of all rows, bytes that each row predicts: those of all its tokens but the first).

    A stream is cut every `max_length` tokens. A single token predicts nothing and is left out.
    """
    streams = documents.lengths.sum(keepdims=True) if cut.join else documents.lengths
    pieces = -(-streams // cut.max_length)
    nth = np.arange(pieces.sum()) - np.repeat(pieces.cumsum() - pieces, pieces)
    starts = np.repeat(streams.cumsum() - streams, pieces) + nth * cut.max_length
    ends = np.minimum(starts + cut.max_length, np.repeat(streams.cumsum(), pieces))
    lengths = ends - starts
    used = lengths == cut.max_length
    if not cut.drop:
        used |= lengths > 1
    ids = documents.ids if used.all() else documents.ids[np.repeat(used, lengths)]
    if not len(documents.sizes):
        return lengths[used], ids, np.empty(0, np.int64)
    before = np.concatenate([[0], documents.sizes.cumsum(dtype=np.int64)])
    return lengths[used], ids, before[ends[used]] - before[starts[used] + 1]


# Arrow ----------------------------------------------------------------------------------------------------------------


class _Writer:
    """Rows into Arrow files of a folder, one batch a group of documents."""

    def __init__(self, folder: Path, dtypes: Mapping[str, str]):
        import pyarrow as pa

        self.folder = folder
        self.schema = pa.schema({name: pa.list_(pa.from_numpy_dtype(one)) for name, one in dtypes.items()})
        self.names: list[str] = []
        self.rows = self.size = 0
        self.stream: Any = None

    def write(self, batch: Batch) -> None:
        import pyarrow as pa

        size = sum(values.nbytes for values in batch.columns.values())
        if self.stream is None or self.size + size > FILE_BYTES:
            self.close()
            self.names.append(f"data-{len(self.names):05}.arrow")
            self.stream, self.size = pa.ipc.new_stream(str(self.folder / self.names[-1]), self.schema), 0
        ends = pa.array(np.concatenate([[0], batch.lengths.cumsum()]).astype(np.int32))
        columns = [pa.ListArray.from_arrays(ends, pa.array(batch.columns[name])) for name in self.schema.names]
        self.stream.write_batch(pa.record_batch(columns, schema=self.schema))
        self.rows += len(batch.lengths)
        self.size += size

    def close(self) -> list[str]:
        if self.stream is not None:
            self.stream.close()
            self.stream = None
        return self.names


def _places(path: Path) -> list[dict[str, int]]:
    """Of each batch of an Arrow file: how many rows and tokens, and at which byte its int32 ends (after a 0) and its
    tokens, the first column, begin."""
    import pyarrow as pa

    with pa.memory_map(str(path)) as file:
        buffer = file.read_buffer()
        found = []
        for batch in pa.ipc.open_stream(buffer):
            _, ends, _, tokens = batch.column(0).buffers()
            found.append(
                {
                    "rows": batch.num_rows,
                    "tokens": len(batch.column(0).values),
                    "ends_at": ends.address - buffer.address,
                    "tokens_at": tokens.address - buffer.address,
                }
            )
        return found
