"""A text too long to be tokenized at once, in windows that give the tokens of the whole.

A tokenizer's own objects need about a hundred bytes for each byte of a text. Most tokenizers first split a text into
words, so a text can be cut where a word begins. A cut is made only where that is certain: by the kind of tokenizer
(`cuts_of`), by the characters on both sides, by the tokenizer's own splitting of the text around it, and by the tokens:
those of the text behind the cut are the same with and without the text before it. Each window reads on behind its end,
so that its last words see what follows them. Imports neither torch nor transformers.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_recipes.common.device import say
from hf_recipes.common.text import format_bytes

LONG = 2**20  # characters: a shorter text is tokenized at once
WINDOW = 2**18
AHEAD = 2**10  # characters behind a cut that a window reads, and whose tokens are compared
AROUND = 2**7  # characters on both sides that are split into words, to see that one begins at the cut
TRIED = 32  # places in a window
MEMORY = 115  # bytes that tokenizing needs for each byte of text
NAMED = 2**24  # characters in a row without a cut that are worth a warning

LOCAL_NORMALIZERS = {
    "NFC",
    "NFD",
    "NFKC",
    "NFKD",
    "Lowercase",
    "StripAccents",
    "BertNormalizer",
    "Nmt",
    "Precompiled",
}
SPLITTERS = {
    "BertPreTokenizer",
    "ByteLevel",
    "CharDelimiterSplit",
    "Digits",
    "Punctuation",
    "Split",
    "Whitespace",
    "WhitespaceSplit",
}
MODELS = {"BPE", "WordPiece", "WordLevel", "Unigram"}
MANY_SPACES = {"Regex": " {2,}"}  # XLM-RoBERTa's Replace: a single space stays as it is


@dataclass(frozen=True, kw_only=True)
class Cuts:
    """Where a text can be cut: before a space between letters or digits, and perhaps after the end of a line."""

    lines: bool


@functools.lru_cache(maxsize=1)
def cuts_of(backend: str) -> Cuts | None:
    """Of a tokenizer.json's text; None for a tokenizer whose tokens may depend on text far away."""
    found = json.loads(backend)
    model = found["model"]
    # Without a type it is BPE (tokenizers' older files).
    if model.get("type", "BPE") not in MODELS or model.get("dropout"):
        return None
    if not all(map(_is_local, _members(found["normalizer"], "normalizers"))):
        return None
    splitters = _members(found["pre_tokenizer"], "pretokenizers")
    if not splitters or not all(map(_splits_locally, splitters)):
        return None
    for token in found["added_tokens"]:
        content = token["content"]
        if any(character.isspace() for character in content):
            return None
        # It takes the white space beside it.
        if (token["rstrip"] and content[-1].isalnum()) or (token["lstrip"] and content[0].isalnum()):
            return None
    adds = any(one["type"] == "Metaspace" or one.get("add_prefix_space") for one in splitters)
    return Cuts(lines=not adds)  # a word that begins the text would have a space before it


def _members(part: Mapping[str, Any] | None, name: str) -> list[Mapping[str, Any]]:
    if part is None:
        return []
    if part["type"] == "Sequence":
        return list(itertools.chain(*(_members(one, name) for one in part[name])))
    return [part]


def _is_local(normalizer: Mapping[str, Any]) -> bool:
    if normalizer["type"] == "Replace":
        pattern = normalizer["pattern"]
        return pattern == MANY_SPACES or not any(map(str.isspace, pattern.get("String", " ")))
    return normalizer["type"] in LOCAL_NORMALIZERS


def _splits_locally(splitter: Mapping[str, Any]) -> bool:
    if splitter["type"] == "Metaspace":
        return bool(splitter.get("split", True))
    return splitter["type"] in SPLITTERS


