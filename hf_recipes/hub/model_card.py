"""The model card of a run, the README.md that the Hub shows: a pure function of record.json.

`model_card(record)` turns values into text; it reads, sends and loads nothing (huggingface_hub's YAML writer is the
only import, 0.2 s). A record of a failed run has gaps: every key may be absent or None, and its line is then left out.

The front matter is made by `huggingface_hub.ModelCardData`, not by `Trainer.create_model_card`: Trainer writes a
model-index only when it knows task, data set and metric, and drops every metric that is not in
`transformers.modelcard.METRIC_TAGS`, perplexity among them.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from hf_recipes.catalog.tasks import TASKS
from hf_recipes.common.text import GIB, HUB_TOKEN
from hf_recipes.recipe.schema.own_keys import SECRETS

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


def model_card(record: Mapping[str, Any], *, is_local: Callable[[str], bool] = os.path.exists) -> str:
    """README.md of a run: YAML front matter, then what it is, metrics, recipe, facts, loading and limits.

    record: record.json as a mapping; every key may be absent or None.
    is_local: whether the name of a model or data set is a path on this machine rather than a Hub id (the record may
        have the answer: `model.source`, `data.source` = "hub" or anything else). A local path is not a base_model: the
        Hub rejects a model card whose base_model is not an id.
    Returns text that `huggingface_hub.ModelCard` parses; access tokens are masked as `hf_***`.
    """
    facts = _Facts(record, is_local)
    parts = [f"---\n{_front_matter(facts)}\n---", f"# {facts.title}", _summary(facts), _metrics(facts)]
    parts += [_recipe(facts), _training(facts), _versions(facts), _data(facts), _loading(facts), _limits(facts)]
    return HUB_TOKEN.sub("hf_***", "\n\n".join(part for part in parts if part)) + "\n"


class _Facts:
    """The record, and the few values that several parts of the model card need."""

    def __init__(self, record: Mapping[str, Any], is_local: Callable[[str], bool]):
        self.record, self.is_local = record, is_local
        self.task = str(self.at("task") or "")
        task = TASKS.get(self.task)
        self.pipeline_tag = task.pipeline_tag if task else ""
        self.auto_class = task.auto_class if task else ""
        self.task_title = task.title if task else self.task
        self.sections: Mapping[str, Any] = self.at("recipe", "sections") or {}
        self.trainer = "SFTConfig" if "SFTConfig" in self.sections else "TrainingArguments"
        self.adapter = bool(self.at("model", "adapter"))
        self.repo_id = self.at("repo_id") or self.at("recipe", "sections", self.trainer, "hub_model_id")
        folder = str(self.at("recipe", "sections", self.trainer, "output_dir") or "").rstrip("/").split("/")[-1]
        self.title = str(self.repo_id or folder or self.at("model", "name") or "model").split("/")[-1]

    def at(self, *keys: str) -> Any:
        value: Any = self.record
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    @property
    def base_model(self) -> str | None:
        """The pretrained model, as the recipe names it; None if the run started from random weights."""
        return self.at("recipe", "sections", "model", "pretrained_model_name_or_path")

    def hub_id(self, name: Any, source: Any) -> str | None:
        """`name`, if it is an id on the Hub."""
        if not isinstance(name, str) or not HUB_ID.fullmatch(name) or ".." in name:
            return None
        if source is not None:
            return name if source == "hub" else None
        return None if self.is_local(name) else name

    @property
    def dataset_id(self) -> str | None:
        path = self.at("recipe", "sections", "dataset", "path")
        return None if path in BUILDERS else self.hub_id(path, self.at("data_source"))

    @property
    def dataset_name(self) -> str:
        """The data set for a reader: its id, or the names of its files without their folders."""
        dataset = self.at("recipe", "sections", "dataset") or {}
        files = dataset.get("data_files")
        names = [files] if isinstance(files, str) else list(_leaves(files))
        path = str(dataset.get("path") or "")
        bases = [str(name).rstrip("/").split("/")[-1] for name in (names or [path])]
        return self.dataset_id or ", ".join(base for base in bases if base) or "the run's own data"


def _front_matter(facts: _Facts) -> str:
    from huggingface_hub import ModelCardData

    results = _eval_results(facts)
    kind = ["lora"] if facts.adapter else []
    tags = ["hf_recipes", *([facts.task] if facts.task != facts.pipeline_tag and facts.task else []), *kind]
    tags += ["trl", "sft"] if facts.trainer == "SFTConfig" else []
    data = ModelCardData(
        base_model=facts.hub_id(facts.base_model, facts.at("model", "source")),
        datasets=[facts.dataset_id] if facts.dataset_id else None,
        eval_results=results or None,
        library_name="peft" if facts.adapter else "transformers",
        license=facts.at("license"),
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
            dataset_config=facts.at("recipe", "sections", "dataset", "name"),
            dataset_split=split,
            dataset_revision=facts.at("recipe", "sections", "dataset", "revision"),
            metric_type=name,
            metric_name=name.replace("_", " "),
            metric_value=value,
        )
        for split, key in (("validation", "eval"), ("test", "test"))
        for name, value in _measured(facts.at("metrics", key)).items()
        if _is_number(value) and math.isfinite(value)
    ]


def _summary(facts: _Facts) -> str:
    name, parameters = facts.base_model or facts.at("model", "name"), facts.at("model", "parameters")
    trained = facts.at("model", "trainable_parameters")
    what = f"A {_adapter_kind(facts)} adapter" if facts.adapter else "A model"
    if facts.task_title:
        what += f" for {facts.task_title}"
    if facts.base_model:
        what += f", {'on' if facts.adapter else 'fine-tuned from'} `{name}`"
    elif name:
        what += f", trained from random weights (`{name}`)"
    shape = [f"`{facts.at('model', 'class')}`"] if facts.at("model", "class") else []
    shape += [f"{_number(parameters)} parameters"] if parameters else []
    shape += [f"{_number(trained)} trainable"] if trained and trained != parameters else []
    shape += [str(facts.at("model", "dtype")).removeprefix("torch.")] if facts.at("model", "dtype") else []
    what += (f" ({', '.join(shape)})" if shape else "") + ". Made with hf_recipes from the recipe below."
    status = facts.at("status")
    if status in (None, "finished"):
        return what
    stage = f" ({facts.at('where')})" if facts.at("where") else ""
    return f"> **This run did not finish: {status}{stage}.** These files are its state when it stopped.\n\n{what}"


def _metrics(facts: _Facts) -> str:
    columns = {
        "before training": _measured(facts.at("metrics", "before")),
        "after (validation)": _measured(facts.at("metrics", "eval")),
        "after (test)": _measured(facts.at("metrics", "test")),
    }
    columns = {title: values for title, values in columns.items() if values}
    if not columns:
        return ""
    names = list(dict.fromkeys(name for values in columns.values() for name in values))
    rows = [[name, *(_number(values.get(name)) for values in columns.values())] for name in names]
    return "## Metrics\n\n" + _table(["metric", *columns], rows)


def _recipe(facts: _Facts) -> str:
    text = facts.at("recipe", "text")
    if not text and facts.sections:
        from huggingface_hub.utils import yaml_dump

        text = yaml_dump(_plain(facts.sections), sort_keys=False)
    if not text:
        return ""
    text = mask_secrets(str(text)).strip("\n")
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    lines = [str(line) for line in [*(facts.at("translations") or []), *(facts.at("choices") or [])]]
    notes = "\n\nChosen or translated for this run:\n\n" + "\n".join(f"- {line}" for line in lines) if lines else ""
    return f"## Recipe\n\n{fence}yaml\n{text}\n{fence}{mask_secrets(notes)}"


def _training(facts: _Facts) -> str:
    at = facts.at
    rows = [
        ("steps", _number(at("steps"))),
        ("epochs", _number(at("epochs"))),
        ("batch", _batch(at("batch"))),
        ("training tokens in the data", _number(at("data", "train", "tokens"))),
        ("tokens per second", _number(at("tokens_per_second"))),
        *(
            (f"{name} time", _seconds(at("time", f"{key}_seconds")))
            for name, key in (("training", "train"), ("evaluation", "eval"), ("total", "total"))
        ),
        (
            "device",
            " x ".join(str(at("device", key)) for key in ("count", "name") if at("device", key))
            or str(at("device", "kind") or ""),
        ),
        ("peak memory allocated on the device", _gib(at("memory", "peak_allocated_bytes"))),
        ("peak memory reserved on the device", _gib(at("memory", "peak_reserved_bytes"))),
        ("peak memory of the process", _gib(at("memory", "peak_rss_bytes"))),
        ("seed", str(at("seed") if at("seed") is not None else "")),
        ("started, ended", ", ".join(str(at(key)) for key in ("started", "ended") if at(key))),
        ("commit of hf_recipes", str(at("commit") or "")),
    ]
    shown = [[name, value] for name, value in rows if value]
    return "## Training\n\n" + _table(["fact", "value"], shown) if shown else ""


def _batch(batch: Any) -> str:
    """ "4 per device x 2 processes x 8 accumulation = 64 sequences (8,192 tokens) a step"."""
    if not isinstance(batch, Mapping):
        return ""
    factors = (("per_device", "per device"), ("processes", "processes"), ("accumulation", "accumulation"))
    text = " x ".join(f"{_number(batch[key])} {name}" for key, name in factors if batch.get(key) is not None)
    if batch.get("sequences_per_step") is not None:
        tokens = f" ({_number(batch['tokens_per_step'])} tokens)" if batch.get("tokens_per_step") else ""
        text += f"{' = ' if text else ''}{_number(batch['sequences_per_step'])} sequences{tokens} a step"
    return text


def _versions(facts: _Facts) -> str:
    versions = facts.at("versions")
    if not isinstance(versions, Mapping) or not versions:
        return ""
    return "## Versions\n\n" + ", ".join(f"{name} {version}" for name, version in versions.items() if version)


def _data(facts: _Facts) -> str:
    rows = []
    for split in ("train", "eval", "test"):
        data = facts.at("data", split)
        if isinstance(data, Mapping):
            fingerprint = data.get("fingerprint")
            rows.append(
                [
                    split,
                    _number(data.get("rows")),
                    _number(data.get("tokens")),
                    f"`{fingerprint}`" if fingerprint else "",
                ]
            )
    if not rows:
        return ""
    return f"## Data\n\n{facts.dataset_name}\n\n" + _table(["split", "rows", "tokens", "fingerprint"], rows)


def _loading(facts: _Facts) -> str:
    if not facts.auto_class:
        return ""
    if facts.adapter and not facts.base_model:
        what = "The base model had random weights that were not saved, so this adapter cannot be loaded."
        return f"## How to load it\n\n{what}"
    model_id = (
        f'model_id = "{facts.repo_id}"  # or a local folder with these files'
        if facts.repo_id
        else 'model_id = "path/to/this/folder"  # or its id on the Hub'
    )
    labels = facts.at("model", "num_labels") or facts.at("recipe", "sections", "model", "num_labels")
    # peft loads the base model with its own config, which has two labels unless num_labels is given.
    is_classifier = facts.auto_class != TASKS["causal-lm"].auto_class
    arguments = f", num_labels={labels}" if facts.adapter and labels and is_classifier else ""
    dtype = str(facts.at("model", "dtype") or "").removeprefix("torch.")
    if facts.adapter and dtype:  # else the base model is loaded in its checkpoint's dtype, and the numbers differ
        arguments += f', dtype="{dtype}"'
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
    if facts.adapter and facts.base_model:
        notes.append(f"peft downloads the base model, `{facts.base_model}`.")
    if "BitsAndBytesConfig" in facts.sections:
        notes.append(
            "In training the base model was quantized with the `BitsAndBytesConfig` above; this code loads it "
            "unquantized. Pass the same `quantization_config` to get the numbers above."
        )
    return "## How to load it\n\n```python\n" + "\n".join(code) + "\n```" + "".join(f"\n\n{note}" for note in notes)


def _limits(facts: _Facts) -> str:
    seed = f" (seed {facts.at('seed')})" if facts.at("seed") is not None else ""
    lines = [f"The numbers come from one run with one seed{seed}. How much they vary between seeds was not measured."]
    if facts.at("metrics", "eval") and not facts.at("metrics", "test"):
        lines.append(
            "They come from the validation split, which may also have chosen the checkpoint; there was no test split."
        )
    lines.append("The model was not tested for bias, for safety, or on data unlike its own.")
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def mask_secrets(text: str) -> str:
    """`text` with every Hub access token, and every value of a secret key (`hub_token: ...`), masked."""
    key = rf"(?:^|[\s{{,(\"'])(?:\w+\.)?(?:{'|'.join(SECRETS)})[\"']?[ \t]*[:=][ \t]*"
    text = re.sub(rf"(?m)({key})(?!(?:true|false|null|~)\b)[^\s,}}#]+", r"\1***", text)
    return HUB_TOKEN.sub("hf_***", text)


def _adapter_kind(facts: _Facts) -> str:
    dora = facts.at("recipe", "sections", "LoraConfig", "use_dora")
    bits = facts.at("recipe", "sections", "BitsAndBytesConfig", "load_in_4bit")
    return ("Q" if bits else "") + ("DoRA" if dora else "LoRA")


def _measured(metrics: Any) -> dict[str, Any]:
    """Trainer's metrics without prefixes: {"eval_f1": 0.9, "eval_runtime": 2.1, "epoch": 1} -> {"f1": 0.9}."""
    if not isinstance(metrics, Mapping):
        return {}
    short = {re.sub(r"^(?:eval|test)_", "", str(key)): value for key, value in metrics.items()}
    return {key: value for key, value in short.items() if key not in (*NOT_METRICS, "epoch") and _is_number(value)}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


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


def _number(value: Any) -> str:
    """1234567 -> "1,234,567"; 0.94671 -> "0.9467"; 1992.3 -> "1,992"; nan -> "nan"; anything else -> ""."""
    if not _is_number(value):
        return ""
    if isinstance(value, int) or not math.isfinite(value):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _seconds(value: Any) -> str:
    if not _is_number(value):
        return ""
    if value < 60:
        return f"{value:.1f} s"
    hours, rest = divmod(round(value), 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"


def _gib(value: Any) -> str:
    return f"{value / GIB:.2f} GiB" if _is_number(value) and value else ""


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines
    )
