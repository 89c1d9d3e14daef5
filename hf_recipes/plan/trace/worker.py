"""`trace_recipe(recipe, ...)`: the tracing in a child process, since it patches torch. Imports neither torch nor
transformers.

A child serves all calls of a process (its imports take seconds, a trace less); it ends with it, or by `close()`. The
child runs `main`: one JSON request a line in, one answer a line out. Two children work side by side
(`trace_recipes`): a trace takes one core, and each of them keeps torch in memory. What a child answered is kept
(answer_cache.py): the same request needs none. Within `time_limit` a child that is not done is ended.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib.metadata
import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict, deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import MappingProxyType
from typing import IO, Any

from hf_recipes import errors
from hf_recipes.errors import Diagnostic, OutOfTimeError, PlanError, RecipeError
from hf_recipes.plan.trace.answer_cache import load_answer, save_answer
from hf_recipes.plan.trace.continued import LENGTHS, continue_trace, length_to_continue
from hf_recipes.plan.trace.result import Lengths, Trace
from hf_recipes.recipe.recipe import Recipe

CHILDREN = 2
LAST_VERDICT = 1.5  # seconds of a time limit that are left for what follows the last trace
CPU_SECONDS = 45.0  # of one trace in a child: with its imports a plan ends within 60

_children: dict[int, subprocess.Popen[str]] = {}  # seat -> the child that sits there
_busy: set[int] = set()  # seats whose child works on an answer
_expected = 1  # children that will be asked for: they start together
_seats: defaultdict[int, threading.Lock] = defaultdict(threading.Lock)
_ends: list[float] = []  # of the time limits that hold now, each by time.monotonic()


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """No trace that is asked for inside lasts longer than this: its child is ended, and OutOfTimeError raised."""
    _ends.append(time.monotonic() + seconds)
    try:
        yield
    finally:
        _ends.pop()


def trace_recipe(
    recipe: Recipe,
    *,
    length: int | None = None,
    micro_batch: int | None = None,
    capability: tuple[int, int] = (8, 6),
    cpu: bool = False,
    processes: int = 1,
    fsdp: Mapping[str, str] = MappingProxyType({}),
) -> Trace:
    """Memory of two optimizer steps, an evaluation batch and saving of `recipe`, to the byte, without running them.

    length: tokens of the longest row, default the recipe's max_length or the model's; micro_batch: rows of one device
    at a time, default per_device_train_batch_size; capability: the GPU's CUDA compute capability, which decides bf16
    and attention's back end; cpu: plan a run on a CPU instead; processes: of an FSDP2 launch, one rank of which is
    traced; fsdp: its FSDP_* variables where they are not those of accelerate_configs/fsdp2.yaml. Needs no weights, no
    data, no network and no GPU. Raises RecipeError for what the run itself would refuse, and, naming the operation,
    for what cannot be traced.
    """
    arguments: dict[str, Any] = {"length": length, "micro_batch": micro_batch}
    arguments |= {"capability": list(capability), "cpu": cpu}
    if processes > 1:
        arguments |= {"processes": processes, "fsdp": dict(fsdp)}
    return _trace_by_child(recipe, arguments, 0)


def trace_recipes(recipes: Sequence[Recipe], **arguments: Any) -> list[Trace | RecipeError]:
    """`trace_recipe` of each, two at a time; an error takes the place of a refused recipe's."""
    return list(iterate_traces(recipes, workers=max(1, min(CHILDREN, len(recipes), os.cpu_count() or 1)), **arguments))