def encode_windows(
    text: str, backend: Any, cuts: Cuts, dtype: str, eos: int | None, with_sizes: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The ids of the text with its end token, and the bytes of each (`encode.token_bytes` says which), or none."""
    before, after = _added_around(text, backend)
    ids, sizes = bytearray(), bytearray()  # grown in place: a list of arrays would be in memory twice in the end

    def add(found: Sequence[int], widths: np.ndarray) -> None:
        ids.extend(np.fromiter(found, dtype, len(found)).tobytes())
        if with_sizes:
            sizes.extend(widths.astype(np.uint32).tobytes())

    add(before, np.zeros(len(before)))
    begin = furthest = 0  # bytes of the text
    for window in _windows(text, backend, cuts, with_sizes):
        widths = bytes_before(window.text) + begin
        stops = np.maximum.accumulate(np.array([furthest, *widths[window.stops]], np.int64))
        add(window.ids, np.diff(stops))
        begin, furthest = int(widths[-1]), int(stops[-1])
    add(after, np.zeros(len(after)))
    last = np.frombuffer(ids, dtype)[-1:]
    if eos is not None and not (len(last) and last[0] == eos):
        del last  # a view of `ids`, which cannot grow under it
        add([eos], np.zeros(1))
    found = np.frombuffer(sizes, np.uint32)
    if len(found):
        found[-1] += begin - furthest
    return np.frombuffer(ids, dtype), found


@dataclass(frozen=True, kw_only=True)
class _Window:
    """`stops`: the character of the window at which each token ends, or none."""

    text: str
    ids: list[int]
    stops: list[int]


def _windows(text: str, backend: Any, cuts: Cuts, with_stops: bool) -> Iterator[_Window]:
    begin, size, named = 0, WINDOW, False
    while begin + size + AHEAD < len(text):
        window = None
        for place in _places(text, begin + size // 2, begin + size, cuts, backend):
            window = _cut(text, begin, place, backend, with_stops)
            if window is not None:
                yield window
                begin, size = begin + len(window.text), WINDOW
            break
        if window is None:
            size *= 2
            if size >= NAMED and not named:
                named = True
                warn_of_memory(len(text) - begin)
    yield _read(text, begin, len(text), backend, with_stops)


def _places(text: str, low: int, high: int, cuts: Cuts, backend: Any) -> Iterator[int]:
    """Places where a word begins, the last ones first."""
    candidates = itertools.chain(_spaces(text, low, high), _lines(text, low, high) if cuts.lines else ())
    for place in itertools.islice(candidates, TRIED):
        near = text[place - AROUND : place + AROUND]
        words = backend.pre_tokenizer.pre_tokenize_str(near)
        if any(begin < AROUND < end for _, (begin, end) in words):
            continue
        behind = _ids(text[place : place + AHEAD], backend)
        longer = [_ids(text[begin : place + AHEAD], backend) for begin in (place - AROUND, place - 1)]
        if behind and all(ids[-len(behind) :] == behind for ids in longer):
            yield place


def _spaces(text: str, low: int, high: int) -> Iterator[int]:
    at = high
    while (at := text.rfind(" ", low, at)) > 0:
        if text[at - 1].isalnum() and text[at + 1].isalnum():
            yield at


def _lines(text: str, low: int, high: int) -> Iterator[int]:
    at = high
    while (at := text.rfind("\n", low, at)) > 0:
        if text[at + 1].isalnum():
            yield at + 1


def _cut(text: str, begin: int, place: int, backend: Any, with_stops: bool) -> _Window | None:
    """What is before `place`; None if what is behind it is not tokenized as it is alone."""
    found = _read(text, begin, place + AHEAD, backend, with_stops)
    behind = _ids(text[place : place + AHEAD], backend)
    count = len(found.ids) - len(behind)
    if found.ids[count:] != behind or max(found.stops[:count], default=0) > place - begin:
        return None
    return _Window(text=text[begin:place], ids=found.ids[:count], stops=found.stops[:count])


def _read(text: str, begin: int, end: int, backend: Any, with_stops: bool) -> _Window:
    window = text[begin:end]
    if not with_stops:
        return _Window(text=window, ids=_ids(window, backend), stops=[])
    # Some post-processors treat the position of a text's first token in another way: a character comes before it.
    more = text[max(0, begin - 1) : begin]
    count = len(_ids(more, backend))
    found = backend.encode(more + window, add_special_tokens=False)
    return _Window(
        text=window, ids=found.ids[count:], stops=[max(0, stop - len(more)) for _, stop in found.offsets[count:]]
    )


def _ids(text: str, backend: Any) -> list[int]:
    found: list[int] = backend.encode_batch_fast([text], add_special_tokens=False)[0].ids
    return found


def _added_around(text: str, backend: Any) -> tuple[list[int], list[int]]:
    """The ids that a tokenizer's post-processor writes before and after this text."""
    size = AHEAD
    alone = backend.encode(text[:size], add_special_tokens=False)
    while not alone.ids and size < len(text):  # white space
        size *= 2
        alone = backend.encode(text[:size], add_special_tokens=False)
    found = backend.encode(text[:size])
    added = [bool(special) for special in found.special_tokens_mask]
    before = added.index(False) if False in added else len(added)
    return found.ids[:before], found.ids[before + len(alone.ids) :]


def bytes_before(text: str) -> np.ndarray:
    """UTF-8 bytes before each character of the text, and of all of it."""
    if text.isascii():
        return np.arange(len(text) + 1)
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    widths = 1 + (points >= 0x80) + (points >= 0x800) + (points >= 0x10000).astype(np.int64)
    return np.concatenate([[0], widths.cumsum()])


def warn_of_memory(characters: int) -> None:
    size, memory = format_bytes(characters), format_bytes(MEMORY * characters)
    say(f"warning: {size} of one document are tokenized at once, which needs about {memory} of memory; split it")
