"""One run as a document: what it was, how well it did and how surely, what it took. Also of a run that failed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hf_recipes.common.text import GIB
from hf_recipes.compare import differences
from hf_recipes.compare.measures import MEASURES
from hf_recipes.compare.runs import Run
from hf_recipes.errors import RecipeError
from hf_recipes.report import plots
from hf_recipes.report.blocks import Block, Cell, Code, Document, Figure, Heading, Note, Paragraph, Table
from hf_recipes.report.of_comparison import (
    COST,
    LABELS,
    calibration_blocks,
    confusion_figure,
    cost_cell,
    label_table,
)

CURVES = {  # log key -> (file, axis, caption)
    "learning_rate": ("learning-rate", "learning rate", "Learning rate"),
    "grad_norm": ("gradient", "norm", "Gradient norm, before clipping"),
}


def write_report(folder: Path, record: Mapping[str, Any], say: Callable[[str], None]) -> None:
    """report.md and report.html beside the record. It never fails: a run that has ended well has ended well."""
    from hf_recipes.report.writing import write

    try:
        run = Run(name=folder.name or "run", path=folder / "record.json", record=record)
        write(document(run), folder, "report")
    except Exception as problem:  # a page about the run is worth less than its end
        say(f"report: could not be written ({type(problem).__name__}: {problem})")


def document(run: Run) -> Document:
    """The whole report of a record; what is missing in it is left out."""
    record = run.record
    blocks: list[Block] = [Paragraph(text=_what(run))]
    if record.get("status") != "finished":
        error = f": {record['error']}" if record.get("error") else ""
        blocks.append(Note(text=f"{record.get('status')} in {record.get('where')}{error}"))
    blocks += [*_metrics(run), *_curves(run), *_classes(run), *_cost(record), *_survived(record)]
    blocks += [*_data(record), *_settings(record)]
    return Document(title=run.name, blocks=blocks)


def _what(run: Run) -> str:
    record, model = run.record, run.record.get("model") or {}
    said = [str(record.get("task"))]
    if model:
        trained = model["trainable_parameters"] / model["parameters"]
        share = "" if trained == 1 else f", {trained:.1%} trained"
        said.append(f"{model['name']} ({model['class']}, {model['parameters']:,} parameters{share})")
    steps = record.get("steps")
    if steps:
        said.append(f"{steps:,} steps of {record['batch']['sequences_per_step']} sequences")
    device = record.get("device") or {}
    said.append(f"on {device.get('name', 'an unknown device')}")
    return "; ".join(said) + f". Seed {record.get('seed')}; {str(record.get('ended', ''))[:10]}."


def _metrics(run: Run) -> Iterator[Block]:
    """The value of each metric, before and after, with its interval over the examples."""
    known = {measure.name: measure for measure in MEASURES.get(run.task, ())}
    metrics, intervals = run.record.get("metrics") or {}, run.record.get("intervals") or {}
    after, before, test = (metrics.get(split) or {} for split in ("eval", "before", "test"))
    rows = []
    for key, value in after.items():
        name = key.removeprefix("eval_")
        if name.endswith(("runtime", "per_second")) or not isinstance(value, int | float):
            continue
        percent = name in known and known[name].percent
        interval = (intervals.get("eval") or {}).get(name)
        cells: list[str | Cell] = [name, _number(before.get(f"eval_{name}"), percent), _number(value, percent)]
        cells += [_span(interval, percent), _number(test.get(f"test_{name}"), percent)]
        rows.append(cells)
    if not rows:
        return
    used = [i for i, column in enumerate(zip(*rows, strict=True)) if i in (0, 2) or any(_text(one) for one in column)]
    head = ("metric", "before", "after", "95% interval", "test")
    yield Heading(text="Metrics")
    yield Table(head=[head[i] for i in used], rows=[[row[i] for i in used] for row in rows])
    rows_of = ((run.record.get("data") or {}).get("eval") or {}).get("rows")
    if rows_of:
        yield Paragraph(
            text=f"Over {rows_of:,} evaluated rows; an interval says what other such rows might have given."
        )


def _text(one: str | Cell) -> str:
    return one.text if isinstance(one, Cell) else one


def _number(value: Any, percent: bool) -> Cell:
    if not isinstance(value, int | float):
        return Cell(text="")
    return Cell(text=f"{100 * value:.1f} %" if percent else f"{value:.4g}", value=float(value))


def _span(interval: Mapping[str, Any] | None, percent: bool) -> str:
    """ "90.1 to 94.2"; "" where it is not known, or not finite."""
    ends = [interval[key] for key in ("low", "high")] if interval else []
    if not ends or not all(isinstance(end, int | float) for end in ends):
        return ""
    return " to ".join(f"{100 * end:.1f}" if percent else f"{end:.4g}" for end in ends)


def _curves(run: Run) -> Iterator[Block]:
    loss = {"training": differences.curve(run, "loss"), "evaluation": differences.curve(run, "eval_loss")}
    loss = {name: points for name, points in loss.items() if points}
    if not any(len(points) > 1 for points in loss.values()):
        return
    yield Heading(text="Curves")
    yield Figure(name="loss", svg=plots.curves(loss, "nats"), caption="Loss")
    main = MEASURES[run.task][0].name if run.task in MEASURES else ""
    way = differences.curve(run, f"eval_{main}")
    if len(way) > 1:
        yield Figure(name="metric", svg=plots.curves({main: way}, main), caption=f"{main} on the way")
    for key, (name, axis, caption) in CURVES.items():
        points = differences.curve(run, key)
        if len(points) > 1:
            yield Figure(name=name, svg=plots.curves({axis: points}, axis), caption=caption)


def _classes(run: Run) -> Iterator[Block]:
    scores = None
    if run.record.get("scores"):
        with contextlib.suppress(RecipeError):
            scores = run.scores("eval")
    table = label_table([run.name], [scores]) if scores is not None else None
    if table is None or scores is None:
        return
    yield Heading(text="Labels")
    yield table
    if len(scores.label_names) <= LABELS:
        yield confusion_figure(run.name, scores, "confusion")
    calibrated = differences.calibration(scores)
    yield from calibration_blocks({run.name: calibrated} if calibrated else {}, "reliability")


def _cost(record: Mapping[str, Any]) -> Iterator[Block]:
    cost = differences.cost(Run(name="", path=Path(), record=record))
    yield Heading(text="Cost")
    rows: list[tuple[str | Cell, ...]] = [(title, cost_cell(key, cost[key])) for key, title in COST.items()]
    plan = record.get("plan") or {}
    if plan.get("reserved_bytes"):
        rows.append(("planned peak memory", cost_cell("peak_bytes", plan["reserved_bytes"])))
    told = record.get("forecast") or {}
    if told.get("seconds"):
        rows.append(("foretold", f"{told['seconds'][0]:,.0f} to {told['seconds'][1]:,.0f} s"))
    if told.get("measured_step_seconds"):
        rows.append(("a step", f"{told['measured_step_seconds']:.3g} s"))
    yield Table(head=("", ""), rows=rows)
    held = [(name, size / GIB) for name, size in (plan.get("card") or {}).items() if size > 0]
    if held:
        caption = f"Where the bytes of {plan.get('gpu')} are at the peak, as planned"
        yield Figure(name="memory", svg=plots.parts(held, "GiB"), caption=caption)


def _survived(record: Mapping[str, Any]) -> Iterator[Block]:
    guards = record.get("guards") or {}
    said = [
        f"out of memory at step {one.get('step')}: {one.get('pieces')} pieces from there on"
        for one in record.get("out_of_memory") or ()
    ]
    if guards.get("skipped_steps"):
        said.append(f"skipped steps, not finite: {', '.join(map(str, guards['skipped_steps']))}")
    if guards.get("rolled_back"):
        said.append(f"rolled back {guards['rolled_back']} times")
    if said:
        yield Heading(text="What it survived")
        yield from (Note(text=text) for text in said)


def _data(record: Mapping[str, Any]) -> Iterator[Block]:
    data = record.get("data") or {}
    names = list(dict.fromkeys(name for part in data.values() for name in part if name != "fingerprint"))
    if not data:
        return
    rows = [
        [split, *(Cell(text=f"{part[n]:,}", value=part[n]) if isinstance(part.get(n), int) else "" for n in names)]
        for split, part in data.items()
    ]
    yield Heading(text="Data")
    yield Table(head=("split", *(name.replace("_", " ") for name in names)), rows=rows)
    prints = [(split, str(part.get("fingerprint", ""))) for split, part in data.items()]
    yield Table(head=("split", "fingerprint"), rows=prints, code=frozenset({1}), folded="Fingerprints")


def _settings(record: Mapping[str, Any]) -> Iterator[Block]:
    yield Heading(text="Recipe")
    yield Code(text=str((record.get("recipe") or {}).get("text", "")))
    for title, key in (("Translated keys", "translations"), ("Choices made for you", "choices"), ("Notes", "notes")):
        if record.get(key):
            yield Code(text="\n".join(map(str, record[key])), folded=title)
    versions = [(name, str(version)) for name, version in (record.get("versions") or {}).items() if version]
    if record.get("commit"):
        versions.append(("commit", str(record["commit"])))
    yield Table(head=("package", "version"), rows=versions, folded="Versions")
