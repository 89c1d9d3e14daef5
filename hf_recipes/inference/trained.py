"""A run's folder, a checkpoint or any model folder to the model in it, ready to use."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_recipes.catalog.tasks import TASKS
from hf_recipes.common.files import describe_special_file
from hf_recipes.common.text import first_line, join_words, nearest
from hf_recipes.errors import ModelError, RecipeError, RecordError
from hf_recipes.models.added_tokens import fit_vocabulary
from hf_recipes.models.config import load_error, longest_input
from hf_recipes.models.files import check_folder
from hf_recipes.recipe.recipe import Recipe
from hf_recipes.record import NAME, RunRecord
from hf_recipes.record.file import read_record

if TYPE_CHECKING:
    from hf_recipes.common.device import Device

ADAPTER = "adapter_config.json"
WEIGHTS = (ADAPTER, "model.safetensors", "model.safetensors.index.json")
LONGEST = 100_000  # tokens; tokenizers without a limit state 10**30


@dataclass(frozen=True, kw_only=True)
class Found:
    """What is in a folder, before anything heavy is imported."""

    folder: Path
    task: str
    record: RunRecord | None  # None: a model folder of another tool
    adapter: bool

    @property
    def recipe(self) -> Recipe:
        """The run's recipe; of a folder without a record one that says its task only."""
        sections: Mapping[str, Any] = self.record.recipe.sections if self.record else {}
        trainer = "SFTConfig" if self.task == "chat" else "TrainingArguments"
        named = {"task": self.task, "model": {"pretrained_model_name_or_path": str(self.folder)}, "dataset": {}}
        return Recipe(path=str(self.folder), sections=sections or {**named, trainer: {}}, locations={})


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A model in evaluation mode on its device, its tokenizer, and what its run knew of both."""

    found: Found
    model: Any
    tokenizer: Any
    positions: int | None  # tokens that the model can see; None without a limit

    @property
    def task(self) -> str:
        return self.found.task

    @property
    def recipe(self) -> Recipe:
        return self.found.recipe

    @property
    def max_length(self) -> int:
        """Tokens of a row: the recipe's, else what model and tokenizer can read."""
        stated = self.recipe.get(self.recipe.max_length_key)
        limits = [self.positions, self.tokenizer.model_max_length, LONGEST]
        return int(stated) if isinstance(stated, int) else min(limit for limit in limits if limit)


def find_trained(name: str, task: str | None = None) -> Found:
    """What is in a run's folder, in a checkpoint of one, or in a model folder. `task`: given by the user.

    Imports neither torch nor transformers. Raises RecordError where there is no such folder or nothing was trained in
    it, ModelError where its task is not known.
    """
    folder = Path(name)
    odd = describe_special_file(name)
    if odd:
        raise RecordError.at(name, odd, "name the folder of a run")
    if folder.is_file():
        folder = folder.parent if folder.name == NAME else folder
    if not folder.is_dir():
        raise RecordError.at(name, "there is no such folder", _suggest(folder))
    record = _find_run(folder)
    if not any((folder / file).is_file() for file in WEIGHTS):
        raise RecordError.at(name, *_describe_absence(folder, record))
    known = task or (record.task if record else _task_of_files(folder))
    if known is None or known not in TASKS:
        what = "its task is not known" if known is None else f"there is no task {known!r}"
        raise ModelError.at(name, what, f"name one with --task: {', '.join(TASKS)}")
    return Found(folder=folder, task=known, record=record, adapter=(folder / ADAPTER).is_file())


def _suggest(folder: Path) -> str:
    parent = folder.parent
    if not parent.is_dir():
        return f"there is no folder {str(parent)!r} either"
    near = nearest(folder.name, [one.name for one in parent.iterdir() if one.is_dir()])
    return f"did you mean {str(parent / near)!r}?" if near else "name the output_dir of a run, or a model's folder"


def _find_run(folder: Path) -> RunRecord | None:
    """The record of the run that wrote this folder, or of the run whose checkpoint this is."""
    for place in (folder, folder.parent) if folder.name.startswith("checkpoint-") else (folder,):
        if (place / NAME).is_file():
            return read_record(place / NAME)
    return None


def _describe_absence(folder: Path, record: RunRecord | None) -> tuple[str, str]:
    """(what is wrong, how to fix it) of a folder without weights."""
    checkpoints = sorted(one.name for one in folder.glob("checkpoint-*") if one.is_dir())
    use = f"use a checkpoint ({folder / checkpoints[-1]}), or finish the run: --resume" if checkpoints else ""
    if record is not None:
        why = f": {record.error}" if record.error else ""
        what = f"the run wrote no weights (it is {record.status.value!r}, in {record.stage.value}{why})"
        return what, use or "train it again"
    if list(folder.glob("pytorch_model*.bin")):
        return "its weights are a pickle, which is not loaded", "save it with safetensors"
    what = "there is neither a model nor an adapter in it"
    return what, use or f"name a folder with {join_words(WEIGHTS[:2])} or a run's output_dir"


