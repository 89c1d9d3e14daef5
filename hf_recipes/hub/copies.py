"""The copies that a push sends: paths of this machine shortened, the base model by its id. The run stays as it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_recipes.errors import Diagnostic, HubError
from hf_recipes.hub.local_paths import local_model, looks_local, paths_of, shorten_all, shorten_paths
from hf_recipes.record.file import find_record

ADAPTER = "adapter_config.json"
BASE = "base_model_name_or_path"  # peft's key for the model that an adapter belongs to
# Files of JSON in which upstream keeps the name that a model or tokenizer was loaded from.
JSON_FILES = ("record.json", ADAPTER, "config.json", "generation_config.json", "tokenizer_config.json")
NAMES = (
    "name_or_path",
    "_name_or_path",
    BASE,
    "tokenizer_file",
    "vocab_file",
    "merges_file",
    "special_tokens_map_file",
)
TEXT_FILES = ("README.md", "recipe.yaml")


def make_copies(
    run_dir: Path, files: tuple[str, ...], folder: Path, base_model: str | None
) -> tuple[dict[str, Path], list[Diagnostic]]:
    """(path in the repository -> the file to send, warnings). Changed copies are written into `folder`.

    base_model: the Hub's id of the model that was trained from, where the run has only a path.
    """
    record = find_record(run_dir)
    names = paths_of(record) if record is not None else {}
    base = local_model(record) if record is not None else None
    adapter = _read(run_dir / ADAPTER) if ADAPTER in files else {}
    if base is None and looks_local(adapter.get(BASE)):
        base = str(adapter[BASE])
        names[base] = Path(base).name
    if base is not None and base_model is not None:
        names[base] = base_model
    sources = {name: run_dir / name for name in files}
    for name in files:
        text = _shortened(run_dir / name, name, names)
        if name == "README.md" and base_model is not None:
            text = _with_base_model(
                text if text is not None else (run_dir / name).read_text(encoding="utf-8"), base_model
            )
        if text is not None:
            sources[name] = folder / name
            sources[name].write_text(text, encoding="utf-8")
    warnings = []
    if base is not None and base_model is None and ADAPTER in files:
        what = (
            f"the base model {names.get(base, base)!r} is a folder of this machine: nobody else can load this adapter"
        )
        warnings = [Diagnostic(location=ADAPTER, message=what, fix="push again with --base-model ORG/NAME, its Hub id")]
    return sources, warnings


def check_base_model(base_model: str) -> None:
    """Raises HubError for a name that is no id of the Hub."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(base_model)
    except HFValidationError as error:
        raise HubError.at(
            "argument '--base-model'", f"it is no id of the Hub: {error}".rstrip("."), "write ORG/NAME"
        ) from None


def _shortened(path: Path, name: str, names: Mapping[str, str]) -> str | None:
    """The file's text without paths of this machine; None where it has none, or is another file."""
    if name in TEXT_FILES:
        text = path.read_text(encoding="utf-8", errors="replace")
        short = shorten_paths(text, names)
        return short if short != text else None
    if name not in JSON_FILES:
        return None
    found = _read(path)
    short_json = shorten_all(found, names) if name == "record.json" else _short_names(found, names)
    indent = 1 if name == "record.json" else 2  # as they were written
    return None if short_json == found else json.dumps(short_json, indent=indent, ensure_ascii=False) + "\n"


def _short_names(found: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Only the names of files: other texts, such as a chat template, are the model's."""
    changed = dict(found)
    for key in NAMES:
        value = found.get(key)
        if isinstance(value, str) and (value in names or looks_local(value)):
            changed[key] = names.get(value, Path(value).name)
    return changed


def _with_base_model(text: str, base_model: str) -> str:
    from huggingface_hub import ModelCard

    try:
        model_card = ModelCard(text, ignore_metadata_errors=True)
        model_card.data["base_model"] = base_model
    except ValueError:  # a model card that the user wrote, without front matter that can be read
        return text
    return str(model_card)


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise HubError.at(str(path), f"is not JSON ({error})", "restore it or delete it") from None
    if not isinstance(value, dict):
        raise HubError.at(str(path), "is not a JSON object", "restore it or delete it")
    return value
