"""Old recipes run: applies the table of dropped keys to a recipe's sections, and to its text. Light (ruamel.yaml only).

`upgrade_sections` serves the reader, `upgrade_text` serves `hf-recipes upgrade`. Both carry out the same plan of edits;
the rewritten file reads back to what the reader makes of the old one, which `upgrade_text` checks before it answers.
"""

from __future__ import annotations

import copy
import functools
import importlib.metadata
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hf_recipes.errors import Diagnostic, RecipeError
from hf_recipes.recipe.deprecated_keys import UPGRADES, Step, Upgrade, shown
from hf_recipes.recipe.yaml_editor import YamlText

__all__ = ["UPGRADES", "Edit", "Upgrade", "upgrade_sections", "upgrade_text"]
MISSING = object()


@dataclass(frozen=True, kw_only=True)
class Edit:
    """One old key that goes (or keeps its name and changes its value), and the keys that come, dotted from the top."""

    section: str  # "" for a key at the top of the recipe
    old: str
    sets: Mapping[str, Any]
    line: str = ""  # what the user reads; empty where a fault says it

    @property
    def dotted(self) -> str:
        return dotted_key(self.section, self.old)


def dotted_key(section: str, key: str) -> str:
    """The key as locations name it; `section` is "" for the top of the recipe."""
    return f"{section}.{key}" if section else key


@functools.cache
def _installed(package: str) -> tuple[int, ...]:
    try:
        numbers = re.findall(r"\d+", importlib.metadata.version(package))[:2]
    except importlib.metadata.PackageNotFoundError:
        return (9999,)  # nothing is installed that could disagree: translate to the newest
    return tuple(map(int, numbers))


def rows_of(section: str, key: str) -> Iterator[Upgrade]:
    """The rows about this key of this section, where the installed package has the new key."""
    for row in UPGRADES:
        if row.old != key or section not in row.sections:
            continue
        early = row.since is not None and _installed(row.since[0]) < row.since[1]
        late = row.before is not None and _installed(row.before[0]) >= row.before[1]
        if not early and not late:
            yield row


def _step(row: Upgrade, value: Any, section: Mapping[str, Any], sections: Mapping[str, Any]) -> Step | None:
    """What becomes of `row.old: value`; None where the row has nothing to say about this value."""
    if row.values:
        new = row.values.get(value) if isinstance(value, str) else None
        return None if new is None else Step(sets={f".{row.old}": new}, note=row.note, overrides=True)
    if any(value is inert or (type(value) is type(inert) and value == inert) for inert in row.inert):
        return Step(note="it had no effect")
    if row.rule is not None:
        return row.rule(value, section, sections)
    return Step(sets={row.new[0]: value} if row.new else {}, note=row.note)


def _lookup(sections: Mapping[str, Any], dotted: str) -> Any:
    found: Any = sections
    for word in dotted.split("."):
        if not isinstance(found, Mapping) or word not in found:
            return MISSING
        found = found[word]
    return found


def _place(locations: Mapping[str, str], dotted: str) -> str:
    """The place of the nearest ancestor that has one."""
    while dotted not in locations and "." in dotted:
        dotted = dotted.rpartition(".")[0]
    return locations.get(dotted, "")


def _plan(sections: Mapping[str, Any], locations: Mapping[str, str]) -> tuple[list[Edit], list[Diagnostic]]:
    """Every edit and every fault, in the order of the file."""
    edits: list[Edit] = []
    errors: list[Diagnostic] = []
    for top, section in sections.items():
        inside = section.items() if isinstance(section, Mapping) else ()
        for name, key, value in (("", top, section), *((top, key, value) for key, value in inside)):
            for row in rows_of(name, key):
                step = _step(row, value, section if name else sections, sections)
                if step is not None:
                    edit, error = _judge(row, step, name, value, sections, locations)
                    edits.append(edit)
                    errors += [error] if error else []
    return edits, errors


