"""`python -m hf_recipes.plan.measure.worker`: one measurement in a process of its own. JSON in, one line of JSON out.

A child imports everything before it reads its request, and touches the GPU only then: the lab starts the next one
while the last one measures.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import subprocess
import sys
import time
from typing import Any

from hf_recipes.common.text import first_line
from hf_recipes.errors import Diagnostic, PlanError, RecipeError
from hf_recipes.plan.lab_record import Measurement
from hf_recipes.recipe.recipe import Recipe

SECONDS = 540  # of one measurement
NO_GPU = ("there is no CUDA GPU on this machine", "measure on a machine that has one, or add --cpu")

Child = subprocess.Popen[str]


def start_child(*, expandable: bool = False) -> Child:
    """A child that waits for its one request. `expandable`: with expandable segments, which torch reads as it is
    imported."""
    # torch asks NVML whether there is a GPU, which makes no context on it.
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    environment |= {"TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error"}
    if expandable:
        environment["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
    command, pipe = [sys.executable, "-m", "hf_recipes.plan.measure.worker"], subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment)


def stop_child(child: Child | None) -> None:
    """Ends one that is not needed."""
    if child is not None:
        child.kill()
        child.communicate()


def measure_recipe(
    recipe: Recipe,
    *,
    length: int | None = None,
    micro_batch: int | None = None,
    cpu: bool = False,
    fraction: float | None = None,
    seconds: float = SECONDS,
    child: Child | None = None,
) -> Measurement:
    """What the recipe's training steps, evaluation and save take when they run: outcome ("finished" or "out of
    memory"), allocated_bytes, reserved_bytes, device_bytes, step_seconds; on a CPU allocated_bytes alone of the bytes.

    fraction: of the GPU's memory that may be taken; child: one that was started ahead. Raises RecipeError for what
    the run would refuse, PlanError where there is no GPU (and no `cpu`).
    """
    request = {"kind": "recipe", "length": length, "micro_batch": micro_batch, "cpu": cpu, "fraction": fraction}
    plain = {"path": recipe.path, "sections": recipe.sections, "locations": recipe.locations}
    return Measurement.from_dict(_ask({**request, "recipe": plain}, recipe.path, seconds, child))


def read_gpu_facts(seconds: float = SECONDS) -> dict[str, Any]:
    """Facts of the present GPU (gpu.gpu_facts). Raises RecipeError where there is none."""
    return _ask({"kind": "gpu"}, "hf-recipes lab", seconds, None)


def _ask(request: dict[str, Any], location: str, seconds: float, child: Child | None) -> dict[str, Any]:
    child = child or start_child()
    try:
        output, errors = child.communicate(json.dumps(request), timeout=seconds)
    except subprocess.TimeoutExpired:
        stop_child(child)
        return {"outcome": f"not finished after {seconds:.0f} s"}
    lines = output.strip().splitlines()
    if not lines:
        last = (errors.strip().splitlines() or ["no output"])[-1]
        return {"outcome": f"ended with status {child.returncode}: {last}"}
    answer: dict[str, Any] = json.loads(lines[-1])
    if "errors" in answer:
        raise RecipeError([Diagnostic(**one) for one in answer["errors"]])
    if answer.get("no_gpu"):
        raise PlanError.at(location, *NO_GPU)
    return answer


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    import torch

    cpu = bool(request.get("cpu"))
    if not cpu and not torch.cuda.is_available():
        return {"no_gpu": True}
    if request["kind"] == "gpu":
        from hf_recipes.plan.measure.gpu import gpu_facts

        return gpu_facts()
    recipe = Recipe(**request["recipe"])
    if cpu:
        return _on_cpu(recipe, request["length"], request["micro_batch"])
    from hf_recipes.plan.measure.gpu import measure_on_gpu

    return measure_on_gpu(recipe, request["length"], request["micro_batch"], request["fraction"])


def _on_cpu(recipe: Recipe, length: int | None, micro_batch: int | None) -> dict[str, Any]:
    """The same tracker as plan's on real tensors; the seconds are of the traced steps, so an upper bound."""
    from hf_recipes.plan.trace.trace import trace_here

    began = time.perf_counter()
    seen = trace_here(recipe, length=length, micro_batch=micro_batch, cpu=True, real=True)
    found = {"outcome": "finished", "allocated_bytes": seen.allocated, "phases": dict(seen.phases)}
    return {**found, "seconds": time.perf_counter() - began}


def main() -> None:
    from dataclasses import asdict

    answers = os.fdopen(os.dup(1), "w")
    logging.disable(logging.WARNING)
    os.dup2(2, 1)  # what libraries print goes to stderr
    importlib.import_module("hf_recipes.plan.measure.gpu")  # it takes seconds, and touches no GPU

    try:
        found = _answer(json.loads(sys.stdin.read()))
    except RecipeError as problem:
        found = {"errors": [asdict(one) for one in problem.errors]}
    except Exception as problem:  # a measurement that failed is an outcome, with upstream's message
        if os.environ.get("HF_RECIPES_LAB_DEBUG"):
            raise
        found = {"outcome": f"failed: {type(problem).__name__}: {first_line(problem)}"}
    answers.write(json.dumps(found) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
