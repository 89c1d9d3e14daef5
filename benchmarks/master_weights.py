"""What fp32 master weights cost and keep, against fp32, autocast and pure half precision: measured, on a CPU.

    python benchmarks/master_weights.py            # about 10 minutes on one core; writes the record and the table
    python benchmarks/master_weights.py --table    # only the table, from the record

Writes benchmarks/results/master_weights.json and, from it alone, docs/precision.md
(tests/training/test_master_weights.py holds the table to the record). Text: the language reference that Python carries
(pydoc_data.topics), as bytes. Classifier: that prose against the source of Python's own argparse and friends. Autocast
on a CPU is bf16; fp16's is CUDA's alone.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import platform
import random
import tempfile
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
import transformers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from hf_recipes.training.master_weights import LossScaling, MasterWeights, MasterWeightsStep, prepare_model
from hf_recipes.training.overrides import trainer_class
from hf_recipes.training.trainer_members import TrainerParts

HERE = Path(__file__).resolve().parent
RECORD = HERE / "results" / "master_weights.json"
TABLE = HERE.parent / "docs" / "precision.md"
STEPS, BATCH, LENGTH = 150, 4, 64

# name -> how the model is held, and the arguments that differ from the fp32 run's
PRECISIONS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "fp32, adamw_bnb_8bit": {"optim": "adamw_bnb_8bit"},
    "autocast (O1)": {"bf16": True},
    "master weights (O2)": {"held": "master"},
    "master weights (O2), adamw_torch": {"held": "master", "optim": "adamw_torch"},
    "master weights (O2), adamw_bnb_8bit": {"held": "master", "optim": "adamw_bnb_8bit"},
    "master weights (O2), first scale 2^10": {"held": "master", "scale": 2.0**10},
    "master weights (O2), first scale 2^24": {"held": "master", "scale": 2.0**24},
    "pure bf16": {"held": "bfloat16"},
    "pure fp16 (O3)": {"held": "float16"},
}
FOR_ALL = ("fp32", "autocast (O1)", "master weights (O2)", "master weights (O2), first scale 2^10")
BYTES = ("fp32", "autocast (O1)", "master weights (O2)", "pure bf16")  # and each again with adamw_bnb_8bit


def text_rows() -> list[dict[str, Any]]:
    data = "\n".join(topics[name] for name in sorted(topics)).encode()
    blocks = [list(data[at : at + LENGTH]) for at in range(0, LENGTH * STEPS * BATCH, LENGTH)]
    random.Random(0).shuffle(blocks)
    if min(map(len, blocks)) != LENGTH:
        raise RuntimeError(f"pydoc_data.topics holds {len(data)} bytes, fewer than {LENGTH * STEPS * BATCH}")
    return [{"input_ids": block, "labels": block} for block in blocks]


def class_rows() -> list[dict[str, Any]]:
    names = ("argparse", "doctest", "inspect", "pathlib", "pdb", "subprocess", "tarfile", "typing", "turtle", "zipfile")
    origins = [spec.origin for name in names if (spec := importlib.util.find_spec(name)) and spec.origin]
    code = b"".join(Path(origin).read_bytes() for origin in origins)
    prose = text_rows()
    rows = []
    for number in range(STEPS * BATCH // 2):
        block = list(code[number * LENGTH : (number + 1) * LENGTH])
        rows += [{"input_ids": prose[number]["input_ids"], "labels": 0}, {"input_ids": block, "labels": 1}]
    return rows


def gpt2(width: int = 128, layers: int = 2) -> GPT2LMHeadModel:
    drop: dict[str, Any] = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
    config = GPT2Config(n_layer=layers, n_embd=width, n_head=4, vocab_size=256, n_positions=LENGTH, **drop)
    model = GPT2LMHeadModel(config)
    model.loss_type = "ForCausalLM"  # else Trainer 5.23 counts one label too many
    return model


def llama() -> LlamaForCausalLM:
    config = LlamaConfig(
        num_hidden_layers=2, hidden_size=128, intermediate_size=344, num_attention_heads=4, vocab_size=256
    )
    return LlamaForCausalLM(config)


def bert() -> BertForSequenceClassification:
    drop: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    sizes: dict[str, Any] = {
        "num_hidden_layers": 2,
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_attention_heads": 4,
    }
    return BertForSequenceClassification(BertConfig(**sizes, **drop, vocab_size=256, max_position_embeddings=LENGTH))


MODELS: dict[str, tuple[Callable[[], Any], Callable[[], list[dict[str, Any]]]]] = {
    "GPT-2": (gpt2, text_rows),
    "Llama": (llama, text_rows),
    "BERT classifier": (bert, class_rows),
}


def trainer_for(
    model: Any, rows: list[dict[str, Any]], folder: str, *, sft: bool, held: str, scale: float, **words: Any
) -> Any:
    words = {"optim": "adamw_torch_fused", "bf16": False, "max_steps": STEPS, **words}
    words |= {"output_dir": folder, "per_device_train_batch_size": BATCH, "learning_rate": 5e-4, "warmup_steps": 10}
    words |= {"logging_steps": 1, "logging_nan_inf_filter": False, "disable_tqdm": True, "report_to": "none"}
    words |= {"save_strategy": "no", "use_cpu": True, "train_sampling_strategy": "sequential"}
    if sft:
        from tokenizers import Tokenizer
        from tokenizers.models import WordLevel
        from trl import SFTConfig, SFTTrainer

        words["activation_checkpointing"] = False
        args: Any = SFTConfig(max_length=LENGTH, dataset_kwargs={"skip_prepare_dataset": True}, **words)
        base: Any = SFTTrainer
        vocabulary = {chr(256 + number): number for number in range(256)}
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(vocabulary, unk_token=chr(256))))
        tokenizer.pad_token = tokenizer.eos_token = chr(256)
        extra: dict[str, Any] = {"processing_class": tokenizer}
    else:
        args, base, extra = TrainingArguments(**words), Trainer, {}
    if held == "master":
        base = trainer_class(base)
        extra["parts"] = TrainerParts(masters=MasterWeightsStep(LossScaling(initial=scale)))
    import datasets

    return base(model=model, args=args, train_dataset=datasets.Dataset.from_list(rows), **extra)


def fresh(make: Callable[[], Any], held: str) -> Any:
    set_seed(0)
    model = make()
    if held == "master":
        return prepare_model(model)
    return model.to(getattr(torch, held)) if held in ("bfloat16", "float16") else model


def forget_bitsandbytes_overrides() -> None:
    """The manager is one for the process and keeps overrides by position; each run here begins as a process does."""
    import bitsandbytes

    bitsandbytes.optim.GlobalOptimManager.get_instance().initialize()


def train(make: Callable[[], Any], rows: list[dict[str, Any]], *, sft: bool = False, **words: Any) -> dict[str, Any]:
    held, scale = words.pop("held", "float32"), words.pop("scale", 2.0**16)
    forget_bitsandbytes_overrides()
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_for(fresh(make, held), rows, folder, sft=sft, held=held, scale=scale, **words)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {"losses": [entry["loss"] for entry in logs], "skipped_steps": logs[-1].get("skipped_steps", 0)}


def bytes_of(tensors: Iterator[Any]) -> int:
    """Bytes of the tensors, each storage counted once."""
    return sum({t.data_ptr(): t.nbytes for t in tensors if isinstance(t, torch.Tensor) and t.numel()}.values())


class CountBytes(TrainerCallback):
    """Counts, in the second step, the tensors that live through a step: after backward, and before the update."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step != 1:
            return
        optimizer = kwargs["optimizer"].optimizer
        master = isinstance(optimizer, MasterWeights)
        held = [param for group in optimizer.param_groups for param in group["params"]]
        states = [value for param in held for value in optimizer.state[param].values()]
        self.counts |= {
            "weights": bytes_of(iter(kwargs["model"].parameters())),
            "masters": bytes_of(iter(held)) if master else 0,
            "states": bytes_of(iter(states)),
            "gradients at the update": bytes_of(p.grad for p in [*kwargs["model"].parameters(), *held]),
        }