def iterate_traces(recipes: Iterable[Recipe], *, workers: int, **arguments: Any) -> Generator[Trace | RecipeError]:
    """`trace_recipe` of each in their order, traced ahead by so many children while the caller does other work."""
    arguments = {**arguments, "capability": list(arguments.get("capability", (8, 6)))}
    free: queue.SimpleQueue[int] = queue.SimpleQueue()
    for seat in range(workers):
        free.put(seat)

    def work(recipe: Recipe) -> Trace | RecipeError:
        seat = free.get()
        try:
            return _trace_by_child(recipe, arguments, seat)
        except RecipeError as problem:
            return problem
        finally:
            free.put(seat)

    pool, ahead = ThreadPoolExecutor(workers), deque[Future[Trace | RecipeError]]()
    try:
        for recipe in recipes:
            ahead.append(pool.submit(work, recipe))
            if len(ahead) > 2 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def measure_lengths(recipe: Recipe) -> Lengths:
    """The recipe's own data, tokenized as the run does it: how long its rows are. Raises RecipeError where it cannot
    be read here."""
    answer = _ask({"kind": "lengths", "recipe": _as_json(recipe)}, 0)
    found: dict[str, Any] = _raise_errors(recipe, answer)["lengths"]
    return Lengths(**{**found, "rows_by_length": tuple(map(tuple, found["rows_by_length"]))})


def _trace_by_child(recipe: Recipe, arguments: Mapping[str, Any], seat: int) -> Trace:
    length = length_to_continue(recipe, arguments.get("length"))
    if length is not None:
        short = [_trace_by_child(recipe, {**arguments, "length": one}, seat) for one in LENGTHS]
        return continue_trace(short, length)
    answer = _ask({"kind": "trace", "recipe": _as_json(recipe), **arguments}, seat)
    return Trace.from_values(_raise_errors(recipe, answer)["trace"])


def _as_json(recipe: Recipe) -> dict[str, Any]:
    return {"path": recipe.path, "sections": recipe.sections, "locations": recipe.locations}


def _raise_errors(recipe: Recipe, answer: dict[str, Any]) -> dict[str, Any]:
    if "errors" in answer:
        kind: type[RecipeError] = getattr(errors, answer["class"], RecipeError)
        raise kind([Diagnostic(**one) for one in answer["errors"]])
    if "late" in answer:
        what = "the time limit was over before the trace was done"
        raise OutOfTimeError.at(recipe.path, what, "plan shorter rows (--length 256), or a smaller model")
    if "slow" in answer:
        cause = "a very deep model, or one that computes token by token"
        what = f"tracing takes more than {answer['slow']:.0f} seconds of computing: {cause}"
        raise OutOfTimeError.at(recipe.path, what, "plan shorter rows (--length 256); `run --no-plan` needs no plan")
    if "crash" in answer:
        what = f"plan cannot trace this recipe: {answer['crash']}"
        raise PlanError.at(recipe.path, what, "`hf-recipes run --no-plan` trains without a plan")
    return answer


def expect_traces(count: int) -> None:
    """Several traces will follow the next one: the children that they need are started with its own, so that their
    imports run beside it."""
    global _expected
    _expected = max(1, min(CHILDREN, count, os.cpu_count() or 1))


def close() -> None:
    """Ends the children, if there are any; the next trace starts another."""
    global _expected
    _expected = 1
    while _children:
        seat, child = _children.popitem()
        if child.stdin is not None:
            child.stdin.close()
        if seat not in _busy:  # it may still import
            child.kill()
        child.wait()


def _ask(request: dict[str, Any], seat: int) -> dict[str, Any]:
    request = {**request, "folder": os.getcwd()}
    known = load_answer(request)
    if known is not None:
        return known
    end = min(_ends, default=None)
    with _seats[seat]:
        answer = {"late": True} if end is not None and end <= time.monotonic() else _ask_child(request, seat, end)
    save_answer(request, answer)
    return answer


def _ask_child(request: dict[str, Any], seat: int, end: float | None) -> dict[str, Any]:
    """`end`: when the child is ended if it is not done, by time.monotonic(); None: never."""
    child = _running(seat)
    _start_ahead(seat)
    _busy.add(seat)
    assert child.stdin is not None and child.stdout is not None
    timer = threading.Timer(max(0.0, end - time.monotonic()), child.kill) if end is not None else None
    if timer is not None:
        timer.daemon = True
        timer.start()
    try:
        child.stdin.write(json.dumps(request) + "\n")
        child.stdin.flush()
        line = child.stdout.readline()
    except BrokenPipeError:
        line = ""
    finally:
        _busy.discard(seat)
        if timer is not None:
            timer.cancel()
    if not line:
        code = child.wait()
        _children.pop(seat, None)
        late = end is not None and end <= time.monotonic()
        return {"late": True} if late else {"crash": f"the tracing process ended (status {code})"}
    answer: dict[str, Any] = json.loads(line)
    return answer


