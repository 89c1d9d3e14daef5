"""`python -m hf_recipes.lab.child`: one measurement in a process of its own. JSON in, one line of JSON out."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from typing import Any

from hf_recipes.errors import Fault, RecipeError, fault
from hf_recipes.recipe import Recipe

SECONDS = 540  # of one measurement


def measure(
    recipe: Recipe,
    *,
    length: int | None = None,
    micro_batch: int | None = None,
    cpu: bool = False,
    fraction: float | None = None,
    seconds: float = SECONDS,
) -> dict[str, Any]:
    """What the recipe's training steps, evaluation and save really take: outcome ("finished" or "out of memory"),
    allocated_bytes, reserved_bytes, device_bytes, step_seconds; on a CPU allocated_bytes alone of the bytes.

    Raises RecipeError for what the run would refuse, and where there is no card (and no `cpu`).
    """
    request = {"kind": "recipe", "length": length, "micro_batch": micro_batch, "cpu": cpu, "fraction": fraction}
    plain = {"path": recipe.path, "sections": recipe.sections, "places": recipe.places}
    return _asked({**request, "recipe": plain}, recipe.path, seconds)


def card_facts(seconds: float = SECONDS) -> dict[str, Any]:
    """What the present card is (card.facts). Raises RecipeError where there is none."""
    return _asked({"kind": "card"}, "hf-recipes lab", seconds)


def _asked(request: dict[str, Any], where: str, seconds: float) -> dict[str, Any]:
    command = [sys.executable, "-m", "hf_recipes.lab.child"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    try:
        done = subprocess.run(
            command, input=json.dumps(request), capture_output=True, text=True, timeout=seconds, env=environment
        )
    except subprocess.TimeoutExpired:
        return {"outcome": f"not over after {seconds:.0f} s"}
    lines = done.stdout.strip().splitlines()
    if not lines:
        last = (done.stderr.strip().splitlines() or ["nothing was said"])[-1]
        return {"outcome": f"ended with status {done.returncode}: {last}"}
    answer: dict[str, Any] = json.loads(lines[-1])
    if "faults" in answer:
        raise RecipeError([Fault(**one) for one in answer["faults"]])
    if answer.get("no_card"):
        raise fault(where, "there is no CUDA card on this machine", "measure on one that has, or say --cpu")
    return answer


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    import torch

    cpu = bool(request.get("cpu"))
    if not cpu and not torch.cuda.is_available():
        return {"no_card": True}
    if request["kind"] == "card":
        from hf_recipes.lab.card import facts

        return facts()
    recipe = Recipe(**request["recipe"])
    if cpu:
        return _on_cpu(recipe, request["length"], request["micro_batch"])
    from hf_recipes.lab.card import measure_on_card

    return measure_on_card(recipe, request["length"], request["micro_batch"], request["fraction"])


def _on_cpu(recipe: Recipe, length: int | None, micro_batch: int | None) -> dict[str, Any]:
    """The same tracker as plan's on real tensors; the seconds are of the traced steps, so an upper bound."""
    from hf_recipes.plan.tracing import trace_here

    began = time.perf_counter()
    seen = trace_here(recipe, length=length, micro_batch=micro_batch, cpu=True, real=True)
    found = {"outcome": "finished", "allocated_bytes": seen.allocated, "phases": dict(seen.phases)}
    return {**found, "seconds": time.perf_counter() - began}


def main() -> None:
    from dataclasses import asdict

    answers = os.fdopen(os.dup(1), "w")
    logging.disable(logging.WARNING)
    os.dup2(2, 1)  # what libraries print goes to stderr
    try:
        found = _answer(json.loads(sys.stdin.read()))
    except RecipeError as problem:
        found = {"faults": [asdict(one) for one in problem.faults]}
    except Exception as problem:  # a measurement that failed is an outcome, with upstream's words
        found = {"outcome": f"failed: {type(problem).__name__}: {(str(problem).strip().splitlines() or [''])[0]}"}
    answers.write(json.dumps(found) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
