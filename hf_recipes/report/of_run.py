"""The report of one run: what it was, its metrics with intervals, curves, cost. Also for a run that failed."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path

from hf_recipes.common.text import GIB, format_duration, join_words
from hf_recipes.common.typed_json import to_json
from hf_recipes.compare import differences
from hf_recipes.compare.measures import MEASURES
from hf_recipes.compare.runs import Run
from hf_recipes.errors import RecipeError
from hf_recipes.record import MetricInterval, RunRecord, Session, Status
from hf_recipes.report import plots
from hf_recipes.report.blocks import Block, Cell, Code, Document, Figure, Heading, Note, Paragraph, Table
from hf_recipes.report.examples import example_blocks, sample_blocks
from hf_recipes.report.of_comparison import (
    COST,
    LABELS,
    calibration_blocks,
    confusion_figure,
    cost_cell,
    label_table,
)

REFRESH = 20  # seconds after which the page of a run that is under way is read again
CURVES = {  # log key -> (file, axis, caption)
    "learning_rate": ("learning-rate", "learning rate", "Learning rate"),
    "grad_norm": ("gradient", "norm", "Gradient norm, before clipping"),
}


def write_report(folder: Path, record: RunRecord, say: Callable[[str], None]) -> bool:
    """report.md and report.html beside the record; whether they are written. It never fails: a run that has ended well
    has ended well."""
    from hf_recipes.report.writing import write_report_files

    try:
        run = Run(name=folder.name or "run", path=folder / "record.json", record=record)
        write_report_files(build_report(run), folder, "report")
    except Exception as problem:  # a page about the run is worth less than its end
        say(f"report: could not be written ({type(problem).__name__}: {problem})")
        return False
    return True


def build_report(run: Run) -> Document:
    """The whole report of a record; what the record lacks is left out."""
    record = run.record
    blocks: list[Block] = [Paragraph(text=_describe_run(run))]
    if record.diverged:
        blocks.append(Note(text=f"diverged: {record.diverged}"))
    elif record.status != Status.FINISHED:
        blocks.append(Note(text=f"{record.status} in {record.stage}" + (f": {record.error}" if record.error else "")))
    if record.stopped_early:
        blocks.append(Note(text=f"early stopping ended the run {record.stopped_early}"))
    blocks += [*_metrics(run), *_curves(run), *sample_blocks(run.path.parent), *_labels(run), *example_blocks(run)]
    blocks += [*_cost(record), *_sessions(record), *_incidents(record)]
    blocks += [*_data(record), *_settings(record)]
    return Document(title=run.name, blocks=blocks, refresh=REFRESH if record.status == Status.RUNNING else None)


def _describe_run(run: Run) -> str:
    """Task, model, steps, device, seed and day in one line."""
    record = run.record
    parts, model = [run.scored_as], record.model
    if model is not None and model.parameters:
        trained = model.trainable_parameters / model.parameters
        share = "" if trained == 1 else f", {trained:.1%} trained"
        parts.append(f"{model.name} ({model.class_}, {model.parameters:,} parameters{share})")
    if record.steps and record.batch is not None:
        parts.append(f"{record.steps:,} steps of {record.batch.sequences_per_step} sequences")
    if record.resumed_at:
        parts.append(f"resumed at step {join_words(record.resumed_at)}")
    parts.append(f"on {record.device.name or 'an unknown device'}")
    return "; ".join(parts) + f". Seed {record.seed}; {(record.ended or '')[:10]}."


def _metrics(run: Run) -> Iterator[Block]:
    """The value of each metric, before and after, with its interval over the examples."""
    known = {measure.name: measure for measure in MEASURES.get(run.scored_as, ())}
    metrics, intervals = run.record.metrics, (run.record.intervals or {}).get("eval") or {}
    rows = []
    for key, value in metrics.of("eval").items():
        name = key.removeprefix("eval_")
        if name.endswith(("runtime", "per_second")):
            continue
        percent = name in known and known[name].percent
        before, test = metrics.of("before").get(key), metrics.of("test").get(f"test_{name}")
        cells: list[str | Cell] = [name, _number(before, percent), _number(value, percent)]
        cells += [_format_interval(intervals.get(name), percent), _number(test, percent)]
        rows.append(cells)
    if not rows:
        return
    used = [i for i, column in enumerate(zip(*rows, strict=True)) if i in (0, 2) or any(_text(one) for one in column)]
    head = ("metric", "before", "after", "95% interval", "test")
    yield Heading(text="Metrics")
    yield Table(head=[head[i] for i in used], rows=[[row[i] for i in used] for row in rows])
    if "eval" in run.record.data:
        evaluated = f"{run.record.data['eval'].rows:,} evaluated rows"
        yield Paragraph(text=f"Over {evaluated}; the interval covers the chance in which rows were drawn.")


def _text(one: str | Cell) -> str:
    return one.text if isinstance(one, Cell) else one


def _number(value: float | None, percent: bool) -> Cell:
    if value is None:
        return Cell(text="")
    return Cell(text=f"{100 * value:.1f} %" if percent else f"{value:.4g}", value=float(value))


def _format_interval(interval: MetricInterval | None, percent: bool) -> str:
    """ "90.1 to 94.2"; "" where it is not known, or not finite."""
    if interval is None or not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return ""
    ends = (interval.low, interval.high)
    return " to ".join(f"{100 * end:.1f}" if percent else f"{end:.4g}" for end in ends)


def _curves(run: Run) -> Iterator[Block]:
    loss = {"training": differences.read_curve(run, "loss"), "evaluation": differences.read_curve(run, "eval_loss")}
    loss = {name: points for name, points in loss.items() if points}
    if not any(len(points) > 1 for points in loss.values()):
        return
    yield Heading(text="Curves")
    unit = "squared error" if run.scored_as == "text-regression" else "nats"
    yield Figure(name="loss", svg=plots.curves(loss, unit), caption="Loss")
    main = MEASURES[run.scored_as][0].name if run.scored_as in MEASURES else ""
    points = differences.read_curve(run, f"eval_{main}")
    if len(points) > 1:
        yield Figure(name="metric", svg=plots.curves({main: points}, main), caption=f"{main} during training")
    for key, (name, axis, caption) in CURVES.items():
        points = differences.read_curve(run, key)
        if len(points) > 1:
            yield Figure(name=name, svg=plots.curves({axis: points}, axis), caption=caption)


def _labels(run: Run) -> Iterator[Block]:
    """Each label's rates, confusion matrix and calibration: of classifiers."""
    scores = None
    if run.record.scores:
        with contextlib.suppress(RecipeError):
            scores = run.scores("eval")
    table = label_table([run.name], [scores]) if scores is not None else None
    if table is None or scores is None:
        return
    yield Heading(text="Labels")
    yield table
    if len(differences.confusion_labels(scores)) <= LABELS and differences.count_confusions(scores) is not None:
        yield confusion_figure(run.name, scores, "confusion")
    calibrated = differences.measure_calibration(scores)
    yield from calibration_blocks({run.name: calibrated} if calibrated else {}, "reliability")


