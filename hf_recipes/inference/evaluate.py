"""A trained model on other data: metrics, per-example scores and a record, as its own run's evaluation wrote them."""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from hf_recipes.catalog.tasks import TASKS, split_metrics, task_of
from hf_recipes.common.environment import current_commit, package_versions, peak_rss_bytes, timestamp
from hf_recipes.common.text import first_line
from hf_recipes.common.write_failures import find_failure
from hf_recipes.errors import MetricError, OutputDirError, RecipeError
from hf_recipes.inference.added_metrics import NONE, Added, AddedValues, add_metrics, choose_metrics
from hf_recipes.inference.answers import FILE as ANSWERS
from hf_recipes.inference.inputs import load_file
from hf_recipes.inference.module_metrics import FOLDER as METRICS
from hf_recipes.inference.trained import Found, Trained, load_trained
from hf_recipes.recipe.recipe import Recipe, dump_recipe
from hf_recipes.record import (
    NAME,
    DeviceFacts,
    EndStep,
    Memory,
    MetricInterval,
    Metrics,
    ModelFacts,
    RecipeFacts,
    RunRecord,
    Session,
    Stage,
    Status,
    Timing,
    describe_machine,
)
from hf_recipes.record.file import find_record, write_record

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_recipes.data.prepared import Prepared

FOLDER = "evaluations"  # in the run's folder
WHERE = "argument '--metric'"
# Keys of a trainer that act on training only, or on files that an evaluation has not.
OF_TRAINING = ("resume_from_checkpoint", "push_to_hub", "load_best_model_at_end", "metric_for_best_model",
               "eval_on_start", "packing", "save_strategy", "eval_strategy", "torch_compile", "report_to",
               "deepspeed", "fsdp", "fsdp_config", "include_num_input_tokens_seen")  # fmt: skip
