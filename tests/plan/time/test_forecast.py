"""plan's time: steps as upstream counts them, a roofline that says what it rests on, and records that narrow it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from hf_recipes.catalog.gpus import known_gpus
from hf_recipes.commands.plan import command
from hf_recipes.common.text import format_duration
from hf_recipes.plan.lab_record import read_records
from hf_recipes.plan.time import forecast
from hf_recipes.plan.time.efficiency import find_slowdown, measured_ratio, read_lab_timings
from hf_recipes.plan.time.roofline import FORMULA, HOST_SECONDS, roofline_seconds
from hf_recipes.plan.trace.result import Lengths, Work
from hf_recipes.plan.trace.trace import trace_here
from hf_recipes.record import DeviceFacts, ForecastFacts, RunRecord
from tests.support.tiny_recipes import LLAMA, tiny

Write = Callable[..., str]
RTX_4090 = known_gpus()["rtx-4090"]
LENGTHS = Lengths(rows=100, eval_rows=10, longest=32, tokens=1600, cut=0, rows_by_length=((8, 50), (24, 49), (32, 1)))


@pytest.fixture(scope="module")
def seen():
    return trace_here(tiny("causal-lm", LLAMA, bf16=True))


def test_a_roofline_takes_arithmetic_and_traffic_or_the_machine_that_launches() -> None:
    gpu = replace(RTX_4090, bandwidth=1e9, half_flops=1e12, fp32_flops=1e11)
    work = Work(flops=3 * 10**12, bytes_moved=5 * 10**9, kernels=1000, half_flops=2 * 10**12, matmul_bytes=10**9)
    # 2 s of half products and 10 s of fp32 ones (their traffic of 1 s hides behind), 4 s of traffic
    assert roofline_seconds(work, gpu) == pytest.approx(2 + 10 + 4)
    assert roofline_seconds(work, gpu, share=0.5) == pytest.approx(8)
    assert (
        roofline_seconds(replace(work, kernels=10**6), gpu, share=0.5) == 10**6 * HOST_SECONDS
    )  # shorter rows, no fewer
    assert roofline_seconds(work, replace(gpu, half_flops=None)) is None
    assert roofline_seconds(work, replace(gpu, bandwidth=None)) is None


def test_the_trace_separates_half_products_from_full_ones(seen) -> None:
    work = seen.work["micro-batch"]
    assert 0.9 * work.flops < work.half_flops <= work.flops and 0 < work.matmul_bytes < work.bytes_moved
    full = trace_here(tiny("causal-lm", LLAMA)).work["micro-batch"]
    assert full.half_flops == 0 and full.flops == pytest.approx(work.flops, rel=0.05)  # another attention kernel


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_train_epochs": 1},
        {"num_train_epochs": 2.5, "gradient_accumulation_steps": 3},
        {"num_train_epochs": 1, "gradient_accumulation_steps": 8, "dataloader_drop_last": True},
        {"max_steps": 7},
        {"num_train_epochs": 0.3, "per_device_train_batch_size": 7},
    ],
)
def test_steps_are_counted_as_the_trainer_counts_them(arguments: dict, tmp_path: Path) -> None:
    import torch
    from transformers import Trainer, TrainingArguments

    recipe = tiny("causal-lm", LLAMA, **arguments)
    given = {k: v for k, v in recipe.training.items() if k != "output_dir"}
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", **given)
    data = [{"input_ids": torch.zeros(4, dtype=torch.long)}] * LENGTHS.rows
    trainer = Trainer(torch.nn.Linear(1, 1), arguments, train_dataset=data)
    max_steps = trainer.set_initial_training_values(arguments, trainer.get_train_dataloader())[-1]
    rows = recipe.training["per_device_train_batch_size"]
    predicted = forecast._steps(recipe, SimpleNamespace(micro_batch=rows, length=32), LENGTHS, 1)
    assert predicted == max_steps > 0


def test_padded_batches_count_their_mean_longest_row_and_blocks_all(seen) -> None:
    recipe = tiny("chat", LLAMA, sft=True, packing=False)
    padded = replace(seen, micro_batch=1, length=32)
    share, notes = forecast._filled_share(recipe, padded, LENGTHS)
    assert share == pytest.approx((8 * 0.5 + 24 * 0.49 + 32 * 0.01) / 32) and notes == []
    assert forecast._filled_share(recipe, replace(padded, micro_batch=64), LENGTHS)[0] > 0.75
    assert forecast._filled_share(tiny("causal-lm", LLAMA), seen, LENGTHS) == (1.0, [])
    assert forecast._filled_share(recipe, padded, None) == (1.0, ["every row counted as the longest"])


def test_without_records_it_is_called_a_guess_and_records_of_the_gpu_narrow_it(seen) -> None:
    recipe = tiny("causal-lm", LLAMA, bf16=True, num_train_epochs=3)
    guess = forecast.forecast_time(recipe, seen, RTX_4090, lengths=LENGTHS)
    assert isinstance(guess, forecast.Forecast) and guess.steps == 75 and guess.epochs == 3
    assert guess.basis == "a roofline guess: no record of such a GPU"
    measured = ForecastFacts(step_seconds=0.1, measured_step_seconds=0.15, formula=FORMULA)
    mine = RunRecord(task="chat", forecast=measured, device=DeviceFacts(name=RTX_4090.title, capability=(8, 9)))
    narrow = forecast.forecast_time(recipe, seen, RTX_4090, lengths=LENGTHS, records=[mine, mine])
    assert isinstance(narrow, forecast.Forecast) and narrow.basis == "from 2 records of this GPU"
    assert narrow.high / narrow.low < guess.high / guess.low
    other = replace(mine, device=DeviceFacts(name="Another", capability=(8, 6)))
    kin = forecast.forecast_time(recipe, seen, RTX_4090, lengths=LENGTHS, records=[other])
    assert isinstance(kin, forecast.Forecast) and kin.basis == "from 1 record of its generation"
    assert narrow.high / narrow.low < kin.high / kin.low
    older = replace(mine, forecast=replace(measured, formula=1))
    for unusable in (older, replace(mine, forecast=ForecastFacts(step_seconds=0, formula=FORMULA))):
        assert find_slowdown(RTX_4090, [unusable])[2].startswith("a roofline guess")


def test_the_labs_cells_narrow_the_gpus_forecast_and_each_would_have_been_forecast_by_the_others(root: Path) -> None:
    (path,) = (root / "recipes" / "results" / "lab").glob("nvidia-h100*hbm3.jsonl")
    cells, gpu = read_lab_timings(path), known_gpus()["h100"]
    assert len(cells) >= 13 and {cell.device.name for cell in cells} == {gpu.title}
    low, high, basis = find_slowdown(gpu, cells)
    assert basis == f"from {len(cells)} records of this GPU" and high / low < 3
    inside = 0
    for index, cell in enumerate(cells):
        low, high, _ = find_slowdown(gpu, [*cells[:index], *cells[index + 1 :]])
        inside += low <= measured_ratio(cell.forecast) <= high
    assert inside >= 0.9 * len(cells)
    assert find_slowdown(known_gpus()["h200"], cells)[2] == f"from {len(cells)} records of its generation"


def test_small_recipes_are_bound_by_the_machine_that_launches(root: Path) -> None:
    """The figure in roofline.py is the records': microseconds of an operation, of the fastest cell of each recipe."""
    (path,) = (root / "recipes" / "results" / "lab").glob("nvidia-h100*hbm3.jsonl")
    found: dict[str, float] = {}
    for cell in read_records(path.parent):
        predicted, measured = cell.predicted, cell.measured
        if predicted is None or measured is None or not measured.finished:
            continue
        assert measured.step_seconds is not None and measured.micro_batches is not None
        one = predicted.work["micro-batch"]
        if roofline_seconds(one, known_gpus()["h100"]) == one.kernels * HOST_SECONDS:
            operations = measured.micro_batches * one.kernels + predicted.work["optimizer"].kernels
            took = 1e6 * measured.step_seconds / operations
            found[cell.recipe] = min(took, found.get(cell.recipe, took))
    assert (round(min(found.values())), round(max(found.values()))) == (32, 56) and len(found) == 10


