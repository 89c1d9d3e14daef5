"""`hf-recipes lab` and `plan --measure`: a prediction, then the same steps for real; on a CPU from end to end."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import lab_wheels
import pytest

from hf_recipes.catalog.gpus import find_gpu
from hf_recipes.commands.plan import command
from hf_recipes.errors import PlanError, RecipeError
from hf_recipes.plan import lab_record
from hf_recipes.plan.lab_record import Calibration, LabRecord, Measurement, Prediction, read_cells, read_lines
from hf_recipes.plan.measure import matrix, predictions, runner, worker
from hf_recipes.plan.measure.predictions import predict_cells
from hf_recipes.plan.measure.scheduler import Scheduler
from tests.support.tiny_recipes import TRACING, wait_for_traces

Write = Callable[..., str]
CHILD = worker._ask
LAB = Path(__file__).resolve().parents[3] / "recipes" / "results" / "lab"
PREDICTIONS = "nvidia-h100-80gb-hbm3.predicted.jsonl"  # of what nobody has measured yet


@pytest.fixture(scope="module")
def measured_in_this_process() -> Iterator[None]:
    """Measurements without their child, whose imports take seconds; one test has the child itself."""

    def ask(request: dict[str, Any], location: str, seconds: float, child: Any) -> dict[str, Any]:
        with TRACING:
            answer = worker._answer(json.loads(json.dumps(request)))
        if answer.get("no_gpu"):
            raise PlanError.at(location, *worker.NO_GPU)
        return answer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "_ask", ask)
        yield


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory, measured_in_this_process: None) -> Path:
    folder = tmp_path_factory.mktemp("lab") / "records"
    runner.run_lab(folder="recipes", output=str(folder), minutes=9, cpu=True, dry=False, say=lambda line: None)
    return folder


def test_the_tiny_matrix_runs_from_end_to_end_and_plan_is_right_to_the_byte(output: Path) -> None:
    found = runner.read_records(output)
    assert {record.variant for record in found} == set(matrix.TINY_VARIANTS)
    for record in found:
        predicted, measured = record.predicted, record.measured
        assert predicted is not None and measured is not None and measured.allocated_bytes is not None
        assert measured.finished and predicted.verdict == "fits"
        near = 0.001 * measured.allocated_bytes if record.variant == "checkpointing" else 256
        assert abs(predicted.allocated_bytes - measured.allocated_bytes) <= near
        assert record.versions is not None and record.versions["torch"] and predicted.work["micro-batch"].flops > 0


def test_the_next_call_continues_where_the_last_one_ended(output: Path) -> None:
    printed: list[str] = []
    path = output / "cpu.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[:-1]) + lines[-1][:40], encoding="utf-8")  # killed while it wrote the last one
    arguments = {"folder": "recipes", "output": str(output), "cpu": True, "minutes": 9, "say": printed.append}
    assert runner.run_lab(**arguments, dry=True) == (0, 3)
    assert printed == [f"{path}: 2 of 3 cells", "  tiny--as-it-is", "  tiny--checkpointing", "  tiny--lora"]
    assert runner.run_lab(**arguments, dry=False) == (1, 0)
    recorded = sorted(str(record.cell) for record in runner.read_records(output))
    assert recorded == sorted(line.strip() for line in printed[1:4])
    assert printed[-1].startswith("allocated: 3 cells, median error 0.00%, worst ")


def test_every_committed_line_is_read_and_written_back_as_it_is() -> None:
    for path in LAB.glob("*.jsonl"):
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        found = read_lines(path)
        assert len(found) == len(lines)
        for record, line in zip(found, lines, strict=True):
            if line["kind"] == "card":  # the older name
                assert isinstance(record, Calibration)
                line["kind"] = "gpu"
            if "card_bytes" in line.get("measured", {}):
                line["measured"]["gpu_bytes"] = line["measured"].pop("card_bytes")
            assert json.loads(json.dumps(record.to_dict())) == line


def test_a_line_that_is_no_record_is_refused_by_its_place(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"kind": "lab", "recipe": "a.yaml", "gpu": "t4"}\n{"kind": "lab"}\n', encoding="utf-8")
    with pytest.raises(lab_record.RecordError, match=r"a\.jsonl:2: is not a record of the lab"):
        read_lines(path)


def test_predictions_are_made_where_there_is_no_gpu_and_wait_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = matrix.list_cells("recipes", cpu=True)[:2]
    monkeypatch.setattr(runner, "list_cells", lambda *_, **__: cells)
    lines: list[str] = []
    arguments: dict[str, Any] = {"folder": "recipes", "minutes": 9, "cpu": False, "dry": False, "say": lines.append}
    with pytest.raises(RecipeError, match="unknown GPU 'h10'"):
        runner.run_lab(**arguments, output=str(tmp_path), predict="h10")
    assert runner.run_lab(**arguments, output=str(tmp_path), predict="h100") == (2, 0)
    (path,) = tmp_path.glob("*.jsonl")
    first = read_lines(path)[0]
    assert path.name == "nvidia-h100-80gb-hbm3.predicted.jsonl" and first.needed_bytes > 0
    assert runner.read_records(tmp_path) == []  # a prediction is no record
    coming = list(predict_cells(cells[:1], find_gpu("h100"), {first.cell: first}, 1))
    assert coming == [(cells[0], first)]
    # What was measured on that GPU is not predicted again.
    path.rename(tmp_path / "nvidia-h100-80gb-hbm3.jsonl")
    assert runner.run_lab(**arguments, output=str(tmp_path), predict="h100") == (0, 0)


def test_the_lab_measures_first_what_was_predicted_and_keeps_the_prediction_with_its_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for the measurements: this machine has no GPU."""
    committed = read_cells(LAB / PREDICTIONS)
    tried = {record.cell for record in committed if record.predicted is not None and record.gib is None}
    every = [cell for cell in matrix.list_cells("recipes", cpu=False) if cell.name in tried][:3]
    monkeypatch.setattr(runner, "list_cells", lambda *_, **__: every)
    monkeypatch.setattr(runner, "_present_gpu", lambda *_: (find_gpu("h100"), tmp_path / "measured.jsonl"))
    measured = Measurement(outcome="finished", reserved_bytes=100)
    monkeypatch.setattr(runner, "_measured", lambda cell, record, *_: replace(record, measured=measured))
    shutil.copy(LAB / PREDICTIONS, tmp_path)

    def trace(recipes: list[Any], **_: Any) -> Iterator[Any]:
        assert not recipes
        yield from ()

    monkeypatch.setattr(predictions, "iterate_traces", trace)
    arguments: dict[str, Any] = {"folder": "recipes", "minutes": 9, "cpu": False, "dry": False, "say": print}
    assert runner.run_lab(**arguments, output=str(tmp_path)) == (3, 0)
    predicted = {record.cell: record for record in committed}
    for record in read_cells(tmp_path / "measured.jsonl"):
        before = predicted[record.cell]
        assert record.measured == measured and record.commit
        assert (record.predicted, record.commit) == (before.predicted, before.commit)


