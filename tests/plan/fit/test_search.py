"""`plan --search`: the largest micro-batch of each length, the recommended one verified, and written."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hf_recipes import cli
from hf_recipes.commands import plan
from hf_recipes.commands.plan import command
from hf_recipes.errors import OutOfTimeError, RecipeError
from hf_recipes.plan.fit import search
from hf_recipes.plan.fit import write_recipe as rewriting
from hf_recipes.plan.fit.verdict import FITS, check_fit, custom_gpu
from hf_recipes.plan.trace.worker import LAST_VERDICT
from hf_recipes.recipe.read import read_recipe

Write = Callable[..., str]
MIB = 2**20
RECIPE = """\
task: causal-lm   # what it is
model:
  config: {model_type: llama, hidden_size: 256, num_hidden_layers: 2, num_attention_heads: 4, intermediate_size: 512,
           vocab_size: 8000, max_position_embeddings: 512}
tokenizer: {pretrained_model_name_or_path: openai-community/gpt2}
dataset: {path: text, data_files: none.txt, max_length: 256}
TrainingArguments:
  output_dir: out
  per_device_train_batch_size: 4  # a guess of somebody's
  gradient_accumulation_steps: 16
"""


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> search.Frontier:
    path = tmp_path_factory.mktemp("search") / "recipe.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    gpu = custom_gpu("a small GPU", 1500 * MIB, (8, 6), "a test")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "SHARES", (0.25, 0.75, 1.0, 2.0))
        return search.search(check_fit(read_recipe(str(path)), gpu), seconds=300)


def test_the_recommended_point_is_the_recipes_length_with_the_largest_batch_that_fits(searched) -> None:
    chosen = searched.chosen
    assert chosen is not None and chosen.verified and chosen.length == 256
    values = {"TrainingArguments.per_device_train_batch_size": chosen.micro_batch}
    fits = check_fit(searched.recipe.with_values(values, "a test"), searched.gpu)
    assert fits.verdict == FITS
    values["TrainingArguments.per_device_train_batch_size"] *= 2
    assert check_fit(searched.recipe.with_values(values, "a test"), searched.gpu).verdict != FITS


def test_lengths_are_multiples_of_64_up_to_the_models_positions_and_shorter_rows_fit_more(searched) -> None:
    lengths = [point.length for point in searched.points]
    assert lengths == sorted(set(lengths)) and all(length % 64 == 0 for length in lengths) and max(lengths) <= 512
    batches = [point.micro_batch for point in searched.points]
    assert batches == sorted(batches, reverse=True) and all(b & (b - 1) == 0 for b in batches)
    assert all(point.verified for point in searched.points)


def test_the_curve_predicts_what_a_trace_of_its_own_finds(searched) -> None:
    fit = check_fit(searched.recipe, searched.gpu)
    curve, _ = search._measure_curve(fit, [64, 256, 512])
    trace = check_fit(search._recipe_at(fit, 16, 320), searched.gpu).trace
    predicted = search._predict_allocated(curve, 16, min(16, fit.trace.eval_batch), 320)
    assert predicted == pytest.approx(trace.allocated, rel=0.02)


def test_the_written_recipe_keeps_its_comments_and_plans_to_the_recommended_point(searched, folder: Path) -> None:
    Path("recipe.yaml").write_text(RECIPE, encoding="utf-8")
    point = searched.chosen
    values = search.override_values(searched.recipe, point.micro_batch, point.length, searched.effective, 8)
    assert rewriting.write_recipe("recipe.yaml", "new.yaml", values) == "  written: new.yaml"
    text = Path("new.yaml").read_text(encoding="utf-8")
    assert "# what it is" in text and "# a guess of somebody's" in text
    again = read_recipe("new.yaml")
    assert again.training["per_device_train_batch_size"] == point.micro_batch
    assert again.training["gradient_accumulation_steps"] * point.micro_batch == 64
    with pytest.raises(RecipeError, match=r"^argument '--write': 'new.yaml' exists; name a new file"):
        rewriting.write_recipe("recipe.yaml", "new.yaml", values)


def test_a_recipe_that_extends_another_still_does_from_another_folder(folder: Path) -> None:
    Path("base.yaml").write_text(RECIPE, encoding="utf-8")
    Path("child.yaml").write_text("extends: base.yaml  # the parent\n", encoding="utf-8")
    Path("deep").mkdir()
    values = {"TrainingArguments.per_device_train_batch_size": 2, "dataset.max_length": 128}
    rewriting.write_recipe("child.yaml", "deep/new.yaml", values)
    found = read_recipe("deep/new.yaml")
    assert found.training["per_device_train_batch_size"] == 2 and found.get("dataset.max_length") == 128
    assert "# the parent" in Path("deep/new.yaml").read_text(encoding="utf-8")


def test_a_gpu_that_is_too_small_has_no_frontier_and_nothing_is_written(
    write_recipe: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_recipe(RECIPE)
    searches: list[search.Frontier] = []
    real = search.search
    monkeypatch.setattr(search, "search", lambda fit, **_: searches.append(real(fit)) or searches[0])
    found = json.loads(command(path, (), memory="382MiB", search=True, as_json=True)[0][0])
    assert found["search"]["recommended"] is None
    assert found["search"]["why"] == "nothing fits: not one row of any of these lengths"
    monkeypatch.setattr(search, "search", lambda fit, **_: searches[0])
    with pytest.raises(RecipeError, match="there is nothing to write: no point fits"):
        command(path, (), memory="382MiB", search=True, write="new.yaml")
    with pytest.raises(RecipeError, match="it writes what --search recommends; add --search"):
        command(path, (), memory="8GiB", write="new.yaml")


def test_a_module_that_holds_the_peak_of_small_batches_does_not_hide_another_that_grows() -> None:
    def floor(rows: int, length: int) -> float:  # a head's gradient, whatever the batch
        return 1000.0

    def growing(rows: int, length: int) -> float:
        return 100.0 + rows * (2 + 0.05 * length + 1e-4 * length**2)

    lengths, few, many = (64, 256, 512), 2, 8
    at = [(few, 256), (many, 256), (many, 64), (many, 512)]
    sizes = np.array([[place(*one) for one in at] for place in (floor, growing)])
    found = search._coefficients(sizes, lengths, few, many)
    assert max(sizes[1]) < 1000  # in every trace the floor is the peak
    for rows, length in ((4, 128), (64, 320), (512, 512)):
        assert search._largest_bytes(found, rows, length) == pytest.approx(
            max(floor(rows, length), growing(rows, length))
        )


def test_a_search_without_time_answers_with_what_is_known(write_recipe: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    fit = check_fit(read_recipe(write_recipe(RECIPE)), custom_gpu("a small GPU", 1500 * MIB, (8, 6), "a test"))

    def late(recipes: list, *_: object, **__: object) -> list:
        return [OutOfTimeError.at("recipe.yaml", "late")] * len(recipes)

    real = search.check_fits
    monkeypatch.setattr(search, "check_fits", late)
    nothing = search.search(fit, seconds=5)
    assert nothing.chosen is not None and (nothing.chosen.micro_batch, nothing.chosen.length) == (4, 256)
    assert nothing.why == "the 5 seconds were over before anything else was traced: give it more (--seconds)"
    assert search.format_frontier(nothing)[1].split()[:4] == ["4", "?", "256", "1,024"]
    assert search.as_json(nothing)["recommended"]["largest_batch"] is None
    answers = iter([real, *[late] * 100])  # the curve's traces are there, and then the time is over
    monkeypatch.setattr(search, "check_fits", lambda *args, **words: next(answers)(*args, **words))
    curve_only = search.search(fit, seconds=5)
    assert curve_only.chosen is not None and curve_only.chosen.verified and curve_only.chosen.length == 256


def test_a_search_has_the_time_that_is_left_of_the_command_and_an_end_before_it(
    write_recipe: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python's start and the recipe's own plan count, and something is left for the verdict after the last trace."""
    limits: list[float] = []
    real = search.time_limit
    monkeypatch.setattr(search, "time_limit", lambda seconds: limits.append(seconds) or real(0))
    arguments = {"memory": "1500MiB", "search": True, "as_json": True, "seconds": 100.0}
    command(write_recipe(RECIPE), (), **arguments, began=time.monotonic() - 80)
    assert 0 < limits[0] < 20 - LAST_VERDICT + 0.001


def test_the_time_of_a_command_counts_from_the_start_of_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict] = []
    monkeypatch.setattr(plan, "command_for_each", lambda *_, **words: given.append(words) or ([], True))
    monkeypatch.setattr(cli.sys, "argv", ["hf-recipes", "plan", "a.yaml", "--memory", "8GiB", "--search"])
    cli.main()
    assert given[0]["began"] == cli.BEGAN < time.monotonic()
    cli.main(["plan", "a.yaml", "--memory", "8GiB", "--search"])  # from a program: its process began long ago
    assert given[1]["began"] is None
