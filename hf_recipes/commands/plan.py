"""The command `plan`: its arguments to a plan, and the plan to lines or JSON.

Imports neither torch nor transformers.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_recipes.catalog.gpus import format_gpus
from hf_recipes.common.files import put_output
from hf_recipes.common.text import format_bytes
from hf_recipes.errors import Diagnostic, PlanError, RecipeError
from hf_recipes.plan.fit import advice, heat_map, show, write_recipe
from hf_recipes.plan.fit import search as frontier
from hf_recipes.plan.fit.parallel import read_layout
from hf_recipes.plan.fit.plan import Plan, plan_recipe
from hf_recipes.plan.fit.verdict import CPU, FITS, OUT, UNSURE, choose_gpu, cpu_as_gpu
from hf_recipes.plan.lab_record import LabRecord
from hf_recipes.plan.time import forecast
from hf_recipes.plan.time.efficiency import read_timed_records
from hf_recipes.plan.trace.worker import expect_traces
from hf_recipes.recipe.global_batch import find_errors, with_accumulation, without_derived
from hf_recipes.recipe.read import read_recipe

MEASURED = "recipes/results/measured"  # records of --measure, below the working directory


def list_gpus() -> list[str]:
    """`--gpu list`: the GPUs that are known."""
    return format_gpus()


def command_for_each(
    path: str, words: Sequence[str], *, as_json: bool = False, began: float | None = None, **options: Any
) -> tuple[list[str], bool]:
    """`command` of `path` and of every word that names another recipe: what to print of all, and whether all fit.
    Imports and the tracing child are shared; each recipe has its own time, the first one's from `began`. Raises
    RecipeError."""
    paths = [path, *(word for word in words if is_recipe(word))]
    overrides = [word for word in words if not is_recipe(word)]
    if len(paths) == 1:
        return command(path, overrides, as_json=as_json, began=began, **options)
    for name in ("svg", "write"):
        if options.get(name) is not None:
            raise PlanError.at(f"argument '--{name}'", f"one file, and {len(paths)} recipes", "plan them one by one")
    refused: list[Diagnostic] = []
    for one in paths:  # before any is planned
        try:
            read_recipe(one, overrides)
        except RecipeError as problem:
            refused += problem.errors
    if refused:
        raise RecipeError(refused)
    starts = [began, *[None] * (len(paths) - 1)]
    found: list[tuple[list[str], bool]] = []
    for one, start in zip(paths, starts, strict=True):
        try:
            found.append(command(one, overrides, as_json=as_json, began=start, **options))
        except RecipeError as problem:  # such as what cannot be traced: the others are planned all the same
            refused += problem.errors
    if refused:
        raise RecipeError(refused, beside=[] if as_json else [line for lines, _ in found for line in (*lines, "")])
    if as_json:
        return ["[", ",\n".join("\n".join(lines) for lines, _ in found), "]"], all(fits for _, fits in found)
    every = [line for lines, _ in found for line in (*lines, "")]
    return every[:-1], all(fits for _, fits in found)


def is_recipe(word: str) -> bool:
    """Whether a word behind the first recipe is another one, and no override."""
    return "=" not in word and word.endswith((".yaml", ".yml"))


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
    seconds: float | None = None,
    as_json: bool = False,
    began: float | None = None,
) -> tuple[list[str], bool]:
    """What to print, and whether the recipe can run there (fits or tight). `began`: from when on `seconds` count, by
    time.monotonic(); None: now. Raises RecipeError."""
    began = time.monotonic() if began is None else began
    if cpu and (gpu is not None or memory is not None or capability is not None):
        raise PlanError.at("argument '--cpu'", "--cpu and a GPU are two devices", "give one of them")
    if write is not None and not search:
        raise PlanError.at("argument '--write'", "it writes what --search recommends", "add --search")
    if write is not None:
        _check_target(write, overrides)
    if svg is not None and not Path(svg).absolute().parent.is_dir():
        raise PlanError.at("argument '--svg'", f"{str(Path(svg).parent)!r} is no folder", "choose another path")
    device = cpu_as_gpu() if cpu else choose_gpu(gpu, memory, capability)
    recipe = read_recipe(path, overrides)
    if smoke:
        from hf_recipes.recipe.smoke import shrink

        recipe, _ = shrink(recipe)
    layout = read_layout(processes, config_file)
    errors = list(find_errors(recipe, layout.processes))
    if errors:
        raise RecipeError(errors)
    recipe = with_accumulation(recipe, layout.processes)
    expect_traces(len(frontier.SHARES) if search else 1)
    found = plan_recipe(recipe, device, length=length, read_data=read_data, layout=layout)
    if svg is not None and not search:
        write_text(svg, show.svg(found.fit), "argument '--svg'")
    fits = found.fit.verdict != OUT
    frontier_found, written = None, []
    if search:
        frontier_found = frontier.search(found.fit, seconds=seconds or frontier.SECONDS, began=began)
        if svg is not None and frontier_found.heat_map is not None:
            title = f"{path} on {found.fit.gpu.name}: rows x tokens"
            write_text(svg, heat_map.svg(frontier_found.heat_map, title), "argument '--svg'")
        if write is not None:
            written = [_write(path, write, frontier_found, found)]
    changes = None
    if not search and found.fit.verdict not in (FITS, UNSURE) and with_advice:
        changes = advice.advise(
            found.fit,
            length=found.fit.trace.length if found.length_note else length,
            asked=length is not None,
            seconds=seconds or advice.SECONDS,
            began=began,
        )
    fit = found.fit
    measured = _measure(found) if measure else None
    timed = forecast.forecast_time(
        fit.recipe,
        fit.trace,
        fit.gpu,
        lengths=found.lengths,
        processes=layout.processes,
        records=read_timed_records(),
    )
    if as_json:
        result = _as_json(found, changes)
        if measured is not None:
            result["measured"] = {**measured.to_dict()["measured"], "record": str(_write_record(measured))}
        result["forecast"] = forecast.as_json(timed, price)
        if frontier_found is not None:
            result["search"] = frontier.as_json(frontier_found)
        return [json.dumps(result, indent=1)], fits
    if measured is not None:
        from hf_recipes.plan.measure.runner import describe_record

        written += [f"  measured: {describe_record(measured)}", f"  written: {_write_record(measured)}"]
    searched = [] if frontier_found is None else frontier.format_frontier(frontier_found)
    return [*_lines(found, changes), *searched, *written, f"  {forecast.format_forecast(timed, price)}"], fits


def _measure(found: Plan) -> LabRecord:
    """The steps measured, beside the prediction. Raises PlanError where there is no GPU."""
    from hf_recipes.plan.measure.runner import measured_record
    from hf_recipes.plan.measure.worker import measure_recipe

    fit = found.fit
    return measured_record(fit, measure_recipe(fit.recipe, length=fit.trace.length, cpu=fit.gpu.name == CPU))


def _write_record(record: LabRecord) -> Path:
    """Writes the record; returns its path."""
    folder = Path(MEASURED)
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{Path(record.recipe).stem}--{record.gpu.replace(' ', '-').lower()}--{record.date}.json"
    write_text(str(folder / name), json.dumps(record.to_dict(), indent=1) + "\n", "plan --measure")
    return folder / name


def _check_target(target: str, overrides: Sequence[str]) -> None:
    """What can be known of --write before the search. Raises PlanError."""
    where = write_recipe.LOCATION
    if overrides:
        raise PlanError.at(where, "overrides are not in the file that is written", "put them into the recipe")
    if Path(target).exists():
        raise PlanError.at(where, f"{target!r} exists", "name a new file")
    if not Path(target).absolute().parent.is_dir():
        raise PlanError.at(where, f"{str(Path(target).parent)!r} is no folder", "choose another path")


def _write(source: str, target: str, found: frontier.Frontier, planned: Plan) -> str:
    """The recommended recipe as a file. Raises PlanError where there is none."""
    point = found.chosen
    if point is None:
        raise PlanError.at("argument '--write'", "there is nothing to write: no point fits")
    eval_batch = planned.fit.trace.eval_batch
    values = frontier.override_values(found.recipe, point.micro_batch, point.length, found.effective, eval_batch)
    return write_recipe.write_recipe(source, target, without_derived(found.recipe, values))


def _lines(found: Plan, changes: advice.Advice | None) -> list[str]:
    """The answer first: what is needed, and the cheapest change with which it fits."""
    result = show.format_plan(found.fit)
    if changes is not None and changes.changes:
        cheapest = changes.changes[0]
        needed = format_bytes(cheapest.fit.reserved.peak)
        result[0] += f"; with {cheapest.overrides} it needs {needed}"
    result += [f"  {found.length_note}"] if found.length_note else []
    return result if changes is None else [*result, *advice.format_advice(changes, found.fit)]


def _as_json(found: Plan, changes: advice.Advice | None) -> dict[str, object]:
    result = {**show.as_json(found.fit), "length_note": found.length_note}
    return result if changes is None else {**result, "changes": advice.as_json(changes)}


def write_text(path: str, text: str, where: str) -> None:
    """Writes a file that the user named. Raises PlanError where it cannot be written."""
    try:
        put_output(path, text)
    except OSError as problem:
        raise PlanError.at(where, f"{path!r} cannot be written ({problem.strerror})", "choose another path") from None
