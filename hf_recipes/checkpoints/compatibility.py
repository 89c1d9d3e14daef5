"""What a resumed run equals: which keys of a recipe decide a run's numbers, and where bits may differ.

Imports neither torch nor transformers.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from hf_recipes.common.device import sharding
from hf_recipes.common.text import join_words
from hf_recipes.recipe.global_batch import ACCUMULATION, PER_DEVICE
from hf_recipes.recipe.global_batch import KEY as GLOBAL_BATCH

if TYPE_CHECKING:
    from hf_recipes.common.device import Device

# Keys of the trainer's section that change no weight: where things are written, what is shown, how often.
FREE = (
    *("output_dir", "run_name", "project", "report_to", "trackio_*", "log_*", "logging_*", "disable_tqdm", "debug"),
    *("eval_*", "do_eval", "do_predict", "do_train", "per_device_eval_batch_size", "batch_eval_metrics"),
    *("prediction_loss_only", "include_for_metrics", "include_num_input_tokens_seen", "skip_memory_metrics"),
    *("save_*", "load_best_model_at_end", "metric_for_best_model", "greater_is_better", "enable_jit_checkpoint"),
    *("push_to_hub", "hub_*", "ddp_timeout"),
    *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_prefetch_factor"),
    *("dataloader_persistent_workers", "dataloader_multiprocessing_context", "dataset_num_proc", "local_rank"),
    *("ignore_data_skip", "warnings_*", "*token*"),
)
DIVISION = (PER_DEVICE, ACCUMULATION)  # of a step's rows
ORDER = "train_sampling_strategy"
SET_BY_RESUMING = ("restore_callback_states_from_checkpoint", "eval_on_start", "resume_from_checkpoint")
ALLOW = "resume_allow"
FLAG = "argument '--resume'"  # it begins where there is no checkpoint yet; the key in a recipe asks for one
OPTIMIZER_KEYS, SCHEDULER_KEYS = ("optim", "master_weights"), ("lr_scheduler_type",)  # whose states are of another kind
LENGTH = ("max_steps", "num_train_epochs")  # a longer schedule is what a resumption may be for
SECTIONS = ("model", "tokenizer", "BpeTrainer", "LoraConfig", "BitsAndBytesConfig", "master_weights", "task")
DATA_KEYS = ("max_length",)  # of `dataset`: the other keys show in the rows' fingerprint
PACKAGES = ("torch", "transformers", "accelerate", "trl", "peft", "bitsandbytes", "datasets", "tokenizers")


KINDS = ("matters", "optimizer", "scheduler", "length", "free")


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A key that a checkpoint's recipe and this one set differently."""

    key: str
    then: Any
    now: Any
    kind: str  # one of KINDS

    def __str__(self) -> str:
        return f"{self.key} was {_format_value(self.then)}, is {_format_value(self.now)}"


ABSENT = "absent"
NO_SHARDING = "none"
UNKNOWN = "the checkpoint does not name the recipe, the data and the versions that wrote it"


