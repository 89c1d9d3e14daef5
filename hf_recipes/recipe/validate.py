"""A recipe's sections against the installed upstream: every key and value judged, with its place."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from hf_recipes.common.text import nearest, said
from hf_recipes.errors import Diagnostic
from hf_recipes.recipe.schema import installed as schema
from hf_recipes.recipe.schema import static_source
from hf_recipes.recipe.schema.check_value import problem
from hf_recipes.recipe.schema.fields import Field
from hf_recipes.recipe.schema.own_keys import FILE_BUILDERS, OPEN_SECTIONS, SECTIONS, TOP, TRAINERS


@dataclass(kw_only=True)
class Judge:
    """Gathers faults and doubts. `place` finds the place of a dotted key, or of its nearest ancestor."""

    location: Callable[[str], str]
    errors: list[Diagnostic] = field(default_factory=list)
    warnings: list[Diagnostic] = field(default_factory=list)
    bad: set[str] = field(default_factory=set)  # dotted keys at fault: no other check should trip over them

    def error(self, dotted: str, what: str, fix: str) -> None:
        self.errors.append(Diagnostic(location=self.location(dotted), message=what, fix=fix))
        self.bad.add(dotted)

    def warning(self, dotted: str, what: str, fix: str) -> None:
        self.warnings.append(Diagnostic(location=self.location(dotted), message=what, fix=fix))

    def value(self, dotted: str, word: Field, value: Any) -> None:
        bad = problem(word, value)
        if bad:
            self.error(dotted, f"{dotted} {bad[0]}", bad[1])
        elif word.deprecated and value is not None:
            section = dotted.partition(".")[0]
            self.warning(
                dotted, f"{dotted} is deprecated ({installed(section)})", f"upstream says: {_first(word.help)}"
            )


def installed(section: str) -> str:
    """ "trl 1.16.0": the package that decides what a section takes."""
    package = schema.PACKAGES[section]
    return f"{package} {static_source.version(package)}".strip()


def _first(text: str) -> str:
    return text.partition(". ")[0].rstrip(".")


def judge_sections(sections: Mapping[str, Any], judge: Judge) -> None:
    """Every key and value of every section that is a mapping, and of our words at the top."""
    for name, value in sections.items():
        if name in TOP and name != "task":
            judge.value(name, TOP[name], value)
        elif name == "model":
            _judge_model(value, judge)
        elif name == "dataset":
            _judge_dataset(value, judge)
        elif name in SECTIONS:
            _judge_words(name, value, judge)
    for dotted, value in _leaves(sections):
        nested = dotted.count(".") > 1  # values right in a section are judged above
        if nested and isinstance(value, float) and not math.isfinite(value):
            judge.error(dotted, f"{dotted} is {said(value)}", "it must be a finite number")


def _leaves(value: Any, dotted: str = "") -> Iterator[tuple[str, Any]]:
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        yield dotted, value
        return
    for key, inner in items:
        yield from _leaves(inner, f"{dotted}.{key}" if dotted else str(key))


def _judge_words(
    section: str, values: Mapping[str, Any], judge: Judge, more: Mapping[str, Field] | None = None
) -> None:
    """The keys of one section against its fields and `more`; strange words of a closed section are faults."""
    words = {**(more or {}), **schema.fields(section)}
    for key, value in values.items():
        dotted = f"{section}.{key}"
        if not isinstance(key, str):
            judge.error(dotted, f"{section} has a key that is no word: {said(key)}", "write a word")
        elif key == "trust_remote_code" and value is not False and value is not None:
            fix = "leave it out: this package loads what transformers has a class for"
            judge.error(dotted, f"{dotted} is refused: code from the Hub is not run", fix)
        elif key in words:
            judge.value(dotted, words[key], value)
        elif section in OPEN_SECTIONS:
            judge.warning(dotted, *_strange(section, key, words))
        else:
            judge.error(dotted, f"{section} has no {key!r} ({installed(section)})", mend_of_key(section, key, words))


def mend_of_key(section: str, key: str, words: Mapping[str, Field]) -> str:
    """Where a strange key belongs, or the nearest name of its section, or of another one."""
    homes, near = homes_of(key, but=section), nearest(key, words)
    if homes:
        return f"it is a word of {' and of '.join(homes)}" + (f"; or did you mean {near!r}?" if near else "")
    if near:
        return f"did you mean {near!r}?"
    for other in (s for s in SECTIONS if s != section):
        near = nearest(key, schema.fields(other), cutoff=0.8)
        if near:
            return f"did you mean {near!r} of {other}?"
    return "see `hf-recipes schema` for its words"


def homes_of(key: str, but: str = "") -> list[str]:
    """Sections (and "the top of the recipe") that have this very word."""
    homes = ["the top of the recipe"] if key in TOP else []
    related = (but, *TRAINERS) if but in TRAINERS else (but,)
    homes += [s for s in SECTIONS if s not in related and key in schema.fields(s)]
    if but in TRAINERS and not homes:
        homes = [s for s in TRAINERS if s != but and key in schema.fields(s)]
    elif not but and all(t in homes for t in TRAINERS):
        homes.remove("SFTConfig")  # which has every word of TrainingArguments
    return homes


def _strange(section: str, key: str, words: Mapping[str, Field]) -> tuple[str, str]:
    near = nearest(key, words)
    fix = f"did you mean {near!r}?" if near else "upstream gets it as it stands"
    return f"{section}.{key} is no word that is known here ({installed(section)})", fix


# model --------------------------------------------------------------------------------------------------------------


def _judge_model(model: Mapping[str, Any], judge: Judge) -> None:
    inline = model.get("config")
    if isinstance(inline, Mapping):
        _judge_inline(inline, judge)
    known = schema.fields("model")
    config: Mapping[str, Field] = {}
    model_type = model_type_of(model, judge)
    if any(key not in known for key in model):  # the config's source is read only where a word asks for it
        config = (schema.config_fields(model_type) if model_type else None) or schema.common_config_fields()
    _judge_words("model", model, judge, config)
    preset = model.get("preset")
    if isinstance(preset, str):
        from hf_recipes.catalog.presets import PRESETS

        if preset not in PRESETS:
            near = nearest(preset, PRESETS)
            fix = f"did you mean {near!r}?" if near else "it must be one of " + ", ".join(map(repr, PRESETS))
            judge.error("model.preset", f"there is no preset {preset!r}", fix)
    for word in ("pretrained_model_name_or_path", "config"):
        value = model.get(word)
        if isinstance(value, str) and _is_path(value) and not os.path.exists(value):
            judge.warning(f"model.{word}", f"there is no {value!r} here", "paths are relative to the working directory")


def _is_path(name: str) -> bool:
    """Whether a name can only be a path: a Hub id is `name` or `owner/name`."""
    return name.startswith((".", "/", "~")) or name.endswith((".json", "/")) or name.count("/") > 1


def _judge_inline(config: Mapping[str, Any], judge: Judge) -> None:
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        what = (
            "model.config has no model_type" if model_type is None else f"model.config.model_type is {said(model_type)}"
        )
        judge.error("model.config.model_type", what, "write the name of an architecture, such as gpt2")
        return
    words = schema.config_fields(model_type)
    if words is None:
        near = nearest(model_type, schema.model_types())
        fix = f"did you mean {near!r}?" if near else "it must be a model_type of transformers, such as gpt2"
        what = f"model.config.model_type is {model_type!r}, which {installed('model')} does not have"
        judge.error("model.config.model_type", what, fix)
        return
    for key, value in config.items():
        dotted = f"model.config.{key}"
        if key in words:
            judge.value(dotted, words[key], value)
        else:
            near = nearest(str(key), words)
            fix = f"did you mean {near!r}?" if near else "the config keeps it, and no layer reads it"
            judge.warning(dotted, f"{schema.config_class(model_type)} has no {key!r} ({installed('model')})", fix)


def model_type_of(model: Mapping[str, Any], judge: Judge | None = None) -> str:
    """The architecture that `model` names, as far as the file, a local config.json and our tables tell; else ""."""
    config, preset = model.get("config"), model.get("preset")
    if isinstance(config, Mapping):
        return _known_type(config.get("model_type"))
    name = model.get("pretrained_model_name_or_path") or config
    from hf_recipes.catalog.presets import PRESETS, SHAPES

    if isinstance(preset, str) and preset in PRESETS:
        return str(PRESETS[preset].config["model_type"])
    if not isinstance(name, str):
        return ""
    path = os.path.join(name, "config.json") if os.path.isdir(name) else name
    if os.path.isfile(path) and path.endswith(".json"):
        try:
            with open(path, encoding="utf-8") as file:
                held = json.load(file)
            found = held["model_type"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            if judge is not None:
                why = "it has no model_type" if isinstance(error, KeyError | TypeError) else f"it is no JSON ({error})"
                word = "config" if name == config else "pretrained_model_name_or_path"
                judge.warning(f"model.{word}", f"{path} tells nothing: {why}", "is it a model's config.json?")
            return ""
        return _known_type(found)
    return str(SHAPES[name].config["model_type"]) if name in SHAPES else ""


def _known_type(model_type: Any) -> str:
    return model_type if isinstance(model_type, str) and schema.config_class(model_type) else ""


# dataset ------------------------------------------------------------------------------------------------------------


def _judge_dataset(dataset: Mapping[str, Any], judge: Judge) -> None:
    path, known = dataset.get("path"), schema.fields("dataset")
    more: dict[str, Field] = {}
    strange = any(key not in known for key in dataset)
    if isinstance(path, str) and strange:  # the builders' files are opened only where a word asks for them
        if path in schema.builders():
            more = dict(schema.builder_fields(path) or {})
        else:
            for builder in FILE_BUILDERS:
                more |= schema.builder_fields(builder) or {}
    _judge_words("dataset", dataset, judge, more)
    if isinstance(path, str) and "/" not in path and "data_files" in dataset and not os.path.exists(path):
        builders = schema.builders()
        near = nearest(path, builders) if path not in builders else ""
        if near:
            what = f"dataset.path is {path!r}, which is no file format"
            judge.warning("dataset.path", what, f"did you mean {near!r}? otherwise it is looked for on the Hub")
