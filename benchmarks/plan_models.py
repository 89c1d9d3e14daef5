"""60 model types x (fp32, bf16, LoRA, QLoRA, checkpointing): planned, an estimate, or refused; and CPU truth.

    python benchmarks/plan_models.py            all; or only the model types that are named; continues its record

Each cell is a small model of that type in a process of its own: plan's trace for a GPU of compute capability 8.6. What
is refused is also run with real tensors on this CPU, to show whether the run would fail too. For fp32 and LoRA plan's
trace for a CPU stands beside what real tensors hold. Writes benchmarks/results/plan_models.json; `python
benchmarks/tables.py` makes the tables of docs/methods/plan.md of it.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

for name, value in {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}.items():
    os.environ.setdefault(name, value)
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks/results/plan_models.json"
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from torture import record  # noqa: E402

from hf_recipes.common.device import Device  # noqa: E402
from hf_recipes.recipe.defaults import choose  # noqa: E402
from hf_recipes.recipe.rules import model_limits  # noqa: E402
from hf_recipes.recipe.rules.device import gpu_errors  # noqa: E402
from tests.support.tiny_recipes import tiny  # noqa: E402

SECONDS = 120  # of a cell, by the clock; plan's own limit is in CPU seconds
SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 500,
    "max_position_embeddings": 64,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
EXPERTS = {**GROUPED, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
GPT = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 500}
T5 = {
    "d_model": 64,
    "decoder_start_token_id": 0,
    "d_kv": 16,
    "d_ff": 128,
    "num_layers": 2,
    "num_heads": 4,
    "vocab_size": 500,
}
BART = {
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "vocab_size": 500,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
TEXT, CLASSES = "causal-lm", "text-classification"
LLAMAS = "llama mistral qwen2 phi3 stablelm starcoder2 olmo olmo2 cohere granite smollm3 seed_oss arcee glm"
BERTS = "bert roberta camembert xlm-roberta electra deberta-v2 modernbert mpnet fnet layoutlm ernie roformer"
# Model type -> its task and the fields of a small config.
TYPES: dict[str, tuple[str, dict[str, Any]]] = {
    **dict.fromkeys(LLAMAS.split(), (TEXT, GROUPED)),
    **{
        name: (TEXT, {**GROUPED, "head_dim": 16})
        for name in ("qwen3", "gemma", "gemma2", "gemma3_text", "helium", "ministral")
    },
    "phi": (TEXT, SIZES),
    "gpt_neox": (TEXT, SIZES),
    "opt": (TEXT, {**SIZES, "ffn_dim": 128, "word_embed_proj_dim": 64}),
    "bloom": (TEXT, {"hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": 500}),
    "falcon": (TEXT, SIZES),
    "mpt": (TEXT, {"d_model": 64, "n_layers": 2, "n_heads": 4, "vocab_size": 500, "max_seq_len": 64}),
    "gpt2": (TEXT, GPT),
    "gptj": (TEXT, {**GPT, "rotary_dim": 16}),
    "codegen": (TEXT, {**GPT, "rotary_dim": 16}),
    "gpt_neo": (TEXT, {**SIZES, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]}),
    "gpt_bigcode": (TEXT, GPT),
    "biogpt": (TEXT, SIZES),
    "xglm": (TEXT, {"d_model": 64, "num_layers": 2, "attention_heads": 4, "ffn_dim": 128, "vocab_size": 500}),
    "mixtral": (TEXT, {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2_moe": (TEXT, {**EXPERTS, "shared_expert_intermediate_size": 64}),
    "qwen3_moe": (TEXT, EXPERTS),
    "olmoe": (TEXT, EXPERTS),
    "llama4_text": (TEXT, {**GROUPED, "head_dim": 16, "num_local_experts": 4, "intermediate_size_mlp": 128}),
    "rwkv": (TEXT, {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 500, "context_length": 64}),
    "mamba": (TEXT, {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 500}),
    "mamba2": (
        TEXT,
        {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 500, "num_heads": 8, "head_dim": 16},
    ),
    **dict.fromkeys(BERTS.split(), (CLASSES, SIZES)),
    "distilbert": (CLASSES, {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128, "vocab_size": 500}),
    "albert": (CLASSES, {**SIZES, "embedding_size": 32}),
    "xlnet": (CLASSES, {"d_model": 64, "n_layer": 2, "n_head": 4, "d_inner": 128, "vocab_size": 500}),
    "funnel": (
        CLASSES,
        {"d_model": 64, "n_head": 4, "d_head": 16, "d_inner": 128, "vocab_size": 500, "block_sizes": [1, 1]},
    ),
    "longformer": (CLASSES, {**SIZES, "attention_window": 16}),
    "t5": (CLASSES, T5),
    "bart": (CLASSES, BART),
}
KINDS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"bf16": True},
    "LoRA": {"sections": {"LoraConfig": {"r": 4, "target_modules": "all-linear"}}},
    "QLoRA": {
        "sections": {
            "LoraConfig": {"r": 4, "target_modules": "all-linear"},
            "BitsAndBytesConfig": {"load_in_4bit": True},
        }
    },
    "checkpointing": {"gradient_checkpointing": True},
}
TRUTHS = ("fp32", "LoRA")


def answer(recipe: Any, *, cpu: bool, real: bool = False) -> dict[str, Any]:
    """What plan's child answers, in a process of its own: `trace`, `errors`, `crash` or `slow`."""

    def work() -> dict[str, Any]:
        from hf_recipes.plan.trace import worker

        plain = {"path": recipe.path, "sections": recipe.sections, "locations": {}}
        request: dict[str, Any] = {"kind": "trace", "recipe": plain, "length": None, "micro_batch": None, "cpu": cpu}
        request |= {"capability": [8, 6], "folder": os.getcwd(), **({"real": True} if real else {})}
        return worker._answer(request)

    return in_fork(work)