def _start_ahead(seat: int) -> None:
    """The other children that are expected, where nobody sits yet."""
    for other in range(_expected):
        if other != seat and other not in _children and _seats[other].acquire(blocking=False):
            try:
                _running(other, ahead=True)
            finally:
                _seats[other].release()


def _running(seat: int, ahead: bool = False) -> subprocess.Popen[str]:
    """The child of this seat; `ahead`: one that imports before it is asked."""
    known = _children.get(seat)
    if known is not None and known.poll() is None:
        return known
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment |= {"TRANSFORMERS_VERBOSITY": "error", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    environment["PYTHONHASHSEED"] = "0"  # some models walk through sets of names: the same plan each time
    # A launcher's variables would make the child wait for the other ranks.
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        environment.pop(name, None)
    for name in [name for name in environment if name.startswith(("ACCELERATE_", "FSDP_", "TORCHELASTIC_"))]:
        del environment[name]
    child = subprocess.Popen(
        [sys.executable, "-c", f"from hf_recipes.plan.trace.worker import main; main(ahead={ahead})"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    if not _children:
        atexit.register(close)
    _children[seat] = child
    return child


class _CpuTimeOver(BaseException):
    """Raised where the child is; no `except Exception` of upstream's stops it."""


def _serve(requests: IO[str], answers: IO[str]) -> None:
    for line in requests:
        with contextlib.suppress(AttributeError):  # Windows has no such timer: only `time_limit` holds there
            signal.signal(signal.SIGPROF, _end_trace)
            signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        try:
            answer = _answer(json.loads(line))
        except _CpuTimeOver:
            answer = {"slow": CPU_SECONDS}
        finally:
            with contextlib.suppress(AttributeError):
                signal.setitimer(signal.ITIMER_PROF, 0)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        gc.collect()


def _end_trace(*_: object) -> None:
    raise _CpuTimeOver


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    from dataclasses import asdict

    kind, recipe = request.pop("kind"), Recipe(**request.pop("recipe"))
    os.chdir(request.pop("folder"))  # a recipe's paths are relative to where its reader works
    try:
        if kind == "lengths":
            from hf_recipes.plan.trace.row_lengths import read_row_lengths

            gc.freeze()
            return {"lengths": asdict(read_row_lengths(recipe))}
        from hf_recipes.plan.trace.trace import trace_here

        gc.freeze()  # accelerate collects garbage in every trace: not among all that torch and transformers imported
        request["capability"] = tuple(request["capability"])
        return {"trace": trace_here(recipe, **request).to_values()}
    except RecipeError as problem:
        if isinstance(problem, PlanError) and problem.__cause__ is not None:  # plan's own limit: is it run's, too?
            return _explained(recipe, problem.__cause__)
        return {"errors": [asdict(one) for one in problem.errors], "class": type(problem).__name__}
    except Exception as problem:  # upstream's: the parent reports it, this process continues
        if os.environ.get("HF_RECIPES_PLAN_DEBUG"):
            raise
        return _explained(recipe, problem)


def _explained(recipe: Recipe, problem: BaseException) -> dict[str, Any]:
    from dataclasses import asdict

    from hf_recipes.plan.trace.refusals import explain

    found = explain(recipe, problem)
    return {"errors": [asdict(found)], "class": "PlanError" if found.location == recipe.path else "ModelError"}


def main(ahead: bool = False) -> None:
    """The child: requests on stdin, answers on what was stdout; what libraries print goes to stderr. `ahead`: it
    imports what a trace needs before it is asked for one."""
    answers = os.fdopen(os.dup(1), "w")
    logging.disable(logging.WARNING)
    os.dup2(2, 1)
    # transformers and TRL each read the names of all that is installed: a quarter of a second
    importlib.metadata.packages_distributions = functools.cache(importlib.metadata.packages_distributions)
    if ahead:
        importlib.import_module("hf_recipes.plan.trace.trace")
    _serve(sys.stdin, answers)
    os._exit(0)  # taking torch and transformers apart costs half a second, and nothing is left to write
