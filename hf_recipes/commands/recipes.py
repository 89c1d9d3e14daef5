"""`hf-recipes recipes`: the recipes that come with the package, and a copy of one. Imports neither torch nor
transformers."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_recipes.catalog.metrics import LOWER_IS_BETTER
from hf_recipes.catalog.tasks import TASKS
from hf_recipes.common import shipped
from hf_recipes.common.text import format_columns, nearest, terminal_width
from hf_recipes.errors import OutputDirError, RecipeError
from hf_recipes.record import Status
from hf_recipes.record.file import read_record

LONGEST, SHORTEST = 60, 40  # characters of a recipe's purpose in the list


def list_recipes() -> list[str]:
    """A line for each: name, task, metric of a committed record, purpose."""
    found = shipped.names("recipe")
    rows = [(name, *_describe(path), _measured(name, path.parent / "results")) for name, path in found.items()]
    head = ("recipe", "task", "what it is for", "measured")
    width = terminal_width()
    if width is not None:  # the purpose is cut before a column is left out
        room = width - max(len(name) for name, *_ in rows) - 2
        beside = room - max(len(row[3]) for row in rows) - 2  # what was measured
        most = beside if beside >= SHORTEST else max(SHORTEST, room)
        rows = [(name, task, _cut(what, most), value) for name, task, what, value in rows]
    lines = format_columns([head, *rows], dropped=(1, 3), width=width)
    use = "hf-recipes run NAME trains one; hf-recipes recipes cp NAME copies it"
    return [*lines, "", use]


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 3].rsplit(" ", 1)[0] + " ..."


def _describe(path: Path) -> tuple[str, str]:
    """(task, purpose): the purpose is the file's first comment."""
    text = path.read_text(encoding="utf-8")
    first = text.splitlines()[0].lstrip("# ").strip()
    from hf_recipes.recipe.read import read_recipe

    purpose = first.partition(": ")[2] if first.startswith("Quickstart") and ": " in first else first
    return read_recipe(str(path)).task, _cut(purpose, LONGEST)


def _measured(name: str, results: Path) -> str:
    """The main metric of the recipe's first finished record, and where it was measured."""
    for path in sorted(results.glob(f"{name}--*.json"), key=lambda one: (len(one.name), one.name)):
        record = read_record(path)
        metrics = record.metrics.of("eval")
        best = next((one for one in TASKS[record.task].default_metrics if f"eval_{one}" in metrics), None)
        if record.status == Status.FINISHED and best is not None:
            word = "perplexity" if best in LOWER_IS_BETTER else best
            return f"{word} {metrics[f'eval_{best}']:.4g} ({path.stem.split('--')[1]})"
    return ""


def find_ours(name: str) -> Path:
    """The file of a recipe by its name. Raises RecipeError with the nearest name."""
    found = shipped.names("recipe")
    key = name.removesuffix(".yaml")
    if key in found:
        return found[key]
    near = nearest(key, found)
    fix = f"did you mean {near!r}?" if near else "`hf-recipes recipes` lists them"
    raise RecipeError.at("arguments", f"no recipe {name!r} comes with this package", fix)


def list_presets() -> list[str]:
    """A line for each shape that `model.preset` names."""
    from hf_recipes.catalog.presets import PRESETS

    rows = [(name, f"{one.parameters / 1e6:,.1f}M", str(one.config["model_type"])) for name, one in PRESETS.items()]
    return [f"{name:<12} {size:>10}  {kind}" for name, size, kind in (("preset", "parameters", "model type"), *rows)]


def copy(name: str, target: str | None) -> list[str]:
    """Copies the recipe, what it extends and its data; nothing that is there is replaced. Returns a line a file.

    Raises RecipeError for a name that is none, OutputDirError for a file that is there.
    """
    source = find_ours(name)
    to = Path(target or source.name)
    if to.is_dir():
        to = to / source.name
    pairs = [(source, to)]
    from hf_recipes.recipe.merge import file_documents

    for document in file_documents(str(source)):
        parent = Path(str(document.path))
        if parent.resolve() != source.resolve():
            pairs.append((parent, to.parent / parent.name))
        pairs += [(one, Path(path)) for path, one in _data_files(document.values) if not Path(path).exists()]
    for _, place in pairs:
        if place.exists():
            raise OutputDirError.at(str(place), "is there already", "name another file")
    lines: list[str] = []
    pairs = list(dict.fromkeys(pairs))
    for file, place in pairs:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)
        except OSError as problem:
            for _, written in pairs[: len(lines) + 1]:
                written.unlink(missing_ok=True)
            raise OutputDirError.at(str(place), f"cannot be written ({problem.strerror})", "choose another") from None
        lines.append(f"written: {place}")
    return [*lines, f"next     hf-recipes run {to}"]


def _data_files(values: Any) -> list[tuple[str, Path]]:
    """(path in the recipe, file that came with the package) of every data file that did."""
    place = shipped.root()
    if isinstance(values, Mapping):
        return [pair for value in values.values() for pair in _data_files(value)]
    if isinstance(values, list):
        return [pair for value in values for pair in _data_files(value)]
    if place is not None and isinstance(values, str) and values.startswith("recipes/data/"):
        return [(values, place / values)] if os.path.isfile(place / values) else []
    return []
