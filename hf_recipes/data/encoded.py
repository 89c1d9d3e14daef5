"""Rows of a classifier, tokenized once: `Dataset.map` into a file of the store, found by what makes the rows.

`datasets` would find them itself, by a pickle of everything that the function reaches: of a tokenizer with 30,000
tokens that takes longer than tokenizing a small data set, and a file that was damaged would be read as it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_recipes.common.files import put, remove
from hf_recipes.common.write_failures import find_failure
from hf_recipes.data.tokens.encode import backend_text
from hf_recipes.data.tokens.parts import lock
from hf_recipes.data.tokens.rows import digest_file
from hf_recipes.data.tokens.source import Columns, file_state
from hf_recipes.data.tokens.store import code_facts, find_store, setting_of
from hf_recipes.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_recipes.recipe.recipe import Recipe


def tokenizer_facts(tokenizer: Any) -> dict[str, Any]:
    """What a call of the tokenizer depends on. Truncation and padding are arguments of the call."""
    from datasets.fingerprint import Hasher

    names = ("truncation_side", "padding_side", "model_input_names", "split_special_tokens")
    return {
        "tokenizer": backend_text(tokenizer) or Hasher.hash(tokenizer),
        "class": f"{type(tokenizer).__module__}.{type(tokenizer).__qualname__}",
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "attributes": {name: str(getattr(tokenizer, name, "")) for name in names},
    }


def encode_rows(
    recipe: Recipe,
    part: Dataset,
    columns: Sequence[str],
    encode: Callable[..., Any],
    facts: Mapping[str, Any],
    name: str,
) -> Dataset:
    """`part.map(encode)`, batched and with indices, with the columns that it returns only. `encode` reads `columns`;
    `facts`: all else that changes its rows. Raises what `encode` raises, and DataError for a store that cannot be
    written."""
    root = find_store(recipe)
    try:
        named = {
            "values": Columns(rows=part, names=tuple(columns)).known_digest(root / "digests"),
            "kinds": {column: repr(part.features[column]) for column in columns},
            **code_facts("datasets", "tokenizers", "transformers"),
            **facts,
        }
        key = blake2b(json.dumps(named, sort_keys=True).encode(), digest_size=16).hexdigest()
        path = root / key / "rows.arrow"

        def make() -> Dataset:
            return part.map(
                encode,
                batched=True,
                with_indices=True,
                remove_columns=part.column_names,
                cache_file_name=str(path),
                load_from_cache_file=True,
                new_fingerprint=key,
                desc=f"{name} rows",
            )

        if _is_intact(path):
            return make()
        with lock(path.parent, name):  # another run may make the same rows
            if not _is_intact(path):
                remove(path)
                remove(_state_of(path))
                make()
                _note_state(path, digest_file(path))
        return make()
    except OSError as problem:
        failure = find_failure(problem, root)
        if failure is None:
            raise
        what = f"the prepared rows cannot be written to {str(root)!r}: {failure.what}"
        fix = f"{failure.fix}, or set {setting_of(root)} to another folder"
        raise DataError.at("environment", what, fix) from problem


def _state_of(path: Path) -> Path:
    return path.with_suffix(".json")


def _note_state(path: Path, digest: str) -> None:
    put(_state_of(path), json.dumps({"key": path.parent.name, "digest": digest, "state": file_state(path)}))


def _is_intact(path: Path) -> bool:
    """Whether the file is what was written: by its inode, size and times, else by its BLAKE2b. False where there is
    none, or a killed call left it without its digest."""
    try:
        known = json.loads(_state_of(path).read_text(encoding="utf-8"))
        if known["key"] != path.parent.name:  # copied here from another folder
            return False
        if known["state"] == file_state(path):
            return True
        if known["digest"] != digest_file(path):
            return False
        _note_state(path, known["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return True
