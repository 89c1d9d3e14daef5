"""`trace(recipe, ...)`: the tracing in a child process, since it patches torch. Light.

One child serves all calls of a process (its imports take seconds, a trace less); it ends with it, or by `close()`.
The child runs `main`: one JSON request a line in, one answer a line out.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import subprocess
import sys
from typing import IO, Any

from hf_recipes.errors import Fault, RecipeError, fault
from hf_recipes.plan.result import Trace
from hf_recipes.recipe import Recipe

_children: list[subprocess.Popen[str]] = []


def trace(
    recipe: Recipe,
    *,
    length: int | None = None,
    micro_batch: int | None = None,
    capability: tuple[int, int] = (8, 6),
    cpu: bool = False,
) -> Trace:
    """What two optimizer steps, an evaluation batch and saving of `recipe` hold, to the byte, without running them.

    length: tokens of the longest row, default the recipe's max_length or the model's; micro_batch: rows of one device
    at a time, default per_device_train_batch_size; capability: the card's CUDA compute capability, which decides bf16
    and attention's back end; cpu: plan a run on a CPU instead. Needs no weights, no data, no network and no GPU.
    Raises RecipeError for what the run itself would refuse, and, naming the operation, for what cannot be traced.
    """
    request = {
        "recipe": {"path": recipe.path, "sections": recipe.sections, "places": recipe.places},
        "length": length,
        "micro_batch": micro_batch,
        "capability": list(capability),
        "cpu": cpu,
    }
    answer = _ask(request)
    if "faults" in answer:
        raise RecipeError([Fault(**one) for one in answer["faults"]])
    if "crash" in answer:
        what = f"plan cannot trace this recipe: {answer['crash']}"
        raise fault(recipe.path, what, "`hf-recipes run` does not need a plan")
    return Trace.from_json(json.dumps(answer["trace"]))


def close() -> None:
    """Ends the child, if there is one; the next trace starts another."""
    while _children:
        child = _children.pop()
        if child.stdin is not None:
            child.stdin.close()
        child.wait()


def _ask(request: dict[str, Any]) -> dict[str, Any]:
    child = _running()
    assert child.stdin is not None and child.stdout is not None
    try:
        child.stdin.write(json.dumps(request) + "\n")
        child.stdin.flush()
        line = child.stdout.readline()
    except BrokenPipeError:
        line = ""
    if not line:
        code = child.wait()
        _children.clear()
        return {"crash": f"the tracing process ended (status {code})"}
    answer: dict[str, Any] = json.loads(line)
    return answer


def _running() -> subprocess.Popen[str]:
    if _children and _children[0].poll() is None:
        return _children[0]
    _children.clear()
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment |= {"TRANSFORMERS_VERBOSITY": "error", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    # A launcher's variables would make the child wait for the other ranks.
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        environment.pop(name, None)
    for name in [name for name in environment if name.startswith(("ACCELERATE_", "FSDP_", "TORCHELASTIC_"))]:
        del environment[name]
    child = subprocess.Popen(
        [sys.executable, "-c", "from hf_recipes.plan.child import main; main()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    if not _children:
        atexit.register(close)
    _children.append(child)
    return child


def _serve(requests: IO[str], answers: IO[str]) -> None:
    for line in requests:
        answers.write(json.dumps(_answer(json.loads(line))) + "\n")
        answers.flush()


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    from dataclasses import asdict

    from hf_recipes.plan.tracing import trace_here

    recipe = Recipe(**request.pop("recipe"))
    request["capability"] = tuple(request["capability"])
    try:
        return {"trace": asdict(trace_here(recipe, **request))}
    except RecipeError as problem:
        return {"faults": [asdict(one) for one in problem.faults]}
    except Exception as problem:  # upstream's: the parent says which, this process goes on
        if os.environ.get("HF_RECIPES_PLAN_DEBUG"):
            raise
        return {"crash": f"{type(problem).__name__}: {(str(problem).strip().splitlines() or [''])[0]}"}


def main() -> None:
    """The child: requests on stdin, answers on what was stdout; what libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    logging.disable(logging.WARNING)
    os.dup2(2, 1)
    _serve(sys.stdin, answers)