def count_bytes(precision: str, optim: str) -> dict[str, Any]:
    words = dict(PRECISIONS[precision])
    held = words.pop("held", "float32")
    forget_bitsandbytes_overrides()
    counting = CountBytes()
    with tempfile.TemporaryDirectory() as folder:
        words |= {"optim": optim, "max_steps": 2}
        model = fresh(lambda: gpt2(width=512), held)
        trainer = trainer_for(model, text_rows()[:16], folder, sft=False, held=held, scale=2.0**16, **words)
        trainer.add_callback(counting)
        trainer.remove_callback(PrinterCallback)
        step = trainer.training_step

        def training_step(*args: Any, **kwargs: Any) -> Any:
            loss = step(*args, **kwargs)
            counting.counts["gradients after backward"] = bytes_of(p.grad for p in model.parameters())
            return loss

        trainer.training_step = training_step
        trainer.train()
    total = model.num_parameters()
    return {"parameters": total, **{name: count / total for name, count in sorted(counting.counts.items())}}


def kept_for_backward(precision: str) -> dict[str, float]:
    """What one forward keeps beside the weights: bytes per token, and per parameter (autocast's copies of weights).

    Two batch sizes give a line; its slope is the activations', its intercept what does not depend on the batch.
    """
    model = fresh(lambda: gpt2(width=512), PRECISIONS[precision].get("held", "float32"))
    weights = {param.untyped_storage().data_ptr() for param in model.parameters()}
    rows = text_rows()
    kept = []
    for batch in (2, 4):
        ids = torch.tensor([row["input_ids"] for row in rows[:batch]])
        storages: dict[int, int] = {}

        def keep(tensor: torch.Tensor, storages: dict[int, int] = storages) -> torch.Tensor:
            if tensor.untyped_storage().data_ptr() not in weights:
                storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast (O1)")
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast:
            loss = model(input_ids=ids, labels=ids).loss
        kept.append(sum(storages.values()))
        del loss
    slope = (kept[1] - kept[0]) / (2 * LENGTH)
    return {"per token": slope, "per parameter": (kept[0] - slope * 2 * LENGTH) / model.num_parameters()}


