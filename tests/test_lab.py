"""`hf-recipes lab` and `plan --measure`: a prediction, then the same steps for real; on a CPU from end to end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hf_recipes.errors import RecipeError
from hf_recipes.lab import cells, runner
from hf_recipes.plan.command import command

Write = Callable[..., str]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lab") / "records"
    runner.lab(folder="recipes", output=str(folder), minutes=9, cpu=True, dry=False, say=lambda line: None)
    return folder


def test_the_tiny_matrix_runs_from_end_to_end_and_plan_is_right_to_the_byte(output: Path) -> None:
    found = runner.read(output)
    assert {record["variant"] for record in found} == set(cells.TINY_VARIANTS)
    for record in found:
        assert record["measured"]["outcome"] == "finished" and record["predicted"]["verdict"] == "fits"
        near = 0.001 * record["measured"]["allocated_bytes"] if record["variant"] == "checkpointing" else 256
        assert abs(record["predicted"]["allocated_bytes"] - record["measured"]["allocated_bytes"]) <= near
        assert record["versions"]["torch"] and record["predicted"]["work"]["micro-batch"]["flops"] > 0


def test_the_next_call_goes_on_where_the_last_one_ended(output: Path) -> None:
    said: list[str] = []
    (output / "tiny--lora.json").unlink()
    words = {"folder": "recipes", "output": str(output), "cpu": True}
    assert runner.lab(**words, minutes=9, dry=True, say=said.append) == (0, 1)
    assert said == [f"3 cells, 2 of them measured already in {output}", "  tiny--lora"]
    assert runner.lab(**words, minutes=9, dry=False, say=said.append) == (1, 0)
    assert (output / "tiny--lora.json").exists()
    assert said[-1].startswith("allocated: 3 cells, median error 0.00%, worst ")


def test_the_matrix_has_every_recipe_on_every_card_and_valid_names(root: Path) -> None:
    every = cells.cells(str(root / "recipes"), cpu=False)
    recipes = len(list((root / "recipes").glob("*.yaml")))
    assert len(every) == recipes * (len(cells.VARIANTS) + len(cells.CARDS_GIB))
    assert len({cell.name for cell in every}) == len(every)
    assert {cell.gib for cell in every} == {None, *cells.CARDS_GIB}


def test_what_was_called_fits_and_ran_out_of_memory_is_named() -> None:
    good = {"cell": "a", "predicted": {"verdict": "fits", "reserved_bytes": 90}}
    good["measured"] = {"outcome": "finished", "reserved_bytes": 100}
    bad = {"cell": "b", "predicted": {"verdict": "fits"}, "measured": {"outcome": "out of memory"}}
    refused = {"cell": "c", "refused": "because"}
    assert runner.errors([good, bad, refused]) == [pytest.approx(-0.1)]
    assert runner.false_fits([good, bad, refused]) == ["b"]
    assert runner.summary([good, bad]).endswith("called fits and out of memory: b")
    assert runner.told(bad) == "plan said fits; it ended: out of memory"


def test_measuring_without_a_card_is_refused_and_on_a_cpu_it_is_beside_the_prediction(folder: Path, root: Path) -> None:
    path = str(root / "recipes" / "quickstart.yaml")
    with pytest.raises(RecipeError, match="there is no CUDA card on this machine; measure on one that has, or say"):
        command(path, (), gpu="t4", smoke=True, measure=True)
    found = json.loads(command(path, (), cpu=True, smoke=True, measure=True, as_json=True)[0][0])
    assert abs(found["measured"]["allocated_bytes"] - found["allocated_bytes"]) <= 256
    record = json.loads(Path(found["measured"]["record"]).read_text(encoding="utf-8"))
    assert record["kind"] == "measure" and record["predicted"]["allocated_bytes"] == found["allocated_bytes"]
