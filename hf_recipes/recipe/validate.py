"""A recipe's sections against the installed upstream: every key and every value, reported with its location."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from hf_recipes.common.text import format_value, nearest
from hf_recipes.errors import Diagnostic
from hf_recipes.recipe.document import MOST_SUGGESTIONS, Document
from hf_recipes.recipe.foreign_keys import meaning_of_key
from hf_recipes.recipe.model_facts import is_path, model_facts
from hf_recipes.recipe.schema import installed as schema
from hf_recipes.recipe.schema.check_value import problem
from hf_recipes.recipe.schema.fields import Field
from hf_recipes.recipe.schema.own_keys import FILE_BUILDERS, OPEN_SECTIONS, SECTIONS, TOP, TRAINERS
from hf_recipes.recipe.schema.value_fixes import fix_of_value

MISSPELLED = 0.75  # how alike an unknown key and a known one are that was meant (difflib)
NO_FIX = "see `hf-recipes schema` for its keys"
LONGEST_NAME, LONGEST_PATH = 255, 3_900  # bytes on Linux; a run adds the names of its files to output_dir
PATH_KEYS = {
    *("output_dir", "resume_from_checkpoint", "deepspeed", "chat_template_path"),
    *("pretrained_model_name_or_path", "config", "subfolder", "gguf_file"),
    *("path", "data_dir", "data_files", "cache_dir", "offload_folder"),
}


class Validator:
    """Collects errors and warnings about a document; `result` is the document with them."""

    def __init__(self, document: Document):
        self.document = document
        self.sections: Mapping[str, Any] = document.values
        self.errors: list[Diagnostic] = []
        self.warnings: list[Diagnostic] = []
        self.broken: set[str] = set()  # dotted keys with an error: no other check should report them again

    def result(self) -> Document:
        document = self.document.with_errors(self.errors, self.broken)
        return replace(document, warnings=(*document.warnings, *self.warnings))

    def is_broken(self, *sections: str) -> bool:
        return not self.document.broken.isdisjoint(sections)

    def error(self, dotted: str, message: str, fix: str) -> None:
        self.errors.append(Diagnostic(location=self.document.location(dotted), message=message, fix=fix))
        self.broken.add(dotted)

    def warning(self, dotted: str, message: str, fix: str) -> None:
        self.warnings.append(Diagnostic(location=self.document.location(dotted), message=message, fix=fix))

    def check_value(self, dotted: str, field: Field, value: Any) -> None:
        """One value against what its key takes."""
        wrong = problem(field, value)
        if wrong:
            self.error(dotted, f"{dotted} {wrong[0]}", fix_of_value(field.name, value) or wrong[1])
        elif field.deprecated and value is not None:
            package = installed_package(dotted.partition(".")[0])
            sentence = field.help.partition(". ")[0].rstrip(".")
            self.warning(dotted, f"{dotted} is deprecated ({package})", f"upstream says: {sentence}")


def installed_package(section: str) -> str:
    """ "trl 1.16.0": the package that decides what a section takes."""
    package = schema.PACKAGES[section]
    return f"{package} {schema.version(package)}".strip()


def validate_sections(document: Document) -> Document:
    """The document with an error or a warning for every key and value that the installed upstream does not take."""
    validator = Validator(document)
    for name, value in validator.sections.items():
        if name in TOP and name != "task":
            validator.check_value(name, TOP[name], value)
        elif name == "model":
            _validate_model(value, validator)
        elif name == "dataset":
            _validate_dataset(value, validator)
        elif name in SECTIONS:
            _validate_keys(name, value, validator)
    for dotted, value in _leaves(validator.sections):
        nested = dotted.count(".") > 1  # values right in a section are checked above
        if nested and isinstance(value, float) and not math.isfinite(value):
            validator.error(dotted, f"{dotted} is {format_value(value)}", "it must be a finite number")
        elif isinstance(value, str) and PATH_KEYS & set(dotted.split(".")) and (wrong := _path_problem(value)):
            validator.error(dotted, f"{dotted} {wrong}", "shorten it")
    return validator.result()


def _path_problem(path: str) -> str:
    """What is wrong with a path on every machine; "" if nothing is. A NUL character is refused in every text."""
    if any(len(part) > LONGEST_NAME for part in os.fsencode(path).split(b"/")):
        return f"has a name of more than {LONGEST_NAME} bytes, the most that a file may have"
    return "is longer than a path may be" if len(os.fsencode(path)) > LONGEST_PATH else ""


def _leaves(value: Any, dotted: str = "") -> Iterator[tuple[str, Any]]:
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        yield dotted, value
        return
    for key, inner in items:
        yield from _leaves(inner, f"{dotted}.{key}" if dotted else str(key))


def _validate_keys(
    section: str,
    values: Mapping[str, Any],
    validator: Validator,
    more: Mapping[str, Field] | None = None,
    closed: bool = False,
    reader: str = "",
) -> None:
    """The keys of one section against its fields and `more`; unknown keys of a closed section are errors.

    `closed`: of an open section, whether these are all the names that its class has. `reader`: of files, which takes no
    others.
    """
    known = {**(more or {}), **schema.fields(section)}
    for key, value in values.items():
        dotted = f"{section}.{key}"
        if not isinstance(key, str):
            validator.error(dotted, f"{section} has a key that is not a string: {format_value(key)}", "write a name")
        elif key == "trust_remote_code" and value is not False and value is not None:
            fix = "leave it out: this package loads what transformers has a class for"
            validator.error(dotted, f"{dotted} is refused: code from the Hub is not run", fix)
        elif key in known:
            validator.check_value(dotted, known[key], value)
        elif section in OPEN_SECTIONS:
            _validate_unknown(section, key, known, validator, closed, reader)
        else:
            what = f"{section} has no {key!r} ({installed_package(section)})"
            few = len(validator.errors) < MOST_SUGGESTIONS
            validator.error(dotted, what, fix_of_key(section, key, known) if few else "")


def _validate_unknown(
    section: str, key: str, known: Mapping[str, Field], validator: Validator, closed: bool, reader: str
) -> None:
    """An unknown key of a section whose upstream function takes further keywords: an error if it is a known key of this
    section misspelled, or one of another place or tool, else a warning.

    `closed`: `known` has every key of this model's config, so that a name that only other models have is none.
    """
    dotted = f"{section}.{key}"
    what = f"{section}.{key} is not a known key ({installed_package(section)})"
    if len(validator.warnings) + len(validator.errors) >= MOST_SUGGESTIONS:
        report = validator.error if reader else validator.warning
        report(dotted, what, "")
        return
    target, meant = meaning_of_key(section, key)
    homes = sections_with(key, but=section)
    near = nearest(key, known, cutoff=MISSPELLED) if not (meant or homes) else ""
    if near and not closed and schema.is_named_upstream(section, key):
        near = ""
    if not (meant or homes or near) and reader:
        validator.error(dotted, what, f"leave it out: the reader of {reader} files takes no such key")
        return
    if not (meant or homes or near):
        validator.warning(dotted, what, "upstream gets it as it stands")
        return
    validator.error(dotted, what, fix_of_key(section, key, known))
    given = f"{section}.{near}" if near else target
    home, _, name = given.partition(".")
    if name and name not in (validator.sections.get(home) or ()):
        validator.broken.add(given)  # it counts as given


def fix_of_key(section: str, key: str, known: Mapping[str, Field]) -> str:
    """Where an unknown key belongs, or the nearest name of its section, or of another one."""
    homes, near = sections_with(key, but=section), _longer_name(section, key, known) or nearest(key, known)
    if homes:
        return f"it is a key of {' and of '.join(homes)}" + (f"; or did you mean {near!r}?" if near else "")
    _, meant = meaning_of_key(section, key)
    if meant:
        return meant
    if near:
        return f"did you mean {near!r}?"
    for other in (s for s in SECTIONS if s != section):
        near = nearest(key, schema.fields(other), cutoff=0.8)
        if near:
            return f"did you mean {near!r} of {other}?"
    return NO_FIX


def _longer_name(section: str, key: str, known: Mapping[str, Field]) -> str:
    """The one key that ends in this one ("patience": early_stopping_patience), or what other tools call
    lora_<this one> (rank: r)."""
    ending = [name for name in known if name.endswith(f"_{key}")]
    if len(ending) == 1:
        return ending[0]
    target = meaning_of_key(section, f"lora_{key}")[0] if section == "LoraConfig" else ""
    home, _, name = target.partition(".")
    return name if home == section else ""


def sections_with(key: str, but: str = "") -> list[str]:
    """Sections (and "the top of the recipe") that have this very key."""
    homes = ["the top of the recipe"] if key in TOP else []
    related = (but, *TRAINERS) if but in TRAINERS else (but,)
    homes += [s for s in SECTIONS if s not in related and key in schema.fields(s)]
    if but in TRAINERS and not homes:
        homes = [s for s in TRAINERS if s != but and key in schema.fields(s)]
    elif not but and all(t in homes for t in TRAINERS):
        homes.remove("SFTConfig")  # which has every key of TrainingArguments
    return homes


# model --------------------------------------------------------------------------------------------------------------


def _validate_model(model: Mapping[str, Any], validator: Validator) -> None:
    inline = model.get("config")
    if isinstance(inline, Mapping):
        _validate_inline(inline, validator)
    known = schema.fields("model")
    config: Mapping[str, Field] = {}
    closed = False
    facts = model_facts(model)
    if facts.problem:
        key = "pretrained_model_name_or_path" if model.get("pretrained_model_name_or_path") else "config"
        validator.warning(f"model.{key}", facts.problem, "is it a model's config.json?")
    if any(key not in known for key in model):  # the config's source is read only where a key asks for it
        model_type = facts.model_type
        own = schema.config_fields(model_type) if model_type else None
        config, closed = own or schema.common_config_fields(), own is not None
    _validate_keys("model", model, validator, config, closed)
    preset = model.get("preset")
    if isinstance(preset, str):
        from hf_recipes.catalog.presets import PRESETS

        if preset not in PRESETS:
            near = nearest(preset, PRESETS)
            fix = f"did you mean {near!r}?" if near else "it must be one of " + ", ".join(map(repr, PRESETS))
            validator.error("model.preset", f"there is no preset {preset!r}", fix)
    for key in ("pretrained_model_name_or_path", "config"):
        value = model.get(key)
        if isinstance(value, str) and is_path(value) and not os.path.exists(value):
            validator.warning(
                f"model.{key}", f"there is no {value!r} here", "paths are relative to the working directory"
            )


def _validate_inline(config: Mapping[str, Any], validator: Validator) -> None:
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        what = (
            "model.config has no model_type"
            if model_type is None
            else f"model.config.model_type is {format_value(model_type)}"
        )
        validator.error("model.config.model_type", what, "write the name of an architecture, such as gpt2")
        return
    known = schema.config_fields(model_type)
    if known is None:
        near = nearest(model_type, schema.model_types())
        fix = f"did you mean {near!r}?" if near else "it must be a model_type of transformers, such as gpt2"
        what = f"model.config.model_type is {model_type!r}, which {installed_package('model')} does not have"
        validator.error("model.config.model_type", what, fix)
        return
    for key, value in config.items():
        dotted = f"model.config.{key}"
        if key in known:
            validator.check_value(dotted, known[key], value)
        else:
            few = len(validator.warnings) + len(validator.errors) < MOST_SUGGESTIONS
            near = nearest(str(key), known, cutoff=MISSPELLED) if few else ""
            fix = f"did you mean {near!r}?" if near else "the config keeps it, and no layer reads it"
            report = validator.error if near else validator.warning
            report(dotted, f"{schema.config_class(model_type)} has no {key!r} ({installed_package('model')})", fix)


# dataset ------------------------------------------------------------------------------------------------------------


def _validate_dataset(dataset: Mapping[str, Any], validator: Validator) -> None:
    path, known = dataset.get("path"), schema.fields("dataset")
    more: dict[str, Field] = {}
    unknown = any(key not in known for key in dataset)
    if isinstance(path, str) and unknown:  # the builders' files are opened only where a key asks for them
        if path in schema.builders():
            more = dict(schema.builder_fields(path) or {})
        else:
            for builder in FILE_BUILDERS:  # a Hub id or a folder is read by one of these
                more |= schema.builder_fields(builder) or {}
        if dataset.get("format") == "conll":  # read by data/conll.py, in whose files columns have names too
            of_csv = schema.builder_fields("csv") or {}
            more |= {key: of_csv[key] for key in ("column_names", "delimiter")}
    reader = path if isinstance(path, str) and path in FILE_BUILDERS and more and not os.path.exists(path) else ""
    _validate_keys("dataset", dataset, validator, more, closed=True, reader=reader)
    if isinstance(path, str) and "/" not in path and "data_files" in dataset and not os.path.exists(path):
        builders = schema.builders()
        near = nearest(path, builders) if path not in builders else ""
        if near:
            what = f"dataset.path is {path!r}, which is no file format"
            validator.warning("dataset.path", what, f"did you mean {near!r}? otherwise it is looked for on the Hub")