def _cost(record: RunRecord) -> Iterator[Block]:
    cost, plan, forecast = differences.read_cost(record), record.plan or {}, record.forecast
    yield Heading(text="Cost")
    rows: list[tuple[str | Cell, ...]] = [(title, cost_cell(key, cost[key])) for key, title in COST.items()]
    if plan.get("reserved_bytes"):
        rows.append(("planned peak memory", cost_cell("peak_bytes", plan["reserved_bytes"])))
    if forecast.seconds:
        rows.append(("expected training time", f"{forecast.seconds[0]:,.0f} to {forecast.seconds[1]:,.0f} s"))
    if forecast.measured_step_seconds:
        rows.append(("one step", f"{forecast.measured_step_seconds:.3g} s"))
    if record.data_wait is not None:
        rows.append(("waiting for data", f"{record.data_wait:.1%} of the training time"))
    used = record.utilization
    if used.mfu is not None:
        rows.append(("MFU", f"{used.mfu:.1%} of {used.peak}; FLOPs of a token: {used.formula}"))
    yield Table(head=("", ""), rows=rows)
    parts = [(name, size / GIB) for name, size in (plan.get("card") or {}).items() if size > 0]
    if parts:
        caption = f"Memory of {plan.get('gpu')} at the peak, as planned"
        yield Figure(name="memory", svg=plots.parts(parts, "GiB"), caption=caption)


