"""The rows of a split: found by what makes them, or made and stored.

The key is a digest of everything that changes a row: the values of the column, the tokenizer, the length and the way of
cutting, this code and the version of `tokenizers`. Runs, seeds and sweeps share what is stored. One process makes the
rows of a key, and the others wait for it however long it takes.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_recipes.common.device import say
from hf_recipes.common.text import format_duration
from hf_recipes.common.write_failures import find_failure
from hf_recipes.data.tokens.encode import (
    Documents,
    Encoding,
    batches_of,
    encode,
    join,
    load_backend,
    read_part,
    token_bytes,
    with_end,
    write_part,
)
from hf_recipes.data.tokens.rows import Counts, Cut, StoredRows, read_rows, write_rows
from hf_recipes.data.tokens.source import Column, IdError, flat_ids
from hf_recipes.data.tokens.workers import WorkerError, write_with_workers
from hf_recipes.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable

ROWS = "rows"
CHECKED = 2**16  # characters that are tokenized in both ways before the backend is used on its own
PATIENCE = 10  # seconds before a process says that it waits
EVERY = 60  # seconds between lines about the progress


@dataclass(frozen=True, kw_only=True)
class Job:
    """The rows of one split. `sizes`: bytes of each token of the vocabulary, for columns of ids, else empty."""

    split: str
    column: Column
    tokenizer: Any
    sizes: Sequence[int]
    with_sizes: bool
    cut: Cut
    root: Path
    processes: int

    @property
    def is_text(self) -> bool:
        return not self.sizes

    @property
    def dtype(self) -> str:
        return "uint16" if len(self.tokenizer) <= 2**16 else "uint32"


def prepare_rows(job: Job, check: Callable[[Counts], None]) -> StoredRows:
    """`check` raises for documents that cannot be trained on. Raises DataError for a cache that cannot be written,
    IdError for ids that the tokenizer does not have. What a killed call has tokenized is used by the next one."""
    try:
        encoding = _encoding(job)
        folder = job.root / _key(job, encoding)
        found = read_rows(folder / ROWS)
        if found is not None:
            return found
        with _lock(folder, job):
            found = read_rows(folder / ROWS)
            if found is None:
                found = _make_rows(job, encoding, folder, check)
            return found
    except OSError as problem:
        failure = find_failure(problem, job.root)
        if failure is None:
            raise
        what = f"the prepared rows cannot be written to {str(job.root)!r}: {failure.what}"
        fix = f"{failure.fix}, or set HF_DATASETS_CACHE to another folder; what is prepared so far is used again"
        raise DataError.at("environment", what, fix) from problem


def _make_rows(job: Job, encoding: Encoding | None, folder: Path, check: Callable[[Counts], None]) -> StoredRows:
    parts = folder / f"parts-{job.column.rows_of_unit}"  # of other units are other parts
    parts.mkdir(parents=True, exist_ok=True)
    for unit in _show_progress(job, _write_missing_parts(job, encoding, parts)):
        del unit
    counts = _count(job, parts)
    check(counts)
    write_rows(folder / ROWS, _read_parts(job, parts), counts, job.cut, job.dtype, job.with_sizes)
    found = read_rows(folder / ROWS)
    assert found is not None, "rows that were just written cannot be read"
    shutil.rmtree(parts, ignore_errors=True)
    return found


# the key --------------------------------------------------------------------------------------------------------------


def _key(job: Job, encoding: Encoding | None) -> str:
    from datasets.fingerprint import Hasher

    facts = {
        "code": _code_digest(),
        "tokenizers": importlib.metadata.version("tokenizers"),
        "values": job.column.known_digest(job.root / "digests"),
        "encoding": asdict(encoding) if encoding else Hasher.hash(job.tokenizer) if job.is_text else list(job.sizes),
        "eos": job.tokenizer.eos_token_id,
        "sized": job.with_sizes,
        "dtype": job.dtype,
        "cut": asdict(job.cut),
    }
    return blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=16).hexdigest()


def _code_digest() -> str:
    digest = blake2b(digest_size=16)
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _encoding(job: Job) -> Encoding | None:
    """How the tokenizer's backend encodes alone; None if it cannot: a column of ids, a tokenizer with code of its own,
    or other ids for the first texts."""
    if not job.is_text or not type(job.tokenizer).__module__.startswith("transformers."):
        return None
    try:
        backend = json.loads(job.tokenizer.backend_tokenizer.to_str())
    except Exception:  # a part of it is written in Python: what is raised depends on the part
        return None
    encoding = Encoding(
        backend=json.dumps({**backend, "truncation": None, "padding": None}, ensure_ascii=False),
        split_special_tokens=job.tokenizer.split_special_tokens,
        eos=job.tokenizer.eos_token_id,
        dtype=job.dtype,
        with_sizes=job.with_sizes,
    )
    texts = [
        text[: CHECKED // 8] for text in job.column.rows.select_columns([job.column.name])[:8][job.column.name] if text
    ]
    alone = encode(texts, load_backend(encoding), encoding)
    known = _encode_with_tokenizer(job, texts)
    return encoding if np.array_equal(alone.ids, known.ids) and np.array_equal(alone.sizes, known.sizes) else None


# tokens ---------------------------------------------------------------------------------------------------------------


def _write_missing_parts(job: Job, encoding: Encoding | None, parts: Path) -> Iterator[int]:
    """Yields each unit when its part is there."""

    def path_of(unit: int) -> Path:
        return parts / f"{unit:06}.npz"

    missing = []
    for unit in range(job.column.units):
        if read_part(path_of(unit)) is None:
            missing.append(unit)
        else:
            yield unit
    count = min(job.processes, len(missing))
    if encoding is None or count < 2:
        backend = load_backend(encoding) if encoding and missing else None
        for unit in missing:
            values = job.column.read(unit)
            if encoding is not None:
                documents = encode(values.to_pylist(), backend, encoding)
            else:
                documents = _encode_with_tokenizer(job, values.to_pylist()) if job.is_text else _measure(job, values)
            write_part(path_of(unit), documents)
            yield unit
        return
    try:
        yield from write_with_workers(encoding, count, missing, lambda unit: job.column.read(unit).to_pylist(), path_of)
    except WorkerError as problem:
        what = f"a process that tokenizes the {job.split} split ended by {problem}, twice with the same rows"
        fix = "if memory is short, split long documents, or take fewer processes (dataset.num_proc: 1)"
        raise DataError.at("environment", what, fix) from None


def _encode_with_tokenizer(job: Job, texts: Sequence[str | None]) -> Documents:
    """By the tokenizer's own call, whatever it does."""
    tokenizer, eos = job.tokenizer, job.tokenizer.eos_token_id
    ids, lengths, sizes = [], [], []
    for batch in batches_of(texts):
        found = tokenizer(batch, return_offsets_mapping=True, verbose=False, return_attention_mask=False)
        for text, row, spans in zip(batch, found["input_ids"], found["offset_mapping"], strict=True):
            ended = with_end(list(row), eos)
            ids.append(np.array(ended, job.dtype))
            lengths.append(len(ended))
            if job.with_sizes:
                sizes.append(token_bytes(text, spans, row, eos))
    return Documents(ids=join(ids, job.dtype), lengths=np.array(lengths, np.int64), sizes=join(sizes, "uint32"))


