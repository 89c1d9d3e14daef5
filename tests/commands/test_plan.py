"""`hf-recipes plan` as a user types it, and `run` asking it first."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from hf_recipes import cli
from hf_recipes.commands import plan as plan_command
from hf_recipes.commands.plan import command, command_for_each
from hf_recipes.common.device import Device
from hf_recipes.errors import RecipeError
from hf_recipes.plan import preflight
from hf_recipes.plan.fit import plan
from hf_recipes.plan.fit.parallel import Layout, launched_layout, offloads
from hf_recipes.plan.fit.plan import Plan
from hf_recipes.plan.fit.verdict import OUT, choose_gpu
from hf_recipes.plan.trace.trace import trace_here
from hf_recipes.recipe.read import read_recipe
from hf_recipes.recipe.recipe import Recipe
from hf_recipes.recipe.smoke import shrink
from tests.support.tiny_models import TEXTS, save_bert, wordpiece, write_rows
from tests.support.tiny_recipes import traces_in_this_process  # noqa: F401

Write = Callable[..., str]
RECIPES = sorted((Path(__file__).resolve().parents[2] / "recipes").glob("*.yaml"))
GIB = 2**30
GPT = """
task: causal-lm
model: {preset: gpt-tiny}
tokenizer: {pretrained_model_name_or_path: openai-community/gpt2}
dataset: {path: text, data_files: none.txt, max_length: 256}
TrainingArguments: {output_dir: out, per_device_train_batch_size: 32, fp16: true}
"""
CLASSIFIER = """
task: text-classification
model: {pretrained_model_name_or_path: encoder}
dataset: {path: json, data_files: {train: train.jsonl, validation: held_out.jsonl}, max_length: 64}
TrainingArguments: {output_dir: out, per_device_train_batch_size: 4}
"""
T4 = Device(kind="cuda", name="Tesla T4", count=1, capability=(7, 5), memory_bytes=15 * GIB, bf16=False)


@pytest.fixture
def classifier(write_recipe: Write, folder: Path) -> str:
    vocabulary = sorted({word for text in TEXTS for word in re.findall(r"\w+", text)})
    save_bert("encoder", wordpiece(vocabulary))
    rows = [{"text": " ".join(["sea"] * n), "label": n % 2} for n in (1, 2, 3, 4, 5, 6, 7, 30)]
    write_rows("train.jsonl", rows)
    write_rows("held_out.jsonl", rows[:4])
    return write_recipe(CLASSIFIER)


@pytest.fixture
def in_root(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipes' paths are relative to the repository."""
    monkeypatch.chdir(root)


def test_the_longest_row_of_the_data_is_the_length_that_counts(classifier: str) -> None:
    found = json.loads(command(classifier, (), gpu="rtx-3070", as_json=True)[0][0])
    assert found["length"] == 32  # 30 words, [CLS] and [SEP]; the recipe would cut at 64
    assert found["length_note"] == "length: 32 tokens, the longest of 12 rows (median 6, 99 of 100 within 32)"
    unread = json.loads(command(classifier, (), gpu="rtx-3070", read_data=False, as_json=True)[0][0])
    assert unread["length"] == 64 and unread["allocated_bytes"] > found["allocated_bytes"]
    asked = json.loads(command(classifier, (), gpu="rtx-3070", length=48, as_json=True)[0][0])
    assert (asked["length"], asked["length_note"]) == (48, "length: 48 (asked for)")


def test_rows_that_are_cut_are_counted(classifier: str) -> None:
    found = plan.read_lengths(read_recipe(classifier, ("dataset.max_length=8",)))[0]
    assert found is not None and (found.longest, found.cut, found.rows) == (8, 3, 8)
    assert plan.describe_lengths(found).endswith("38% of the rows are as long as the limit: they are cut there")


def test_data_that_is_not_here_leaves_max_length_and_says_so(write_recipe: Write) -> None:
    recipe = read_recipe(write_recipe(GPT))
    assert plan.read_lengths(recipe) == (
        None,
        "length: max_length, since the data was not read (data file 'none.txt' does not exist "
        "(paths are relative to the working directory))",
    )
    with pytest.raises(RecipeError, match=r"recipe.yaml:5: data file 'none.txt' does not exist"):
        plan.read_lengths(recipe, insist=True)


