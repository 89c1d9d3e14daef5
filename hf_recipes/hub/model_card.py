"""The model card of a run, the README.md that the Hub shows: a pure function of record.json.

`model_card(record)` turns values into text; it reads, sends and loads nothing (huggingface_hub's YAML writer is the
only import, 0.2 s). A record of a failed run has gaps: their lines are left out.

The front matter is made by `huggingface_hub.ModelCardData`, not by `Trainer.create_model_card`: Trainer writes a
model-index only when it knows task, data set and metric, and drops every metric that is not in
`transformers.modelcard.METRIC_TAGS`, perplexity among them.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from hf_recipes.catalog.tasks import TASKS, find_task
from hf_recipes.common import secrets
from hf_recipes.common.text import join_words
from hf_recipes.hub.card_text import escape_inline, format_code, format_gib, format_number, format_seconds, format_table
from hf_recipes.hub.local_paths import local_model, paths_of, shorten_paths
from hf_recipes.record import Batch, ModelFacts, RunRecord, Status

# Keys that Trainer writes beside the metrics; they are about speed, not quality.
NOT_METRICS = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time", "jit_compilation_time")
# Builders of `datasets` that `path` may name instead of a Hub id: a format, not a data set.
BUILDERS = (
    "json",
    "csv",
    "parquet",
    "text",
    "arrow",
    "pandas",
    "xml",
    "sql",
    "webdataset",
    "imagefolder",
    "audiofolder",
    "videofolder",
    "hdf5",
    "eval",
    "generator",
    "spark",
    "cache",
)
HUB_ID = re.compile(r"(?:[\w-][\w.-]{0,95}/)?[\w-][\w.-]{0,95}", re.ASCII)


def model_card(
    record: RunRecord,
    *,
    repo_id: str | None = None,
    license: str | None = None,
    is_local: Callable[[str], bool] = os.path.exists,
) -> str:
    """README.md of a run: YAML front matter, then what it is, metrics, recipe, facts, loading and limits.

    repo_id: its repository; the recipe's hub_model_id if absent. license: the Hub's id of one.
    is_local: whether the name of a model or data set is a path on this machine rather than a Hub id (the record may
        have the answer: `model.source`, `data_source` = "hub" or anything else). A local path is not a base_model: the
        Hub rejects a model card whose base_model is not an id.
    Returns text that `huggingface_hub.ModelCard` parses; access tokens are masked as `hf_***`.
    """
    facts = _Facts(record, repo_id, license, is_local)
    parts = [f"---\n{_front_matter(facts)}\n---", f"# {escape_inline(facts.title)}", _summary(facts), _metrics(facts)]
    parts += [_recipe(facts), _training(facts), _versions(facts), _data(facts), _loading(facts), _limits(facts)]
    text = "\n\n".join(part for part in parts if part)
    return secrets.mask_secrets(shorten_paths(text, paths_of(record))) + "\n"


class _Facts:
    """The record, and the few values that several parts of the model card need."""

    def __init__(
        self, record: RunRecord, repo_id: str | None, license: str | None, is_local: Callable[[str], bool]
    ) -> None:
        self.record, self.license, self.is_local = record, license, is_local
        self.model = record.model or ModelFacts()
        task = find_task(record.task, record.recipe.sections.get("model"))
        self.pipeline_tag = task.pipeline_tag if task else ""
        self.auto_class = task.auto_class if task else ""
        self.task_title = task.title if task else record.task
        self.sections = record.recipe.sections
        self.trainer = "SFTConfig" if "SFTConfig" in self.sections else "TrainingArguments"
        self.adapter = self.model.adapter
        self.dtype = self.model.dtype.removeprefix("torch.")
        self.repo_id = repo_id or self.setting(self.trainer, "hub_model_id")
        folder = str(self.setting(self.trainer, "output_dir") or "").rstrip("/").split("/")[-1]
        self.title = str(self.repo_id or folder or self.model.name or "model").split("/")[-1]

    def setting(self, section: str, key: str) -> Any:
        """A value of the resolved recipe; None where it has none."""
        found = self.sections.get(section)
        return found.get(key) if isinstance(found, Mapping) else None

    @property
    def base_model(self) -> str | None:
        """The pretrained model, as the recipe names it; None if the run started from random weights."""
        return self.setting("model", "pretrained_model_name_or_path")

    def hub_id(self, name: Any, source: Any) -> str | None:
        """`name`, if it is an id on the Hub."""
        if not isinstance(name, str) or not HUB_ID.fullmatch(name) or ".." in name:
            return None
        if source is not None:
            return name if source == "hub" else None
        return None if self.is_local(name) else name

    @property
    def dataset_id(self) -> str | None:
        path = self.setting("dataset", "path")
        return None if path in BUILDERS else self.hub_id(path, self.record.data_source)

    @property
    def dataset_name(self) -> str:
        """The data set for a reader: its id, or the names of its files without their folders."""
        files = self.setting("dataset", "data_files")
        names = [files] if isinstance(files, str) else list(_leaves(files))
        path = str(self.setting("dataset", "path") or "")
        bases = [" ".join(str(name).rstrip("/").split("/")[-1].split()) for name in (names or [path])]
        return self.dataset_id or ", ".join(base for base in bases if base) or "the run's own data"


def _front_matter(facts: _Facts) -> str:
    from huggingface_hub import ModelCardData

    results = _eval_results(facts)
    kind = ["lora"] if facts.adapter else []
    tags = ["hf_recipes", *([facts.record.task] if facts.record.task not in ("", facts.pipeline_tag) else []), *kind]
    tags += ["trl", "sft"] if facts.trainer == "SFTConfig" else []
    data = ModelCardData(
        base_model=facts.hub_id(facts.base_model, facts.model.source),
        datasets=[facts.dataset_id] if facts.dataset_id else None,
        eval_results=results or None,
        library_name="peft" if facts.adapter else "transformers",
        license=facts.license,
        metrics=list(dict.fromkeys(result.metric_type for result in results)) or None,
        model_name=facts.title if results else None,
        pipeline_tag=facts.pipeline_tag or None,
        tags=tags,
    )
    return data.to_yaml()


def _eval_results(facts: _Facts) -> list[Any]:
    """Every finite metric of the validation and the test split, as huggingface_hub.EvalResult."""
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type=facts.pipeline_tag or "other",
            dataset_type=facts.dataset_id or "local",
            dataset_name=facts.dataset_name,
            dataset_config=facts.setting("dataset", "name"),
            dataset_split=split,
            dataset_revision=facts.setting("dataset", "revision"),
            metric_type=name,
            metric_name=name.replace("_", " "),
            metric_value=value,
        )
        for split, key in (("validation", "eval"), ("test", "test"))
        for name, value in _quality(facts.record.metrics.of(key)).items()
        if math.isfinite(value)
    ]


def _summary(facts: _Facts) -> str:
    model, record = facts.model, facts.record
    name, parameters, trained = facts.base_model or model.name, model.parameters, model.trainable_parameters
    what = f"A {_adapter_kind(facts)} adapter" if facts.adapter else "A model"
    if facts.task_title:
        what += f" for {escape_inline(facts.task_title)}"
    if facts.base_model:
        where = " (a local folder)" if local_model(record) else ""
        what += f", {'on' if facts.adapter else 'fine-tuned from'} {format_code(name)}{where}"
    elif name:
        what += f", trained from random weights ({format_code(name)})"
    shape = [format_code(model.class_)] if model.class_ else []
    shape += [f"{format_number(parameters)} parameters"] if parameters else []
    shape += [f"{format_number(trained)} trainable"] if trained and trained != parameters else []
    shape += [facts.dtype] if facts.dtype else []
    what += (f" ({', '.join(shape)})" if shape else "") + ". Made with hf_recipes from the recipe below."
    if record.status == Status.FINISHED:
        return what
    if record.diverged:
        return f"> **This run diverged: {record.diverged}. Its weights are worth nothing.**\n\n{what}"
    stopped = f"> **This run did not finish: {record.status} ({record.stage}).**"
    return f"{stopped} These files are its state when it stopped.\n\n{what}"


def _metrics(facts: _Facts) -> str:
    columns = {
        "before training": _quality(facts.record.metrics.of("before")),
        "after (validation)": _quality(facts.record.metrics.of("eval")),
        "after (test)": _quality(facts.record.metrics.of("test")),
    }
    columns = {title: values for title, values in columns.items() if values}
    if not columns:
        return ""
    names = list(dict.fromkeys(name for values in columns.values() for name in values))
    rows = [[escape_inline(name), *(format_number(values.get(name)) for values in columns.values())] for name in names]
    return "## Metrics\n\n" + format_table(["metric", *columns], rows)


def _recipe(facts: _Facts) -> str:
    text = facts.record.recipe.text
    if not text and facts.sections:
        from huggingface_hub.utils import yaml_dump

        text = yaml_dump(_plain(facts.sections), sort_keys=False)
    if not text:
        return ""
    text = mask_secrets(text).strip("\n")
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    lines = [*facts.record.translations, *facts.record.choices]
    notes = (
        "\n\nChosen or translated for this run:\n\n" + "\n".join(f"- {escape_inline(line)}" for line in lines)
        if lines
        else ""
    )
    return f"## Recipe\n\n{fence}yaml\n{text}\n{fence}{mask_secrets(notes)}"


def _training(facts: _Facts) -> str:
    record, device, memory, timing = facts.record, facts.record.device, facts.record.memory, facts.record.time
    train = record.data.get("train")
    rows = [
        ("steps", format_number(record.steps)),
        ("early stopping", str(record.stopped_early or "")),
        ("resumed", _resumed(record)),
        ("epochs", format_number(record.epochs)),
        ("batch", _batch(record.batch) if record.batch else ""),
        ("training tokens in the data", format_number(train.tokens or None) if train else ""),
        ("tokens per second", format_number(record.tokens_per_second)),
        ("training time", format_seconds(timing.train_seconds)),
        ("evaluation time", format_seconds(timing.eval_seconds)),
        ("total time", format_seconds(timing.total_seconds)),
        ("device", " x ".join(str(one) for one in (device.count, device.name) if one) or device.kind),
        ("peak memory allocated on the device", format_gib(memory.peak_allocated_bytes)),
        ("peak memory reserved on the device", format_gib(memory.peak_reserved_bytes)),
        ("peak memory of the process", format_gib(memory.peak_rss_bytes)),
        ("seed", "" if record.seed is None else str(record.seed)),
        ("started, ended", ", ".join(one for one in (record.started, record.ended) if one)),
        ("commit of hf_recipes", record.commit or ""),
    ]
    shown = [[name, escape_inline(value)] for name, value in rows if value]
    return "## Training\n\n" + format_table(["fact", "value"], shown) if shown else ""


def _resumed(record: RunRecord) -> str:
    """ "at step 43 and 80, bit for bit: ...; 5 steps were made again"."""
    if not record.resumed_at:
        return ""
    found = (record.resumption or "").removeprefix("resume").strip().removeprefix("resumed ")
    found = found or f"at step {join_words(record.resumed_at)}"
    return f"{found}; {format_number(record.repeated_steps)} steps were made again" if record.repeated_steps else found


def _batch(batch: Batch) -> str:
    """ "4 per device x 2 processes x 8 accumulation = 64 sequences (8,192 tokens) a step"."""
    factors = (
        (batch.per_device, "per device"),
        (batch.processes, "process" if batch.processes == 1 else "processes"),
        (batch.accumulation, "accumulation"),
    )
    text = " x ".join(f"{format_number(value)} {name}" for value, name in factors if value)
    if batch.sequences_per_step:
        tokens = f" ({format_number(batch.tokens_per_step)} tokens)" if batch.tokens_per_step else ""
        text += f"{' = ' if text else ''}{format_number(batch.sequences_per_step)} sequences{tokens} a step"
    return text


def _versions(facts: _Facts) -> str:
    versions = facts.record.versions
    if not versions:
        return ""
    return "## Versions\n\n" + ", ".join(
        escape_inline(f"{name} {version}") for name, version in versions.items() if version
    )


def _data(facts: _Facts) -> str:
    rows = []
    for split, data in facts.record.data.items():
        fingerprint = f"`{data.fingerprint}`" if data.fingerprint else ""
        rows.append([escape_inline(split), format_number(data.rows), format_number(data.tokens), fingerprint])
    if not rows:
        return ""
    return f"## Data\n\n{escape_inline(facts.dataset_name)}\n\n" + format_table(
        ["split", "rows", "tokens", "fingerprint"], rows
    )


def _loading(facts: _Facts) -> str:
    if not facts.auto_class:
        return ""
    if facts.adapter and not facts.base_model:
        what = "The base model had random weights that were not saved, so this adapter cannot be loaded."
        return f"## How to load it\n\n{what}"
    model_id = (
        f"model_id = {json.dumps(str(facts.repo_id))}  # or a local folder with these files"
        if facts.repo_id
        else 'model_id = "path/to/this/folder"  # or its id on the Hub'
    )
    labels = facts.model.num_labels or facts.setting("model", "num_labels")
    # peft loads the base model with its own config, which has two labels unless num_labels is given.
    is_classifier = facts.auto_class != TASKS["causal-lm"].auto_class
    arguments = f", num_labels={labels}" if facts.adapter and labels and is_classifier else ""
    if facts.adapter and facts.dtype:  # else the base model is loaded in its checkpoint's dtype, and the numbers differ
        arguments += f', dtype="{facts.dtype}"'
    if facts.adapter:
        cls = facts.auto_class.replace("AutoModel", "AutoPeftModel")
        imports = [f"from peft import {cls}", "from transformers import AutoTokenizer"]
    else:
        cls = facts.auto_class
        imports = [f"from transformers import {cls}, AutoTokenizer"]
    code = [
        *imports,
        "",
        model_id,
        "tokenizer = AutoTokenizer.from_pretrained(model_id)",
        f"model = {cls}.from_pretrained(model_id{arguments})",
    ]
    notes = []
    if facts.adapter and local_model(facts.record):
        notes.append(
            f"The base model was a local folder, {format_code(str(facts.base_model))}: peft finds it only where "
            "`base_model_name_or_path` in adapter_config.json names it."
        )
    elif facts.adapter and facts.base_model:
        notes.append(f"peft downloads the base model, {format_code(facts.base_model)}.")
    if "BitsAndBytesConfig" in facts.sections:
        notes.append(
            "In training the base model was quantized with the `BitsAndBytesConfig` above; this code loads it "
            "unquantized. Pass the same `quantization_config` to get the numbers above."
        )
    return "## How to load it\n\n```python\n" + "\n".join(code) + "\n```" + "".join(f"\n\n{note}" for note in notes)


def _limits(facts: _Facts) -> str:
    record = facts.record
    seed = f" (seed {record.seed})" if record.seed is not None else ""
    lines = [f"The numbers come from one run with one seed{seed}. How much they vary between seeds was not measured."]
    if record.metrics.eval and not record.metrics.test:
        lines.append(
            "They come from the validation split, which may also have chosen the checkpoint; there was no test split."
        )
    lines.append("The model was not tested for bias, for safety, or on data unlike its own.")
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def mask_secrets(text: str) -> str:
    """`text` with every secret, and every value of a secret key (`hub_token: ...`), masked."""
    key = rf"(?:^|[\s{{,(\"'])(?:\w+\.)?(?:{'|'.join(secrets.SECRET_KEYS)})[\"']?[ \t]*[:=][ \t]*"
    text = re.sub(rf"(?m)({key})(?!(?:true|false|null|~)\b)[^\s,}}#]+", r"\1***", text)
    return secrets.mask_secrets(text)


def _adapter_kind(facts: _Facts) -> str:
    dora = facts.setting("LoraConfig", "use_dora")
    bits = facts.setting("BitsAndBytesConfig", "load_in_4bit")
    return ("Q" if bits else "") + ("DoRA" if dora else "LoRA")


def _quality(metrics: Mapping[str, float]) -> dict[str, float]:
    """Trainer's metrics without prefixes: {"eval_f1": 0.9, "eval_runtime": 2.1, "epoch": 1} -> {"f1": 0.9}."""
    short = {re.sub(r"^(?:eval|test)_", "", key): value for key, value in metrics.items()}
    return {key: value for key, value in short.items() if key not in (*NOT_METRICS, "epoch")}


def _leaves(value: Any) -> Iterable[str]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)
    elif value is not None:
        yield str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
