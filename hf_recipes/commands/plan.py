"""The verb `plan`: its words to a plan, and the plan to lines or JSON. Light."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_recipes.errors import RecipeError
from hf_recipes.plan.fit import advice, show, write_recipe
from hf_recipes.plan.fit import search as frontier
from hf_recipes.plan.fit.parallel import layout
from hf_recipes.plan.fit.plan import Planned, plan
from hf_recipes.plan.fit.verdict import CPU, FITS, OUT, UNSURE, card, cpu_card
from hf_recipes.plan.time import forecast
from hf_recipes.plan.time.efficiency import records_here
from hf_recipes.recipe.read import read_recipe

MEASURED = "recipes/results/measured"  # records of --measure, below the working directory


def command(
    path: str,
    overrides: Sequence[str],
    *,
    gpu: str | None = None,
    memory: str | None = None,
    capability: str | None = None,
    cpu: bool = False,
    smoke: bool = False,
    length: int | None = None,
    read_data: bool | None = None,
    svg: str | None = None,
    with_advice: bool = True,
    processes: int | None = None,
    config_file: str | None = None,
    measure: bool = False,
    price: float | None = None,
    search: bool = False,
    write: str | None = None,
    as_json: bool = False,
) -> tuple[list[str], bool]:
    """What to print, and whether the recipe can run there (fits or tight). Raises RecipeError."""
    if cpu and (gpu is not None or memory is not None or capability is not None):
        raise RecipeError.at("argument '--cpu'", "--cpu and a card are two devices", "keep one of them")
    if write is not None and not search:
        raise RecipeError.at("argument '--write'", "it writes what --search recommends", "add --search")
    device = cpu_card() if cpu else card(gpu, memory, capability)
    recipe = read_recipe(path, overrides)
    if smoke:
        from hf_recipes.recipe.smoke import shrink

        recipe, _ = shrink(recipe)
    spread = layout(processes, config_file)
    found = plan(recipe, device, length=length, read_data=read_data, spread=spread)
    if svg is not None:
        write_text(svg, show.svg(found.judged), "argument '--svg'")
    fits = found.judged.verdict != OUT
    frontier_found, written = None, []
    if search:
        frontier_found = frontier.search(found.judged)
        if write is not None:
            written = [_write(path, write, overrides, frontier_found, found)]
    changes = None
    if not search and found.judged.verdict not in (FITS, UNSURE) and with_advice:
        changes = advice.advise(found.judged, length=found.judged.seen.length if found.length_note else length)
    judged = found.judged
    measured = _measured(found) if measure else None
    timed = forecast.forecast(
        judged.recipe,
        judged.seen,
        judged.gpu,
        lengths=found.lengths,
        processes=spread.processes,
        records=records_here(),
    )
    if as_json:
        said = _as_json(found, changes)
        if measured is not None:
            said["measured"] = {**measured["measured"], "record": str(_kept(measured))}
        said["forecast"] = forecast.as_json(timed, price)
        if frontier_found is not None:
            said["search"] = frontier.as_json(frontier_found)
        return [json.dumps(said, indent=1)], fits
    if measured is not None:
        written += [f"  measured: {_told(measured)}", f"  written: {_kept(measured)}"]
    searched = [] if frontier_found is None else frontier.lines(frontier_found)
    return [*_lines(found, changes), *searched, *written, f"  {forecast.line(timed, price)}"], fits


def _measured(found: Planned) -> dict[str, Any]:
    """The steps for real, beside the prediction. Raises RecipeError where there is no card."""
    from hf_recipes.plan.measure.runner import measured_record
    from hf_recipes.plan.measure.worker import measure as really

    judged = found.judged
    taken = really(judged.recipe, length=judged.seen.length, cpu=judged.gpu.name == CPU)
    return measured_record(judged.recipe, judged, taken)


def _told(record: Mapping[str, Any]) -> str:
    from hf_recipes.plan.measure.runner import told

    return told(record)


def _kept(record: Mapping[str, Any]) -> Path:
    """Writes the record; returns its path."""
    folder = Path(MEASURED)
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{Path(record['recipe']).stem}--{record['gpu'].replace(' ', '-').lower()}--{record['date']}.json"
    write_text(str(folder / name), json.dumps(record, indent=1) + "\n", "plan --measure")
    return folder / name


def _write(source: str, target: str, overrides: Sequence[str], found: frontier.Frontier, planned: Planned) -> str:
    """The recommended recipe as a file. Raises RecipeError where there is none."""
    point = found.chosen
    if point is None:
        raise RecipeError.at("argument '--write'", "there is nothing to write: no point fits")
    if overrides:
        raise RecipeError.at(
            "argument '--write'", "overrides are not in the file that is written", "put them into the recipe"
        )
    eval_batch = planned.judged.seen.eval_batch
    words = frontier.words_of(found.recipe, point.micro_batch, point.length, found.effective, eval_batch)
    return write_recipe.write(source, target, words)


def _lines(found: Planned, changes: advice.Advice | None) -> list[str]:
    said = show.lines(found.judged)
    said += [f"  {found.length_note}"] if found.length_note else []
    return said if changes is None else [*said, *advice.lines(changes, found.judged)]


def _as_json(found: Planned, changes: advice.Advice | None) -> dict[str, object]:
    said = {**show.as_json(found.judged), "length_note": found.length_note}
    return said if changes is None else {**said, "changes": advice.as_json(changes)}


def write_text(path: str, text: str, where: str) -> None:
    """Writes a file that the user named. Raises RecipeError where it cannot be written."""
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as problem:
        raise RecipeError.at(
            where, f"{path!r} cannot be written ({problem.strerror})", "choose another place"
        ) from None
