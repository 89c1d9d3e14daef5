"""What other tools say about their data, as a recipe's `dataset` section."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from hf_recipes.recipe.convert_entry import Entry, axolotl_entry, factory_entry, leaves, source, split


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What becomes of one key: the dotted keys to set, or why nothing is lost, or what is lost; `but`: what of it."""

    sets: Mapping[str, Any] = field(default_factory=dict)
    needless: str = ""
    lost: str = ""
    but: str = ""
    parts_lost: Mapping[str, str] = field(default_factory=dict)  # full name of a leaf below the key -> why
    parts_needless: Mapping[str, str] = field(default_factory=dict)


Rule = Callable[[Any, Mapping[str, Any]], Outcome]  # (value, all values of the file)
FIRST_ONLY = "one data set is read: "


def set_key(dotted: str, value: Any, **more: Any) -> Outcome:
    return Outcome(sets={dotted: value}, **more)


def set_if_true(dotted: str, value: Any, otherwise: str = "false: nothing is asked for") -> Rule:
    return lambda given, _: set_key(dotted, value) if given else Outcome(needless=otherwise)


# data ---------------------------------------------------------------------------------------------------------------


def _outcome(entry: Entry, others: list[str], lost: str = "") -> Outcome:
    """What the first data set sets, with a line for each part of it that is not translated."""
    missing, needless = entry.fates()
    shown = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
    but = [part for part in (lost, f"{FIRST_ONLY}not {shown}" if others else "") if part]
    return Outcome(sets=entry.sets, but="; ".join(but), parts_lost=missing, parts_needless=needless)


def axolotl_data(given: Any, values: Mapping[str, Any], key: str = "datasets", default: Any = None) -> Outcome:
    entries = [one for one in (given if isinstance(given, list) else [given]) if isinstance(one, dict)]
    if not entries or not isinstance(entries[0].get("path"), str):
        return Outcome(lost="it names no data set")
    entry = Entry(name=f"{key}[0]", values=entries[0])
    axolotl_entry(entry, _test_split(values, entries[0]), default)
    return _outcome(entry, [str(one.get("path")) for one in entries[1:]])


def _first_test(values: Mapping[str, Any]) -> Mapping[str, Any]:
    tests = values.get("test_datasets")
    return tests[0] if isinstance(tests, list) and tests and isinstance(tests[0], dict) else {}


def _test_split(values: Mapping[str, Any], first: Mapping[str, Any]) -> Any:
    """The split of axolotl's test_datasets, where it is of the same data set."""
    test = _first_test(values)
    same = test.get("path") == first.get("path") and test.get("data_files") == first.get("data_files")
    return test.get("split") if same else None


def axolotl_tests(given: Any, values: Mapping[str, Any]) -> Outcome:
    """axolotl's test_datasets: another split of the first data set is translated, by that one's rule."""
    data, test = values.get("datasets"), _first_test(values)
    first = data[0] if isinstance(data, list) and data and isinstance(data[0], dict) else {}
    part = _test_split(values, first)
    if not part or part == first.get("split"):
        return Outcome(
            lost="it is no other split of the first data set: name its file in dataset.data_files.validation"
        )
    entry = Entry(name="test_datasets[0]", values=test)
    for leaf in leaves(test):
        if leaf == "split" or entry.look(leaf) == Entry(name="", values=first).look(leaf):
            entry.take(leaf)
        else:
            entry.lose(leaf, "rows to evaluate on are read as those to train on")
    missing, _ = entry.fates()
    others = [str(one.get("path")) for one in given[1:] if isinstance(one, dict)]
    if others:
        missing["test_datasets[1]"] = FIRST_ONLY + "not " + ", ".join(others)
    return Outcome(needless="it stands in dataset.split", parts_lost=missing)


def axolotl_pretraining(given: Any, values: Mapping[str, Any]) -> Outcome:
    entries = given if isinstance(given, list) else [given]
    first = entries[0] if entries else None
    first = {"path": first} if isinstance(first, str) else first
    if not isinstance(first, dict):
        return Outcome(lost="it names no data set")
    return axolotl_data([first, *entries[1:]], values, "pretraining_dataset", "pretrain")


def validation_share(given: Any, _: Mapping[str, Any]) -> Outcome:
    if not given:
        return Outcome(needless="0: without a validation split a run takes 0.1 of the rows for it")
    return set_key("dataset.test_size", given)