def _judge(
    row: Upgrade, step: Step, name: str, value: Any, sections: Mapping[str, Any], locations: Mapping[str, str]
) -> tuple[Edit, Diagnostic | None]:
    """The edit for one step, with a fault where it is refused or contradicts a new key that is given too."""
    where = _place(locations, dotted_key(name, row.old))
    if step.refused:
        return Edit(section=name, old=row.old, sets={}), Diagnostic(location=where, message=step.refused, fix=step.fix)
    sets: dict[str, Any] = {}
    notes = [row.when]
    for target, new in step.sets.items():
        dotted = f"{name}{target}" if target.startswith(".") else target
        word = dotted.removeprefix(f"{name}.")
        parent = dotted.rpartition(".")[0]
        held = _lookup(sections, parent) if parent else sections
        if held is not MISSING and held is not None and not isinstance(held, Mapping):
            what = f"{row.old} ({row.when}) belongs into {parent.rpartition('.')[2]}, which is {shown(held)} here"
            fix = f"write {word.rpartition('.')[2]}: {shown(new)} there"
            return Edit(section=name, old=row.old, sets={}), Diagnostic(location=where, message=what, fix=fix)
        given = _lookup(sections, dotted)
        if given is not MISSING and not step.overrides:
            there = _place(locations, dotted)
            if given == new and type(given) is type(new):
                notes.append(f"{there} says {word}: {shown(given)} already")
                continue
            if there.startswith("argument ") and not where.startswith("argument "):
                notes.append(f"{there} wins")
                continue
            if where.startswith("argument ") == there.startswith("argument "):
                what = f"{row.old}: {shown(value)} ({row.when}) contradicts {word}: {shown(given)} of {there}"
                error = Diagnostic(location=where, message=what, fix=f"keep {word}, the name of today")
                return Edit(section=name, old=row.old, sets={}), error
        sets[dotted] = new
    new_words = ", ".join(f"{dotted.removeprefix(f'{name}.')}: {shown(new)}" for dotted, new in sets.items())
    notes += [step.note] if step.note else []
    line = f"{where}: {row.old}: {shown(value)} -> {new_words or 'dropped'} ({'; '.join(notes)})"
    return Edit(section=name, old=row.old, sets=sets, line=line), None


def _apply(
    sections: Mapping[str, Any], locations: Mapping[str, str], edits: list[Edit]
) -> tuple[dict[str, Any], dict[str, str]]:
    new_sections: dict[str, Any] = copy.deepcopy(dict(sections))
    new_places = dict(locations)
    for edit in edits:
        where = _place(locations, edit.dotted)
        gone = {} if edit.dotted in edit.sets else {k: v for k, v in locations.items() if _under(k, edit.dotted)}
        for dotted in gone:
            new_places.pop(dotted, None)
        for dotted, value in edit.sets.items():
            *parents, last = dotted.split(".")
            home = new_sections
            for depth, word in enumerate(parents):
                if not isinstance(home.get(word), dict):
                    home[word] = {}
                    new_places.setdefault(".".join(parents[: depth + 1]), where)
                home = home[word]
            if last in home or ".".join(parents) != edit.section or edit.old not in home:
                home[last] = copy.deepcopy(value)
            else:  # a new key takes the old one's seat
                items = list(home.items())
                seat = [key for key, _ in items].index(edit.old)
                items.insert(seat, (last, copy.deepcopy(value)))
                home.clear()
                home.update(items)
            new_places[dotted] = where
            if len(edit.sets) == 1:  # the lines inside a renamed mapping
                new_places.update({dotted + k[len(edit.dotted) :]: v for k, v in gone.items() if k != edit.dotted})
        if edit.dotted not in edit.sets:
            (new_sections[edit.section] if edit.section else new_sections).pop(edit.old, None)
    return new_sections, new_places


def _under(dotted: str, root: str) -> bool:
    return dotted == root or dotted.startswith(f"{root}.")


def upgrade_sections(
    sections: Mapping[str, Any], locations: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, str], list[str], list[Diagnostic]]:
    """Translate the old keys of one file (or of the overrides): (sections, places, translation lines, faults).

    Pure: the arguments stay as they are. Call it once a layer, before a child is merged over its parent, so that the
    child's new key wins over the parent's old one. New keys inherit the old key's place. A key that cannot be
    translated, or that contradicts its new name, becomes a fault and is taken out.
    """
    edits, errors = _plan(sections, locations)
    new_sections, new_places = _apply(sections, locations, edits)
    return new_sections, new_places, [edit.line for edit in edits if edit.line], errors


def upgrade_text(text: str, path: str) -> tuple[str, list[str]]:
    """Rewrite one recipe's YAML with comments, order and formatting kept: (text, translation lines).

    A file without old keys comes back unchanged, byte for byte; upgrading the result changes nothing. Parents that it
    `extends` are not read. Raises RecipeError for text that is not a YAML mapping, and for keys that cannot be
    translated.
    """
    source = YamlText(text, path)
    sections, locations = source.document.value, source.document.locations
    edits, errors = _plan(sections, locations)
    if errors:
        raise RecipeError(errors)
    if not edits:
        return text, []
    for edit in edits:
        old = (sections[edit.section] if edit.section else sections)[edit.old]
        renamed = [(type(new), new) for new in edit.sets.values()] == [(type(old), old)]
        source = source.with_edit(edit.section, edit.old, edit.sets, renamed)
    if source.document.value != _apply(sections, locations, edits)[0]:
        lines = "\n".join(edit.line for edit in edits)
        what = "anchors, aliases or merge keys stand in the way of rewriting its old keys"
        raise RecipeError(Diagnostic(location=path, message=what, fix=f"change them by hand:\n{lines}"))
    return source.text, [edit.line for edit in edits]
