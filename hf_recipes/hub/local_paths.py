"""Paths of this machine in what others read: the model card and the files that are pushed.

A path outside a run says where its user keeps things, and often who that is. It is shortened to its last name: the
paths that the recipe names, then the home folder, then whatever else looks like an absolute path.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from hf_recipes.recipe.schema.own_keys import FILE_BUILDERS
from hf_recipes.record import RunRecord

MODEL_NAME = "pretrained_model_name_or_path"
# Keys of a recipe whose value is a path wherever they are.
PATH_KEYS = ("output_dir", "resume_from_checkpoint", "cache_dir", "chat_template_path", "deepspeed", "data_dir")
_NAME = r"[^\s/\\\"'`<>|:*?\[\](){},;]+"
_ABSOLUTE = re.compile(rf"(?:file://|(?<![\w.:/<&~-]))(?:~[\w.-]*)?(?:/{_NAME}){{2,}}/?")
_WINDOWS = re.compile(rf"(?<![\w])[A-Za-z]:[\\/]+(?:{_NAME}[\\/]+)*({_NAME})")


def looks_local(name: Any) -> bool:
    """Whether the name of a model or data set can only be a path, or is one of this machine."""
    if not isinstance(name, str) or "://" in name:
        return False
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or os.path.exists(name)


def local_model(record: RunRecord) -> str | None:
    """The path of the base model, if it was a folder; None for an id of the Hub and for random weights."""
    model = record.recipe.sections.get("model")
    name = model.get(MODEL_NAME) if isinstance(model, Mapping) else None
    if not isinstance(name, str):
        return None
    source = record.model.source if record.model else None
    return name if source == "local" or (source is None and looks_local(name)) else None


def paths_of(record: RunRecord) -> dict[str, str]:
    """Every path that the recipe names -> its last name."""
    found = {path: _last(path) for path in _paths(record) if "/" in path}
    return {path: name for path, name in found.items() if name and "://" not in path}


def _paths(record: RunRecord) -> Iterator[str]:
    sections = record.recipe.sections
    yield from filter(None, [local_model(record)])
    dataset = sections.get("dataset")
    own_files = isinstance(dataset, Mapping) and (
        dataset.get("path") in FILE_BUILDERS or looks_local(dataset.get("path"))
    )
    for name, section in sections.items():
        for key, value in section.items() if isinstance(section, Mapping) else ():
            if key == "output_dir" and isinstance(value, str) and value.count("/") == 1 and not value.startswith("/"):
                continue  # runs/name says nothing of the machine
            if key in PATH_KEYS or (key == "data_files" and own_files):
                yield from _texts(value)
            elif (name, key) in (("dataset", "path"), ("tokenizer", MODEL_NAME), ("model", "config")):
                yield from (text for text in _texts(value) if looks_local(text))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, str):
        yield value


def _last(path: str) -> str:
    return os.path.basename(path.rstrip("/"))


def shorten_paths(text: str, names: Mapping[str, str]) -> str:
    """`text` with the paths of `names` replaced, and every other absolute path by its last name."""
    for path in sorted(names, key=len, reverse=True):
        if path in text:
            text = re.sub(rf"(?<![\w./~-]){re.escape(path)}(?![\w-])", lambda _, path=path: names[path], text)  # type: ignore[misc]
    home = os.path.expanduser("~").rstrip("/")
    if len(home) > 1:
        text = re.sub(rf"(?<![\w./~-]){re.escape(home)}/", "~/", text)
    text = _ABSOLUTE.sub(lambda match: _last(match[0]), text)
    return _WINDOWS.sub(r"\1", text)


def shorten_all(value: Any, names: Mapping[str, str]) -> Any:
    """JSON with every text in it shortened."""
    if isinstance(value, dict):
        return {shorten_paths(key, names): shorten_all(inner, names) for key, inner in value.items()}
    if isinstance(value, list):
        return [shorten_all(inner, names) for inner in value]
    return shorten_paths(value, names) if isinstance(value, str) else value