def _sessions(record: RunRecord) -> Iterator[Block]:
    """A row for each session of a run that was resumed, and whether that changed anything."""
    if len(record.sessions) < 2:
        return
    yield Heading(text="Sessions")
    yield Table(
        head=("started", "ended", "steps", "tokens", "training", "machine", "how it ended"),
        rows=list(map(_session_row, record.sessions)),
    )
    if record.resumption:
        yield Paragraph(text=_sentence(record.resumption.removeprefix("resume").strip()))
    if record.repeated_steps:
        again = f"{record.repeated_steps:,} steps were made again, since a session resumed from an older checkpoint"
        yield Paragraph(text=f"{again}; they count once as steps and tokens, and each time in the cost.")


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _session_row(one: Session) -> tuple[str, ...]:
    last = "not known" if one.last_step is None else f"{one.last_step:,}"
    steps = "none" if one.first_step is None else f"{one.first_step:,} to {last}"
    how = "killed" if one.status is None else one.status.value
    how += f" by {one.signal}" if one.signal else ""
    how += f" in {one.stage}" if one.stage and one.status not in (None, Status.FINISHED) else ""
    how += f": {one.error.splitlines()[0]}" if one.error else ""
    tokens = "" if one.tokens is None else f"{one.tokens:,}"
    seconds = "" if one.time.train_seconds is None else format_duration(one.time.train_seconds)
    return one.started or "", one.ended or "", steps, tokens, seconds, one.machine, how


def _incidents(record: RunRecord) -> Iterator[Block]:
    """What went wrong and did not end the run."""
    lines = [f"out of memory at step {one.step}: micro-batches in {one.pieces} pieces from there on"
             for one in record.out_of_memory]  # fmt: skip
    if record.guards.skipped_steps:
        lines.append(f"skipped steps, not finite: {', '.join(map(str, record.guards.skipped_steps))}")
    if record.guards.rolled_back:
        lines.append(f"rolled back to a checkpoint: {record.guards.rolled_back} times")
    if lines:
        yield Heading(text="Incidents")
        yield from (Note(text=text) for text in lines)


def _data(record: RunRecord) -> Iterator[Block]:
    if not record.data:
        return
    counts = {split: {k: v for k, v in to_json(part).items() if isinstance(v, int)}
              for split, part in record.data.items()}  # fmt: skip
    names = list(dict.fromkeys(name for part in counts.values() for name in part))
    rows = [
        [split, *(Cell(text=f"{part[name]:,}", value=part[name]) if name in part else "" for name in names)]
        for split, part in counts.items()
    ]
    yield Heading(text="Data")
    yield Table(head=("split", *(name.replace("_", " ") for name in names)), rows=rows)
    prints = [(split, part.fingerprint) for split, part in record.data.items()]
    yield Table(head=("split", "fingerprint"), rows=prints, code=frozenset({1}), folded="Fingerprints")


def _settings(record: RunRecord) -> Iterator[Block]:
    yield Heading(text="Recipe")
    yield Code(text=record.recipe.text)
    for title, lines in (
        ("Translated keys", record.translations),
        ("Choices made for you", record.choices),
        ("Notes", record.notes),
    ):
        if lines:
            yield Code(text="\n".join(lines), folded=title)
    versions = [(name, version) for name, version in record.versions.items() if version]
    if record.commit:
        versions.append(("commit", record.commit))
    yield Table(head=("package", "version"), rows=versions, folded="Versions")
