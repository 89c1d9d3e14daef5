"""The verb `plan`: its words to a plan, and the plan to lines or JSON. Light."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from hf_recipes.errors import fault
from hf_recipes.plan import show
from hf_recipes.plan.planning import Planned, plan
from hf_recipes.plan.verdict import OUT, card, cpu_card
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
    return ([json.dumps(_as_json(found), indent=1)] if as_json else _lines(found)), fits


def _lines(found: Planned) -> list[str]:
    said = show.lines(found.judged)
    return [*said, f"  {found.length_note}"] if found.length_note else said


def _as_json(found: Planned) -> dict[str, object]:
    return {**show.as_json(found.judged), "length_note": found.length_note}


def write_text(path: str, text: str, where: str) -> None:
    """Writes a file that the user named. Raises RecipeError where it cannot be written."""
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as problem:
        raise fault(where, f"{path!r} cannot be written ({problem.strerror})", "choose another place") from None
