"""One data set of another tool's file (an item of `datasets`, or of dataset_info.json) as keys of a recipe.

Every leaf below the item gets its fate: a rule reads it, says why nothing is lost without it, or what is lost; what
none of them does is lost, by its name.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from hf_recipes.catalog.chat_roles import ROLES, SHAREGPT_ROLES
from hf_recipes.common.text import as_yaml

FILES = {".json": "json", ".jsonl": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".txt": "text"}
MESSAGE_KEYS = (("role", "content"), ("from", "value"))
UNKNOWN = "this package knows no such key of a data set"


@dataclass(kw_only=True)
class Entry:
    """The item, what it sets in the recipe, and the fate of each leaf that was looked at ("": translated)."""

    name: str  # as it is shown: datasets[0]
    values: Mapping[str, Any]
    sets: dict[str, Any] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)
    lost: dict[str, str] = field(default_factory=dict)
    needless: dict[str, str] = field(default_factory=dict)

    def look(self, dotted: str) -> Any:
        value: Any = self.values
        for name in dotted.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        return value

    def part(self, dotted: str) -> Mapping[str, Any]:
        found = self.look(dotted)
        return found if isinstance(found, Mapping) else {}

    def take(self, dotted: str) -> Any:
        """The value; whoever calls this translates all of it."""
        value = self.look(dotted)
        self.seen |= {leaf for leaf in leaves(self.values) if leaf == dotted or leaf.startswith(f"{dotted}.")}
        return value

    def lose(self, dotted: str, why: str) -> None:
        value = self.take(dotted)
        if value is not None or dotted in leaves(self.values):  # by its whole name, where that has dots itself
            self.needless.pop(dotted, None)
            self.lost[dotted] = why if value is None else f"{as_yaml(value)[:60]}: {why}"

    def leave(self, dotted: str, why: str) -> None:
        if self.take(dotted) is not None:
            self.needless[dotted] = why

    def decide(self, dotted: str, harmless: tuple[Any, ...], needless: str, lost: str) -> None:
        """Nothing is lost for these values, and something for each other one."""
        if self.look(dotted) in harmless:
            self.leave(dotted, needless)
        else:
            self.lose(dotted, lost)

    def fates(self) -> tuple[dict[str, str], dict[str, str]]:
        """(lost, needless), by full name; a leaf that no rule has looked at is lost."""
        for leaf in leaves(self.values):
            if leaf not in self.seen:
                self.lose(leaf, UNKNOWN)
        lost, needless = (
            {f"{self.name}.{key}": why for key, why in part.items()} for part in (self.lost, self.needless)
        )
        return lost, needless


def leaves(values: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """The dotted names of what asks for something: null and empty mappings do not."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{above}{key}.")
        elif value is not None:
            yield f"{above}{key}"


def source(path: str, kind: str = "", files: Any = None) -> dict[str, Any]:
    """dataset.path and data_files for a file of this machine or a Hub name."""
    builder = kind if kind in FILES.values() else FILES.get(os.path.splitext(path.removesuffix(".gz"))[1], "")
    if files is not None:
        return {"dataset.path": path, "dataset.data_files": files}
    if builder:
        return {"dataset.path": builder, "dataset.data_files": path}
    return {"dataset.path": path}


def split(train: Any, test: Any = None) -> dict[str, Any]:
    named = {role: str(part) for role, part in (("train", train), ("validation", test)) if part}
    return {"dataset.split": named} if named and named != {"train": "train"} else {}


# templates ----------------------------------------------------------------------------------------------------------

NO_NAME = "a template reads columns named with letters, digits and _ only: rename the column"


def _text(text: str) -> str:
    """Text that Jinja writes as it is: it would read braces, and drop a last line end."""
    plain = not re.search(r"\{[{%#]|[}%#]\}", text) and not text.endswith("\n")
    return text if plain or not text else "{{ " + json.dumps(text, ensure_ascii=False) + " }}"


def _variable(column: str) -> str:
    return "{{ " + column + " }}"


def _filled(form: str, parts: Mapping[str, str]) -> str:
    """A format of Python's (`Q: {instruction}`) with templates in place of its names."""
    pieces = re.split(r"\{(" + "|".join(parts) + r")\}", form)
    return "".join(parts[piece] if i % 2 else _text(piece) for i, piece in enumerate(pieces))


