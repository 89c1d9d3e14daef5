"""`hf-recipes runs`: a line for every record below a folder. Imports neither torch nor transformers."""

from __future__ import annotations

import contextlib
import datetime
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click

from hf_recipes.catalog.metrics import LOWER_IS_BETTER
from hf_recipes.catalog.tasks import find_task
from hf_recipes.common import run_lock
from hf_recipes.common.files import put
from hf_recipes.common.text import GIB, format_columns, join_words, terminal_width
from hf_recipes.compare.runs import find_scores
from hf_recipes.errors import OutputDirError, RecipeError, RecordError
from hf_recipes.pipeline.finish import list_left
from hf_recipes.record import (
    COMPLETE,
    NAME,
    EndStep,
    MetricInterval,
    RunRecord,
    Status,
)
from hf_recipes.record.file import read_record
from hf_recipes.report.of_runs import RunEntry, page_of_runs, read_curves, read_settings


@dataclass(frozen=True, kw_only=True)
class Listed:
    """One run in the list. `low`, `high`: the metric's 95 % interval; None for what the record lacks. `left`: steps of
    the end of a run that is complete but for them."""

    run: str
    status: str
    task: str
    model: str | None
    metric: str | None
    value: float | None
    low: float | None
    high: float | None
    higher_is_better: bool | None
    peak_bytes: int | None
    tokens_per_second: float | None
    steps: int | None
    resumed_at: tuple[int, ...]
    left: tuple[str, ...]
    seed: int | None
    ended: str | None
    age_seconds: float | None


SORTS: dict[str, Callable[[Listed], Any]] = {
    "age": lambda one: one.age_seconds,
    "name": lambda one: one.run,
    "status": lambda one: one.status,
    "task": lambda one: (one.task, _rank(one)),
    "model": lambda one: one.model,
    "metric": lambda one: (one.task, _rank(one)),
    "memory": lambda one: one.peak_bytes,
    "speed": lambda one: None if one.tokens_per_second is None else -one.tokens_per_second,
}


def command(
    folder: str, *, sort: str = "age", as_json: bool = False, html: str | None = None,
    now: datetime.datetime | None = None,
) -> list[str]:  # fmt: skip
    """What to print. `html`: a page of all runs is written there. Raises RecordError for a folder that is missing or
    has no record, OutputDirError for a page that cannot be written."""
    read, warnings = read_all(Path(folder))
    now = now or datetime.datetime.now(datetime.UTC)
    found = [_describe_run(name, path.parent, record, now) for name, path, record in read]
    if not found and not warnings:
        raise RecordError.at(folder, "no record.json in it or below", "a run writes one into its output_dir")
    if html is not None:
        page = page_of_runs([_entry(one, record) for one, (_, _, record) in zip(found, read, strict=True)], folder)
        try:
            put(Path(html), page)
        except OSError as problem:
            what = f"{html!r} cannot be written ({problem.strerror})"
            raise OutputDirError.at("argument '--html'", what, "choose another place") from None
        return [f"written: {html} ({len(found)} runs)", *warnings]
    key = SORTS[sort]
    found.sort(key=lambda one: (key(one) is None, key(one) if key(one) is not None else 0))
    if as_json:
        for line in warnings:
            click.echo(line, err=True)
        return [json.dumps([asdict(one) for one in found], indent=1)]
    return [*_table(found), *warnings]


def _entry(one: Listed, record: RunRecord) -> RunEntry:
    """The run on the page. What is not finished says why."""
    interval = "" if one.low is None or one.high is None else f"{one.low:.4g} to {one.high:.4g}"
    unfinished = one.status not in (Status.FINISHED.value, Status.RUNNING.value)
    reason = record.diverged or record.error or (f"in {record.stage.value}" if unfinished else "")
    return RunEntry(
        name=one.run,
        status=one.status,
        failed=unfinished,
        reason=(reason.splitlines() or [""])[0],
        task=one.task,
        model=one.model or "",
        steps=one.steps,
        metric=one.metric or "",
        value=one.value,
        interval=interval,
        peak_gib=one.peak_bytes / GIB if one.peak_bytes else None,
        tokens_per_second=one.tokens_per_second,
        ended=(one.ended or "")[:16].replace("T", " "),
        settings=read_settings(record),
        curves=read_curves(record),
    )


