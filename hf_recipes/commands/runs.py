"""`hf-recipes runs`: a line for every record below a folder. Imports neither torch nor transformers."""

from __future__ import annotations

import contextlib
import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hf_recipes import record as records
from hf_recipes.catalog.metrics import LOWER_IS_BETTER
from hf_recipes.catalog.tasks import TASKS
from hf_recipes.common.text import GIB
from hf_recipes.compare.runs import read_record
from hf_recipes.errors import RecipeError


@dataclass(frozen=True, kw_only=True)
class Listed:
    """One run in the list. `low`, `high`: the metric's 95 % interval; None for what the record does not say."""

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
    folder: str, *, sort: str = "age", as_json: bool = False, now: datetime.datetime | None = None
) -> list[str]:
    """What to print. Raises RecipeError for a folder that is not there, or that holds no record."""
    found, warnings = listed(Path(folder), now or datetime.datetime.now(datetime.UTC))
    if not found and not warnings:
        raise RecipeError.at(folder, "no record.json in it or below", "a run writes one into its output_dir")
    key = SORTS[sort]
    found.sort(key=lambda one: (key(one) is None, key(one) if key(one) is not None else 0))
    if as_json:
        return [json.dumps([asdict(one) for one in found], indent=1)]
    return [*_table(found), *warnings]


def listed(folder: Path, now: datetime.datetime) -> tuple[list[Listed], list[str]]:
    """The runs, and a line for each record that cannot be read."""
    if not folder.is_dir():
        raise RecipeError.at(str(folder), "no such folder", "give the one that holds the runs, such as runs")
    found, warnings = [], []
    for path in sorted(folder.rglob("*.json")):
        if path.name != records.NAME and not (path.parent.name == "results" and "--" in path.name):
            continue
        try:
            record = read_record(path)
        except RecipeError as problem:
            warnings.append(f"left out: {problem.errors[0]}")
            continue
        shown = path.parent if path.name == records.NAME else path.with_suffix("")
        name = str(shown.relative_to(folder)) if shown != folder else folder.resolve().name
        found.append(_listed(name, record, now, _interval(path.parent, record)))
    return found, warnings


def _interval(folder: Path, record: Mapping[str, Any]) -> Mapping[str, Any]:
    """The main metric's, from the record; of an older one from its scores, as far as they are there."""
    kept, scores = record.get("intervals"), record.get("scores") or {}
    if kept is None and "eval" in scores and (folder / str(scores["eval"])).is_file():
        from hf_recipes.compare import intervals

        with contextlib.suppress(RecipeError):  # a damaged file: then without
            kept = intervals.of_run(folder, {**record, "scores": {"eval": str(scores["eval"])}})
    found: Mapping[str, Any] = ((kept or {}).get("eval") or {}).get(_main(record)) or {}
    return found


def _main(record: Mapping[str, Any]) -> str:
    """The first of the task's metrics that the run reports; "" if it reports none."""
    task, reported = TASKS.get(str(record.get("task"))), (record.get("metrics") or {}).get("eval") or {}
    return next((name for name in (task.metrics if task else ()) if _is_number(reported.get(f"eval_{name}"))), "")


def _listed(name: str, record: Mapping[str, Any], now: datetime.datetime, interval: Mapping[str, Any]) -> Listed:
    metric = _main(record)
    value = ((record.get("metrics") or {}).get("eval") or {}).get(f"eval_{metric}")
    memory, ended = record.get("memory") or {}, record.get("ended")
    try:
        age = (now - datetime.datetime.fromisoformat(str(ended))).total_seconds()
    except ValueError:
        age = None
    return Listed(
        run=name,
        status=str(record.get("status")),
        task=str(record.get("task")),
        model=(record.get("model") or {}).get("name"),
        metric=metric or None,
        value=_or_none(value),
        low=_or_none(interval.get("low")),
        high=_or_none(interval.get("high")),
        higher_is_better=metric not in LOWER_IS_BETTER if metric else None,
        peak_bytes=memory.get("peak_reserved_bytes") or memory.get("peak_rss_bytes"),
        tokens_per_second=_or_none(record.get("tokens_per_second")),
        steps=record.get("steps"),
        seed=record.get("seed"),
        ended=ended,
        age_seconds=age,
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _or_none(value: Any) -> Any:
    return value if _is_number(value) else None


def _rank(one: Listed) -> float:
    """Best first."""
    if one.value is None:
        return float("inf")
    return -one.value if one.higher_is_better else one.value


def _table(found: Sequence[Listed]) -> list[str]:
    head = ("run", "status", "task", "model", "metric (95%)", "peak", "tokens/s", "age")
    rows = [head, *(_cells(one) for one in found)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    right = (5, 6, 7)
    return [
        "  ".join(
            text.rjust(width) if i in right else text.ljust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _cells(one: Listed) -> tuple[str, ...]:
    metric = "–"
    if one.value is not None:
        span = "" if one.low is None or one.high is None else f" ({one.low:.4g} to {one.high:.4g})"
        metric = f"{one.metric} {one.value:.4g}{span}"
    peak = "–" if not one.peak_bytes else f"{one.peak_bytes / GIB:.1f} GiB"
    speed = "–" if one.tokens_per_second is None else f"{one.tokens_per_second:,.0f}"
    return (one.run, one.status, one.task, one.model or "–", metric, peak, speed, _age(one.age_seconds))


def _age(seconds: float | None) -> str:
    """ "3 min", "5 h", "12 d"."""
    if seconds is None:
        return "–"
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"
