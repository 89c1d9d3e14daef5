"""Where a recipe does not fit, plan names changes that do: each typed as given fits, the cheapest first."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from hf_recipes.catalog.gpus import Gpu
from hf_recipes.commands import plan as plan_command
from hf_recipes.plan.fit import advice
from hf_recipes.plan.fit import changes as options
from hf_recipes.plan.fit.plan import Plan
from hf_recipes.plan.fit.verdict import FITS, OUT, Fit, assess_fit, check_fit, custom_gpu
from hf_recipes.recipe.read import read_recipe
from hf_recipes.recipe.recipe import Recipe

Write = Callable[..., str]
MIB = 2**20
SHAPE = (
    "{model_type: llama, hidden_size: 256, num_hidden_layers: 2, num_attention_heads: 4, num_key_value_heads: 2, "
    "intermediate_size: 512, vocab_size: 8000, max_position_embeddings: 512}"
)
RECIPE = f"""
task: causal-lm
model: {{config: {SHAPE}}}
tokenizer: {{pretrained_model_name_or_path: openai-community/gpt2}}
dataset: {{path: text, data_files: none.txt, max_length: 512}}
TrainingArguments: {{output_dir: out, per_device_train_batch_size: 16, gradient_accumulation_steps: 2}}
"""


def _gpu(mib: int):
    return custom_gpu("a small GPU", mib * MIB + 461 * MIB, (8, 6), "a test")


@pytest.fixture(scope="module")
def fit(tmp_path_factory: pytest.TempPathFactory) -> Fit:
    """The recipe on a GPU that it does not fit, traced once for all tests."""
    path = tmp_path_factory.mktemp("advice") / "recipe.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    return check_fit(read_recipe(str(path)), _gpu(600))


@pytest.fixture(scope="module")
def found(fit: Fit) -> advice.Advice:
    return advice.advise(fit, seconds=600)


@pytest.fixture(scope="module")
def probe(fit: Fit) -> Fit:
    smallest = advice._smallest(fit, None)
    assert smallest is not None
    return smallest


@pytest.fixture
def planned(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command plans this recipe without tracing it again."""

    def plan_recipe(recipe: Recipe, gpu: Gpu, **_: Any) -> Plan:
        return Plan(fit=assess_fit(recipe, fit.trace, gpu), lengths=None, length_note="")

    monkeypatch.setattr(plan_command, "plan_recipe", plan_recipe)


def test_what_is_advised_fits_when_it_is_typed(fit: Fit, found: advice.Advice) -> None:
    assert fit.verdict == OUT
    changes = found.changes
    assert len(changes) == 3
    for change in changes:
        again = check_fit(read_recipe(fit.recipe.path, shlex.split(change.overrides)), fit.gpu)
        assert again.verdict == FITS and again.reserved.peak == change.fit.reserved.peak
    first = changes[0]  # the same result comes first, at the same effective batch
    assert first.values["TrainingArguments.per_device_train_batch_size"] < 16
    product = 1
    for name in ("per_device_train_batch_size", "gradient_accumulation_steps"):
        product *= first.values[f"TrainingArguments.{name}"]
    assert product == 32 and first.cost == "nothing in the result: the effective batch stays 32"


