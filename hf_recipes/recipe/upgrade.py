"""Old recipes run: applies the table of deprecated keys to a document, and to a text.

Imports neither torch nor transformers. `upgrade_document` serves the reader, `upgrade_text` serves
`hf-recipes upgrade`. Both carry out the same plan of edits; the rewritten file reads back to what the reader makes of
the old one, which `upgrade_text` checks.
"""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from hf_recipes.common.text import as_yaml
from hf_recipes.errors import Diagnostic, RecipeError
from hf_recipes.recipe.deprecated_keys import UPGRADES, Step, Upgrade
from hf_recipes.recipe.document import Document, location_of, under
from hf_recipes.recipe.schema.packages import version
from hf_recipes.recipe.yaml_reader import masked_error

__all__ = ["UPGRADES", "Edit", "Upgrade", "upgrade_document", "upgrade_text"]
MISSING = object()


@dataclass(frozen=True, kw_only=True)
class Edit:
    """One old key that goes (or keeps its name and changes its value), and the keys that come, dotted from the top."""

    section: str  # "" for a key at the top of the recipe
    old: str
    sets: Mapping[str, Any]
    line: str = ""  # what the user reads; empty where an error says it

    @property
    def dotted(self) -> str:
        return dotted_key(self.section, self.old)


def dotted_key(section: str, key: str) -> str:
    """The key as locations name it; `section` is "" for the top of the recipe."""
    return f"{section}.{key}" if section else key


@functools.cache
def _installed(package: str) -> tuple[int, ...]:
    numbers = re.findall(r"\d+", version(package))[:2]
    return tuple(map(int, numbers)) or (9999,)  # nothing is installed that could disagree: translate to the newest


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
    for key in dotted.split("."):
        if not isinstance(found, Mapping) or key not in found:
            return MISSING
        found = found[key]
    return found


def _plan(sections: Mapping[str, Any], locations: Mapping[str, str]) -> tuple[list[Edit], list[Diagnostic]]:
    """Every edit and every error, in the order of the file."""
    edits: list[Edit] = []
    errors: list[Diagnostic] = []
    for top, section in sections.items():
        inside = section.items() if isinstance(section, Mapping) else ()
        for name, key, value in (("", top, section), *((top, key, value) for key, value in inside)):
            for row in rows_of(name, key):
                step = _step(row, value, section if name else sections, sections)
                if step is not None:
                    edit, error = _edit(row, step, name, value, sections, locations)
                    edits.append(edit)
                    errors += [error] if error else []
    return edits, errors


def _edit(
    row: Upgrade, step: Step, name: str, value: Any, sections: Mapping[str, Any], locations: Mapping[str, str]
) -> tuple[Edit, Diagnostic | None]:
    """The edit for one step, with an error where it is refused or contradicts a new key that is given too."""
    where = location_of(locations, dotted_key(name, row.old), "")
    dropped = Edit(section=name, old=row.old, sets={})
    if step.refused:
        return dropped, Diagnostic(location=where, message=step.refused, fix=step.fix)
    sets: dict[str, Any] = {}
    notes = [row.when]
    for target, new in step.sets.items():
        dotted = f"{name}{target}" if target.startswith(".") else target
        key = dotted.removeprefix(f"{name}.")
        parent = dotted.rpartition(".")[0]
        home = _lookup(sections, parent) if parent else sections
        if home is not MISSING and home is not None and not isinstance(home, Mapping):
            what = f"{row.old} ({row.when}) belongs into {parent.rpartition('.')[2]}, which is {as_yaml(home)} here"
            fix = f"write {key.rpartition('.')[2]}: {as_yaml(new)} there"
            return dropped, Diagnostic(location=where, message=what, fix=fix)
        given = _lookup(sections, dotted)
        if given is not MISSING and not step.overrides:
            there = location_of(locations, dotted, "")
            if given == new and type(given) is type(new):
                notes.append(f"{there} says {key}: {as_yaml(given)} already")
                continue
            if there.startswith("argument ") and not where.startswith("argument "):
                notes.append(f"{there} wins")
                continue
            if where.startswith("argument ") == there.startswith("argument "):
                what = f"{row.old}: {as_yaml(value)} ({row.when}) contradicts {key}: {as_yaml(given)} of {there}"
                return dropped, Diagnostic(location=where, message=what, fix=f"keep {key}, the name of today")
        sets[dotted] = new
    new_keys = ", ".join(f"{dotted.removeprefix(f'{name}.')}: {as_yaml(new)}" for dotted, new in sets.items())
    notes += [step.note] if step.note else []
    line = f"{where}: {row.old}: {as_yaml(value)} -> {new_keys or 'dropped'} ({'; '.join(notes)})"
    return Edit(section=name, old=row.old, sets=sets, line=line), None


