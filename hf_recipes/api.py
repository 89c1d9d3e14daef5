"""The commands from Python, with typed results that show themselves in a notebook. Importing this loads no torch.

    from hf_recipes.api import check, compare, evaluate, plan, predict, run

A recipe is a path, the name of one that came with the package, or a dict of its sections. Everything raises
RecipeError (hf_recipes.errors) for what its caller can fix.
"""

from __future__ import annotations

import html
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hf_recipes.common import shipped
from hf_recipes.errors import RecipeError
from hf_recipes.record import MetricInterval, RunRecord
from hf_recipes.record.file import read_record
from hf_recipes.training.hooks import Hooks

__all__ = [
    "Checked",
    "Compared",
    "Evaluated",
    "Hooks",
    "Planned",
    "Ran",
    "check",
    "compare",
    "evaluate",
    "plan",
    "predict",
    "run",
]

RecipeLike = str | os.PathLike[str] | Mapping[str, Any]
PREFIX = "hf-recipes-dict-"  # of the folder of a recipe that is a dict
Overrides = Mapping[str, Any]  # {"TrainingArguments.learning_rate": 1e-4}


@dataclass(frozen=True, kw_only=True)
class Shown:
    """Lines for a reader; in a notebook they stand in a block of their own."""

    lines: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self.lines)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


@dataclass(frozen=True, kw_only=True)
class Checked(Shown):
    """What `check` found."""

    errors: int

    @property
    def ok(self) -> bool:
        return self.errors == 0


@dataclass(frozen=True, kw_only=True)
class Planned(Shown):
    """What `plan` predicts."""

    fits: bool


@dataclass(frozen=True, kw_only=True, repr=False)
class Scored:
    """A record and its metrics, without the prefix "eval_"."""

    folder: Path
    record: RunRecord

    @property
    def metrics(self) -> dict[str, float]:
        found = {key.removeprefix("eval_"): value for key, value in self.record.metrics.of("eval").items()}
        return {key: value for key, value in found.items() if key not in _SPEED}

    @property
    def intervals(self) -> dict[str, MetricInterval]:
        """95 % intervals by metric."""
        return dict((self.record.intervals or {}).get("eval", {}))

    def __repr__(self) -> str:
        shown = ", ".join(f"{name} {value:.4g}" for name, value in self.metrics.items())
        return f"{type(self).__name__}({str(self.folder)!r}, {self.record.status.value}: {shown})"

    def _repr_html_(self) -> str:
        spans = {name: f"{one.low:.4g} to {one.high:.4g}" for name, one in self.intervals.items()}
        rows = [(name, f"{value:.4g}", spans.get(name, "")) for name, value in self.metrics.items()]
        return _table(f"{self.folder}: {self.record.status.value}", ("metric", "value", "95 % interval"), rows)