def measure() -> dict[str, Any]:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    runs: dict[str, Any] = {}
    for name, (make, rows_of) in MODELS.items():
        for precision, words in PRECISIONS.items():
            if name == "GPT-2" or precision in FOR_ALL:
                runs[f"{name}, Trainer, {precision}"] = train(make, rows_of(), **words)
                print(
                    f"{name}, Trainer, {precision}: {runs[f'{name}, Trainer, {precision}']['losses'][-1]}", flush=True
                )
    for name in ("GPT-2", "Llama"):
        for precision in ("fp32", "master weights (O2), first scale 2^10"):
            runs[f"{name}, SFTTrainer, {precision}"] = train(
                MODELS[name][0], text_rows(), sft=True, **PRECISIONS[precision]
            )
    for run in runs.values():
        run["losses"] = [round(loss, 6) if math.isfinite(loss) else None for loss in run["losses"]]
    counts = {f"{p}, {o}": count_bytes(p, o) for p in BYTES for o in ("adamw_torch_fused", "adamw_bnb_8bit")}
    versions = {
        name: importlib.import_module(name).__version__ for name in ("torch", "transformers", "accelerate", "trl")
    }
    import bitsandbytes

    return {
        "what": "fp32 master weights against fp32, autocast and pure half precision",
        "date": date.today().isoformat(),
        "device": f"cpu ({platform.machine()}), 1 thread",
        "python": platform.python_version(),
        "versions": {**versions, "bitsandbytes": bitsandbytes.__version__},
        "steps": STEPS,
        "batch": BATCH,
        "length": LENGTH,
        "runs": runs,
        "bytes_per_parameter": counts,
        "kept_for_backward": {precision: kept_for_backward(precision) for precision in BYTES},
    }


def distance_from_fp32(record: dict[str, Any], name: str) -> float | None:
    """The largest of all steps, from the fp32 run of the same model, trainer and optimizer; None if a loss was nan."""
    model, trainer, precision = name.split(", ", 2)
    optim = ", adamw_bnb_8bit" if precision.endswith("adamw_bnb_8bit") else ""
    full, ours = (record["runs"][run]["losses"] for run in (f"{model}, {trainer}, fp32{optim}", name))
    return None if None in ours else max(abs(a - b) for a, b in zip(full, ours, strict=True))


def number(value: float | None, digits: int = 2) -> str:
    if value is None:
        return "nan"
    return f"{value:.{digits}f}" if value == 0 or value >= 0.01 else f"{value:.1e}"


