"""`hf-recipes lab` and `plan --measure`: a prediction, then the same steps for real; on a CPU from end to end."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import lab_wheels
import pytest

from hf_recipes.catalog.gpus import find
from hf_recipes.commands.plan import command
from hf_recipes.errors import RecipeError
from hf_recipes.plan.measure import matrix, runner
from hf_recipes.plan.measure.predictions import predictions
from hf_recipes.plan.measure.scheduler import SideBySide

Write = Callable[..., str]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lab") / "records"
    runner.lab(folder="recipes", output=str(folder), minutes=9, cpu=True, dry=False, say=lambda line: None)
    return folder


def test_the_tiny_matrix_runs_from_end_to_end_and_plan_is_right_to_the_byte(output: Path) -> None:
    found = runner.read(output)
    assert {record["variant"] for record in found} == set(matrix.TINY_VARIANTS)
    for record in found:
        assert record["measured"]["outcome"] == "finished" and record["predicted"]["verdict"] == "fits"
        near = 0.001 * record["measured"]["allocated_bytes"] if record["variant"] == "checkpointing" else 256
        assert abs(record["predicted"]["allocated_bytes"] - record["measured"]["allocated_bytes"]) <= near
        assert record["versions"]["torch"] and record["predicted"]["work"]["micro-batch"]["flops"] > 0


def test_the_next_call_goes_on_where_the_last_one_ended(output: Path) -> None:
    said: list[str] = []
    path = output / "cpu.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[:-1]) + lines[-1][:40], encoding="utf-8")  # killed while it wrote the last one
    words = {"folder": "recipes", "output": str(output), "cpu": True, "minutes": 9, "say": said.append}
    assert runner.lab(**words, dry=True) == (0, 3)
    assert said == [f"{path}: 2 of 3 cells", "  tiny--as-it-is", "  tiny--checkpointing", "  tiny--lora"]
    assert runner.lab(**words, dry=False) == (1, 0)
    assert sorted(record["cell"] for record in runner.read(output)) == sorted(line.strip() for line in said[1:4])
    assert said[-1].startswith("allocated: 3 cells, median error 0.00%, worst ")


def test_predictions_are_made_where_there_is_no_card_and_wait_for_it(output: Path, tmp_path: Path) -> None:
    said: list[str] = []
    words: dict[str, Any] = {"folder": "recipes", "minutes": 0.1, "cpu": False, "dry": False, "say": said.append}
    with pytest.raises(RecipeError, match="no card is called 'h10'"):
        runner.lab(**words, output=str(tmp_path), predict="h10")
    done, left = runner.lab(**words, output=str(tmp_path), predict="h100")
    assert done >= 1 and done + left == len(matrix.cells("recipes", cpu=False))
    (path,) = tmp_path.glob("*.jsonl")
    first = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
    assert path.name == "nvidia-h100-80gb-hbm3.predicted.jsonl" and first["needed_bytes"] > 0
    assert runner.read(tmp_path) == []  # a prediction is no record
    waiting = matrix.cells("recipes", cpu=False)[:1]
    coming = list(predictions(waiting, find("h100"), {first["cell"]: first}, 1))
    assert coming == [(waiting[0], first)]


def test_the_matrix_has_every_recipe_on_every_card_and_valid_names() -> None:
    every = matrix.cells("recipes", cpu=False)
    assert len({cell.name for cell in every}) == len(every)
    assert {cell.gib for cell in every} == {None, *matrix.CARDS_GIB}
    assert {cell.variant for cell in every} >= {*matrix.VARIANTS, *matrix.SFT_VARIANTS, "micro-batch x2"}
    assert [cell.variant for cell in every[:5]] == ["as it is"] * 5  # the recipe itself, whole and on each size
    # What differs in its schedule alone is measured once.
    stems = {Path(cell.recipe.path).stem for cell in every if cell.variant == "as it is"}
    assert "gpt-small-wikitext103-warmup2000" in stems and "gpt-small-wikitext103-warmup4000" not in stems


def test_cells_share_a_card_that_has_room_and_the_timed_ones_have_it_alone() -> None:
    running: list[str] = []
    beside: dict[str, int] = {}

    def work(name: str) -> Callable[[Any], dict[str, Any]]:
        def measured(child: Any) -> dict[str, Any]:
            running.append(name)
            for _ in range(20):
                beside[name] = max(len(running), beside.get(name, 0))
                time.sleep(0.02)
            running.remove(name)
            return {"cell": name}

        return measured

    room = SideBySide(0)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    room.room, room.start = 20 * 2**30, lambda: subprocess.Popen([sys.executable, "-c", ""], **pipes)
    found = []
    for name, gib in (("a", 4), ("b", 4), ("alone", 1), ("c", 12), ("d", 12)):
        found += list(room.add(work(name), gib * 2**30, alone=name == "alone"))
    found += list(room.wait())
    room.close()
    assert {one["cell"] for one in found} == {"a", "b", "alone", "c", "d"}
    assert beside == {"a": 2, "b": 2, "alone": 1, "c": 1, "d": 1}


def test_wheels_are_downloaded_for_what_the_other_machine_lacks(tmp_path: Path) -> None:
    listed = tmp_path / "there.txt"
    names = sorted(lab_wheels._lacking({}))
    assert {"transformers", "trl", "peft", "numpy"} <= set(names) and "torch" not in names
    listed.write_text(
        "".join(f"{name}=={metadata.version(name)}\n" for name in names if name != "trl"), encoding="utf-8"
    )
    assert lab_wheels._lacking(lab_wheels._listed(str(listed))) == {"trl"}
    assert "numpy" in lab_wheels._lacking({"numpy": "1.0"})  # too old
    with pytest.raises(RecipeError, match=r"'nothing' cannot be read \(No such file"):
        lab_wheels.pack(str(tmp_path), there="nothing", python="3.12", say=print)


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


def test_a_cards_measurement_has_its_phases_and_a_step_in_pieces_counts_as_out_of_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a stand-in for torch.cuda: this machine has no card."""
    import torch

    from hf_recipes.common.device import Device
    from hf_recipes.plan.measure import gpu

    for name in ("reset_peak_memory_stats", "synchronize", "empty_cache", "set_per_process_memory_fraction"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    for name in ("max_memory_reserved", "max_memory_allocated", "memory_allocated", "memory_reserved"):
        monkeypatch.setattr(torch.cuda, name, lambda: 2048)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (5000, 10000))
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda: {"num_alloc_retries": 0})
    monkeypatch.setattr(gpu, "this_device", lambda: Device(kind="cpu", name="CPU", bf16=True))
    monkeypatch.setattr(gpu, "_on_the_card", lambda recipe, short: short)
    real = gpu.stand_in_trainer
    monkeypatch.setattr(gpu, "stand_in_trainer", lambda *words: real(*words[:4], "cpu", words[5]))
    tiny = matrix.cells("recipes", cpu=True)[0].recipe
    found = gpu.measure_on_card(tiny, None, None, 0.5)
    assert found["outcome"] == "finished" and set(found["phases"]) == {"training", "saving", "evaluation"}
    assert (found["allocated_bytes"], found["context_bytes"], found["device_bytes"]) == (2048, 2952, 5000)
    assert found["micro_batches"] == 1 and 0 < found["step_seconds"] < found["seconds"]["over"]

    def scarce(*words: Any) -> Any:
        trainer = real(*words[:4], "cpu", words[5])
        step, calls = trainer.parts.retry._in_pieces, iter(range(100))

        def once(*args: Any, **kwargs: Any) -> Any:
            if next(calls) == 0:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return step(*args, **kwargs)

        trainer.parts.retry._in_pieces = once
        return trainer

    monkeypatch.setattr(gpu, "stand_in_trainer", scarce)
    found = gpu.measure_on_card(tiny, None, None, None)
    assert found["outcome"] == "out of memory" and found["splits"][0]["pieces"] == 2
