"""`hf-recipes tune`: what makes a step faster at equal loss is found, kept and written; the rest is left."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hf_recipes.cli import main
from hf_recipes.errors import PlanError, RecipeError
from hf_recipes.pipeline.tuning.candidates import Candidate, Here, list_candidates
from hf_recipes.pipeline.tuning.pairs import Trial, gain_of, losses_differ, order_of, ratio_of
from hf_recipes.pipeline.tuning.search import KEPT, LITTLE, REFUSED, SLOWER, UNSURE, UNTRIED, Base, search
from hf_recipes.pipeline.tuning.trial import cached_kernels
from hf_recipes.pipeline.tuning.worker import FailedTrialError, Worker
from hf_recipes.plan.fit.write_recipe import write_recipe as write_tuned
from hf_recipes.recipe.read import read_recipe
from hf_recipes.recipe.recipe import Recipe

RECIPE = """# a small model
task: causal-lm
model: {{config: {{model_type: gpt2, n_layer: 1, n_head: 2, n_embd: 32, n_positions: 32}}}}
BpeTrainer: {{vocab_size: 400}}
dataset:
  path: text
  data_files: {{train: {root}/recipes/data/austen/persuasion.txt}}
  split: {{train: "train[:5%]"}}
TrainingArguments:
  output_dir: out
  per_device_train_batch_size: 2  # small
  gradient_accumulation_steps: 4
  max_steps: 9