PAGE = """\
<!-- Written by benchmarks/master_weights.py from benchmarks/results/master_weights.json; do not edit. -->
# Precision

## Which precision?

| your GPU | write | why |
|---|---|---|
| has bf16 (compute capability 8.0 or later) | `bf16: true` | autocast; needs no loss scaling |
| has no bf16 | `fp16: true` | autocast with loss scaling |
| has no bf16, many parameters | `fp16: true`, `master_weights: true` | no 16-bit copies of the weights |
| has bf16, and memory is short | `model.dtype: bfloat16` | pure bf16: half of everything, rounded weight updates |

`fp16: true` and `bf16: true` are autocast over the weights' dtype. If memory is short, try an 8-bit optimizer
(`adamw_bnb_8bit`) or LoRA first: [It does not fit](plan.md#it-does-not-fit).

## What is master_weights?

What apex called O2: fp16 parameters and gradients in the model, fp32 master weights in the optimizer, norms in fp32,
dynamic loss scaling. **It saves little memory over autocast**: what it saves on weights and gradients it spends on the
masters. It does save autocast's 16-bit copies of the weights (2 bytes a parameter, kept through the backward pass) and
the casts. Old recipes with `fp16_opt_level: O2` get it.

## Is the loss the same?

Small models from scratch (2 layers, 128 wide), {steps} steps of {batch} x {length} bytes of real text, the same rows in
the same order. Optimizer: adamw_torch_fused where none is named. Distance: the largest of all steps, from fp32 with the
same optimizer (adamw_torch: with adamw_torch_fused).

| model | trainer | precision | mean loss of the last 20 steps | largest distance from fp32 | skipped steps |
|---|---|---|---|---|---|
{losses}

The effect of precision shows in the rows that skipped no step; there O2 is closer to fp32 than bf16 autocast is. A
skipped step shifts every later one, so a distance with skipped steps compares two different runs. At the first scale of
2^16 (apex's and torch's) one gradient above 1 overflows: BERT's single token type embedding sums those of every
position, and its scale had to come down to 2^11 in five steps. 2^24 is too high on purpose. Pure fp16 without masters
or scaling is what apex called O3.

## How much memory does each take?

Bytes per parameter, counted from the tensors of a training step: GPT-2 of {parameters:,} parameters, 512 wide. The sum
is of what stays through the backward pass. At the update, master weights have their gradients in fp32 (the fp16 ones
are freed one by one), so the peak there is 2 bytes higher, when the activations are gone. 8-bit states leave embeddings
and tensors below 4,096 numbers in 32 bits, hence more than 2.

| precision | optimizer | weights | gradients | masters | optimizer states | sum | gradients at the update |
|---|---|---|---|---|---|---|---|
{counts}

Kept by one forward pass for its backward pass, beside the weights (same model; a line through two batch sizes):

| precision | bytes per token | bytes per parameter |
|---|---|---|
{kept}

## How was it measured?

On {date} on {device}, Python {python}, {versions}. Not run on CUDA or MPS. A CPU's autocast is bf16, so
`autocast (O1)` stands for fp16's autocast too: its bytes are equal, its distance from fp32 is bf16's. No speed is
given, because a CPU's half precision says nothing about a GPU's. `python benchmarks/master_weights.py` repeats it.
"""


def table(record: dict[str, Any]) -> str:
    """docs/precision.md, computed from the record alone."""
    losses, counts = [], []
    for name, run in record["runs"].items():
        last = None if None in run["losses"][-20:] else sum(run["losses"][-20:]) / 20
        cells = [number(last, 4), number(distance_from_fp32(record, name)), str(run["skipped_steps"])]
        losses.append([*name.split(", ", 2), *cells])
    for name, count in record["bytes_per_parameter"].items():
        parts = [count[part] for part in ("weights", "gradients after backward", "masters", "states")]
        cells = [number(value) for value in [*parts, sum(parts), count["gradients at the update"]]]
        counts.append([*name.rsplit(", ", 1), *cells])
    kept = [
        [name, f"{size['per token']:,.0f}", number(round(size["per parameter"], 2))]
        for name, size in record["kept_for_backward"].items()
    ]
    rows = {"losses": losses, "counts": counts, "kept": kept}
    facts = {name: record[name] for name in ("date", "device", "python", "steps", "batch", "length")}
    return PAGE.format(
        **facts,
        versions=", ".join(f"{name} {version}" for name, version in record["versions"].items()),
        parameters=record["bytes_per_parameter"]["fp32, adamw_torch_fused"]["parameters"],
        **{name: "\n".join(f"| {' | '.join(row)} |" for row in lines) for name, lines in rows.items()},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="write only docs/precision.md, from the record")
    if not parser.parse_args().table:
        RECORD.parent.mkdir(parents=True, exist_ok=True)
        RECORD.write_text(json.dumps(measure(), indent=1) + "\n", encoding="utf-8")
    TABLE.parent.mkdir(exist_ok=True)
    TABLE.write_text(table(json.loads(RECORD.read_text(encoding="utf-8"))), encoding="utf-8")


if __name__ == "__main__":
    main()
