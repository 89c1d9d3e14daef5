"""`hf-recipes lab --speed`: the pairs of `tune` on the shapes of known models, without files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hf_recipes.cli import main
from hf_recipes.pipeline.tuning.generated import ROWS, GeneratedRunner, generate_rows
from hf_recipes.pipeline.tuning.lab import list_shapes
from hf_recipes.recipe.model_facts import model_facts


def test_a_dry_run_lists_the_shapes_and_what_is_tried_first(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["lab", "--speed", "--dry", "--minutes", "8"])
    lines = capsys.readouterr().out.splitlines()
    shapes = [line for line in lines if not line.startswith(" ")]
    assert shapes == [
        f"{name}: about 2.0 minutes"
        for name in ("Llama-3.2-1B, LoRA", "Llama-3.2-1B, QLoRA", "Llama-3.1-8B, LoRA", "Llama-3.1-8B, QLoRA")
    ]
    assert lines[1:4] == ["  packing: true", "  activation_checkpointing: false", "  use_liger_kernel: true"]
    assert not list(folder.iterdir())


def test_the_shapes_are_those_of_the_published_configs() -> None:
    found = {name: model_facts(recipe.section("model")).config for name, recipe in list_shapes(cpu=False).items()}
    widths = {name: (shape["hidden_size"], shape["num_hidden_layers"]) for name, shape in found.items()}
    assert widths["Llama-3.2-1B, LoRA"] == (2048, 16) and widths["Llama-3.1-8B, QLoRA"] == (4096, 32)


def test_without_a_gpu_the_command_says_what_to_do(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["lab", "--speed", "--output", "out"])
    fix = "there is no CUDA GPU on this machine; measure on a machine that has one, or add --cpu"
    assert fix in capsys.readouterr().err


def test_generated_rows_have_spread_lengths_and_learn_their_second_half() -> None:
    recipe = list_shapes(cpu=True)["tiny, LoRA"]
    rows = generate_rows(recipe).prepared.train
    lengths = [len(row) for row in rows["input_ids"]]
    assert len(lengths) == ROWS and max(lengths) == 32 and min(lengths) < 8
    first = rows[0]
    half = len(first["labels"]) // 2
    assert set(first["labels"][:half]) == {-100} and first["labels"][half:] == first["input_ids"][half:]


def test_a_generated_shape_trains_and_its_packing_is_the_same_tokens_in_fewer_rows() -> None:
    recipe, runner = list_shapes(cpu=True)["tiny, LoRA"], GeneratedRunner()
    checked = runner.run(recipe, 0, check=True)
    packed = runner.run(recipe.with_values({"SFTConfig.packing": True}, "a test"), 3, check=False)
    assert len(checked.first_losses) == 3 and all(4 < loss < 9 for loss in checked.first_losses)  # log(500) is 6.2
    assert sum(packed.tokens) / 3 > 1.5 * sum(checked.tokens) / 2


@pytest.mark.slow
def test_the_tiny_shapes_are_measured_and_recorded_on_a_cpu(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["lab", "--speed", "--cpu", "--minutes", "2", "--output", "out"])
    (path,) = Path("out").iterdir()
    record = json.loads(path.read_text())
    assert record["device"]["kind"] == "cpu" and "tiny, LoRA" in record["shapes"]
    assert record["shapes"]["tiny, LoRA"]["base"]["seconds"]
    assert "tokens a second" in capsys.readouterr().out