def in_fork(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        try:
            found = work()
        except BaseException as problem:  # a fork must end here; what failed is the cell's outcome
            found = {"crash": f"{type(problem).__name__}: {problem}"}
        with os.fdopen(writer, "w") as file:
            file.write(json.dumps(found))
        os._exit(0)
    os.close(writer)
    text, end = "", time.monotonic() + SECONDS
    with os.fdopen(reader) as file:
        while select.select([file], [], [], max(0.0, end - time.monotonic()))[0]:
            part = os.read(file.fileno(), 1 << 20).decode()
            if not part:
                break
            text += part
        else:
            os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return json.loads(text) if text else {"slow": SECONDS}


def describe(found: dict[str, Any]) -> dict[str, Any]:
    if "trace" in found:
        trace = found["trace"]
        return {"state": "estimate" if trace["estimate"] else "planned", "bytes": trace["allocated"]}
    if "errors" in found:
        return {"state": "refused", "why": found["errors"][0]["message"]}
    return {"state": "refused", "why": str(found.get("crash") or f"more than {SECONDS} seconds")}


def refusal(recipe: Any) -> dict[str, Any] | None:
    """What `check`, or `run` on this GPU, says before anything is loaded."""
    device = Device(kind="cuda", name="the planned GPU", count=1, capability=(8, 6), bf16=True)
    errors = [one for rule in model_limits.ERRORS for one in rule(recipe)]
    errors += gpu_errors(choose(recipe, device)[0], device)
    return {"state": "refused", "why": errors[0].message, "by": "check"} if errors else None


def measure(model_type: str) -> dict[str, Any]:
    task, fields = TYPES[model_type]
    row: dict[str, Any] = {"type": model_type, "task": task, "kinds": {}, "truth": {}}
    for kind, words in KINDS.items():
        began = time.monotonic()
        recipe = tiny(task, {"model_type": model_type, **fields}, **words)
        cell = refusal(recipe) or describe(answer(recipe, cpu=False))
        cell["seconds"] = round(time.monotonic() - began, 1)
        if cell["state"] == "refused":
            on_cpu = tiny(task, {"model_type": model_type, **fields}, **{**words, "use_cpu": True})
            cell["run"] = describe(answer(on_cpu, cpu=True, real=True))
        row["kinds"][kind] = cell
        if kind in TRUTHS:
            planned, real = (describe(answer(recipe, cpu=True, real=one)) for one in (False, True))
            row["truth"][kind] = {"planned": planned, "real": real}
    return row


def main() -> None:
    from hf_recipes.plan.trace import trace  # noqa: F401  before the forks

    names = sys.argv[1:] or list(TYPES)
    known = json.loads(RESULT.read_text(encoding="utf-8"))["rows"] if RESULT.exists() else []
    rows = {row["type"]: row for row in known}
    for name in names:
        if name in rows and not sys.argv[1:]:
            continue
        rows[name] = measure(name)
        print(json.dumps(rows[name]), flush=True)
        body = {**record.provenance(), "rows": [rows[one] for one in TYPES if one in rows]}
        RESULT.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
