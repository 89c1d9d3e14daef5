"""What other tools say about their data, as a recipe's `dataset` section."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hf_recipes.common.text import as_yaml


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What becomes of one key: the dotted keys to set, or why nothing is lost, or what is lost; `but`: what of it."""

    sets: Mapping[str, Any] = field(default_factory=dict)
    needless: str = ""
    lost: str = ""
    but: str = ""


Rule = Callable[[Any, Mapping[str, Any]], Outcome]  # (value, all values of the file)
FILES = {".json": "json", ".jsonl": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".txt": "text"}
FIRST_ONLY = "one data set is read: "


def set_key(dotted: str, value: Any, **more: Any) -> Outcome:
    return Outcome(sets={dotted: value}, **more)


def set_if_true(dotted: str, value: Any, otherwise: str = "false: nothing is asked for") -> Rule:
    return lambda given, _: set_key(dotted, value) if given else Outcome(needless=otherwise)


# data ---------------------------------------------------------------------------------------------------------------


def _source(path: str, kind: str = "", files: Any = None) -> dict[str, Any]:
    """dataset.path and data_files for a file of this machine or a Hub name."""
    builder = kind if kind in FILES.values() else FILES.get(os.path.splitext(path.removesuffix(".gz"))[1], "")
    if files is not None:
        return {"dataset.path": path, "dataset.data_files": files}
    if builder:
        return {"dataset.path": builder, "dataset.data_files": path}
    return {"dataset.path": path}


def _split(train: Any, test: Any = None) -> dict[str, Any]:
    named = {role: str(part) for role, part in (("train", train), ("validation", test)) if part}
    return {"dataset.split": named} if named and named != {"train": "train"} else {}


def axolotl_data(given: Any, values: Mapping[str, Any]) -> Outcome:
    entries = [one for one in (given if isinstance(given, list) else [given]) if isinstance(one, dict)]
    if not entries or not isinstance(entries[0].get("path"), str):
        return Outcome(lost="it names no data set")
    first, lost = entries[0], []
    sets = _source(first["path"], str(first.get("ds_type", "")), first.get("data_files"))
    if first.get("name"):
        sets["dataset.name"] = first["name"]
    if first.get("revision"):
        sets["dataset.revision"] = first["revision"]
    sets |= _split(first.get("split"), _test_split(values, first["path"]))
    kind = first.get("type")
    if isinstance(kind, dict):
        sets |= _templates(kind)
    elif str(kind).partition(":")[0] in ("completion", "pretrain"):
        sets["task"] = "causal-lm"
        if str(first.get("field") or first.get("text_column") or "text") != "text":
            sets["dataset.text_column"] = str(first.get("field") or first.get("text_column"))
    elif str(kind) not in ("None", "chat_template", "sharegpt", "alpaca") and not str(kind).startswith("alpaca"):
        lost.append(f"type: {as_yaml(kind)}, name its columns in dataset")
    messages = first.get("field_messages")
    if messages and messages not in ("messages", "conversations"):
        sets["dataset.messages_column"] = messages
    used = ("path", "ds_type", "data_files", "name", "revision", "split", "type", "field", "text_column")
    ways = "message_property_mappings message_field_role message_field_content roles_to_train train_on_eos roles "
    ways += "trust_remote_code field_messages conversation shards"
    lost += [f"{name}: {as_yaml(first[name])}"[:80] for name in first if name not in (*used, *ways.split())]
    others = [str(one.get("path")) for one in entries[1:]]
    lost += [FIRST_ONLY + "not " + ", ".join(others)] if others else []
    return Outcome(sets=sets, but="; ".join(lost))


def _test_split(values: Mapping[str, Any], path: str) -> Any:
    """The split of axolotl's test_datasets, where it is of the same data set."""
    tests = values.get("test_datasets")
    first = tests[0] if isinstance(tests, list) and tests and isinstance(tests[0], dict) else {}
    return first.get("split") if first.get("path") == path else None


def _templates(kind: Mapping[str, Any]) -> dict[str, Any]:
    """axolotl's own prompt formats: columns by field_instruction, field_input, field_output."""
    asked = str(kind.get("field_instruction") or "instruction")
    more, answer = kind.get("field_input"), str(kind.get("field_output") or "output")
    if kind.get("format") or kind.get("no_input_format") or more:
        form = str(
            kind.get("format") if more and kind.get("format") else kind.get("no_input_format") or "{instruction}"
        )
        text = form.replace("{instruction}", _variable(asked)).replace("{input}", _variable(more or "input"))
        return {"dataset.user_template": text, "dataset.assistant_template": _variable(answer)}
    return {"dataset.prompt_column": asked, "dataset.completion_column": answer}


