"""`python -m hf_recipes.pipeline.tuning.worker`: trials in a process of their own. A JSON request a line in, an answer
a line out. Its parent imports neither torch nor transformers."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
from dataclasses import asdict
from typing import Any

from hf_recipes.common.text import first_line
from hf_recipes.common.typed_json import from_json, to_json
from hf_recipes.errors import Diagnostic, RecipeError
from hf_recipes.pipeline.tuning.pairs import Trial
from hf_recipes.recipe.recipe import Recipe


class FailedTrialError(Exception):
    """A setting that cannot be run here; the message says why."""


class Worker:
    """A child that runs trials until it is closed, or replaced after a trial that changed it. `generated`: of recipes
    whose rows and weights are made up (generated.py)."""

    def __init__(self, *, generated: bool = False) -> None:
        self._generated = generated
        self._child: subprocess.Popen[str] | None = None

    def facts(self, recipe: Recipe, seconds: float) -> dict[str, Any]:
        return self._ask({"kind": "facts"}, recipe, seconds)

    def run(self, recipe: Recipe, steps: int, *, check: bool, seconds: float, new_process: bool = False) -> Trial:
        """A trial. Raises FailedTrialError, after `seconds` too, and RecipeError for what a run would refuse."""
        if new_process:
            self.close()
        request = {"kind": "trial", "steps": steps, "check": check, "generated": self._generated}
        found = self._ask(request, recipe, seconds)
        return from_json(Trial, found)

    def close(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.communicate()

    def _ask(self, request: dict[str, Any], recipe: Recipe, seconds: float) -> dict[str, Any]:
        child = self._child or self._start()
        plain = {"path": recipe.path, "sections": recipe.sections, "locations": recipe.locations}
        assert child.stdin is not None and child.stdout is not None
        ends = threading.Timer(seconds, child.kill)
        ends.start()
        try:
            with contextlib.suppress(BrokenPipeError):
                child.stdin.write(json.dumps({**request, "recipe": plain}) + "\n")
                child.stdin.flush()
            line = child.stdout.readline()
        finally:
            late = not ends.is_alive()
            ends.cancel()
        if not line:
            self.close()
            raise FailedTrialError(f"not done after {seconds:.0f} s" if late else "its process ended")
        answer: dict[str, Any] = json.loads(line)
        if "errors" in answer:
            raise RecipeError([Diagnostic(**one) for one in answer["errors"]])
        if "failed" in answer:
            self.close()
            raise FailedTrialError(answer["failed"])
        return answer

    def _start(self) -> subprocess.Popen[str]:
        environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error"}
        command, pipe = [sys.executable, "-m", "hf_recipes.pipeline.tuning.worker"], subprocess.PIPE
        self._child = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, env=environment
        )
        return self._child


def main() -> None:
    import warnings

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    from hf_recipes.pipeline.tuning.generated import GeneratedRunner
    from hf_recipes.pipeline.tuning.trial import OutOfTrialMemoryError, TrialRunner, facts_here

    runners = {False: TrialRunner(), True: GeneratedRunner()}
    for line in sys.stdin:
        request = json.loads(line)
        recipe = Recipe(**request["recipe"])
        try:
            if request["kind"] == "facts":
                found = dict(facts_here(recipe))
            else:
                runner = runners[request["generated"]]
                found = to_json(runner.run(recipe, request["steps"], check=request["check"]))
        except RecipeError as problem:
            found = {"errors": [asdict(one) for one in problem.errors]}
        except OutOfTrialMemoryError:
            found = {"failed": "out of memory"}
        except Exception as problem:  # a setting that upstream cannot run is an answer, with upstream's message
            if os.environ.get("HF_RECIPES_TUNE_DEBUG"):
                raise
            found = {"failed": f"{type(problem).__name__}: {first_line(problem)}"}
        answers.write(json.dumps(found) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
