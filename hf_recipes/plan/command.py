"""The verb `plan`: its words to a plan, and the plan to lines or JSON. Light."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from hf_recipes.errors import fault
from hf_recipes.plan import advice, show
from hf_recipes.plan.planning import Planned, plan
from hf_recipes.plan.verdict import FITS, OUT, card, cpu_card
from hf_recipes.recipe import read_recipe


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
    as_json: bool = False,
) -> tuple[list[str], bool]:
    """What to print, and whether the recipe can run there (fits or tight). Raises RecipeError."""
    if cpu and (gpu is not None or memory is not None or capability is not None):
        raise fault("argument '--cpu'", "--cpu and a card are two devices", "keep one of them")
    device = cpu_card() if cpu else card(gpu, memory, capability)
    recipe = read_recipe(path, overrides)
    if smoke:
        from hf_recipes.smoke import shrink

        recipe, _ = shrink(recipe)
    found = plan(recipe, device, length=length, read_data=read_data)
    if svg is not None:
        write_text(svg, show.svg(found.judged), "argument '--svg'")
    fits = found.judged.verdict != OUT
    changes = None
    if found.judged.verdict != FITS and with_advice:
        changes = advice.advise(found.judged, length=found.judged.seen.length if found.length_note else length)
    return ([json.dumps(_as_json(found, changes), indent=1)] if as_json else _lines(found, changes)), fits


def _lines(found: Planned, changes: tuple[advice.Change, ...] | None) -> list[str]:
    said = show.lines(found.judged)
    said += [f"  {found.length_note}"] if found.length_note else []
    return said if changes is None else [*said, *advice.lines(changes, found.judged)]


def _as_json(found: Planned, changes: tuple[advice.Change, ...] | None) -> dict[str, object]:
    said = {**show.as_json(found.judged), "length_note": found.length_note}
    return said if changes is None else {**said, "changes": advice.as_json(changes)}


def write_text(path: str, text: str, where: str) -> None:
    """Writes a file that the user named. Raises RecipeError where it cannot be written."""
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as problem:
        raise fault(where, f"{path!r} cannot be written ({problem.strerror})", "choose another place") from None