def _either(column: str, given: str, missing: str) -> str:
    """One text where the row has the column's, and another where it is empty."""
    return given if given == missing else f"{{% if {column} %}}{given}{{% else %}}{missing}{{% endif %}}"


def _named(entry: Entry, keys: tuple[str, ...]) -> bool:
    """Whether a template can read the columns; else the keys are lost."""
    bad = [key for key in keys if (name := entry.look(key)) is not None and not str(name).isidentifier()]
    for key in bad:
        entry.lose(key, NO_NAME)
    return not bad


# axolotl ------------------------------------------------------------------------------------------------------------

TEXT_TYPES = ("completion", "pretrain")
CHAT_TYPES = ("None", "chat_template", "sharegpt")
ALPACA_TYPES = ("alpaca", "alpaca_chat", "alpaca_instruct", "alpaca_w_system")


def axolotl_entry(entry: Entry, test: Any, default: Any = None) -> None:
    """An item of axolotl's `datasets`; `test`: the split to evaluate on; `default`: its type where it has none."""
    path, files = str(entry.take("path")), entry.take("data_files")
    kind = entry.look("ds_type")
    entry.sets |= source(path, str(kind), files)
    entry.decide("ds_type", tuple(FILES.values()), "it is seen by the files", "files of this kind are not read")
    if str(kind) in FILES.values() and files is None:
        entry.needless.pop("ds_type", None)  # it is dataset.path
    for key in ("name", "revision"):
        if entry.take(key) is not None:
            entry.sets[f"dataset.{key}"] = entry.look(key)
    entry.sets |= split(entry.take("split"), test)
    asked = entry.look("type") or default
    if isinstance(asked, Mapping):
        _axolotl_columns(entry)
    elif str(asked) in TEXT_TYPES:
        entry.take("type")
        entry.sets["task"] = "causal-lm"
        column = entry.take("field") or entry.take("text_column") or "text"
        entry.decide("text_column", (column,), f"{column} is read", f"the column {column} is read")
        entry.sets |= {"dataset.text_column": str(column)} if column != "text" else {}
    elif str(asked) in CHAT_TYPES:
        entry.take("type")
        _axolotl_messages(entry)
    elif str(asked) in ALPACA_TYPES:
        entry.lose("type", "its columns are read; the chat template stands around them instead of its text")
    else:
        entry.lose("type", "name its columns in dataset")
    if entry.look("chat_template_jinja"):
        entry.sets["tokenizer.chat_template"] = entry.take("chat_template_jinja")
    own = "the tokenizer's own template is used; write tokenizer.chat_template for another one"
    entry.decide("chat_template", ("tokenizer_default", "jinja"), "the tokenizer's own template is used", own)
    entry.lose("conversation", own)
    entry.decide("trust_remote_code", (False,), "it never is", "code from the Hub is not run")
    part = "a part of the rows: write dataset.split, as in train[:10%]"
    for key in ("shards", "shards_idx", "skip"):
        entry.decide(key, (0, 1) if key == "shards" else (0,), "all rows are read", part)
    entry.leave("preprocess_shards", "rows are prepared once and cached")


def _axolotl_messages(entry: Entry) -> None:
    if entry.take("field_messages"):
        entry.sets["dataset.messages_column"] = entry.look("field_messages")
    if entry.take("field_tools"):
        entry.sets["dataset.tools_column"] = entry.look("field_tools")
    mapped = "message_property_mappings"
    old = ("message_field_role", "message_field_content")
    new = (f"{mapped}.role", f"{mapped}.content")
    _message_keys(entry, new if entry.look(mapped) else old, ("role", "content"))
    for leaf in leaves(entry.part(mapped)):
        if f"{mapped}.{leaf}" not in entry.seen:
            same = "it is read under this name"
            entry.decide(f"{mapped}.{leaf}", (leaf,), same, "a key of a message is read under its own name")
    names: dict[str, str] = {}
    for role, given in entry.part("roles").items():
        ours = SHAREGPT_ROLES.get(role, role)
        if ours in ROLES:
            entry.take(f"roles.{role}")
            names |= {str(name): ours for name in (given if isinstance(given, list) else [given]) if name != ours}
        else:
            entry.lose(f"roles.{role}", f"a role is one of {', '.join(ROLES)}")
    if names:
        entry.sets["dataset.role_names"] = names
    trained = entry.look("roles_to_train")
    asked = trained if isinstance(trained, list) else [trained]
    all_answers = bool(asked) and all(
        SHAREGPT_ROLES.get(str(one), names.get(str(one), one)) == "assistant" for one in asked
    )
    only = "the answers of a chat are what is trained on"
    entry.decide("roles_to_train", (trained,) if all_answers else (), only, only)
    for key in ("train_on_eos", "train_on_eot"):
        ends = "an answer is trained on with the token that ends it, and no other end token is"
        entry.decide(key, ("turn",), ends, ends)
    entry.decide("drop_system_message", (False,), "it is kept", "a system message is kept")


