"""FSDP2: a run on two processes ends and resumes as one process does, and its files fit every launch."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_recipes.checkpoints import select, sharded
from hf_recipes.cli import main
from tests.support.forks import run_forked, run_ranks
from tests.support.sharded_ranks import run_fsdp

TEXT = """
task: causal-lm
model:
  config: {{model_type: llama, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 2,
           num_key_value_heads: 1, max_position_embeddings: 64}}
BpeTrainer: {{vocab_size: 384}}
{lora}
dataset:
  path: text
  data_files: {{train: {root}/recipes/data/austen/persuasion.txt}}
  sample_by: paragraph
  split: {{train: "train[:6%]"}}
  {length}
{section}:
  output_dir: out
  max_steps: 6
  per_device_train_batch_size: 4
  learning_rate: 1e-2
  logging_steps: 3
  eval_strategy: steps
  eval_steps: 2
  save_steps: 2
  load_best_model_at_end: true
  use_cpu: true
  {more}
"""
LORA = "LoraConfig: {r: 4, lora_alpha: 64, target_modules: [q_proj, v_proj], modules_to_save: [lm_head]}"
KINDS = {
    "full": {"section": "TrainingArguments", "length": "max_length: 32", "more": "", "lora": ""},
    "lora": {"section": "TrainingArguments", "length": "max_length: 32", "more": "", "lora": LORA},
    "sft": {"section": "SFTConfig", "length": "", "more": "max_length: 32\n  packing: false", "lora": ""},
}
LAUNCHES = ("one", "ddp", "fsdp")
DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob")


@pytest.fixture
def launch(root: Path, write_recipe: Callable[..., str]) -> Callable[..., str]:
    """Starts a run of a kind of recipe on one process or two; returns its output."""

    def start(how: str, kind: str, out: str, *words: str) -> str:
        values = {**KINDS[kind], "root": root}
        recipe = write_recipe(TEXT.format(**values), f"{kind}.yaml")
        section = values["section"]
        arguments = ["run", recipe, f"{section}.output_dir={out}", *words]
        if how == "one":
            code, output = run_forked([*arguments, f"{section}.gradient_accumulation_steps=2"], None)
        else:
            ranks = run_fsdp if how == "fsdp" else run_ranks
            code, output = ranks(lambda rank: main(arguments), output=f"{out}.log")
        assert code == 0, output[-4000:]
        return output

    return start


def record(out: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(out, "record.json").read_text())
    return found


def losses(out: str) -> list[float]:
    found = record(out)
    logged = [entry[key] for entry in found["log_history"] for key in ("loss", "eval_loss") if key in entry]
    return [*logged, found["train_loss"], found["metrics"]["eval"]["eval_loss"]]


def weights(folder: str) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return {key: value for path in Path(folder).glob("*.safetensors") for key, value in load_file(path).items()}


def assert_near(out: str, other: str, within: float = 1e-5) -> None:
    assert losses(out) == pytest.approx(losses(other), rel=within)
    ours, theirs = weights(out), weights(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.allclose(tensor, theirs[name], atol=1e-5), name


def test_a_model_spread_over_two_processes_ends_as_on_one_and_resumes_its_checkpoint(
    launch: Callable[..., str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    launch("one", "full", "one")
    output = launch("fsdp", "full", "fsdp")
    assert "resume     bit for bit" in output
    assert_near("fsdp", "one")
    assert sorted(path.name for path in Path("one").iterdir()) == sorted(path.name for path in Path("fsdp").iterdir())
    rows = AutoTokenizer.from_pretrained("fsdp")("It was a", return_tensors="pt")
    ours, theirs = (AutoModelForCausalLM.from_pretrained(out)(**rows).logits for out in ("fsdp", "one"))
    assert torch.allclose(ours, theirs, atol=1e-4)

    shutil.copytree("one/checkpoint-2", "one-fsdp/checkpoint-2")
    output = launch("fsdp", "full", "one-fsdp", "--resume")
    assert "weights, optimizer and place in the data are exact, the order of sums and random streams" in output
    assert_near("one-fsdp", "one")
    assert main(["verify", "fsdp"]) in (0, None)
    assert "checkpoint-4: " in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_launch_resumes_the_checkpoint_of_every_other(
    kind: str, launch: Callable[..., str], folder: Path
) -> None:
    for how in LAUNCHES:
        launch(how, kind, how)
        assert_near(how, "one")
    for began, ends in itertools.product(LAUNCHES, LAUNCHES):
        if (kind, began, ends) == ("full", "one", "fsdp") or "one" == began == ends:
            continue
        out = f"{began}-{ends}"
        shutil.copytree(f"{began}/checkpoint-2", f"{out}/checkpoint-2")
        launch(ends, kind, out, "--resume")
        assert_near(out, began)
        if began == ends:  # the same launch: bit for bit
            assert losses(out) == losses(began)
            assert all(torch.equal(tensor, weights(began)[name]) for name, tensor in weights(out).items())


def spread_linear(seed: int) -> tuple[Any, Any]:
    """A layer of 5 x 3, spread over the ranks, and an optimizer after three steps."""
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    if not dist.is_initialized():
        dist.init_process_group("gloo", rank=int(os.environ["RANK"]), world_size=int(os.environ["WORLD_SIZE"]))
    torch.manual_seed(seed)
    layer = torch.nn.Linear(3, 5)
    if dist.get_world_size() > 1:
        fully_shard(layer)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    for n in range(3):
        layer(torch.full((2, 3), float(n + 1))).pow(2).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return layer, optimizer


def complete(value: Any) -> Any:
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def same_state(ours: Any, theirs: Any) -> bool:
    pairs = [(ours["state"][n][key], value) for n, values in theirs["state"].items() for key, value in values.items()]
    return bool(pairs) and all(torch.allclose(complete(a), complete(b), atol=1e-6) for a, b in pairs)


def test_an_optimizers_parts_are_read_by_fewer_more_or_one_process(folder: Path) -> None:
    def save(rank: int) -> None:
        _, optimizer = spread_linear(0)
        sharded.save_optimizer(optimizer, folder, rank)

    def read(rank: int) -> None:
        _, optimizer = spread_linear(1)
        params = list(optimizer.param_groups[0]["params"])
        optimizer.load_state_dict(sharded.read_optimizer(folder, params))
        assert same_state(optimizer.state_dict(), spread_linear(0)[1].state_dict())

    assert run_ranks(save, 3)[0] == 0  # five rows on three processes: one has fewer
    for readers in (1, 2, 4):
        code, output = run_ranks(read, readers, f"read-{readers}.log")
        assert code == 0, output


def test_an_optimizer_of_one_process_is_read_by_two(folder: Path) -> None:
    def save(rank: int) -> None:
        torch.save(spread_linear(0)[1].state_dict(), "optimizer.pt")

    def read(rank: int) -> None:
        _, optimizer = spread_linear(1)
        state = torch.load("optimizer.pt", weights_only=True)
        optimizer.load_state_dict(sharded.spread_optimizer(state, optimizer.param_groups[0]["params"]))
        assert same_state(optimizer.state_dict(), spread_linear(0)[1].state_dict())

    assert run_ranks(save, 1)[0] == 0
    code, output = run_ranks(read, 2, "read.log")
    assert code == 0, output


def test_a_file_that_was_put_beside_an_optimizers_parts_is_found(folder: Path) -> None:
    from hf_recipes.checkpoints import manifest

    saved = folder / "checkpoint-1"
    (saved / "optimizer_shards").mkdir(parents=True)
    (saved / "trainer_state.json").write_text('{"global_step": 1}')
    facts = {"step": 1, "run": "a", "world_size": 2, "state": ["optimizer"], "recipe": {}, "data": {}, "finite": True}
    manifest.write_manifest(saved, facts, manifest.flush_files(saved))
    assert select.find_errors(saved) == []
    (saved / "optimizer_shards" / "shard-00003.safetensors").write_bytes(b"\0" * 8)
    assert select.find_errors(saved) == ["optimizer_shards/shard-00003.safetensors was not written with the checkpoint"]


def test_experts_that_are_written_one_by_one_are_resumed(
    root: Path, write_recipe: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    experts = "{model_type: qwen3_moe, num_experts: 4, num_experts_per_tok: 2, moe_intermediate_size: 32, head_dim: 16,"
    text = TEXT.format(**KINDS["full"], root=root).replace("{model_type: llama,", experts)
    recipe = write_recipe(text.replace("num_hidden_layers: 2", "num_hidden_layers: 1"))
    code, output = run_forked(["run", recipe, "TrainingArguments.max_steps=4"], None)
    assert code == 0, output[-3000:]
    shutil.copytree("out/checkpoint-2", "again/checkpoint-2")
    more = ["TrainingArguments.max_steps=4", "TrainingArguments.output_dir=again", "--resume"]
    code, output = run_forked(["run", recipe, *more], None)
    assert code == 0, output[-3000:]
    assert losses("again") == losses("out")
    assert all(torch.equal(tensor, weights("out")[name]) for name, tensor in weights("again").items())


@pytest.mark.slow
def test_samples_are_written_and_a_model_is_only_evaluated_under_fsdp(launch: Callable[..., str], folder: Path) -> None:
    prompts = ["sample_prompts=[the]", "GenerationConfig={max_new_tokens: 4}"]
    output = launch("fsdp", "full", "trained", *prompts)
    assert output.count("sample at step 2: 'the' -> ") == 1
    model = "model={pretrained_model_name_or_path: trained, config: null}"
    again = ["TrainingArguments.do_train=false", model, "BpeTrainer=null"]
    launch("fsdp", "full", "evaluated", *again)
    ours, theirs = (record(out)["metrics"]["eval"]["eval_loss"] for out in ("evaluated", "trained"))
    assert ours == pytest.approx(theirs, rel=1e-6)


@pytest.mark.slow
def test_a_pretrained_classifier_of_which_only_rank_0_loads_the_weights_is_trained_as_on_one_process(
    folder: Path,
) -> None:
    from tests.support.tiny_models import TEXTS, save_bert, wordpiece, write_rows

    def prepare() -> None:
        save_bert("model", wordpiece(sorted({word for text in TEXTS for word in text.split()})))

    assert run_ranks(lambda rank: prepare(), 1)[0] == 0
    write_rows("rows.jsonl", [{"text": TEXTS[n % 4][n % 3 :], "label": ("no", "yes")[n % 2]} for n in range(11)])
    arguments = {"output_dir": "one", "max_steps": 6, "per_device_train_batch_size": 2, "save_steps": 2}
    recipe = {
        "task": "text-classification",
        "model": {
            "pretrained_model_name_or_path": "model",
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
        "dataset": {"path": "json", "data_files": {"train": "rows.jsonl", "validation": "rows.jsonl"}},
        "disable_guards": ["overlap"],
        "TrainingArguments": {**arguments, "learning_rate": 1e-3, "logging_steps": 1, "use_cpu": True},
    }
    Path("recipe.yaml").write_text(json.dumps(recipe))
    code, output = run_forked(["run", "recipe.yaml", "TrainingArguments.gradient_accumulation_steps=2"], None)
    assert code == 0, output[-3000:]
    code, output = run_fsdp(lambda rank: main(["run", "recipe.yaml", "TrainingArguments.output_dir=fsdp"]))
    assert code == 0, output[-3000:]
    assert_near("fsdp", "one")
