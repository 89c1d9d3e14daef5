"""Texts to arrays of token ids, and the UTF-8 bytes of text that each token adds.

Imports neither torch nor transformers nor datasets: a worker process starts in a fraction of a second and is small.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_recipes.data.tokens.long_texts import LONG, NAMED, bytes_before, cuts_of, encode_windows, warn_of_memory

TEXT_AT_ONCE = 2**18  # characters: the tokenizer's own objects need about 200 bytes for each token of a batch


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How texts become ids. `backend`: a tokenizer.json's text; `dtype`: of an id."""

    backend: str
    split_special_tokens: bool
    eos: int | None
    dtype: str
    with_sizes: bool  # whether the bytes of each token are counted

    def __call__(self, texts: Sequence[str | None]) -> dict[str, np.ndarray]:
        """The arrays of a part."""
        return arrays_of(encode(texts, load_backend(self), self))


class UnitError(Exception):
    """What is wrong with the data of a unit: not the worker's error, and the same in another process."""


@dataclass(frozen=True, kw_only=True)
class Documents:
    """Documents one after the other. `lengths`: tokens of each; `sizes`: bytes of text of each token, or none."""

    ids: np.ndarray
    lengths: np.ndarray
    sizes: np.ndarray


def arrays_of(documents: Documents) -> dict[str, np.ndarray]:
    return {"ids": documents.ids, "lengths": documents.lengths, "sizes": documents.sizes}


def dtype_of(tokenizer: Any) -> str:
    """Of an id on disk."""
    return "uint16" if count_ids(tokenizer) <= 2**16 else "uint32"


def count_ids(tokenizer: Any) -> int:
    """The largest id and one: more than the tokens of a vocabulary with gaps."""
    return max(len(tokenizer), max(tokenizer.get_vocab().values(), default=0) + 1)


def backend_text(tokenizer: Any) -> str | None:
    """The tokenizer.json of a tokenizer's backend, without truncation and padding, whatever an earlier call left in it;
    None where the tokenizer has code of its own, which the backend alone would not run."""
    if not type(tokenizer).__module__.startswith("transformers."):
        return None
    try:
        backend = tokenizer.backend_tokenizer
        text: str = backend.to_str()
    except Exception:  # a part of it is written in Python: what is raised depends on the part
        return None
    if backend.truncation is not None or backend.padding is not None:
        other = type(backend).from_str(text)  # to write JSON in another way than the backend would make other keys
        other.no_truncation()
        other.no_padding()
        text = other.to_str()
    return text


def load_backend(encoding: Encoding) -> Any:
    return read_backend(encoding.backend, encoding.split_special_tokens)


@functools.lru_cache(maxsize=1)  # the splits of a recipe have one tokenizer
def read_backend(text: str, split_special_tokens: bool) -> Any:
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(text)
    backend.encode_special_tokens = split_special_tokens
    return backend


def encode(texts: Sequence[str | None], backend: Any, encoding: Encoding) -> Documents:
    """The documents that have text, each with the end token."""
    ids, lengths, sizes = [], [], []
    for batch in batches_of(texts):
        cuts = cuts_of(encoding.backend) if len(batch[0]) >= LONG else None  # alone in its batch
        if cuts is not None:
            one, widths = encode_windows(batch[0], backend, cuts, encoding.dtype, encoding.eos, encoding.with_sizes)
            ids.append(one)
            lengths.append(len(one))
            sizes.append(widths)
            continue
        if len(batch[0]) >= NAMED:
            warn_of_memory(len(batch[0]))
        if encoding.with_sizes:
            found = backend.encode_batch(batch)
            sizes += [
                token_bytes(text, one.offsets, one.ids, encoding.eos) for text, one in zip(batch, found, strict=True)
            ]
        else:
            found = backend.encode_batch_fast(batch)  # without positions in the text
        for one in found:
            row = with_end(one.ids, encoding.eos)
            ids.append(np.fromiter(row, encoding.dtype, len(row)))  # half the time of np.array
            lengths.append(len(row))
    return Documents(ids=join(ids, encoding.dtype), lengths=np.array(lengths, np.int64), sizes=join(sizes, "uint32"))


def batches_of(texts: Sequence[str | None]) -> Iterator[list[str]]:
    """The texts that are not empty, `TEXT_AT_ONCE` characters at a time."""
    batch: list[str] = []
    size = 0
    for text in texts:
        if not text or text.isspace():  # strip() would copy the text
            continue
        if batch and size + len(text) > TEXT_AT_ONCE:
            yield batch
            batch, size = [], 0
        batch.append(text)
        size += len(text)
    if batch:
        yield batch


def with_end(ids: list[int], eos: int | None) -> list[int]:
    return ids if eos is None or (ids and ids[-1] == eos) else [*ids, eos]


def token_bytes(text: str, spans: Sequence[tuple[int, int]], ids: Sequence[int], eos: int | None) -> np.ndarray:
    """UTF-8 bytes that each token of the document adds: its end less the furthest end so far, so that the sum is the
    text's, whatever overlaps (a character split over tokens) or is skipped (a space that no token covers). The last
    token gets the bytes that no token covers (a space at the end)."""
    ends = np.maximum.accumulate(np.array([0, *(end for _, end in spans)], np.int64))
    sizes = np.diff(ends if text.isascii() else bytes_before(text)[ends])
    if len(with_end(list(ids[-1:]), eos)) > len(ids[-1:]):
        sizes = np.append(sizes, 0)
    if len(sizes):
        sizes[-1] += len(text.encode()) - sizes.sum()
    return sizes.astype(np.uint32)


def join(parts: Sequence[np.ndarray], dtype: str) -> np.ndarray:
    if len(parts) == 1:
        return parts[0]  # no copy of what may be large
    return np.concatenate(parts) if parts else np.empty(0, dtype)
