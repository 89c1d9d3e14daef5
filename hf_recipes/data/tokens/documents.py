"""Texts, or lists of token ids, to stored rows of causal-lm (data/causal_lm.py says how they are cut)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hf_recipes.data.tokens.encode import (
    Documents,
    Encoding,
    arrays_of,
    backend_text,
    batches_of,
    dtype_of,
    encode,
    join,
    load_backend,
    token_bytes,
    with_end,
)
from hf_recipes.data.tokens.parts import Work
from hf_recipes.data.tokens.rows import Counts, Cut, StoredRows, write_documents
from hf_recipes.data.tokens.source import Columns, IdError, flat_ids
from hf_recipes.data.tokens.store import ReadParts, code_facts, find_or_make

CHECKED = 2**14  # characters that are tokenized in both ways before the backend is used on its own


@dataclass(frozen=True, kw_only=True)
class Job:
    """The rows of one split. `column`: one name; `sizes`: bytes of each token of the vocabulary, for columns of ids,
    else empty."""

    split: str
    column: Columns
    tokenizer: Any
    sizes: Sequence[int]
    with_sizes: bool
    cut: Cut
    root: Path
    processes: int

    @property
    def is_text(self) -> bool:
        return not self.sizes

    @cached_property
    def dtype(self) -> str:
        return dtype_of(self.tokenizer)


def prepare_documents(job: Job, check: Callable[[Counts], None]) -> StoredRows:
    """`check` raises for documents that cannot be trained on. Raises DataError for a cache that cannot be written,
    IdError for ids that the tokenizer does not have."""
    encoding = _find_encoding(job)

    def read(unit: int) -> Any:
        values = job.column.arrays(unit)[0]
        return values.to_pylist() if job.is_text else values

    def make(values: Any) -> dict[str, np.ndarray]:
        return arrays_of(_encode_with_tokenizer(job, values) if job.is_text else _measure(job, values))

    def write(parts: ReadParts, folder: Path) -> None:
        lengths = [one["lengths"] for one in parts("lengths")]
        documents, tokens = sum(map(len, lengths)), sum(int(one.sum()) for one in lengths)
        counts = Counts(documents=documents, empty=job.column.rows.num_rows - documents, tokens=tokens)
        check(counts)
        write_documents(folder, (Documents(**one) for one in parts()), counts, job.cut, job.dtype, job.with_sizes)

    work = Work(
        split=job.split,
        noun="documents",
        rows=job.column.rows.num_rows,
        rows_of_unit=job.column.rows_of_unit,
        units=job.column.units,
        read=read,
        encode=encoding or make,
        processes=job.processes if encoding else 1,
        apart=encoding is not None,
    )
    return find_or_make(job.root, job.column, _facts(job, encoding), work, write)


def _facts(job: Job, encoding: Encoding | None) -> dict[str, Any]:
    from datasets.fingerprint import Hasher

    return {
        **code_facts("tokenizers"),
        "encoding": asdict(encoding) if encoding else Hasher.hash(job.tokenizer) if job.is_text else list(job.sizes),
        "eos": job.tokenizer.eos_token_id,
        "sized": job.with_sizes,
        "dtype": job.dtype,
        "cut": asdict(job.cut),
    }


def _find_encoding(job: Job) -> Encoding | None:
    """How the tokenizer's backend encodes alone; None if it cannot: a column of ids, a tokenizer with code of its own,
    or other ids for the first texts."""
    backend = backend_text(job.tokenizer) if job.is_text else None
    if backend is None:
        return None
    encoding = Encoding(
        backend=backend,
        split_special_tokens=job.tokenizer.split_special_tokens,
        eos=job.tokenizer.eos_token_id,
        dtype=job.dtype,
        with_sizes=job.with_sizes,
    )
    texts = job.column.beginnings(8, CHECKED // 8)
    alone = encode(texts, load_backend(encoding), encoding)
    known = _encode_with_tokenizer(job, texts)
    return encoding if np.array_equal(alone.ids, known.ids) and np.array_equal(alone.sizes, known.sizes) else None


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
