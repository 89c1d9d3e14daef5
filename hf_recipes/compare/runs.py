"""A run's folder, or its record, to what a comparison needs. Heavy only where scores are read."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_recipes.catalog.tasks import find_task
from hf_recipes.common.files import describe_special_file
from hf_recipes.common.text import format_value
from hf_recipes.errors import Diagnostic, RecordError
from hf_recipes.evaluation.scores import EXAMPLES, Scores, read_examples, read_scores
from hf_recipes.record import NAME, RunRecord, Status
from hf_recipes.record.file import read_record

RUN_KEYS = (
    "seed",
    "data_seed",
    "output_dir",
    "run_name",
    "logging_dir",
    "hub_model_id",
)  # runs of one recipe differ here


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run as it lies on disk."""

    name: str  # the shortest that distinguishes it from the others
    path: Path  # of its record
    record: RunRecord

    @property
    def task(self) -> str:
        return self.record.task

    @property
    def scored_as(self) -> str:
        """What is predicted of its examples: key of the tables of measures and scores."""
        task = find_task(self.record.task, self.sections.get("model"))
        return task.scored_as if task is not None else self.record.task

    @property
    def sections(self) -> Mapping[str, Any]:
        return self.record.recipe.sections

    @property
    def group(self) -> str:
        """The recipe without what one run of it has of its own: equal in runs that differ in their seed only."""
        kept = {
            name: {k: v for k, v in words.items() if k not in RUN_KEYS} if isinstance(words, Mapping) else words
            for name, words in self.sections.items()
        }
        return json.dumps(kept, sort_keys=True, default=str)

    def scores(self, split: str) -> Scores:
        """Per-example scores of a split. Raises RecipeError where there are none."""
        names, status = self.record.scores, self.record.status
        if split not in names:
            ended = "" if status == Status.FINISHED else f" (it is {status.value!r}, in {self.record.stage})"
            what = f"the run has no per-example scores of its {split} split{ended}"
            there = ", ".join(names)
            raise RecordError.at(str(self.path), what, f"--split {there}" if there else "evaluate it: do_train: false")
        return read_scores(_file_of_run(self.path.parent, names[split]))

    def texts(self, split: str, ids: Collection[str]) -> dict[str, str]:
        """The text of these examples, where the run has written it."""
        name = self.record.scores.get(split, "").replace("scores", EXAMPLES, 1)
        try:
            return read_examples(_file_of_run(self.path.parent, name), ids)
        except RecordError:
            return {}


def find_scores(folder: Path, record: RunRecord, split: str) -> Path | None:
    """The file of a split's scores, if the record names one and it is there, in the run's own folder."""
    name = record.scores.get(split)
    try:
        path = _file_of_run(folder, name) if name else None
    except RecordError:
        return None
    return path if path is not None and path.is_file() else None


def _file_of_run(folder: Path, name: str) -> Path:
    """A file beside the record. A record of a stranger may name any path: nothing is read outside the run's folder.
    Raises RecordError."""
    path = folder / name
    try:
        inside = name == path.name and path.resolve().parent == folder.resolve()
    except (OSError, ValueError, RuntimeError):  # a circle of links, a NUL
        inside = False
    if not inside:
        what = f"its record names {format_value(name)} as a file of scores, which is not in the run's folder"
        raise RecordError.at(str(folder), what, "evaluate the run again")
    odd = describe_special_file(path)
    if odd:
        raise RecordError.at(str(path), odd, "evaluate the run again")
    return path


def read_runs(paths: Sequence[str], leave_out: Callable[[Diagnostic], None] | None = None) -> list[Run]:
    """Runs by their folders or record files. Raises RecordError with every error, also for one path given twice.

    `leave_out`: is given the error of a record that cannot be read, where two others can; without it that is raised.
    """
    found: list[Run] = []
    errors: list[Diagnostic] = []
    unread: list[Diagnostic] = []
    seen: dict[Path, str] = {}
    for text in paths:
        path = Path(text)
        path = path / NAME if path.is_dir() else path
        key = Path(os.path.realpath(path))
        if key in seen:
            what = f"the same run as {seen[key]!r}"
            errors.append(Diagnostic(location=text, message=what, fix="give each run once"))
            continue
        seen[key] = text
        try:
            found.append(Run(name=text, path=path, record=read_record(path)))
        except RecordError as problem:
            (unread if os.path.lexists(path) else errors).extend(problem.errors)
    if leave_out is None or len(found) < 2:
        errors += unread
    if errors:
        raise RecordError(errors)
    if leave_out is not None:
        for one in unread:
            leave_out(one)
    return _shorten_names(found)


def _shorten_names(runs: list[Run]) -> list[Run]:
    """Names by the shortest end of the path that distinguishes the runs."""
    parts = [run.path.parent.parts if run.path.name == NAME else run.path.with_suffix("").parts for run in runs]
    depth = 1
    while depth < max(map(len, parts), default=1) and len({part[-depth:] for part in parts}) < len(parts):
        depth += 1
    return [
        Run(name="/".join(part[-depth:]) or run.name, path=run.path, record=run.record)
        for run, part in zip(runs, parts, strict=True)
    ]