"""
SFT = """
task: chat
model: {pretrained_model_name_or_path: some/model}
dataset: {path: json, data_files: chat.jsonl}
SFTConfig: {output_dir: out, per_device_train_batch_size: 1, optim: adamw_torch}
"""
CPU = Here(kind="cpu", capability=None, attention="sdpa", packages=["c++"])
GPU = Here(kind="cuda", capability=(9, 0), attention="sdpa", packages=["flash_attn", "liger_kernel", "triton"])


@pytest.fixture
def recipe(root: Path, write_recipe: Callable[..., str]) -> str:
    return write_recipe(RECIPE.format(root=root))


@pytest.fixture
def worker() -> Iterator[Worker]:
    found = Worker()
    yield found
    found.close()


def shown(recipe: Recipe, here: Here, **given: Any) -> list[str]:
    return [str(one) for one in list_candidates(recipe, here, **given)]


# what is tried -------------------------------------------------------------------------------------------------------


def test_every_micro_batch_that_is_tried_makes_the_same_step(recipe: str) -> None:
    read = read_recipe(recipe)
    sizes = [one.values for one in list_candidates(read, CPU) if "per_device_train_batch_size" in str(one)]
    assert len(sizes) == 3
    assert {rows * steps for rows, steps in (values.values() for values in sizes)} == {8}


def test_global_batch_size_decides_the_accumulation_of_a_micro_batch(
    root: Path, write_recipe: Callable[..., str]
) -> None:
    text = RECIPE.format(root=root).replace("  gradient_accumulation_steps: 4\n", "") + "global_batch_size: 8\n"
    found = shown(read_recipe(write_recipe(text)), CPU)
    assert found[:3] == [f"per_device_train_batch_size: {size}" for size in (8, 4, 1)]


def test_only_with_all_is_something_tried_that_changes_what_a_step_learns_from(
    write_recipe: Callable[..., str],
) -> None:
    Path("chat.jsonl").write_text('{"messages": []}\n', encoding="utf-8")
    read = read_recipe(write_recipe(SFT))
    plain, every = list_candidates(read, GPU), list_candidates(read, GPU, every=True)
    assert all(one.same_rows and not one.rounds for one in plain)
    assert [str(one) for one in every[len(plain) :]] == [
        "tf32: true",
        "packing: true",
        "train_sampling_strategy: group_by_length",
    ]
    assert {"activation_checkpointing: false", "optim: adamw_torch_fused", "use_liger_kernel: true"} <= set(
        map(str, plain)
    )
    assert "use_liger_kernel: true" not in shown(read, CPU)


def test_attention_kernels_of_the_hub_are_tried_where_they_are_cached(
    write_recipe: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("chat.jsonl").write_text('{"messages": []}\n', encoding="utf-8")
    read = read_recipe(write_recipe(SFT))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    (tmp_path / "models--kernels-community--flash-attn2" / "snapshots").mkdir(parents=True)
    monkeypatch.setitem(sys.modules, "kernels", None)
    assert cached_kernels() == []  # without the package nothing can load them
    monkeypatch.delitem(sys.modules, "kernels")
    (tmp_path / "kernels.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert cached_kernels() == ["kernels-community/flash-attn2"]
    plain = replace(GPU, packages=["triton"], kernels=cached_kernels())
    assert "attn_implementation: kernels-community/flash-attn2" in shown(read, plain)
    for other in (replace(plain, packages=["flash_attn"]), replace(plain, kind="cpu")):
        assert not [one for one in shown(read, other) if "kernels-community" in one]


# how much faster -----------------------------------------------------------------------------------------------------


def trial(seconds: float, *, losses: tuple[float, ...] = (1.0, 0.9, 0.8), start: float = 1.0) -> Trial:
    return Trial(seconds=(seconds,) * 3, tokens=(100,) * 3, first_losses=losses, losses=(2.0,), start_seconds=start)


def test_turns_a_b_b_a_cancel_a_machine_that_grows_slower() -> None:
    moment = iter(range(100))
    ratios = []
    for order in order_of(4):
        taken = {second: trial(1 + 0.05 * next(moment)) for second in order}
        ratios.append(ratio_of(taken[False], taken[True], same_rows=True))
    found = gain_of(ratios)
    assert found.times == pytest.approx(1.0, abs=0.005)
    assert not found.faster and not found.slower


def test_an_interval_of_noise_alone_excludes_one_as_rarely_as_it_says() -> None:
    draw = random.Random(0)
    wrong = 0
    for _ in range(400):
        found = gain_of([draw.lognormvariate(0, 0.1) for _ in range(4)])
        wrong += found.faster or found.slower
    assert 400 * 0.02 < wrong < 400 * 0.09


def test_two_pairs_give_no_interval_and_a_loss_that_is_not_finite_is_another_loss() -> None:
    assert gain_of([2.0, 2.0]).low is None and not gain_of([2.0, 2.0]).faster
    assert losses_differ((1.0, 1.0), (1.0, 1.0001), 1e-3) is None
    assert losses_differ((1.0, 1.0), (1.0, 1.1), 1e-3) == pytest.approx(0.1)
    assert losses_differ((1.0,), (float("nan"),), 1e-3) == float("inf")


class Machine:
    """A machine on which the seconds of a step are known, with a clock of its own."""

    def __init__(self, seconds: Callable[[Recipe], float], losses: Callable[[Recipe], float] = lambda _: 1.0) -> None:
        self.seconds, self.losses, self.now, self.fresh = seconds, losses, 0.0, 0
        self.draw = random.Random(1)

    def clock(self) -> float:
        return self.now

    def run(self, recipe: Recipe, steps: int, *, check: bool, seconds: float, new_process: bool = False) -> Trial:
        self.fresh += new_process
        taken = self.seconds(recipe) * self.draw.uniform(0.99, 1.01)
        self.now += 1.0 + taken * max(steps, 3)
        return trial(taken, losses=(self.losses(recipe),) * 3)

    def search(self, recipe: Recipe, candidates: list[Candidate], minutes: float = 10) -> Any:
        first = self.run(recipe, 0, check=True, seconds=9)
        base = Base(checked=first, timed=first)
        return search(recipe, candidates, self, base=base, seconds=60 * minutes, say=lambda _: None, clock=self.clock)


def key(name: str, value: Any, **given: Any) -> Candidate:
    return Candidate(values={f"TrainingArguments.{name}": value}, **given)


def test_what_is_faster_is_kept_and_the_next_setting_is_measured_on_top_of_it(recipe: str) -> None:
    def seconds(of: Recipe) -> float:
        found = 0.5 if of.training["per_device_train_batch_size"] == 4 else 1.0
        found *= 1.3 if of.training.get("dataloader_num_workers") else 1.0
        return found * (0.8 if of.training.get("optim") == "adamw_torch_fused" else 1.0)

    names = [("per_device_train_batch_size", 4), ("per_device_train_batch_size", 1), ("dataloader_num_workers", 2)]
    names += [("optim", "adamw_torch_fused"), ("group", 1)]
    found = Machine(seconds).search(read_recipe(recipe), [key(*one) for one in names])
    assert [one.verdict for one in found.tried[:3]] == [KEPT, SLOWER, KEPT]  # its sister was not tried any more
    assert found.tried[3].verdict in (UNSURE, LITTLE)
    assert found.values == {
        "TrainingArguments.per_device_train_batch_size": 4,
        "TrainingArguments.optim": "adamw_torch_fused",
    }
    assert found.times == pytest.approx(2.5, rel=0.05)


def test_a_faster_setting_with_another_loss_is_refused_and_the_search_keeps_to_its_time(recipe: str) -> None:
    machine = Machine(
        lambda of: 0.1 if of.training.get("broken") else 1.0, lambda of: 2.0 if of.training.get("broken") else 1.0
    )
    found = machine.search(read_recipe(recipe), [key("broken", True), key("one", 1), key("two", 2)], minutes=0.8)
    assert [one.verdict for one in found.tried] == [REFUSED, UNSURE, UNTRIED]
    assert found.values == {} and machine.now < 60
    assert "needs about" in str(found.tried[-1])


def test_a_setting_that_changes_its_process_is_not_in_the_one_of_the_next_trial(recipe: str) -> None:
    machine = Machine(lambda of: 1.0)
    machine.search(read_recipe(recipe), [key("compiled", True, leaves_traces=True), key("other", 1)])
    assert machine.fresh == 4  # three times from B to A in A B B A A B B A A B and its check, once to the other setting


# on this machine -----------------------------------------------------------------------------------------------------


def test_real_trials_have_equal_losses_and_tokens_where_the_mathematics_is_the_same(
    recipe: str, worker: Worker
) -> None:
    read = read_recipe(recipe)  # GPT-2 has dropout: without it nothing would be equal

    def trials(**changes: Any) -> tuple[Trial, Trial]:
        changed = read.with_values({f"TrainingArguments.{name}": value for name, value in changes.items()}, "a test")
        checked = worker.run(changed, 0, check=True, seconds=300)
        return checked, worker.run(changed, 3, check=False, seconds=300)

    (checked, timed), (again, larger) = trials(), trials(per_device_train_batch_size=8, gradient_accumulation_steps=1)
    assert len(checked.first_losses) == 3 and losses_differ(checked.first_losses, again.first_losses, 1e-3) is None
    assert timed.tokens == larger.tokens == (8 * 32,) * 3
    assert timed.waiting > 0 and timed.attention == "sdpa"
    other, _ = trials(learning_rate=0.01)
    assert losses_differ(checked.first_losses, other.first_losses, 1e-3) is not None
    assert not Path("out").exists()
    with pytest.raises((FailedTrialError, RecipeError), match="adamw_nonesuch"):  # upstream's reason
        trials(optim="adamw_nonesuch")


def test_the_command_says_what_it_tried_and_writes_the_recipe_with_its_comments(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["tune", recipe, "--minutes", "0.4"])
    out = capsys.readouterr().out
    assert "settings to try" in out and "s a step" in out
    assert any(verdict in out for verdict in (KEPT, UNSURE, SLOWER, UNTRIED, LITTLE))
    written = Path("recipe-tuned.yaml")
    if "nothing was faster" in out:
        assert not written.exists()
    else:
        assert "# a small model" in written.read_text() and "# small" in written.read_text()
        assert read_recipe(str(written)).training["max_steps"] == 9


def test_a_found_setting_replaces_the_old_key_that_says_the_contrary(write_recipe: Callable[..., str]) -> None:
    path = write_recipe(SFT.replace("output_dir: out", "output_dir: out, gradient_checkpointing: true"))
    assert write_tuned(path, "tuned.yaml", {"SFTConfig.activation_checkpointing": False}) == "  written: tuned.yaml"
    assert read_recipe("tuned.yaml").training["activation_checkpointing"] is False
    with pytest.raises(PlanError, match=r"is not written: .*max_steps"):
        write_tuned(path, "other.yaml", {"SFTConfig.max_steps": "many"})
    assert not Path("other.yaml").exists()


def test_a_dry_run_lists_and_measures_nothing_and_an_existing_file_is_not_overwritten(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["tune", recipe, "--dry-run"])
    assert "per_device_train_batch_size: 8, gradient_accumulation_steps: 1" in capsys.readouterr().out
    Path("recipe-tuned.yaml").write_text("mine", encoding="utf-8")
    with pytest.raises(SystemExit):
        main(["tune", recipe])
    assert "'recipe-tuned.yaml' exists; name a new file, or remove that one" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["tune", recipe, "TrainingArguments.seed=1", "--output", "new.yaml"])
    assert "overrides are not in the file" in capsys.readouterr().err


@pytest.mark.slow
def test_json_is_all_that_is_printed_with_json(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["tune", recipe, "--minutes", "0.1", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["device"]["kind"] and found["base"]["seconds"]
    assert {one["verdict"] for one in found["tried"]} <= {KEPT, UNSURE, SLOWER, UNTRIED, REFUSED, LITTLE}