def _task_of_files(folder: Path) -> str | None:
    """By adapter_config.json's task_type, or the config's architecture; a chat template makes it chat."""
    import json

    def read(name: str) -> dict[str, Any]:
        try:
            value = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return value if isinstance(value, dict) else {}

    adapter, kind = read(ADAPTER), None
    if adapter:
        kind = {"SEQ_CLS": "text-classification", "TOKEN_CLS": "token-classification", "CAUSAL_LM": "causal-lm"}.get(
            str(adapter.get("task_type"))
        )
    architectures = read("config.json").get("architectures")
    name = str(architectures[0]) if isinstance(architectures, list) and architectures else ""
    if not adapter:
        ends = {
            "ForSequenceClassification": "text-classification",
            "ForTokenClassification": "token-classification",
            "LMHeadModel": "causal-lm",
            "ForCausalLM": "causal-lm",
        }
        kind = next((task for end, task in ends.items() if name.endswith(end)), None)
    template = (folder / "chat_template.jinja").is_file() or "chat_template" in read("tokenizer_config.json")
    return "chat" if kind == "causal-lm" and template else kind


def load_trained(found: Found, *, base: str | None = None, cpu: bool = False, precise: bool = False) -> Trained:
    """The model in evaluation mode. An adapter is loaded on its base model, as in training: in its dtype, quantized
    where it was.

    base: the adapter's base model, if it is not where the run had it. precise: the base model unquantized, in float32.
    Raises ModelError for what does not load, and for an adapter whose base model is gone.
    """
    import torch
    import transformers

    from hf_recipes.common.device import this_device

    name, where = str(found.folder), str(found.folder)
    device = this_device(use_cpu=cpu or bool(found.recipe.training.get("use_cpu")))
    if device.kind == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else deepspeed, where it is installed, warns at its import
    check_folder(where, "model", name)
    tokenizer = _load_tokenizer(found)
    auto = getattr(transformers, TASKS[found.task].auto_class)
    if found.adapter:
        model = _load_adapter(found, auto, tokenizer, base, device, precise=precise)
    else:
        try:
            model, info = auto.from_pretrained(
                name, dtype=torch.float32 if precise else "auto", trust_remote_code=False, output_loading_info=True
            )
        except Exception as problem:  # a stranger's file: upstream may raise anything
            raise load_error(where, "model", name, problem) from problem
        _refuse_new_weights(found, model, sorted(info["missing_keys"]))
    if not (found.adapter and found.recipe.section("BitsAndBytesConfig") and not precise):
        model = model.to(device.kind)
    if getattr(model.config, "pad_token_id", None) is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    if found.record and found.record.label_names:
        model.config.id2label = dict(enumerate(found.record.label_names))
    return Trained(found=found, model=model.eval(), tokenizer=tokenizer, positions=longest_input(model.config))


def _refuse_new_weights(found: Found, model: Any, new: list[str]) -> None:
    """A model folder of another task has no trained head for this one."""
    if new:
        shown = ", ".join(new[:3]) + (" ..." if len(new) > 3 else "")
        what = f"it has no trained weights for {shown}: it was not trained for {found.task}"
        raise ModelError.at(str(found.folder), what, f"is it a {type(model).__name__}?")


def _load_tokenizer(found: Found) -> Any:
    from transformers import AutoTokenizer

    name = str(found.folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as problem:  # as above
        raise load_error(name, "tokenizer", name, problem) from problem
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _load_adapter(found: Found, auto: Any, tokenizer: Any, base: str | None, device: Device, *, precise: bool) -> Any:
    import torch
    from peft import PeftConfig, PeftModel

    where, recipe = str(found.folder), found.recipe
    if found.record is not None and recipe.get("model.pretrained_model_name_or_path") is None and base is None:
        what = "the adapter's base model had random weights, which were not saved: it cannot be loaded"
        raise ModelError.at(where, what, "train without LoraConfig, or from a pretrained model")
    try:
        config = PeftConfig.from_pretrained(where)
    except Exception as problem:  # as above
        raise load_error(where, "adapter", where, problem) from problem
    name = base or str(config.base_model_name_or_path)
    local = os.path.isabs(name) or name.count("/") > 1 or (found.record and found.record.model.source == "local")  # type: ignore[union-attr]
    if local and not os.path.isdir(name):
        what = f"the adapter's base model {name!r} is not there (paths are relative to the working directory)"
        raise ModelError.at(where, what, "name its folder or Hub id with --base-model")
    labels = found.record.label_names if found.record else ()
    arguments: dict[str, Any] = {}
    if labels:
        arguments = {"num_labels": len(labels), "id2label": dict(enumerate(labels))}
        arguments["label2id"] = {label: i for i, label in enumerate(labels)}
    kept = ("revision", "subfolder", "attn_implementation", "gguf_file", "cache_dir", "ignore_mismatched_sizes")
    arguments |= {k: v for k, v in recipe.section("model").items() if k in kept}
    dtype = found.record.model.dtype if found.record and found.record.model else "auto"
    arguments["dtype"] = torch.float32 if precise else getattr(torch, dtype, "auto")
    bits = recipe.section("BitsAndBytesConfig")
    if bits and not precise:
        from transformers import BitsAndBytesConfig

        arguments |= {"quantization_config": BitsAndBytesConfig(**bits), "device_map": {"": device.kind}}
    try:
        inner = auto.from_pretrained(name, trust_remote_code=False, **arguments)
    except Exception as problem:  # as above
        raise load_error(where, "base model", name, problem) from problem
    fit_vocabulary(inner, tokenizer, lambda line: None)
    try:
        return PeftModel.from_pretrained(inner, where)
    except RecipeError:
        raise
    except Exception as problem:  # as above
        what = f"the adapter does not fit its base model {name!r}: {first_line(problem)}"
        raise ModelError.at(where, what, "name the model that it was trained on with --base-model") from problem
