"""A file of another tool (TRL and alignment-handbook, axolotl, LLaMA-Factory) to a recipe that passes `check`.

    values --each key: its rule, or its row of catalog/other_tools.py, or SFTConfig's own key--> sections
    sections --old keys upgraded--> examined: what the installed versions or the rules refuse is taken out, and named

Imports neither torch nor transformers.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hf_recipes.catalog.other_tools import TOOLS, TRAINER
from hf_recipes.common.text import as_yaml
from hf_recipes.errors import Diagnostic, RecipeError
from hf_recipes.recipe.convert_data import Outcome
from hf_recipes.recipe.convert_rules import RULES, finish, preferences
from hf_recipes.recipe.deprecated_keys import UPGRADES
from hf_recipes.recipe.document import Document
from hf_recipes.recipe.foreign_keys import is_accelerate_file, tool_of
from hf_recipes.recipe.merge import without_secrets
from hf_recipes.recipe.read import examine_text
from hf_recipes.recipe.recipe import Recipe, dump_recipe
from hf_recipes.recipe.schema.installed import fields
from hf_recipes.recipe.upgrade import upgrade_document
from hf_recipes.recipe.yaml_reader import read_file

SECTION = "SFTConfig"  # the trainer of what these tools train
ROUNDS = 8  # of taking out what is refused
TRANSLATED, NEEDLESS, LOST = "translated", "left out", "not translated"


@dataclass(kw_only=True)
class Conversion:
    """A recipe, and what became of each key of the file that it was made from."""

    path: str
    tool: str
    sections: dict[str, Any] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)  # dotted key of the recipe -> key of the file
    fates: dict[str, tuple[str, str]] = field(default_factory=dict)  # key of the file -> (TRANSLATED ..., a line)
    text: str = ""
    warnings: tuple[str, ...] = ()  # of `check`, about the recipe

    def count(self, fate: str) -> int:
        return sum(found == fate for found, _ in self.fates.values())


def convert_file(path: str, tool: str = "") -> Conversion:
    """The recipe that a file of another tool asks for. `tool`: a name of TOOLS; "" recognises it by its keys.

    Raises RecipeError for a file that cannot be read, that is none of these tools', or that asks for a method which
    is not offered, and where no recipe that passes `check` can be made of it.
    """
    values = _read(path)
    tool = tool or tool_of(values) or _unknown(path, values)
    method = preferences(tool, values)
    if method:
        raise RecipeError.at(path, method[0], method[1])
    made = Conversion(path=path, tool=tool)
    for key, value in values.items():
        _take(made, str(key), value, values)
    finish(tool, values, made.sections)
    _upgrade(made)
    _settle(made)
    _describe(made, values)
    return made


def _read(path: str) -> dict[str, Any]:
    document = read_file(path)
    errors = list(document.errors)
    if not errors and not isinstance(document.values, dict):
        errors = [Diagnostic(location=path, message="is not a mapping of keys", fix="is it a configuration file?")]
    if errors:
        raise RecipeError(errors)
    values = without_secrets(document, errors)
    if errors:
        raise RecipeError(errors)
    return values


def _unknown(path: str, values: Mapping[str, Any]) -> str:
    if is_accelerate_file(values):
        raise RecipeError.at(path, "is an accelerate config file", "give it to `accelerate launch --config_file`")
    if "task" in values:
        raise RecipeError.at(path, "is a recipe already", "`hf-recipes check` looks at it")
    raise RecipeError.at(path, f"is no file of {', '.join(TOOLS)} by its keys", "name its tool with --from")


def _take(made: Conversion, key: str, value: Any, values: Mapping[str, Any]) -> None:
    """One key of the file into the sections."""
    outcome = _outcome(made.tool, key, value, values)
    _take_whole(made, key, outcome)
    made.fates |= {part: (LOST, why) for part, why in outcome.parts_lost.items()}
    made.fates |= {part: (NEEDLESS, why) for part, why in outcome.parts_needless.items()}


def _take_whole(made: Conversion, key: str, outcome: Outcome) -> None:
    if outcome.lost or outcome.needless:
        made.fates[key] = (LOST, outcome.lost) if outcome.lost else (NEEDLESS, outcome.needless)
        return
    for dotted, new in outcome.sets.items():
        dotted = dotted.replace(f"{TRAINER}.", f"{SECTION}.", 1) if dotted.startswith(f"{TRAINER}.") else dotted
        _set(made.sections, dotted, new)
        made.origin[dotted] = key
    made.fates[key] = (TRANSLATED, f"not translated: {outcome.but}" if outcome.but else "")


def _describe(made: Conversion, values: Mapping[str, Any]) -> None:
    """What each translated key has become, in the recipe as it stands."""
    recipe = Recipe(path=made.path, sections=made.sections, locations={})
    for key, (fate, but) in list(made.fates.items()):
        if fate != TRANSLATED:
            continue
        new = {dotted: recipe.get(dotted) for dotted, old in made.origin.items() if old == key}
        shown = [f"{dotted}: {as_yaml(value)[:60]}" for dotted, value in new.items() if value is not None]
        line = "; ".join([*shown, *([but] if but else [])])
        made.fates[key] = (TRANSLATED, line) if shown else _gone(made, key, new, values, but)


QUANTISED = ("load_in_4bit", "load_in_8bit", "quantization_bit")


def _gone(made: Conversion, key: str, new: Mapping[str, Any], values: Mapping[str, Any], but: str) -> tuple[str, str]:
    """The fate of a key that set what the recipe does not have in the end: `finish` drops what an adapter is for."""
    homes = {dotted.partition(".")[0] for dotted in new}
    if "LoraConfig" not in made.sections and homes & {"LoraConfig", "BitsAndBytesConfig"}:
        if key in QUANTISED and values.get(key):
            return LOST, "quantised weights are trained through an adapter only, and this file asks for none"
        return NEEDLESS, but or "it is for an adapter (LoraConfig), and this file asks for none"
    return NEEDLESS, but or "it asks for what is so anyway"


def _outcome(tool: str, key: str, value: Any, values: Mapping[str, Any]) -> Outcome:
    if value is None:
        return Outcome(needless="null: nothing is asked for")
    rule, row = RULES[tool].get(key), TOOLS[tool].get(key)
    if rule is not None:
        return rule(value, values)
    if row is not None:
        return Outcome(needless=row.needless, lost=row.lost, sets={row.new: value} if row.new else {})
    old = any(each.old == key and SECTION in each.sections for each in UPGRADES)
    if old or key in fields(SECTION):
        return Outcome(sets={f"{SECTION}.{key}": value})
    return Outcome(lost="this package knows no such key")


def _set(sections: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    home = sections
    for name in parents:
        inner = home.get(name)
        home[name] = home = inner if isinstance(inner, dict) else {}
    if isinstance(value, Mapping) and isinstance(home.get(last), dict):
        home[last] = {**home[last], **value}
    else:
        home[last] = value


def _upgrade(made: Conversion) -> None:
    """Today's names for what the tools call by the names of transformers 4; a location here is a key's own name."""
    document = upgrade_document(Document(values=made.sections, locations={each: each for each in made.origin}))
    made.sections = dict(document.values)
    for dotted, where in document.locations.items():
        if where in made.origin:
            made.origin.setdefault(dotted, made.origin[where])
    for each in document.errors:
        made.fates[made.origin.get(each.location, each.location)] = (LOST, each.message)


def _settle(made: Conversion) -> None:
    """Take out what is refused, key by key, until the recipe passes `check`. Raises RecipeError where it never does."""
    name = f"{os.path.splitext(os.path.basename(made.path))[0]}.yaml"
    for _ in range(ROUNDS):
        made.text = dump_recipe(Recipe(path=name, sections=made.sections, locations={}))
        document = examine_text(made.text, made.path)
        if not document.errors:
            made.warnings = tuple(each.message for each in document.warnings)
            return
        lines: dict[str, str] = {}
        for dotted, where in document.locations.items():
            lines[where] = dotted if where not in lines or len(dotted) < len(lines[where]) else lines[where]
        gone = [(lines.get(each.location, ""), each) for each in document.errors]
        taken = [(dotted, each) for dotted, each in gone if dotted.count(".") or dotted in OPTIONAL]
        taken = [(dotted, each) for dotted, each in taken if dotted not in NEEDED]
        if not taken:
            break
        for dotted, each in taken:
            _drop(made, dotted, each)
    raise RecipeError(
        Diagnostic(location=made.path, message=f"no recipe can be made of it: {each.message}", fix=each.fix)
        for each in document.errors
    )


OPTIONAL = ("LoraConfig", "BitsAndBytesConfig", "EarlyStoppingCallback", "tokenizer", "metrics")
NEEDED = ("model.pretrained_model_name_or_path", "dataset.path")


def _drop(made: Conversion, dotted: str, why: Diagnostic) -> None:
    home: Any = made.sections
    *parents, last = dotted.split(".")
    for name in parents:
        home = home.get(name) if isinstance(home, dict) else None
    if isinstance(home, dict) and last in home:
        del home[last]
        sources = [old for new, old in made.origin.items() if new == dotted or new.startswith(f"{dotted}.")]
        key = next(iter(sources), made.origin.get(f"{SECTION}.{last}", last))
        made.fates[key] = (LOST, f"{why.message}; {why.fix}" if why.fix else why.message)


def recipe_text(made: Conversion) -> str:
    """The recipe, with what was not translated as comments above it."""
    lines = [f"# Converted from {os.path.basename(made.path)} ({made.tool}) by `hf-recipes convert`."]
    lost = [(key, line) for key, (fate, line) in made.fates.items() if fate == LOST or "not translated: " in line]
    if lost:
        lines.append("# Not translated:")
        lines += [f"#   {key}: {' '.join(line.split())}" for key, line in lost]
    return "\n".join(lines) + "\n" + made.text