@pytest.fixture(scope="module")
def small_gpt(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """GPT planned once on 8 GiB."""
    path = tmp_path_factory.mktemp("gpt") / "recipe.yaml"
    path.write_text(GPT, encoding="utf-8")
    return plan.plan_recipe(read_recipe(str(path)), choose_gpu(None, "8GiB", None))


def test_the_table_sums_to_the_gpu_and_the_drawing_shows_it(
    write_recipe: Write, small_gpt: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_recipe(GPT)
    here = replace(small_gpt, fit=replace(small_gpt.fit, recipe=read_recipe(path)))
    monkeypatch.setattr(plan_command, "plan_recipe", lambda *_, **__: here)
    lines, fits = command(path, (), memory="8GiB", svg="memory.svg")
    assert fits and re.fullmatch(r"fits: [\d.]+ of [\d.]+ GiB on a GPU of 8GiB \(recipe.yaml\)", lines[0])
    found = json.loads(command(path, (), memory="8GiB", as_json=True)[0][0])
    assert sum(found["card"].values()) == found["card_bytes"] == 8 * GIB
    named = {"weights", "optimizer", "logits and loss", "allocator's slack", "CUDA context", "free"}
    assert named <= set(found["card"])
    drawing = Path("memory.svg").read_text(encoding="utf-8")
    assert drawing.startswith("<svg") and lines[0] in drawing
    assert "limit: 8.00 GiB" in drawing
    assert drawing.count("<rect") == 1 + 2 * (len(found["card"]) - 1)  # all but what is free, in the bar and the legend
    with pytest.raises(RecipeError, match=r"^argument '--svg': 'none' is no folder"):
        command(path, (), memory="8GiB", svg="none/memory.svg")
    Path("there.yaml").touch()
    with pytest.raises(RecipeError, match=r"^argument '--write': 'there.yaml' exists"):  # before the search
        command(path, (), memory="8GiB", search=True, write="there.yaml")


def test_of_several_recipes_the_broken_ones_are_named_before_any_is_planned(write_recipe: Write) -> None:
    path = write_recipe(GPT)
    for name in ("one.yaml", "two.yaml"):
        Path(name).write_text(GPT.replace("task: causal-lm", "task: nothing"), encoding="utf-8")
    with pytest.raises(RecipeError) as refused:
        command_for_each(path, ["one.yaml", "two.yaml"], memory="8GiB")
    assert [str(error).split(":")[0] for error in refused.value.errors] == ["one.yaml", "two.yaml"]


def test_several_recipes_are_planned_in_one_call_and_one_that_does_not_fit_decides(
    write_recipe: Write, small_gpt: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [write_recipe(GPT), "second.yaml"]
    Path("second.yaml").write_text(GPT, encoding="utf-8")
    seen = []

    def planned(recipe: Recipe, *_: object, **__: object) -> Plan:
        seen.append(recipe.path)
        return replace(small_gpt, fit=replace(small_gpt.fit, recipe=recipe, verdict=OUT if len(seen) == 2 else "fits"))

    monkeypatch.setattr(plan_command, "plan_recipe", planned)
    words = ["second.yaml", "TrainingArguments.seed=3"]
    lines, fits = command_for_each(paths[0], words, memory="8GiB", with_advice=False)
    assert seen == paths and not fits
    assert [line.split(":")[0] for line in lines if "GiB on a GPU of 8GiB" in line] == ["fits", "does not fit"]
    found = json.loads("\n".join(command_for_each(paths[0], words, memory="8GiB", with_advice=False, as_json=True)[0]))
    assert [one["recipe"] for one in found] == paths
    with pytest.raises(RecipeError, match=r"^argument '--svg': one file, and 2 recipes; plan them one by one$"):
        command_for_each(paths[0], words, memory="8GiB", svg="one.svg")


def test_gpu_list_needs_no_recipe_and_a_plan_without_one_says_so() -> None:
    done = CliRunner().invoke(cli.plan, ["--gpu", "list"])
    assert done.exit_code == 0 and "rtx-3070" in done.stdout
    missing = CliRunner().invoke(cli.plan, ["--gpu", "t4"])
    assert missing.exit_code == 2 and "Missing argument 'RECIPE'" in missing.output


def test_two_devices_at_once_are_refused(write_recipe: Write) -> None:
    path = write_recipe(GPT)
    for arguments, message in (
        ({"cpu": True, "gpu": "t4"}, "argument '--cpu': --cpu and a GPU are two devices; give one of them"),
        ({"gpu": "t4", "memory": "8GiB"}, "argument '--memory': --gpu and --memory name two GPUs; give one of them"),
        ({"memory": "8GiB", "capability": "Ampere"}, "'Ampere' is not a compute capability; write it as 8.6"),
        ({"gpu": "t4", "capability": "8.6"}, "it goes with --memory; a GPU named by --gpu has its own"),
    ):
        with pytest.raises(RecipeError, match=re.escape(message)):
            command(path, (), **arguments)


def test_what_the_gpu_cannot_do_is_refused_as_run_would(write_recipe: Write) -> None:
    path = write_recipe(GPT.replace("fp16: true", "bf16: true"))
    with pytest.raises(RecipeError) as refusal:
        command(path, (), gpu="t4")
    assert str(refusal.value).startswith("recipe.yaml:6: bf16: true needs a GPU of compute capability 8.0 or later; ")


@pytest.mark.parametrize("name", ["rtx3070", "phi2-m3-safe"])
def test_a_planned_smoke_run_holds_what_the_real_one_holds(name: str, root: Path, in_root: None) -> None:
    _same_as_real(root / "recipes" / f"{name}.yaml")


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_planned_smoke_run_holds_what_the_real_one_holds(path: Path, in_root: None) -> None:
    _same_as_real(path)


def _same_as_real(path: Path) -> None:
    recipe, _ = shrink(read_recipe(str(path)))
    planned, real = trace_here(recipe, cpu=True), trace_here(recipe, cpu=True, real=True)
    # Checkpointing keeps the state of the random number generator, which a GPU would not hold.
    near = 0.001 * real.allocated if recipe.training.get("activation_checkpointing") else 256
    assert abs(planned.allocated - real.allocated) <= near
    assert planned.at == real.at


def test_plan_cpu_smoke_is_that_number(folder: Path, root: Path) -> None:
    path = str(root / "recipes" / "quickstart.yaml")
    found = json.loads(command(path, (), cpu=True, smoke=True, as_json=True)[0][0])
    real = trace_here(shrink(read_recipe(path))[0], cpu=True, real=True)
    assert abs(found["allocated_bytes"] - real.allocated) <= 256
    assert found["reserved_bytes"] == found["allocated_bytes"] and found["gpu"] == "cpu"


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_planned_without_its_model_or_data(path: Path, in_root: None) -> None:
    found = json.loads(command(str(path), (), gpu="h200", as_json=True)[0][0])
    assert 0 < found["allocated_bytes"] <= found["reserved_bytes"]
    assert sum(found["parts"].values()) == found["allocated_bytes"]


def test_run_is_refused_before_anything_is_loaded_when_it_cannot_fit(write_recipe: Write) -> None:
    recipe = read_recipe(write_recipe(GPT))
    lines: list[str] = []
    with pytest.raises(RecipeError) as refusal:
        preflight.ask_plan(recipe, T4, GIB, lines.append)
    found = re.fullmatch(
        r"recipe.yaml:6: this does not fit the GPU: (\S+ GiB) reserved at the peak, 1.00 GiB free on Tesla T4, in the "
        r"backward pass; `hf-recipes plan recipe.yaml --gpu t4` shows what would fit; --no-plan trains anyway",
        str(refusal.value),
    )
    assert found and lines == []


def test_an_upper_bound_refuses_no_run_whose_weights_and_optimizer_have_room(write_recipe: Write) -> None:
    recipe = read_recipe(write_recipe(GPT)).with_values({"TrainingArguments.use_liger_kernel": True}, "recipe.yaml:6")
    lines: list[str] = []
    record = preflight.ask_plan(recipe, T4, GIB, lines.append)
    assert record is not None and record["verdict"] == "cannot say"
    assert lines[0].startswith("plan: cannot say, ") and "an upper bound" in lines[1]
    with pytest.raises(RecipeError) as refusal:
        preflight.ask_plan(recipe, T4, GIB // 64, lines.append)
    assert "of weights and optimizer alone, 16.0 MiB free on Tesla T4" in str(refusal.value)


def test_a_sharded_run_is_refused_if_the_shares_of_its_ranks_alone_are_too_large(write_recipe: Write) -> None:
    recipe = read_recipe(write_recipe(GPT))
    lines: list[str] = []
    four = Layout(kind="zero3", processes=4)
    with pytest.raises(RecipeError) as refusal:
        preflight.ask_plan(recipe, T4, GIB // 64, lines.append, layout=four)
    found = re.fullmatch(
        r"recipe.yaml:6: this does not fit 4 GPUs: a process has (\S+) MiB of weights, gradients and optimizer alone, "
        r"16.0 MiB free on Tesla T4; take more GPUs, an adapter .LoraConfig. or offloading; --no-plan .*",
        str(refusal.value),
    )
    assert found and float(found[1]) > 16 and lines == []
    record = preflight.ask_plan(recipe, T4, GIB // 64, lines.append, layout=four, offloads=True)
    assert record is not None and record["verdict"] == "cannot say"
    assert lines[0].startswith("plan: cannot say, ")


def test_a_run_under_fsdp_is_refused_or_called_fits_by_the_trace_of_one_rank(write_recipe: Write) -> None:
    recipe = read_recipe(write_recipe(GPT))
    lines: list[str] = []
    four = Layout(kind="fsdp2", processes=4)
    with pytest.raises(RecipeError) as refusal:
        preflight.ask_plan(recipe, T4, GIB, lines.append, layout=four)
    assert re.search(r"this does not fit 4 GPUs: \S+ GiB reserved at the peak, 1.00 GiB free", str(refusal.value))
    record = preflight.ask_plan(recipe, T4, 14 * GIB, lines.append, layout=four)
    assert record is not None and record["verdict"] == "fits" and record["estimate"] == []
    # NCCL has taken nothing yet: what it may take is left free.
    tight = int(record["reserved_bytes"] * 1.11) + GIB
    record = preflight.ask_plan(recipe, T4, tight, lines.append, layout=four)
    assert record is not None and record["verdict"] == "tight"


def test_the_layout_of_a_launch_is_read_from_what_accelerate_sets() -> None:
    two = {"WORLD_SIZE": "2"}
    zero = {**two, "ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}
    assert launched_layout({}) == Layout()
    assert launched_layout(two) == Layout(kind="ddp", processes=2)
    assert launched_layout({**two, "ACCELERATE_USE_FSDP": "true"}) == Layout(kind="fsdp2", processes=2)
    assert launched_layout(zero) == Layout(kind="zero3", processes=2)
    assert offloads({"FSDP_OFFLOAD_PARAMS": "true"}) and not offloads({"FSDP_OFFLOAD_PARAMS": "false"})
    assert not offloads({"ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "none"}) and not offloads({})


def test_a_run_continues_when_it_fits_and_when_plan_has_no_prediction(write_recipe: Write) -> None:
    lines: list[str] = []
    record = preflight.ask_plan(read_recipe(write_recipe(GPT)), T4, 14 * GIB, lines.append)
    assert record is not None and record["verdict"] == "fits"
    assert re.fullmatch(r"plan: fits, \S+ GiB reserved at the peak, 14.00 GiB free on Tesla T4", lines[0])
    unknown = write_recipe(GPT.replace("preset: gpt-tiny", "pretrained_model_name_or_path: some/body"))
    assert preflight.ask_plan(read_recipe(unknown), T4, GIB, lines.append) is None
    assert lines[1].startswith("plan: time: ")
    assert lines[2] == "plan: no prediction (the shape of 'some/body' is not known without the Hub)"
    other = Device(kind="cuda", name="A new card", count=1, capability=(12, 0), memory_bytes=3 * GIB, bf16=True)
    assert preflight.present_gpu(other).memory_bytes == 3 * GIB


def test_planning_imports_torch_in_the_child_only() -> None:
    code = "import sys, hf_recipes.commands.plan, hf_recipes.plan.preflight; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