def test_what_nine_minutes_reach_is_predicted_by_one_commit_with_every_kind_of_change() -> None:
    measured = {record.cell for record in read_cells(LAB / PREDICTIONS.replace(".predicted", ""))}
    waiting = [cell.name for cell in matrix.list_cells("recipes", cpu=False) if cell.name not in measured]
    committed = read_cells(LAB / PREDICTIONS)
    assert [record.cell for record in committed] == waiting[: len(committed)]  # in the order in which they are measured
    assert len({record.commit for record in committed}) == 1
    kinds = Counter(record.variant for record in committed if record.predicted is not None)
    assert set(kinds) == {*matrix.VARIANTS, *matrix.SFT_VARIANTS, *matrix.ENCODER_VARIANTS} | {
        f"micro-batch x{times}" for times in matrix.MULTIPLES
    }
    assert min(kinds.values()) >= 4
    assert {record.gib for record in committed if record.predicted} == {None, *matrix.GPU_SIZES_GIB}


def test_a_call_of_the_lab_ends_after_its_minutes_and_the_next_one_continues(output: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    arguments: dict[str, Any] = {"folder": "recipes", "cpu": True, "dry": False, "output": str(tmp_path)}
    assert runner.run_lab(**arguments, minutes=0, say=lines.append) == (1, 2)
    wait_for_traces()


def test_the_matrix_has_every_recipe_on_every_gpu_and_valid_names() -> None:
    every = matrix.list_cells("recipes", cpu=False)
    assert len({cell.name for cell in every}) == len(every)
    assert {cell.gib for cell in every} == {None, *matrix.GPU_SIZES_GIB}
    kinds = {*matrix.VARIANTS, *matrix.SFT_VARIANTS, *matrix.ENCODER_VARIANTS, "micro-batch x2"}
    assert {cell.variant for cell in every} >= kinds
    others = [cell.variant for cell in every if cell.variant != "as it is"]
    assert set(others[: others.index("LoRA", others.index("LoRA") + 1)]) >= kinds - {
        "as it is"
    }  # each before any again
    assert [cell.variant for cell in every[:5]] == ["as it is"] * 5  # the recipe itself, whole and on each size
    # What differs in its schedule alone is measured once.
    stems = {Path(cell.recipe.path).stem for cell in every if cell.variant == "as it is"}
    assert "gpt-small-wikitext103-warmup2000" in stems and "gpt-small-wikitext103-warmup4000" not in stems


def test_cells_share_a_gpu_that_has_room_and_the_timed_ones_have_it_alone() -> None:
    running: list[str] = []
    beside: dict[str, int] = {}

    def work(name: str) -> Callable[[Any], LabRecord]:
        def measured(child: Any) -> LabRecord:
            running.append(name)
            for _ in range(20):
                beside[name] = max(len(running), beside.get(name, 0))
                time.sleep(0.02)
            running.remove(name)
            return LabRecord(kind="lab", cell=name, recipe="a.yaml", gpu="t4")

        return measured

    room = Scheduler(0)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    room.room, room.start = 20 * 2**30, lambda: subprocess.Popen([sys.executable, "-c", ""], **pipes)
    found = []
    for name, gib in (("a", 4), ("b", 4), ("alone", 1), ("c", 12), ("d", 12)):
        found += list(room.add(work(name), gib * 2**30, alone=name == "alone"))
    found += list(room.wait())
    room.close()
    assert {one.cell for one in found} == {"a", "b", "alone", "c", "d"}
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


def test_what_was_predicted_to_fit_and_ran_out_of_memory_is_named() -> None:
    predicted = Prediction(
        verdict="fits", allocated_bytes=80, reserved_bytes=90, phase="", phases={}, parts={}, work={}, attention={},
        estimate=[],
    )  # fmt: skip
    good = LabRecord(kind="lab", cell="a", recipe="a.yaml", gpu="t4", predicted=predicted)
    good = replace(good, measured=Measurement(outcome="finished", reserved_bytes=100))
    bad = replace(good, cell="b", measured=Measurement(outcome="out of memory"))
    refused = LabRecord(kind="lab", cell="c", recipe="a.yaml", gpu="t4", refused="because")
    assert runner.errors([good, bad, refused]) == [pytest.approx(-0.1)]
    assert runner.false_fits([good, bad, refused]) == ["b"]
    assert runner.summary([good, bad]).endswith("predicted to fit and out of memory: b")
    assert runner.describe_record(bad) == "predicted: fits; measured: out of memory"
    assert runner.describe_record(good) == "reserved 90 predicted, 100 measured (-10.00%)"
    assert runner.describe_record(refused) == "refused: because"


def test_measuring_without_a_gpu_is_refused(measured_in_this_process: None, folder: Path, root: Path) -> None:
    with pytest.raises(
        RecipeError, match="there is no CUDA GPU on this machine; measure on a machine that has one, or"
    ):
        command(str(root / "recipes" / "quickstart.yaml"), (), gpu="t4", smoke=True, measure=True)


def test_a_measurement_on_a_cpu_is_beside_the_prediction(
    folder: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_ask", CHILD)
    path = str(root / "recipes" / "quickstart.yaml")
    found = json.loads(command(path, (), cpu=True, smoke=True, measure=True, as_json=True)[0][0])
    assert abs(found["measured"]["allocated_bytes"] - found["allocated_bytes"]) <= 256
    record = json.loads(Path(found["measured"]["record"]).read_text(encoding="utf-8"))
    assert record["kind"] == "measure" and record["predicted"]["allocated_bytes"] == found["allocated_bytes"]


def test_a_gpus_measurement_has_its_phases_and_a_step_in_pieces_counts_as_out_of_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a stand-in for torch.cuda: this machine has no GPU."""
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
    monkeypatch.setattr(gpu, "_for_the_gpu", lambda recipe, short: short)
    real = gpu.stand_in_trainer
    monkeypatch.setattr(gpu, "stand_in_trainer", lambda *arguments: real(*arguments[:4], "cpu", arguments[5]))
    tiny = matrix.list_cells("recipes", cpu=True)[0].recipe
    found = gpu.measure_on_gpu(tiny, None, None, 0.5)
    assert found["outcome"] == "finished" and set(found["phases"]) == {"training", "saving", "evaluation"}
    assert (found["allocated_bytes"], found["context_bytes"], found["device_bytes"]) == (2048, 2952, 5000)
    assert found["micro_batches"] == 1 and 0 < found["step_seconds"] < found["seconds"]["over"]

    def scarce(*arguments: Any) -> Any:
        trainer = real(*arguments[:4], "cpu", arguments[5])
        step, calls = trainer.parts.retry._in_pieces, iter(range(100))

        def once(*args: Any, **kwargs: Any) -> Any:
            if next(calls) == 0:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return step(*args, **kwargs)

        trainer.parts.retry._in_pieces = once
        return trainer

    monkeypatch.setattr(gpu, "stand_in_trainer", scarce)
    found = gpu.measure_on_gpu(tiny, None, None, None)
    assert found["outcome"] == "out of memory" and found["splits"][0]["pieces"] == 2