@dataclass(frozen=True, kw_only=True, repr=False)
class Ran(Scored):
    """A run that came to its end."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Evaluated(Scored):
    """A model on other data."""


@dataclass(frozen=True, kw_only=True)
class Compared(Shown):
    """A comparison of runs; `values` is what `compare --json` prints."""

    values: Mapping[str, Any]

    def _repr_html_(self) -> str:
        head = ("run", "metric", "verdict", "difference", "95 % interval", "p (Holm)")
        rows = [
            (f["second"], f["metric"], f["verdict"], f"{f['difference']:+.4g}",
             f"{f['low']:+.4g} to {f['high']:+.4g}", f"{f['p_holm']:.3g}")
            for f in self.values.get("findings", ())
        ]  # fmt: skip
        return _table(f"against {self.values['sides'][0]['name']}", head, rows)


_SPEED = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time", "jit_compilation_time")


def check(recipe: RecipeLike, overrides: Overrides | None = None) -> Checked:
    """Every error and warning in a recipe. Needs neither data nor a GPU, and imports no torch."""
    from hf_recipes.commands.check import check as check_recipe

    with _as_file(recipe) as path:
        lines, errors = check_recipe(path, _arguments(overrides))
    return Checked(lines=tuple(_without(path, line) for line in lines), errors=errors)


def plan(recipe: RecipeLike, gpu: str | None = None, overrides: Overrides | None = None, **options: Any) -> Planned:
    """Peak memory and time of a recipe on a GPU that need not be here. `options`: those of `hf-recipes plan`."""
    from hf_recipes.commands.plan import command

    with _as_file(recipe) as path:
        lines, fits = command(path, _arguments(overrides), gpu=gpu, **options)
    return Planned(lines=tuple(_without(path, line) for line in lines), fits=fits)


def run(
    recipe: RecipeLike,
    overrides: Overrides | None = None,
    *,
    smoke: bool = False,
    resume: bool = False,
    plan_first: bool = True,
    hooks: Hooks | None = None,
    trust_remote_code: bool = False,
) -> Ran:
    """Trains, evaluates and writes the record; the recipe's output_dir has the model. `hooks`: code of yours that runs
    with it: Hooks(callbacks=, metrics=, formatting=, loss=). `trust_remote_code`: of metrics from the Hub."""
    from hf_recipes.pipeline.run import run as run_recipe

    with _as_file(recipe) as path:
        record = run_recipe(
            path, _arguments(overrides), smoke=smoke, resume=resume, planned=plan_first, hooks=hooks or Hooks(),
            trusted=trust_remote_code,
        )  # fmt: skip
    return Ran(folder=record.parent, record=read_record(record))


def evaluate(
    trained: str | os.PathLike[str] | Scored, data: str, output: str | None = None, **options: Any
) -> Evaluated:
    """A run, or a model folder, on other data. `options`: metrics, batch_size, base_model, cpu."""
    from hf_recipes.inference.evaluate import evaluate as evaluate_model
    from hf_recipes.inference.trained import find_trained

    one = evaluate_model(find_trained(_folder(trained)), data, output, say=lambda line: None, **options)
    return Evaluated(folder=one.folder, record=one.record)


def predict(
    trained: str | os.PathLike[str] | Scored,
    texts: Iterable[str | Mapping[str, Any]],
    *,
    batch_size: int = 32,
    generation: Mapping[str, Any] | None = None,
    **options: Any,
) -> list[dict[str, Any]]:
    """What a run's model says of each text or row, in their order: the objects that `hf-recipes predict` prints.
    `generation`: arguments of GenerationConfig; `options`: base_model, cpu."""
    from hf_recipes.commands.predict import predict as predict_rows
    from hf_recipes.inference.trained import find_trained

    if isinstance(texts, str):
        raise RecipeError.at("predict", "texts is one text", "give a list of texts")
    texts = list(texts)
    for number, one in enumerate(texts):
        if not isinstance(one, str | Mapping):
            raise RecipeError.at(f"row {number}", f"is {type(one).__name__}", "give texts, or dicts with their columns")
    rows = ({"text": one} if isinstance(one, str) else one for one in texts)
    found = find_trained(_folder(trained))
    return list(predict_rows(found, rows, batch_size=batch_size, given=generation, **options))


def compare(*runs: str | os.PathLike[str] | Scored, **options: Any) -> Compared:
    """Is the second better than the first? `options`: metric, split, common, group, resamples, seed."""
    import json

    from hf_recipes.commands.compare import command

    paths = [_folder(one) for one in runs]
    lines = command(paths, **options)
    values = json.loads(command(paths, as_json=True, **options)[0])
    return Compared(lines=tuple(lines), values=values)


def _table(title: str, head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    def line(tag: str, cells: Iterable[str]) -> str:
        return f"<tr>{''.join(f'<{tag}>{html.escape(one)}</{tag}>' for one in cells)}</tr>"

    body = "".join(line("td", row) for row in rows)
    return f"<table><caption>{html.escape(title)}</caption>{line('th', head)}{body}</table>"


def _folder(trained: str | os.PathLike[str] | Scored) -> str:
    if not isinstance(trained, Scored | str | os.PathLike):
        raise RecipeError.at("run", f"is {type(trained).__name__}", "give a run's folder, or what run() returned")
    return str(trained.folder) if isinstance(trained, Scored) else os.fspath(trained)


def _arguments(overrides: Overrides | None) -> list[str]:
    from hf_recipes.common.text import as_yaml

    return [f"{key}={as_yaml(value)}" for key, value in (overrides or {}).items()]


@contextmanager
def _as_file(recipe: RecipeLike) -> Iterator[str]:
    """The path of a recipe; one that is a dict is written for as long as it is needed, and errors call it "recipe"."""
    if not isinstance(recipe, Mapping | str | os.PathLike):
        raise RecipeError.at("recipe", f"is {type(recipe).__name__}", "give a path, a name or a dict")
    if not isinstance(recipe, Mapping):
        yield shipped.find(os.fspath(recipe), "recipe")
        return
    with tempfile.TemporaryDirectory(prefix=PREFIX) as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(_as_text(recipe), encoding="utf-8")
        try:
            yield str(path)
        except RecipeError as problem:
            named = [replace(one, location=_without(str(path), one.location)) for one in problem.errors]
            raise type(problem)(named, (_without(str(path), line) for line in problem.beside)) from None


def _as_text(recipe: Mapping[str, Any]) -> str:
    """As YAML, whatever it lacks: `check` says that."""
    from hf_recipes.recipe.recipe import TRAINERS, Recipe, dump_recipe

    if any(name in recipe for name in TRAINERS):
        return dump_recipe(Recipe(path="", sections=recipe, locations={}))
    import json

    return json.dumps(recipe, default=str)  # JSON is YAML


def _without(path: str, text: str) -> str:
    """The text without the path of a recipe that is a dict."""
    return text.replace(path, "recipe") if os.path.basename(os.path.dirname(path)).startswith(PREFIX) else text
