"""The files of a model's folder, which a stranger may have written: what each is, before and after it failed to load.

No code of a folder is run: upstream unpickles tensors only, and `trust_remote_code` stays False. Imports neither torch
nor transformers.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from hf_recipes.common.files import describe_special_file
from hf_recipes.common.text import first_line
from hf_recipes.errors import ModelError

JSON_FILES = (
    "config.json", "generation_config.json", "adapter_config.json", "model.safetensors.index.json",
    "pytorch_model.bin.index.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json",
)  # fmt: skip
OTHER_FILES = ("model.safetensors", "chat_template.jinja", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model")
PICKLED_WEIGHTS = ("pytorch_model.bin", "adapter_model.bin")
LARGEST_JSON = 200_000_000  # bytes that are parsed to find out what is wrong
PICKLE_FIX = "no code of a pickle is run: use a model that was saved with safetensors and a tokenizer.json"
CODE_FIX = "code of a model is not run: use one that transformers has a class for"


def check_folder(location: str, what: str, name: str) -> None:
    """Raises ModelError for a local folder with a file that is a pickle under another name, or no file at all."""
    if not os.path.isdir(name):
        return
    for file in (*JSON_FILES, *OTHER_FILES):
        path = os.path.join(name, file)
        if special := describe_special_file(path):
            raise ModelError.at(location, f"the {what} {name!r} cannot be loaded: {path} {special}", "replace it")
        if _is_pickle(path):
            raise ModelError.at(location, f"the {what} {name!r} cannot be loaded: {path} is a pickle", PICKLE_FIX)


def find_problem(name: str, problem: BaseException) -> tuple[str, str]:
    """(what is wrong, how to fix it) where a file of a local folder, or its own code, is why it did not load."""
    text = str(problem)
    if "trust_remote_code" in text or "contains custom code" in text:
        files = [file for file in ("config.json", "tokenizer_config.json") if "auto_map" in _text(name, file)]
        where = f" (auto_map in {os.path.join(name, files[0])})" if files else ""
        return f"it needs code of its own{where}", CODE_FIX
    if not os.path.isdir(name):
        return "", ""
    for file in JSON_FILES:
        path = os.path.join(name, file)
        if os.path.isfile(path) and (wrong := _json_problem(path)):
            return f"{path} {wrong}", "restore that file, or copy the folder again"
    template = os.path.join(name, "chat_template.jinja")
    if os.path.isfile(template) and not _is_text(template):
        return f"{template} is not UTF-8 text", "restore that file, or copy the folder again"
    for file in PICKLED_WEIGHTS:
        path = os.path.join(name, file)
        if os.path.isfile(path) and not list(Path(name).glob("*.safetensors")):
            return f"{path} is a pickle, and not one of tensors only", PICKLE_FIX
    return "", ""


def _is_pickle(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            begin = file.read(2)
    except OSError:
        return False
    return len(begin) == 2 and begin[:1] == b"\x80" and begin[1] in range(2, 6)


def _json_problem(path: str) -> str:
    if os.path.getsize(path) > LARGEST_JSON:
        return ""
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except UnicodeDecodeError:
        return "is not UTF-8 text"
    except RecursionError:
        return "is nested too deeply"
    except OSError as problem:
        return f"cannot be read ({problem.strerror})"
    except ValueError as problem:
        return f"is not JSON ({first_line(problem)})"
    return "" if isinstance(found, dict) else f"is a {type(found).__name__}, not an object"


def _is_text(path: str) -> bool:
    try:
        with open(path, encoding="utf-8") as file:
            file.read()
    except (OSError, UnicodeDecodeError):
        return False
    return True


def _text(folder: str, file: str) -> str:
    try:
        with open(os.path.join(folder, file), encoding="utf-8", errors="replace") as found:
            return found.read(1_000_000)
    except OSError:
        return ""