def _variable(column: Any) -> str:
    """A column in a Jinja template."""
    return "{{ " + str(column) + " }}"


def axolotl_pretraining(given: Any, values: Mapping[str, Any]) -> Outcome:
    entries = given if isinstance(given, list) else [given]
    first = entries[0] if entries else None
    first = {"path": first} if isinstance(first, str) else first
    if not isinstance(first, dict):
        return Outcome(lost="it names no data set")
    return axolotl_data([{**first, "type": "pretrain"}, *entries[1:]], values)


def validation_share(given: Any, _: Mapping[str, Any]) -> Outcome:
    if not given:
        return Outcome(needless="0: without a validation split a run takes 0.1 of the rows for it")
    return set_key("dataset.test_size", given)


def trl_data(given: Any, values: Mapping[str, Any]) -> Outcome:
    split = _split(values.get("dataset_train_split"), values.get("dataset_test_split"))
    return Outcome(sets={**_source(str(given)), **split})


def handbook_mixture(given: Any, _: Mapping[str, Any]) -> Outcome:
    entries = given.get("datasets") if isinstance(given, dict) else None
    if not (isinstance(entries, list) and entries and isinstance(entries[0], dict)):
        return Outcome(lost="it names no data set")
    first = entries[0]
    sets: dict[str, Any] = {"dataset.path": first.get("id"), **_split(first.get("split"))}
    if first.get("config") not in (None, "default"):
        sets["dataset.name"] = first["config"]
    columns = first.get("columns")
    if isinstance(columns, list) and len(columns) == 1 and columns[0] != "messages":
        sets["dataset.messages_column"] = columns[0]
    if given.get("test_split_size"):
        sets["dataset.test_size"] = given["test_split_size"]
    if given.get("seed") is not None:
        sets["dataset.seed"] = given["seed"]
    others = [f"{one.get('id')} {one.get('split', '')}".strip() for one in entries[1:] if isinstance(one, dict)]
    shown = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
    return Outcome(sets=sets, but=f"{FIRST_ONLY}not {shown}" if others else "")


def handbook_mixer(given: Any, values: Mapping[str, Any]) -> Outcome:
    names = list(given) if isinstance(given, dict) else []
    if not names:
        return Outcome(lost="it names no data set")
    splits = values.get("dataset_splits")
    train, test = ([*splits, None, None] if isinstance(splits, list) else [None, None])[:2]
    but = FIRST_ONLY + "not " + ", ".join(names[1:]) if names[1:] else ""
    return Outcome(sets={"dataset.path": names[0], **_split(train, test)}, but=but)


def in_the_split(_: Any, values: Mapping[str, Any]) -> Outcome:
    return Outcome(needless="it stands in dataset.split")


def factory_data(given: Any, values: Mapping[str, Any]) -> Outcome:
    names = [name.strip() for name in given.split(",")] if isinstance(given, str) else list(given or ())
    if not names:
        return Outcome(lost="it names no data set")
    sets, lost = _registered(str(names[0]), values)
    if values.get("max_samples") and "dataset.split" not in sets:
        sets["dataset.split"] = {"train": f"train[:{values['max_samples']}]"}
    lost += [FIRST_ONLY + "not " + ", ".join(map(str, names[1:]))] if names[1:] else []
    return Outcome(sets=sets, but="; ".join(lost))


def _registered(name: str, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """(what to set, what is lost) for a name of LLaMA-Factory's dataset_info.json, which is read if it is here."""
    folder = str(values.get("dataset_dir") or "data")
    try:
        with open(os.path.join(folder, "dataset_info.json"), encoding="utf-8") as file:
            entry = json.load(file)[name]
    except (OSError, ValueError, KeyError, TypeError):
        if "/" in name:
            return _source(name), []
        file_name = os.path.join("data" if ":" in folder else folder, f"{name}.json")
        return _source(file_name), [f"{folder}/dataset_info.json is not here; {file_name} is a guess"]
    columns = entry.get("columns") or {}
    sets = _source(os.path.join(folder, entry["file_name"])) if "file_name" in entry else {}
    sets = sets or _source(str(entry.get("hf_hub_url") or entry.get("script_url") or name))
    if entry.get("subset"):
        sets["dataset.name"] = entry["subset"]
    if entry.get("split"):
        sets |= _split(entry["split"])
    messages = columns.get("messages")
    if messages and messages not in ("messages", "conversations"):
        sets["dataset.messages_column"] = messages
    if columns.get("prompt") and columns["prompt"] != "instruction":
        sets |= {"dataset.prompt_column": columns["prompt"]}
        sets |= {"dataset.completion_column": columns["response"]} if columns.get("response") else {}
    return sets, []