def read_all(folder: Path) -> tuple[list[tuple[str, Path, RunRecord]], list[str]]:
    """(name, path, record) of the runs, and a line for each record that cannot be read."""
    if not folder.is_dir():
        raise RecordError.at(str(folder), "no such folder", "name the folder of the runs, such as runs")
    found: list[tuple[str, Path, RunRecord]] = []
    warnings: list[str] = []
    for path in sorted(folder.rglob("*.json")):
        if path.name != NAME and not (path.parent.name == "results" and "--" in path.name):
            continue
        try:
            record = read_record(path)
        except RecipeError as problem:
            warnings.append(_printable(f"warning: left out: {problem.errors[0]}"))
            continue
        shown = path.parent if path.name == NAME else path.with_suffix("")
        name = str(shown.relative_to(folder)) if shown != folder else folder.resolve().name
        found.append((name, path, record))
    return found, warnings


def _find_interval(folder: Path, record: RunRecord) -> MetricInterval | None:
    """The main metric's, from the record; of an older record from its scores, if they are there."""
    found, path = record.intervals, find_scores(folder, record, "eval") if record.intervals is None else None
    if path is not None:
        from hf_recipes.compare.intervals import intervals_of_run

        with contextlib.suppress(RecipeError):  # a damaged file: then without
            found = intervals_of_run(folder, replace(record, scores={"eval": path.name}))
    return ((found or {}).get("eval") or {}).get(_main_metric(record))


def _main_metric(record: RunRecord) -> str:
    """The first of the task's metrics that the run reports; "" if it reports none."""
    task, reported = find_task(record.task, record.recipe.sections.get("model")), record.metrics.of("eval")
    names = task.metrics if task else ()
    return next((name for name in names if math.isfinite(reported.get(f"eval_{name}", math.nan))), "")


def _describe_run(name: str, folder: Path, record: RunRecord, now: datetime.datetime) -> Listed:
    metric, interval = _main_metric(record), _find_interval(folder, record)
    left = list_left(None, record) if record.status in COMPLETE and EndStep.EVALUATION in record.done else ()
    try:
        age = (now - datetime.datetime.fromisoformat(str(record.ended))).total_seconds()
    except (ValueError, TypeError):  # no date, or one without a time zone
        age = None
    killed = record.status == Status.RUNNING and run_lock.find_holder(folder) is None
    return Listed(
        run=name,
        status="killed" if killed else record.status.value,
        task=record.task,
        model=(record.model.name or None) if record.model else None,
        metric=metric or None,
        value=_finite(record.metrics.of("eval").get(f"eval_{metric}")),
        low=_finite(interval.low) if interval else None,
        high=_finite(interval.high) if interval else None,
        higher_is_better=metric not in LOWER_IS_BETTER if metric else None,
        peak_bytes=record.memory.peak_bytes,
        tokens_per_second=_finite(record.tokens_per_second),
        steps=record.steps,
        resumed_at=record.resumed_at,
        left=left,
        seed=record.seed,
        ended=record.ended,
        age_seconds=age,
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _rank(one: Listed) -> float:
    """Best first."""
    if one.value is None:
        return float("inf")
    return -one.value if one.higher_is_better else one.value


def _table(found: Sequence[Listed]) -> list[str]:
    head = ("run", "status", "task", "model", "steps", "metric (95%)", "peak", "tokens/s", "age")
    rows = [head, *(tuple(map(_printable, _cells(one))) for one in found)]
    return format_columns(rows, right=(6, 7, 8), dropped=(7, 6, 3, 4, 2), width=terminal_width())


def _printable(text: str) -> str:
    """A name out of a file may hold anything: what no terminal prints becomes "?"."""
    return "".join(sign if sign.isprintable() else "?" for sign in text)


def _cells(one: Listed) -> tuple[str, ...]:
    metric = "–"
    if one.value is not None:
        span = "" if one.low is None or one.high is None else f" ({one.low:.4g} to {one.high:.4g})"
        metric = f"{one.metric} {one.value:.4g}{span}"
    peak = "–" if not one.peak_bytes else f"{one.peak_bytes / GIB:.1f} GiB"
    speed = "–" if one.tokens_per_second is None else f"{one.tokens_per_second:,.0f}"
    status = f"{one.status}, left: {', '.join(one.left)}" if one.left else one.status
    steps = "–" if one.steps is None else f"{one.steps:,}"
    steps += f" (resumed at step {join_words(one.resumed_at)})" if one.resumed_at else ""
    return (one.run, status, one.task, one.model or "–", steps, metric, peak, speed, _age(one.age_seconds))


def _age(seconds: float | None) -> str:
    """ "3 min", "5 h", "12 d"."""
    if seconds is None:
        return "–"
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"