def trl_data(given: Any, values: Mapping[str, Any]) -> Outcome:
    parts = split(values.get("dataset_train_split"), values.get("dataset_test_split"))
    return Outcome(sets={**source(str(given)), **parts})


def handbook_mixture(given: Any, _: Mapping[str, Any]) -> Outcome:
    entries = given.get("datasets") if isinstance(given, dict) else None
    if not (isinstance(entries, list) and entries and isinstance(entries[0], dict)):
        return Outcome(lost="it names no data set")
    whole = Entry(name="dataset_mixture", values={**given, "datasets": None})
    entry = Entry(name="dataset_mixture.datasets[0]", values=entries[0])
    entry.sets |= {"dataset.path": entry.take("id"), **split(entry.take("split"))}
    if entry.take("config") not in (None, "default"):
        entry.sets["dataset.name"] = entry.look("config")
    columns = entry.look("columns")
    if isinstance(columns, list) and len(columns) == 1:
        entry.take("columns")
        entry.sets |= {"dataset.messages_column": columns[0]} if columns[0] != "messages" else {}
    elif isinstance(columns, list):
        entry.leave("columns", "columns that nobody reads do not matter")
    entry.decide("weight", (1,), "all rows are read", "a part of the rows: write dataset.split, as in train[:10%]")
    for key, new in (("test_split_size", "test_size"), ("seed", "seed")):
        if whole.take(key) is not None:
            entry.sets[f"dataset.{new}"] = whole.look(key)
    others = [f"{one.get('id')} {one.get('split', '')}".strip() for one in entries[1:] if isinstance(one, dict)]
    made = _outcome(entry, others)
    return replace(made, parts_lost={**whole.fates()[0], **made.parts_lost})


def handbook_mixer(given: Any, values: Mapping[str, Any]) -> Outcome:
    names = list(given) if isinstance(given, dict) else []
    if not names:
        return Outcome(lost="it names no data set")
    splits = values.get("dataset_splits")
    train, test = ([*splits, None, None] if isinstance(splits, list) else [None, None])[:2]
    but = FIRST_ONLY + "not " + ", ".join(names[1:]) if names[1:] else ""
    return Outcome(sets={"dataset.path": names[0], **split(train, test)}, but=but)


def in_the_split(_: Any, values: Mapping[str, Any]) -> Outcome:
    return Outcome(needless="it stands in dataset.split")


def factory_data(given: Any, values: Mapping[str, Any]) -> Outcome:
    names = [name.strip() for name in given.split(",")] if isinstance(given, str) else list(given or ())
    if not names:
        return Outcome(lost="it names no data set")
    entry, lost = _registered(str(names[0]), values)
    return _outcome(entry, [str(name) for name in names[1:]], lost)


def factory_most(given: Any, values: Mapping[str, Any]) -> Outcome:
    """LLaMA-Factory's max_samples, which dataset.split says unless the data set's own entry asks for a part."""
    sets = factory_data(values.get("dataset") or "", values).sets
    if f"[:{given}]" in str(sets.get("dataset.split")):
        return Outcome(needless="it stands in dataset.split")
    return Outcome(lost="the data set's own entry asks for a part of the rows: write dataset.split")


def _registered(name: str, values: Mapping[str, Any]) -> tuple[Entry, str]:
    """(the data set, what is lost) for a name of LLaMA-Factory's dataset_info.json, which is read if it is here."""
    folder = str(values.get("dataset_dir") or "data")
    entry, lost = Entry(name=f"dataset[{name}]", values={}), ""
    try:
        with open(os.path.join(folder, "dataset_info.json"), encoding="utf-8") as file:
            found = json.load(file)[name]
        if not isinstance(found, dict):
            raise TypeError(name)
    except (OSError, ValueError, KeyError, TypeError):
        most = values.get("max_samples")
        entry.sets |= {"dataset.split": {"train": f"train[:{most}]"}} if most else {}
        if "/" in name:
            entry.sets |= source(name)
            return entry, lost
        file_name = os.path.join("data" if ":" in folder else folder, f"{name}.json")
        entry.sets |= source(file_name)
        return entry, f"{folder}/dataset_info.json is not here; {file_name} is a guess"
    entry = Entry(name=f"dataset[{name}]", values=found)
    factory_entry(entry, folder, values)
    return entry, lost
