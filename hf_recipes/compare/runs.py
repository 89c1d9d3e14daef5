"""A run's folder, or its record, to what a comparison needs. Light until scores are read."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_recipes import record as records
from hf_recipes.errors import Diagnostic, RecipeError
from hf_recipes.evaluation.scores import EXAMPLES, Scores, read_examples, read_scores

ASIDE = ("seed", "data_seed", "output_dir", "run_name", "logging_dir", "hub_model_id")  # runs of one recipe differ here


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run as it lies on disk."""

    name: str  # shortest name that tells it from the others
    path: Path  # of its record
    record: Mapping[str, Any]

    @property
    def task(self) -> str:
        return str(self.record["task"])

    @property
    def sections(self) -> Mapping[str, Any]:
        found = self.record.get("recipe") or {}
        return found.get("sections") or {}

    @property
    def group(self) -> str:
        """The recipe without what one run of it has of its own: equal in runs that differ in their seed only."""
        kept = {
            name: {k: v for k, v in words.items() if k not in ASIDE} if isinstance(words, Mapping) else words
            for name, words in self.sections.items()
        }
        return json.dumps(kept, sort_keys=True, default=str)

    def scores(self, split: str) -> Scores:
        """Per-example scores of a split. Raises RecipeError where there are none."""
        names = self.record.get("scores") or {}
        if split not in names:
            status = self.record.get("status")
            ended = "" if status == "finished" else f" (it is {status!r}, in {self.record.get('where')})"
            what = f"the run has no per-example scores of its {split} split{ended}"
            there = ", ".join(names)
            raise RecipeError.at(str(self.path), what, f"--split {there}" if there else "evaluate it: do_train: false")
        return read_scores(self.path.parent / str(names[split]))

    def texts(self, split: str, ids: Collection[str]) -> dict[str, str]:
        """What these examples say, where the run kept it."""
        name = str((self.record.get("scores") or {}).get(split, ""))
        return read_examples(self.path.parent / name.replace("scores", EXAMPLES, 1), ids)


def read_runs(paths: Sequence[str]) -> list[Run]:
    """Records of folders or of record files, every fault at once. Raises RecipeError, also for one path given twice."""
    found: list[Run] = []
    errors: list[Diagnostic] = []
    seen: dict[Path, str] = {}
    for text in paths:
        path = Path(text)
        path = path / records.NAME if path.is_dir() else path
        try:
            key = path.resolve()
            if key in seen:
                raise RecipeError.at(text, f"the same run as {seen[key]!r}", "give each run once")
            seen[key] = text
            found.append(Run(name=text, path=path, record=read_record(path)))
        except RecipeError as problem:
            errors += problem.errors
    if errors:
        raise RecipeError(errors)
    return _named(found)


def read_record(path: Path) -> Mapping[str, Any]:
    """record.json. Raises RecipeError for a missing, cut, foreign or newer one."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError.at(str(path), "no such record", "a run writes record.json into its output_dir") from None
    except IsADirectoryError:
        raise RecipeError.at(str(path), "is a folder without a record.json") from None
    except (OSError, ValueError) as problem:
        raise RecipeError.at(str(path), f"is no whole record ({str(problem).splitlines()[0]})") from None
    if not isinstance(record, dict) or "schema" not in record or "task" not in record:
        raise RecipeError([Diagnostic(location=str(path), message="is no record of a run", fix="give a run's folder")])
    if record["schema"] > records.SCHEMA:
        what = f"a record of version {record['schema']}; this hf_recipes reads up to {records.SCHEMA}"
        raise RecipeError.at(str(path), what, "upgrade hf_recipes")
    return record


def _named(runs: list[Run]) -> list[Run]:
    """Names by the shortest tail of the path that tells the runs apart."""
    parts = [run.path.parent.parts if run.path.name == records.NAME else run.path.with_suffix("").parts for run in runs]
    depth = 1
    while depth < max(map(len, parts), default=1) and len({part[-depth:] for part in parts}) < len(parts):
        depth += 1
    return [
        Run(name="/".join(part[-depth:]) or run.name, path=run.path, record=run.record)
        for run, part in zip(runs, parts, strict=True)
    ]