@pytest.mark.parametrize("asked", [True, False])
def test_with_the_length_of_the_rows_known_what_is_advised_is_traced_at_that_length(
    fit: Fit, asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Options that change max_length are traced without it, and not beside others."""
    single = options.single_changes

    def two(*given: Any) -> list[options.Option]:  # a shorter one, and behind it one that fits at 128 tokens alone
        every = [*single(*given)]
        return [next(filter(advice._is_shorter, every)), next(one for one in every if "dtype" in str(one.values))]

    monkeypatch.setattr(advice, "WANTED", 9)
    monkeypatch.setattr(advice, "single_changes", two)
    monkeypatch.setattr(advice, "combined_changes", lambda *_: [])
    short = check_fit(fit.recipe, fit.gpu, length=128)
    short = assess_fit(fit.recipe, short.trace, fit.gpu, usable=int(short.reserved.peak * 1.08))  # 1.11 would fit
    assert short.verdict != FITS
    changes = advice.advise(short, length=128, asked=asked, seconds=600).changes
    assert len(changes) == 2 + (not asked)  # one row a device, too
    for change in changes:
        shorter = any(name.endswith("max_length") for name in change.values)
        assert not (asked and shorter)  # --length overrules it
        changed = fit.recipe.with_values(change.values, "a test")
        typed = check_fit(changed, short.gpu, length=None if shorter else 128, usable=short.usable)
        assert (typed.verdict, typed.reserved.peak) == (FITS, change.fit.reserved.peak), change.overrides


def test_one_row_a_device_comes_behind_larger_batches_that_fit(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was traced first, and is one of the answers where few others are found."""
    monkeypatch.setattr(advice, "WANTED", 9)
    monkeypatch.setattr(advice, "single_changes", lambda *given: [*filter(is_batch, options.single_changes(*given))])
    monkeypatch.setattr(advice, "combined_changes", lambda *_: [])
    changes = advice.advise(fit, seconds=600).changes
    rows = [change.values["TrainingArguments.per_device_train_batch_size"] for change in changes]
    assert len(rows) > 1 and rows == sorted(rows, reverse=True) and rows[-1] == 1


def is_batch(option: options.Option) -> bool:
    return option.kinds == options.BATCH


def test_an_evaluation_that_is_the_peak_is_made_smaller_first(
    write_recipe: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(advice, "WANTED", 1)
    text = RECIPE.replace("per_device_train_batch_size: 16", "per_device_train_batch_size: 1")
    path = write_recipe(text.replace("output_dir: out", "output_dir: out, per_device_eval_batch_size: 64"))
    fit = check_fit(read_recipe(path), _gpu(260))
    assert fit.trace.phase == "evaluation" and fit.verdict == OUT
    change = advice.advise(fit).changes[0]
    assert change.values == {"TrainingArguments.per_device_eval_batch_size": 1}


def test_checkpointings_cost_is_counted(fit: Fit) -> None:
    values = {"per_device_train_batch_size": 1, "per_device_eval_batch_size": 1, "bf16": True}
    values |= {"gradient_accumulation_steps": 1}
    recipe = fit.recipe.with_values({f"TrainingArguments.{name}": value for name, value in values.items()}, "a test")
    without = check_fit(recipe, _gpu(4000))
    option = next(options.more_time(without))
    changed = check_fit(recipe.with_values(option.values, "a test"), _gpu(4000))
    cost = advice._counted(option.cost, without, changed)
    share = int(cost.removeprefix("time: ").partition("%")[0])
    assert 8 <= share <= 20  # a forward more of the two layers, not of the head, which is larger


def test_weights_larger_than_the_gpu_are_named_plainly(write_recipe: Write, planned: None) -> None:
    lines, fits = plan_command.command(write_recipe(RECIPE), (), memory="342MiB")
    assert not fits
    assert lines[-2].startswith("  no change that plan knows makes it fit: the weights alone take ")
    assert lines[-2].endswith(" GiB, more than the GPU has")


def test_json_carries_the_changes_and_no_advice_asks_for_none(
    write_recipe: Write, planned: None, found: advice.Advice, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_recipe(RECIPE)
    monkeypatch.setattr(advice, "advise", lambda *_, **__: found)
    printed = json.loads(plan_command.command(path, (), memory="1061MiB", as_json=True)[0][0])
    assert printed["verdict"] == OUT and len(printed["changes"]) == 3
    assert all(change["verdict"] == FITS and change["overrides"] for change in printed["changes"])
    printed = json.loads(plan_command.command(path, (), memory="1061MiB", with_advice=False, as_json=True)[0][0])
    assert "changes" not in printed


@pytest.mark.parametrize("optim", ["adamw_bnb_8bit", "adafactor"])
def test_nothing_is_advised_that_the_recipe_has_already(fit: Fit, optim: str) -> None:
    values = {"TrainingArguments.optim": optim, "TrainingArguments.bf16": True}
    changed = replace(fit, recipe=fit.recipe.with_values(values, "a test"))
    keys = {name for option in options.single_changes(changed, None) for name in option.values}
    assert "TrainingArguments.optim" not in keys and "TrainingArguments.bf16" not in keys


def test_changes_for_which_no_time_was_left_are_counted_and_not_called_impossible(fit: Fit) -> None:
    found = advice.advise(fit, seconds=0)
    assert len(found.changes) == 1 and found.untried > 0  # one row was looked at in any case
    lines = advice.format_advice(advice.Advice(changes=(), untried=found.untried), fit)
    assert lines[0].startswith("  no change that was tried makes it fit: ")
    assert lines[1] == f"  {found.untried} more changes were not tried: the time was over"


def test_seconds_is_the_time_for_the_changes(write_recipe: Write, planned: None) -> None:
    lines, _ = plan_command.command(write_recipe(RECIPE), (), memory="1061MiB", seconds=1e-9)
    assert [line for line in lines if line.endswith(" more changes were not tried: the time was over")]


def test_changes_that_are_enough_alone_come_before_those_that_are_combined(fit: Fit, found: advice.Advice) -> None:
    kinds = [option.kinds for option in options.combined_changes(fit, None)]
    assert all(kinds) and any(len(one) > 1 for one in kinds)
    combined = ["+" in change.what for change in found.changes]
    assert combined == sorted(combined) and not combined[0]


def test_what_may_fit_by_a_guess_is_traced_before_what_hardly_does(fit: Fit, probe: Fit) -> None:
    one_row = next(options.batches(fit, (1,), probe))
    rest = fit.trace.allocated - options.fixed_bytes(fit)
    assert one_row.fixed + one_row.variable * rest == pytest.approx(probe.trace.allocated, rel=0.01)
    assert next(options.batches(fit, (8,), probe)).variable > one_row.variable