def _message_keys(entry: Entry, keys: tuple[str, str], default: tuple[str, str]) -> None:
    """The names of a message's role and text, which are one of two pairs here."""
    found = tuple(str(entry.look(key) or usual) for key, usual in zip(keys, default, strict=True))
    for key in keys:
        if found in MESSAGE_KEYS:
            entry.take(key)
        else:
            entry.lose(key, "a message has role and content, or from and value: rename its keys in the data")


def _axolotl_columns(entry: Entry) -> None:
    """axolotl's own prompt formats: texts around columns."""

    def get(key: str, usual: str = "") -> str:
        return str(entry.look(f"type.{key}") or usual)

    asked, more, answer = get("field_instruction", "instruction"), get("field_input"), get("field_output", "output")
    keys = ("format", "no_input_format", "system_prompt", "system_format", "field_system", "field_input")
    if not any(get(key) for key in keys):  # plain texts, as axolotl has them
        for key in ("field_instruction", "field_output", *keys):
            entry.take(f"type.{key}")
        entry.sets |= {"dataset.prompt_column": asked, "dataset.completion_column": answer}
        return
    fields = tuple(f"type.field_{name}" for name in ("instruction", "input", "output", "system"))
    if not _named(entry, fields):
        entry.lose("type", NO_NAME)
        return
    for key in (*fields, *(f"type.{key}" for key in keys)):
        entry.take(key)
    form = get("format", "{instruction} {input}" if more else "{instruction}")
    more = more or ("input" if "{input}" in form else "")
    with_input = _filled(form, {"instruction": _variable(asked), "input": _variable(more)})
    alone = _filled(get("no_input_format", form), {"instruction": _variable(asked), "input": ""})
    user = _either(more, with_input, alone if get("no_input_format") else with_input) if more else with_input
    user = alone if get("no_input_format") and not more else user
    entry.sets |= {"dataset.user_template": user, "dataset.assistant_template": _variable(answer)}
    entry.lost["type"] = "its texts are read, without a chat template: here the model's stands around them"
    system, fixed = get("field_system"), get("system_prompt")
    form = get("system_format", "{system}")
    from_row = _filled(form, {"system": _variable(system)}) if system else ""
    always = _filled(form, {"system": _text(fixed)}) if fixed else ""
    if system or fixed:
        entry.sets["dataset.system_template"] = _either(system, from_row, always) if system else always


# LLaMA-Factory ------------------------------------------------------------------------------------------------------

TAGS = {"user_tag": "user", "assistant_tag": "assistant", "observation_tag": "tool", "system_tag": "system"}
HUBS = {"ms_hub_url": "ModelScope", "om_hub_url": "Modelers"}
USUAL = {"prompt": "instruction", "query": "input", "response": "output"}  # without `columns`


