"""`hf-recipes plan`: a verdict for a GPU, and one message for a GPU that is none."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
from click.testing import CliRunner, Result

from hf_recipes import cli
from hf_recipes.catalog import gpus
from hf_recipes.errors import RecipeError
from hf_recipes.plan.fit import verdict
from hf_recipes.recipe.read import read_recipe

RECIPE = """
task: causal-lm
model: {preset: gpt-tiny}
tokenizer: {pretrained_model_name_or_path: openai-community/gpt2}
dataset: {path: text, data_files: none.txt, max_length: 256}
TrainingArguments: {output_dir: out, per_device_train_batch_size: 8, fp16: true}
"""


@pytest.fixture
def recipe(write_recipe: Callable[..., str]) -> str:
    return write_recipe(RECIPE)


def _plan(*arguments: str) -> Result:
    return CliRunner().invoke(cli.plan, arguments)


def test_a_small_gpt_fits_8_gib_and_a_large_batch_does_not(recipe: str) -> None:
    done = _plan(recipe, "--gpu", "rtx-3070", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["verdict"] == "fits"
    assert found["allocated_bytes"] == sum(found["parts"].values())
    assert found["allocated_bytes"] <= found["reserved_bytes"] <= found["usable_bytes"]
    done = _plan(recipe, "TrainingArguments.per_device_train_batch_size=256", "--gpu", "rtx-3070", "--no-advice")
    assert done.exit_code == 1
    assert re.match(r"does not fit: [\d.]+ of [\d.]+ GiB on rtx-3070 \(recipe.yaml\)\n", done.stdout)


def test_an_unknown_gpu_names_the_nearest() -> None:
    with pytest.raises(RecipeError) as caught:
        verdict.choose_gpu("rtx-4070-laptp", None, None)
    assert str(caught.value) == (
        "argument '--gpu': unknown GPU 'rtx-4070-laptp'; "
        "nearest: rtx-4070-laptop, rtx-4070, rtx-4060-ti; all: --gpu list; or give --memory 12GiB"
    )


def test_a_part_of_a_name_lists_the_gpus_that_begin_so() -> None:
    with pytest.raises(RecipeError, match=r"unknown GPU 'm3'; nearest: m3-8gb, m3-16gb"):
        verdict.choose_gpu("m3", None, None)


def test_less_memory_than_cuda_itself_takes_and_an_odd_capability_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"CUDA alone takes up to [\d.]+ GiB of 100MiB; write it as 8GiB"):
        verdict.choose_gpu(None, "100MiB", None)
    for capability in ("8.²", "8", "8.6.1", "-8.6"):
        with pytest.raises(RecipeError, match=r"is not a compute capability; write it as 8\.6"):
            verdict.choose_gpu(None, "8GiB", capability)


def test_a_cpu_keeps_a_margin_for_the_other_programs(recipe: str) -> None:
    found = verdict.check_fit(read_recipe(recipe), verdict.cpu_as_gpu())
    assert found.verdict == verdict.FITS
    for share, expected in ((1.2, verdict.FITS), (1.05, verdict.TIGHT), (0.95, verdict.OUT)):
        machine = replace(found.gpu, memory_bytes=int(verdict.PROCESS_BYTES + share * found.trace.allocated))
        assert verdict.assess_fit(found.recipe, found.trace, machine).verdict == expected


def test_gigabytes_and_gibibytes_differ() -> None:
    assert gpus.parse_bytes("8GiB") == 8 * 2**30
    assert gpus.parse_bytes("8GB") == 8 * 10**9
    for wrong in ("8", "8 G", "eight", "-8GiB"):
        with pytest.raises(RecipeError, match="is not an amount of memory; write it as 8GiB"):
            gpus.parse_bytes(wrong)
    with pytest.raises(RecipeError, match="'0GiB' must be more than 0"):
        gpus.parse_bytes("0GiB")


def test_every_gpu_has_its_source_and_the_present_one_is_recognised() -> None:
    assert all(gpu.source and gpu.memory_bytes for gpu in gpus.known_gpus().values())
    assert gpus.recognise_gpu("NVIDIA GeForce RTX 4070 Laptop GPU") is gpus.known_gpus()["rtx-4070-laptop"]
    assert gpus.recognise_gpu("NVIDIA GeForce RTX 4070") is gpus.known_gpus()["rtx-4070"]
    assert gpus.recognise_gpu("Some other GPU") is None


def test_no_gpu_is_a_message_with_the_two_ways_to_name_one(recipe: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hf_recipes", "plan", recipe], capture_output=True, text=True, timeout=60
    )
    message = "error: hf-recipes plan: which GPU?; give --gpu rtx-3070, or --memory 8GiB\n"
    assert (done.returncode, done.stderr) == (2, message)