def test_a_time_that_cannot_be_forecast_has_its_reason(seen) -> None:
    recipe = tiny("causal-lm", LLAMA, bf16=True, num_train_epochs=3)
    assert forecast.forecast_time(recipe, seen, RTX_4090) == (
        "time: not forecast, since the number of rows is not known (max_steps, or data on this machine, gives it)"
    )
    bare = replace(RTX_4090, half_flops=None)
    assert forecast.forecast_time(recipe, seen, bare, lengths=LENGTHS) == (
        "time: not forecast, since rtx-4090's rates have no source here"
    )


def test_the_line_and_the_price() -> None:
    found = forecast.Forecast(
        low=9600, high=12600, step_seconds=8.0, steps=1200, epochs=3.0, parts={}, basis="from 2 records of this GPU"
    )
    assert forecast.format_forecast(found, 1.5) == (
        "time: 2 h 40 min to 3 h 30 min for 3 epochs (1,200 steps; from 2 records of this GPU); costs 4.00 to 5.25"
    )
    assert [format_duration(s) for s in (38.2, 61, 3599, 7_236_000)] == ["38 s", "1 min", "1 h 0 min", "2,010 h 0 min"]
    assert forecast.as_json(found, 1.5)["cost"] == [4.0, 5.25]


def test_plan_prints_it_and_a_run_records_what_a_step_took(write_recipe: Write, folder: Path) -> None:
    text = (
        "task: causal-lm\nmodel: {preset: gpt-tiny}\ntokenizer: {pretrained_model_name_or_path: gpt2}\n"
        "dataset: {path: text, data_files: none.txt, max_length: 64}\n"
        "TrainingArguments: {output_dir: out, max_steps: 50, bf16: true}\n"
    )
    path = write_recipe(text)
    line = command(path, (), gpu="rtx-4090", price=1.0)[0][-1]
    assert line.startswith("  time: ") and "in all (50 steps; a roofline guess" in line and "; costs " in line
    from hf_recipes.pipeline.run import run

    record = json.loads(
        run(path, ("TrainingArguments.bf16=false", "TrainingArguments.max_steps=6"), smoke=True).read_text()
    )
    assert record["status"] == "finished" and "forecast" in record


def test_the_clock_prints_what_is_left_once_and_again_when_it_changes() -> None:
    from hf_recipes.training.step_timer import FIRST_REPORT, WARM_UP, StepTimer

    lines: list[str] = []
    clock = StepTimer(lines.append, (30.0, 60.0))
    state = SimpleNamespace(max_steps=100_000, global_step=0, is_world_process_zero=True)
    for step in range(1, 61):
        state.global_step = step
        clock.on_step_begin(None, state, None)
        clock.began -= 0.1 if step <= 30 else 1.0  # as if a step had taken so long
        clock.on_step_end(None, state, None)
    assert clock.steps == 60 - WARM_UP and clock.step_seconds == pytest.approx((27 * 0.1 + 30) / 57, rel=0.01)
    assert lines[0].startswith(
        "forecast: 2 h 47 min of training left, 0.1 s per step (plan's estimate: 30 s to 1 min in all)"
    )
    assert 2 < len(lines) < 30 and FIRST_REPORT == 20