def factory_entry(entry: Entry, folder: str, values: Mapping[str, Any]) -> None:
    """An item of LLaMA-Factory's dataset_info.json, by the order in which it looks for the rows."""
    _factory_source(entry, folder)
    if entry.take("subset") is not None:
        entry.sets["dataset.name"] = entry.look("subset")
    if entry.take("folder") is not None:
        entry.sets["dataset.data_dir"] = entry.look("folder")
    name = str(entry.take("split") or "train")
    most = [
        number
        for number in (entry.take("num_samples"), values.get("max_samples"))
        if isinstance(number, int) and number
    ]
    entry.sets |= split(f"{name}[:{min(most)}]" if most and "[" not in name else name)
    if "[" in name or entry.look("num_samples") not in most:
        entry.lose("num_samples", "it is no number, or the split is a part of the rows already")
    style = str(entry.take("formatting") or "alpaca")
    if style in ("sharegpt", "openai"):
        _factory_messages(entry)
    elif style == "alpaca":
        _factory_columns(entry, values.get("stage") == "pt")
    else:
        entry.lose("formatting", "rows of this shape are not read: name their columns in dataset")
    for role in ("system", "tools"):
        if f"columns.{role}" not in entry.seen and entry.take(f"columns.{role}"):
            entry.sets[f"dataset.{role}_column"] = entry.look(f"columns.{role}")
    entry.decide("ranking", (False,), "false: nothing is asked for", "preferences are not trained on here")
    for key in ("chosen", "rejected", "kto_tag"):
        entry.lose(f"columns.{key}", "preferences are not trained on here")
    for key in ("images", "videos", "audios"):
        entry.lose(f"columns.{key}", "images, audio and video are not trained here")


def _factory_source(entry: Entry, folder: str) -> None:
    keys = ("hf_hub_url", *HUBS, "script_url", "cloud_file_name", "file_name")
    first = next((key for key in keys if entry.look(key)), "file_name")
    first = "file_name" if first in HUBS and entry.look("file_name") else first
    given = str(entry.look(first) or entry.name)
    entry.sets |= source(os.path.join(folder, given) if first in ("file_name", "script_url") else given)
    entry.take(first)
    if first in HUBS:
        entry.lose(first, f"this is a name of {HUBS[first]}: write one of the Hugging Face Hub, or a file")
    if first == "script_url":
        entry.lose(first, "a loading script is not run: name its files in dataset.data_files")
    for key in keys:
        if key != first:
            entry.leave(key, f"the rows come from {first}")


def _factory_messages(entry: Entry) -> None:
    if entry.take("columns.messages"):
        entry.sets["dataset.messages_column"] = entry.look("columns.messages")
    _message_keys(entry, ("tags.role_tag", "tags.content_tag"), ("from", "value"))
    from_value = entry.look("tags.role_tag") in (None, "from")
    names = {}
    for key, role in TAGS.items():
        name = str(entry.take(f"tags.{key}") or role)
        if name != role and not (from_value and SHAREGPT_ROLES.get(name) == role):
            names[name] = role
    if names:
        entry.sets["dataset.role_names"] = names
    calls = "a message that calls tools has the role function_call"
    entry.decide("tags.function_tag", ("function_call",), calls, calls)


def _factory_columns(entry: Entry, text_only: bool) -> None:
    """Alpaca's columns, by these names or others: prompt and query make the user's message."""
    given = entry.part("columns") or USUAL
    prompt, query, answer = (given.get(key) for key in USUAL)
    if text_only:
        entry.take("columns.prompt")
        entry.sets |= {"dataset.text_column": prompt} if prompt and prompt != "text" else {}
        for leaf in leaves(entry.part("columns")):
            if leaf != "prompt":
                entry.lose(f"columns.{leaf}", "stage pt learns the text of one column")
        return
    if (prompt, query, answer) == tuple(USUAL.values()) and given.get("history") in (None, "history"):
        for key in (*USUAL, "history"):
            entry.take(f"columns.{key}")
        return  # they are read as they are
    entry.lose("columns.history", "earlier turns are read with the columns instruction, input, output and history")
    if not _named(entry, tuple(f"columns.{key}" for key in USUAL)):
        for key in USUAL:
            entry.lose(f"columns.{key}", NO_NAME)
        return
    for key in USUAL:
        entry.take(f"columns.{key}")
    asked = _variable(str(prompt)) if prompt else ""
    joined = f"{{% if {prompt} and {query} %}}\n{{% endif %}}" if prompt else ""
    more = joined + _variable(str(query)) if query else ""
    entry.sets["dataset.user_template"] = asked + more
    if answer:
        entry.sets["dataset.assistant_template"] = _variable(str(answer))