def _format_value(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def compare_recipes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """Differences of two `describe_recipe`, those that matter first; a field that one version lacks is skipped."""
    if then["trainer"] != now["trainer"]:
        return [Difference(key="the trainer's section", then=then["trainer"], now=now["trainer"], kind="matters")]
    found = []
    whole = then.get(GLOBAL_BATCH), now.get(GLOBAL_BATCH)
    if None not in whole and whole[0] != whole[1]:
        found.append(Difference(key=GLOBAL_BATCH, then=whole[0], now=whole[1], kind="matters"))
    for key, value in now["arguments"].items():
        if key == ACCUMULATION and None not in whole:
            continue  # it follows from the global batch, which is compared, and the number of processes
        if key not in SET_BY_RESUMING and key in then["arguments"] and then["arguments"][key] != value:
            was = then["arguments"][key]
            kind = "matters" if key == "optim" and _is_same_optimizer(was, value) else _kind(key)
            found.append(Difference(key=f"{now['trainer']}.{key}", then=was, now=value, kind=kind))
    before, after = dict(_leaves(then["sections"])), dict(_leaves(now["sections"]))
    for key in dict.fromkeys((*before, *after)):
        was, is_ = before.get(key, ABSENT), after.get(key, ABSENT)
        if was != is_:
            found.append(Difference(key=key, then=was, now=is_, kind=_kind_of_section(key)))
    return sorted(found, key=lambda difference: KINDS.index(difference.kind))


def has_same_steps(then: Mapping[str, Any], now: Mapping[str, Any], processes: int) -> bool:
    """Whether each optimizer step takes the rows that it took when a checkpoint was written, however they are divided
    into processes, rows per device and accumulation. `then`: its manifest; `now`: what this run's would say."""
    before, after = then["recipe"].get("arguments") or {}, now["recipe"].get("arguments") or {}
    if not all(key in arguments for key in (*DIVISION, ORDER) for arguments in (before, after)):
        return bool(then["world_size"] == processes)
    if before[ORDER] != after[ORDER] or (
        after[ORDER] not in ("random", "sequential") and any(before[key] != after[key] for key in DIVISION)
    ):
        return False  # the order depends on the rows per device
    return rows_of_step(before, then["world_size"]) == rows_of_step(after, processes)


def rows_of_step(arguments: Mapping[str, Any], processes: int) -> int:
    """Of all processes together."""
    return int(arguments[PER_DEVICE] * arguments[ACCUMULATION] * processes)


def _is_same_optimizer(then: Any, now: Any) -> bool:
    """adamw_torch and adamw_torch_fused compute the same from the same states; only the kernel differs."""
    return str(then).removesuffix("_fused") == str(now).removesuffix("_fused")


def _kind(key: str) -> str:
    if key in OPTIMIZER_KEYS or key in SCHEDULER_KEYS:
        return "optimizer" if key in OPTIMIZER_KEYS else "scheduler"
    if key in LENGTH:
        return "length"
    return "free" if is_free(key) else "matters"


def is_free(key: str) -> bool:
    """Whether a key of the trainer's section changes no weight."""
    return any(fnmatchcase(key, pattern) for pattern in FREE)


def _kind_of_section(key: str) -> str:
    if key in OPTIMIZER_KEYS:
        return "optimizer"
    return "length" if key.startswith("EarlyStoppingCallback.") else "matters"


def format_allowed(allowed: Iterable[str], more: str) -> str:
    """ "resume_allow: [recipe, optimizer]": what a recipe has to say besides what it says."""
    return f"{ALLOW}: [{', '.join(dict.fromkeys((*allowed, more)))}]"


def _leaves(value: Any, dotted: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{dotted}.{key}" if dotted else str(key))
    else:
        yield dotted, value


def describe_recipe(sections: Mapping[str, Any], trainer: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What `compare_recipes` compares: every argument of the trainer, upstream's defaults included, and the
    other sections that decide a run's numbers."""
    whole = {GLOBAL_BATCH: sections[GLOBAL_BATCH]} if sections.get(GLOBAL_BATCH) is not None else {}
    kept = {name: sections[name] for name in (*SECTIONS, "EarlyStoppingCallback") if name in sections}
    data = {key: value for key, value in dict(sections.get("dataset") or {}).items() if key in DATA_KEYS}
    if data:
        kept["dataset"] = data
    return {"trainer": trainer, "arguments": dict(arguments), "sections": kept, **whole}


def list_inexact_reasons(
    section: str, args: Any, device: Device, environment: Mapping[str, str] = os.environ
) -> list[str]:
    """Why a resumed run would not equal an uninterrupted one bit for bit; empty where it does."""
    found = []
    if device.kind != "cpu" and not args.use_cpu:
        fix = "" if args.full_determinism else f" (set {section}.full_determinism: true to avoid that)"
        found.append(f"{device.kind} kernels may sum in another order each time{fix}")
    if args.ignore_data_skip:
        found.append("ignore_data_skip: true restarts the epoch's rows")
    if not args.dataloader_in_order:
        found.append("dataloader_in_order: false takes rows in the order in which the workers finish")
    if "deepspeed" in sharding(environment):
        found.append("no test compares a resumed run of DeepSpeed")
    if args.save_only_model:
        found.append(
            "save_only_model: true saves weights only, without the optimizer, the schedule and the random state"
        )
    return found


def describe_environment(device: Device, versions: Mapping[str, Any], threads: int) -> dict[str, Any]:
    """What can change bits without being in a recipe."""
    return {
        "versions": {name: versions.get(name) for name in PACKAGES},
        "device": f"{device.name} ({device.kind})",
        "threads": threads,
        "sharding": "".join(sharding()) or NO_SHARDING,
    }


def list_environment_changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What changed of `describe_environment` since the checkpoint was written."""
    found = []
    for name, version in now["versions"].items():
        was = then.get("versions", {}).get(name)
        if was != version:
            found.append(f"{name} was {was}, is {version}")
    for name in ("device", "threads"):
        if then.get(name) != now[name]:
            found.append(f"{name} was {then.get(name)}, is {now[name]}")
    before, after = (facts.get("sharding", NO_SHARDING) for facts in (then, now))
    if before != after:
        found.append(f"sharding was {before}, is {after}")
    return found


def list_differences(then: Mapping[str, Any], now: Mapping[str, Any], processes: int) -> list[str]:
    """What decides a run's numbers and is not as in the session that wrote a checkpoint. `then`: its manifest; `now`:
    what this session's manifests say."""
    found = [str(each) for each in compare_recipes(then["recipe"], now["recipe"]) if each.kind != "free"]
    if then["data"].get("train") != now["data"].get("train"):
        found.append("the training rows were others")
    if then["world_size"] != processes:
        found.append(f"processes were {then['world_size']}, are {processes}")
    return found + list_environment_changes(then, now)


def describe_exactness(reasons: list[str], threads: int, resumed_at: Sequence[int] = ()) -> str:
    """The line that a run prints when it starts, and its record keeps. `resumed_at`: steps at which it was resumed."""
    resumed = f"resumed at step {join_words(resumed_at)}, " if resumed_at else ""
    if reasons:
        return f"resume     {resumed}not bit for bit: {'; '.join(reasons)}"
    return f"resume     {resumed}bit for bit: same versions, same CPU, {threads} thread{'s' * (threads > 1)}"