def _apply(
    sections: Mapping[str, Any], locations: Mapping[str, str], edits: list[Edit]
) -> tuple[dict[str, Any], dict[str, str]]:
    """(sections, locations) after the edits; the arguments stay as they are."""
    new_sections: dict[str, Any] = copy.deepcopy(dict(sections))
    new_locations = dict(locations)
    for edit in edits:
        where = location_of(locations, edit.dotted, "")
        gone = {} if edit.dotted in edit.sets else {k: v for k, v in locations.items() if under(k, edit.dotted)}
        for dotted in gone:
            new_locations.pop(dotted, None)
        for dotted, value in edit.sets.items():
            *parents, last = dotted.split(".")
            home = new_sections
            for depth, key in enumerate(parents):
                if not isinstance(home.get(key), dict):
                    home[key] = {}
                    new_locations.setdefault(".".join(parents[: depth + 1]), where)
                home = home[key]
            if last in home or ".".join(parents) != edit.section or edit.old not in home:
                home[last] = copy.deepcopy(value)
            else:  # a new key takes the old one's seat
                items = list(home.items())
                seat = [key for key, _ in items].index(edit.old)
                items.insert(seat, (last, copy.deepcopy(value)))
                home.clear()
                home.update(items)
            new_locations[dotted] = where
            if len(edit.sets) == 1:  # the lines inside a renamed mapping
                new_locations.update({dotted + k[len(edit.dotted) :]: v for k, v in gone.items() if k != edit.dotted})
        if edit.dotted not in edit.sets:
            (new_sections[edit.section] if edit.section else new_sections).pop(edit.old, None)
    return new_sections, new_locations


def upgrade_document(document: Document) -> Document:
    """Translate the old keys of one file (or of the arguments).

    Pure: the document stays as it is. Call it once a file, before a child is merged over its parent, so that the
    child's new key wins over the parent's old one. New keys inherit the old key's location. A key that cannot be
    translated, or that contradicts its new name, becomes an error and is taken out.
    """
    if not isinstance(document.values, Mapping):
        return document
    edits, errors = _plan(document.values, document.locations)
    values, locations = _apply(document.values, document.locations, edits)
    upgraded = replace(
        document,
        values=values,
        locations=locations,
        translations=(*document.translations, *(edit.line for edit in edits if edit.line)),
        renamed={document.location(edit.dotted): (edit.old, " ".join(edit.sets).replace(".", " ")) for edit in edits},
    )
    return upgraded.with_errors(errors)


def upgrade_text(text: str, path: str) -> tuple[str, list[str]]:
    """Rewrite one recipe's YAML with comments, order and formatting kept: (text, translation lines).

    A file without old keys comes back unchanged, byte for byte; upgrading the result changes nothing. Parents that it
    `extends` are not read. Raises RecipeError for text that is not a YAML mapping, and for keys that cannot be
    translated.
    """
    from hf_recipes.recipe.yaml_editor import YamlText

    source = YamlText(text, path)
    sections, locations = source.document.values, source.document.locations
    edits, errors = _plan(sections, locations)
    if errors:  # each quotes a value, which may be a token: nothing has refused it yet
        raise RecipeError(masked_error(each.location, each.message, each.fix) for each in errors)
    if not edits:
        return text, []
    for edit in edits:
        old = (sections[edit.section] if edit.section else sections)[edit.old]
        renamed = [(type(new), new) for new in edit.sets.values()] == [(type(old), old)]
        source = source.with_edit(edit.section, edit.old, edit.sets, renamed)
    if source.document.values != _apply(sections, locations, edits)[0]:
        lines = "\n".join(edit.line for edit in edits)
        what = "anchors, aliases or merge keys stand in the way of rewriting its old keys"
        raise RecipeError(Diagnostic(location=path, message=what, fix=f"change them by hand:\n{lines}"))
    return source.text, [edit.line for edit in edits]