def _measure(job: Job, values: Any) -> Documents:
    """Lists of ids, without the empty ones. Raises IdError for an id that the tokenizer does not have."""
    import pyarrow as pa
    import pyarrow.compute as compute

    ids = flat_ids(values)
    unknown = ids[(ids < 0) | (ids >= len(job.sizes))]
    if len(unknown):
        raise IdError(f"has the token id {unknown[0]}, and the tokenizer has {len(job.sizes)} tokens")
    lengths = compute.fill_null(compute.list_value_length(values).cast(pa.int64()), 0).to_numpy()
    sizes = np.array(job.sizes, np.uint32)[ids] if job.with_sizes else np.empty(0, np.uint32)
    return Documents(ids=ids.astype(job.dtype), lengths=lengths[lengths > 0], sizes=sizes)


def _read_parts(job: Job, parts: Path) -> Iterable[Documents]:
    for unit in range(job.column.units):
        found = read_part(parts / f"{unit:06}.npz")
        if found is None:
            what = f"what was prepared of the {job.split} split changed meanwhile ({str(parts)!r})"
            raise DataError.at("environment", what, "run again: what is complete is used again")
        yield found


def _count(job: Job, parts: Path) -> Counts:
    documents = tokens = 0
    for part in _read_parts(job, parts):
        documents += len(part.lengths)
        tokens += len(part.ids)
    return Counts(documents=documents, empty=job.column.rows.num_rows - documents, tokens=tokens)


# waiting --------------------------------------------------------------------------------------------------------------


@contextmanager
def _lock(folder: Path, job: Job) -> Iterator[None]:
    """Held by one process; the kernel releases it when that process ends, however it ends."""
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout:
        print(f"process {os.getpid()} waits: another process prepares the {job.split} split", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _show_progress(job: Job, units: Iterator[int]) -> Iterator[int]:
    """A bar with the remaining time on a terminal, else a line a minute."""
    from datasets.utils import tqdm

    total = job.column.units
    with tqdm(total=job.column.rows.num_rows, unit=" documents", desc=f"{job.split} documents") as bar:
        began = shown = time.monotonic()
        already = 0
        for done, unit in enumerate(units, 1):
            bar.update(min(job.column.rows_of_unit, bar.total - bar.n))
            now = time.monotonic()
            if now - began < 1:  # found, not made
                already = done
            elif bar.disable and now - shown > EVERY and done < total:
                shown = now
                left = (now - began) / max(1, done - already) * (total - done)
                say(f"{job.split}: {done / total:.0%} of the documents tokenized, {format_duration(left)} left")
            yield unit