SECTIONS_OF_TRAINING = ("EarlyStoppingCallback", "sample_prompts", "GenerationConfig", "BpeTrainer", "resume_allow",
                        "on_nonfinite", "disable_guards", "master_weights", "global_batch_size",
                        "class_weights")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What an evaluation found, and where it lies."""

    folder: Path
    record: RunRecord

    @property
    def metrics(self) -> dict[str, float]:
        """{"f1": 0.91, "loss": 0.2, ...}"""
        found = {key.removeprefix("eval_"): value for key, value in self.record.metrics.of("eval").items()}
        return {key: value for key, value in found.items() if key not in ("runtime",) and not key.endswith("_second")}

    @property
    def intervals(self) -> dict[str, MetricInterval]:
        """95 % intervals of those metrics that can be resampled."""
        return dict((self.record.intervals or {}).get("eval", {}))


def evaluate(
    found: Found,
    data: str,
    output: str | None = None,
    *,
    batch_size: int | None = None,
    base_model: str | None = None,
    cpu: bool = False,
    metrics: Sequence[str] = (),
    trusted: bool = False,
    options: Mapping[str, Any] = MappingProxyType({}),
    say: Callable[[str], None] = print,
) -> Evaluation:
    """Evaluates on every row of `data` (a file, a folder or a Hub id) and writes record, scores and report into a
    folder: `output`, else evaluations/<name of the data> in the run's folder. It is complete or absent.

    `metrics`: beside the run's own: those of generated answers (exact_match, rouge, bleu), or modules of the `evaluate`
    package, from a folder, or from the Hub where `trusted`. `options`: keys of `dataset` that read the file.

    Raises MetricError for a metric that cannot be computed, DataError for rows that the model's task or labels do not
    fit, ModelError for what does not load, OutputDirError for a folder of something else.
    """
    target = Path(output) if output else found.folder / FOLDER / _name(data)
    _refuse_foreign(target)
    added = _choose_metrics(found, metrics, trusted=trusted, say=say)
    rows = load_file(found.recipe, data, options)
    trained = load_trained(found, base=base_model, cpu=cpu)
    there = target.exists()
    try:
        return score(trained, rows, data, target, batch_size=batch_size, cpu=cpu, added=added, options=options, say=say)
    except BaseException:
        if not there:  # Trainer makes the folder
            with contextlib.suppress(OSError):
                target.rmdir()
        raise


def _choose_metrics(found: Found, names: Sequence[str], *, trusted: bool, say: Callable[[str], None]) -> Added:
    """Those that are asked for, and those of the recipe that are here. Raises MetricError for one that was asked for
    and cannot be computed of this task."""
    own, of_recipe = split_metrics(found.recipe)
    added = choose_metrics(found.task, [name for name in names if name not in own], WHERE, trusted=trusted)
    for name in of_recipe:
        if name in names:
            continue
        try:
            one = choose_metrics(found.task, [name], "metrics of the run's recipe", trusted=trusted)
        except MetricError as problem:
            say(f"warning: {problem}")
            continue
        added = replace(added, answers=(*added.answers, *one.answers), modules={**one.modules, **added.modules})
    return added


def _name(data: str) -> str:
    path = Path(data.rstrip("/"))
    return path.name.removesuffix(".gz").rsplit(".", 1)[0] or path.name or "data"


def _refuse_foreign(target: Path) -> None:
    """Only an earlier evaluation is replaced."""
    if not target.exists():
        return
    record = find_record(target) if target.is_dir() else None
    if target.is_dir() and (not list(target.iterdir()) or (record and record.recipe.training.get("do_train") is False)):
        return
    raise OutputDirError.at(str(target), "is there already and is no evaluation", "name another with --output")


def score(
    trained: Trained,
    rows: Dataset,
    data: str,
    target: Path,
    *,
    batch_size: int | None = None,
    cpu: bool = False,
    added: Added = NONE,
    options: Mapping[str, Any] = MappingProxyType({}),
    say: Callable[[str], None] = print,
) -> Evaluation:
    """`evaluate` of a model that is loaded and rows that are read."""
    from transformers import PrinterCallback

    from hf_recipes.common.device import this_device
    from hf_recipes.compare.intervals import intervals_of_run
    from hf_recipes.data.splits import Splits
    from hf_recipes.evaluation.scoring import Scoring
    from hf_recipes.recipe.defaults import choose, choose_length
    from hf_recipes.report.of_run import write_report
    from hf_recipes.training.trainer import build_arguments, build_trainer

    began, started = time.perf_counter(), timestamp()
    recipe = _recipe_of_evaluation(trained, data, target, batch_size, options)
    if cpu:
        recipe = recipe.with_values({f"{recipe.trainer}.use_cpu": True}, "argument '--cpu'")
    device = this_device(use_cpu=bool(recipe.training.get("use_cpu")))
    recipe, _ = choose(recipe, device)
    recipe, length, _ = choose_length(recipe, trained.positions, trained.tokenizer.model_max_length)
    splits = Splits(train=_stand_in(trained, recipe, rows), validation=rows, test=None)
    prepared: Prepared = import_module(TASKS[trained.task].module).prepare(splits, trained.tokenizer, recipe, length)
    for line in prepared.notes:
        if line.startswith("eval: "):
            say(line)
    names, threshold = split_metrics(recipe)[0], float(recipe.get("threshold") or 0.5)
    scoring = Scoring(task_of(recipe), prepared, names, recipe.location("metrics"), threshold)
    args = build_arguments(recipe)
    args.disable_tqdm = args.disable_tqdm or not sys.stderr.isatty()
    trainer = build_trainer(
        recipe, args, trained.model, trained.tokenizer, prepared, scoring.compute_metrics,
        scoring.preprocess_logits, say,
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)  # it prints the metrics as a dict
    metrics = Metrics(**scoring.evaluate(trainer))
    draft = target.with_name(f"{target.name}.part")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir(parents=True)
        scores = scoring.write(trainer, draft)
        more = AddedValues()
        if added:
            more = add_metrics(added, trained, scoring, "eval", draft, args.per_device_eval_batch_size)
            for line in more.notes:
                say(line)
            named = {f"eval_{name}": value for name, value in more.values.items()}
            metrics = replace(metrics, eval={**(metrics.eval or {}), **named})
        record = _record(trained, recipe, prepared, device, args.seed)
        session = Session(started=started, ended=timestamp(), machine=describe_machine(record.device))
        record = replace(
            record,
            started=started,
            ended=timestamp(),
            sessions=(replace(session, status=Status.FINISHED, stage=Stage.END),),
            metrics=metrics,
            scores=scores,
            time=Timing(
                eval_seconds=(metrics.eval or {}).get("eval_runtime"), total_seconds=time.perf_counter() - began
            ),
            memory=Memory(peak_rss_bytes=peak_rss_bytes()),
        )
        intervals = intervals_of_run(draft, record)
        record = replace(record, intervals={"eval": {**intervals["eval"], **more.intervals}}, notes=more.notes)
        write_record(draft, record)
        (draft / "recipe.yaml").write_text(record.recipe.text, encoding="utf-8")
        if write_report(draft, record, say):
            write_record(draft, replace(record, done=(EndStep.EVALUATION, EndStep.REPORT)))
        if target.exists():
            shutil.rmtree(target)
        draft.rename(target)
    except RecipeError:
        raise
    except Exception as problem:  # Arrow has errors of its own for a full disk
        failure = find_failure(problem, draft)
        if failure is None and not isinstance(problem, OSError):
            raise
        what = failure.what if failure else first_line(problem)
        fix = f"{failure.fix}, or name another folder with --output" if failure else "name another with --output"
        raise OutputDirError.at(str(target), f"cannot be written: {what}", fix) from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return Evaluation(folder=target, record=record)


def _recipe_of_evaluation(
    trained: Trained, data: str, target: Path, batch_size: int | None, options: Mapping[str, Any]
) -> Recipe:
    """The run's recipe, with this model, these rows, and nothing that only training needs."""
    from hf_recipes.inference.inputs import dataset_of_file

    recipe = dataset_of_file(trained.recipe, data, "validation", options)
    sections = {name: value for name, value in recipe.sections.items() if name not in SECTIONS_OF_TRAINING}
    training = {key: value for key, value in recipe.training.items() if key not in OF_TRAINING}
    training |= {"output_dir": str(target), "do_train": False, "report_to": "none", "save_strategy": "no"}
    if batch_size is not None:
        training["per_device_eval_batch_size"] = batch_size
    model = {**recipe.section("model"), "pretrained_model_name_or_path": str(trained.found.folder)}
    model = {k: v for k, v in model.items() if k not in ("preset", "config", "ignore_mismatched_sizes")}
    names = label_names(trained)
    if names:
        model |= {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    return replace(recipe, sections={**sections, "model": model, recipe.trainer: training})


def label_names(trained: Trained) -> tuple[str, ...]:
    """Of a classifier, in the order of its outputs."""
    if TASKS[trained.task].generates or trained.model.config.problem_type == "regression":
        return ()
    names = trained.model.config.id2label
    return tuple(str(names[i]) for i in range(len(names)))


def _stand_in(trained: Trained, recipe: Recipe, rows: Dataset) -> Dataset:
    """A train split for the preparation of rows, which learns columns and labels from it. Its rows are not used."""
    from datasets import ClassLabel, Dataset, Sequence

    task, names = trained.task, list(label_names(trained))
    if task == "causal-lm":
        column = str(recipe.get("dataset.text_column", "text"))
        if column in rows.column_names:
            return Dataset.from_dict({column: ["a " * (2 * trained.max_length)]})
        column = str(recipe.get("dataset.input_ids_column", "input_ids"))
        return Dataset.from_dict({column: [[0] * (2 * trained.max_length)]})
    if task == "chat":
        return rows
    key, default = ("label_column", "label") if task == "text-classification" else ("tags_column", "tags")
    column = str(recipe.get(f"dataset.{key}", default))
    plain = trained.model.config.problem_type in (None, "single_label_classification")
    if column not in rows.column_names or not plain:
        return rows
    feature = ClassLabel(names=names) if task == "text-classification" else Sequence(ClassLabel(names=names))
    first = rows.select([0])
    value = 0 if task == "text-classification" else [0] * max(1, len(first[0][column] or ()))
    return first.remove_columns([column]).add_column(column, [value], feature=feature)


def _record(trained: Trained, recipe: Recipe, prepared: Prepared, device: Any, seed: int) -> RunRecord:
    """What is known before the numbers. The model keeps the name that its run gave it."""
    from dataclasses import asdict, fields

    from hf_recipes.data.row_ids import fingerprint
    from hf_recipes.record import DataFacts

    source = prepared.sources["eval"]
    facts = DataFacts(**asdict(prepared.stats["eval"]), fingerprint=fingerprint(source.rows, source.columns))
    inner = trained.model.get_base_model() if hasattr(trained.model, "get_base_model") else trained.model
    of_run = trained.found.record.model if trained.found.record and trained.found.record.model else ModelFacts()
    model = replace(
        of_run,
        class_=type(inner).__name__,
        name=of_run.name or str(trained.found.folder),
        parameters=of_run.parameters or sum(p.numel() for p in inner.parameters()),
        trainable_parameters=0,
        adapter=trained.found.adapter,
        dtype=str(inner.dtype).removeprefix("torch."),
    )
    return RunRecord(
        task=trained.task,
        status=Status.FINISHED,
        stage=Stage.END,
        done=(EndStep.EVALUATION,),
        recipe=RecipeFacts(path=str(trained.found.folder), text=dump_recipe(recipe), sections=recipe.sections),
        versions={**package_versions(), "python": sys.version.split()[0]},
        commit=current_commit(),
        device=DeviceFacts(**{one.name: getattr(device, one.name) for one in fields(DeviceFacts)}),
        model=model,
        data_source="local",
        data={"eval": facts},
        label_names=prepared.label_names,
        seed=trained.found.record.seed if trained.found.record else seed,
        steps=0,
    )


def describe_evaluation(one: Evaluation) -> list[str]:
    """Metrics with their intervals, and where they lie."""
    rows = one.record.data["eval"].rows
    lines = [f"{one.record.recipe.path} on {rows:,} row{'s' * (rows != 1)}"]
    for name, value in one.metrics.items():
        interval = one.intervals.get(name)
        shown = f"   {interval.low:.4g} to {interval.high:.4g} (95 %)" if interval else ""
        lines.append(f"  {name:<18} {value:>10.4g}{shown}")
    lines += ["", f"record   {one.folder / NAME}"]
    for name, file in (("report", "report.html"), ("answers", ANSWERS), ("metrics", METRICS)):
        if (one.folder / file).exists():
            lines.append(f"{name:<8} {one.folder / file}")
    return lines
