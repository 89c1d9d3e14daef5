"""record.json: one reader of every version, one writer, and types that have every key that a run writes."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from record_page import comments, page, parts

from hf_recipes.common.typed_json import fields_of
from hf_recipes.errors import RecordError
from hf_recipes.pipeline.run import run
from hf_recipes.record import (
    SCHEMA,
    Metrics,
    RunRecord,
    Session,
    Stage,
    Status,
)
from hf_recipes.record.file import find_record, parse_record, read_record, write_record

RECIPE = """
task: causal-lm
model: {{config: {{model_type: gpt2, n_layer: 1, n_head: 2, n_embd: 32, n_positions: 32}}}}
BpeTrainer: {{vocab_size: 400}}
dataset:
  path: text
  data_files: {{train: {root}/recipes/data/austen/persuasion.txt}}
  split: {{train: "train[:5%]"}}
sample_prompts: [the sea]
GenerationConfig: {{max_new_tokens: 2}}
TrainingArguments: {{output_dir: out, max_steps: 3, save_steps: 2, eval_on_start: true, logging_steps: 1}}
"""


def refusal(text: str) -> str:
    """The one error line of a record.json with this text."""
    Path("record.json").write_text(text)
    with pytest.raises(RecordError) as caught:
        read_record(Path("record.json"))
    assert len(caught.value.errors) == 1
    return str(caught.value)


def test_every_committed_record_is_read_with_every_key_known_and_written_back_the_same(
    root: Path, folder: Path
) -> None:
    paths = [*root.glob("recipes/results/*.json"), *root.glob("tests/data/run-587a747/runs/*/record.json")]
    assert len(paths) >= 9
    for path in paths:
        old = json.loads(path.read_text())
        record = read_record(path, strict=True)
        assert (record.status, record.stage, record.steps) == (old["status"], old["where"], old["steps"])
        assert [(one.first_step, one.last_step) for one in record.sessions] == [(1, record.steps)]
        assert (
            read_record(write_record(folder, replace(record, schema=SCHEMA)), strict=True).sessions == record.sessions
        )


def test_a_run_writes_no_key_that_the_types_lack_and_its_notes_and_session_are_kept(
    root: Path, write_recipe: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(RECIPE.format(root=root))
    path = run(recipe)
    first = read_record(path, strict=True)
    printed = capsys.readouterr().out
    assert first.notes and all(note in printed for note in first.notes)
    assert "sample at step 0" in printed and not any("sample at" in note for note in first.notes)
    assert "tokenizer: byte-level BPE trained on the train split, 400 tokens" in first.notes
    assert json.loads(path.read_text()).keys() == fields_of(RunRecord).keys()
    (session,) = first.sessions
    assert (session.first_step, session.last_step, session.status, session.stage) == (
        1,
        3,
        Status.FINISHED,
        Stage.END,
    )
    assert "tokenizer: byte-level BPE" in Path("out/report.md").read_text()

    run(recipe, ["TrainingArguments.max_steps=5"], resume=True)
    second = read_record(path, strict=True)
    assert second.run == first.run and second.sessions[0] == session
    assert [(one.first_step, one.last_step) for one in second.sessions] == [(1, 3), (4, 5)]
    assert second.resumed is not None and second.resumed.step == 3

    path.unlink()  # as after a kill: only the checkpoint shows what there was
    run(recipe, ["TrainingArguments.max_steps=6"], resume=True)
    again, killed, last = read_record(path, strict=True).sessions
    assert again == first.sessions[0]  # by the checkpoint's manifest
    assert (killed.started, killed.first_step, killed.last_step, killed.status) == (
        second.sessions[1].started,
        4,
        5,
        None,
    )
    assert killed.machine == last.machine and killed.ended is not None and killed.time.train_seconds
    assert (last.first_step, last.last_step, last.status) == (6, 6, Status.FINISHED)


def test_a_key_that_the_types_lack_is_named(folder: Path) -> None:
    value = {"schema": SCHEMA, "task": "chat", "odd": 1, "batch": {"per_device": 4, "size": 4}}
    assert parse_record(value, "a.json").batch is not None
    with pytest.raises(RecordError) as caught:
        parse_record(value, "a.json", strict=True)
    assert str(caught.value) == "a.json: has keys that hf_recipes/record/ lacks: odd, batch.size"


def test_a_newer_record_is_refused_by_its_version(folder: Path) -> None:
    assert refusal(json.dumps({"schema": SCHEMA + 1, "task": "chat", "status": ["of", "tomorrow"]})) == (
        f"record.json: a record of version {SCHEMA + 1}; this hf_recipes reads up to {SCHEMA}; upgrade hf_recipes"
    )


def test_a_record_that_is_nested_too_deeply_is_refused(folder: Path) -> None:
    assert refusal("[" * 100_000) == "record.json: is no record of a run (nested too deeply); restore the file"


@pytest.mark.parametrize("text", ["[]", '"a text"', "3", "null", "{}", '{"schema": "1", "task": "chat"}',
                                  '{"schema": true, "task": "chat"}', '{"schema": -1, "task": "chat"}',
                                  '{"schema": 1e999, "task": "chat"}', '{"schema": NaN, "task": "chat"}'])  # fmt: skip
def test_a_file_that_is_no_record_is_refused(folder: Path, text: str) -> None:
    assert refusal(text) == "record.json: is no record of a run; restore the file, or give a run's folder"


def test_a_value_that_is_nested_too_deeply_is_refused(folder: Path) -> None:
    deep = "[" * 500 + "]" * 500
    assert refusal(f'{{"schema": 1, "task": "chat", "plan": {{"a": {deep}}}}}') == (
        "record.json: is no record of a run (plan.a: is nested too deeply); restore the file"
    )


def test_a_file_that_is_far_too_large_is_not_read(folder: Path) -> None:
    with Path("record.json").open("wb") as file:
        file.truncate(100_000_000)
    with pytest.raises(RecordError, match=r"record\.json: is no record of a run"):
        read_record(Path("record.json"))
    with Path("record.json").open("r+b") as file:
        file.write(b'{"schema": 1,')
        file.truncate(2**29)
    with pytest.raises(RecordError, match=r"has 0\.50 GiB; no record of a run has more than 0\.25 GiB"):
        read_record(Path("record.json"))


def test_a_damaged_record_is_refused_with_the_place(folder: Path) -> None:
    assert refusal('{"schema": 1, "ta').startswith("record.json: is no complete record (Unterminated string")
    for key, value, what in [
        ("steps", "many", "steps: a whole number is expected, not 'many'"),
        ("steps", 1.5, "steps: a whole number is expected, not 1.5"),
        ("steps", 10**400, f"steps: a whole number is expected, not 1{'0' * 36}..."),
        ("train_loss", 10**400, f"train_loss: a number is expected, not 1{'0' * 36}..."),
        ("data", {"train": {"rows": True}}, "data.train.rows: a whole number is expected, not True"),
        (
            "status",
            "odd",
            "status: 'odd' is none of 'running', 'finished', 'stopped', 'diverged', 'out of memory', 'failed'",
        ),
        ("notes", "a text", "notes: a list is expected, not 'a text'"),
        ("device", {"capability": [8]}, "device.capability: a list of 2 is expected, not of 1"),
        ("model", [], "model: an object is expected, not []"),
        ("task", None, "task: is missing"),
    ]:
        text = json.dumps({"schema": SCHEMA, "task": "chat", key: value})
        assert refusal(text) == f"record.json: is no record of a run ({what}); restore the file"


def test_a_folder_without_a_record_that_can_be_read_has_none(folder: Path) -> None:
    assert find_record(folder) is None
    Path("record.json").write_text("[]")
    assert find_record(folder) is None
    with pytest.raises(RecordError, match=r"record-failed\.json: no such record; a run writes record\.json"):
        read_record(folder / "record-failed.json")


def test_numbers_that_are_not_finite_survive_the_file(folder: Path) -> None:
    metrics = Metrics(eval={"eval_loss": math.nan, "eval_perplexity": math.inf})
    found = read_record(write_record(folder, RunRecord(task="chat", metrics=metrics)))
    assert math.isnan(found.metrics.of("eval")["eval_loss"]) and found.metrics.of("eval")["eval_perplexity"] == math.inf
    assert found.metrics.of("test") == {}


def test_a_record_is_written_completely_or_not_at_all(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = write_record(folder, RunRecord(task="chat", seed=1)).read_text()

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_record(folder, RunRecord(task="chat", seed=2))
    assert Path("record.json").read_text() == before and [path.name for path in folder.iterdir()] == ["record.json"]


def test_every_field_has_its_meaning_on_the_page(root: Path) -> None:
    notes = comments()
    for part in (RunRecord, *parts()):
        for key, (name, _, _) in fields_of(part).items():
            assert notes[part.__name__][name], f"{part.__name__}.{name} has no comment"
            assert f"| `{key}` |" in page()
        assert part.__doc__
    assert (root / "docs" / "record.md").read_text() == page(), "run python benchmarks/tables.py"


def test_the_example_on_the_page_runs(root: Path, folder: Path) -> None:
    shutil.copytree(root / "tests/data/run-587a747/runs/seed1", folder / "runs" / "mine")
    code = page().split("```python\n")[1].split("```")[0]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("finished {'eval_loss': ")


def test_records_are_read_without_anything_heavy() -> None:
    code = "import sys, hf_recipes.record; assert not {'torch', 'numpy', 'datasets', 'pyarrow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_session_of_a_record_without_sessions_is_made_from_it() -> None:
    old = {
        "schema": 1,
        "task": "chat",
        "status": "stopped",
        "where": "training",
        "steps": 9,
        "started": "a",
        "ended": "b",
    }
    old |= {"resumed": {"from": "out/checkpoint-4", "step": 4}, "device": {"kind": "cpu", "name": "AMD EPYC"}}
    assert parse_record(old, "a.json").sessions == (
        Session(
            started="a",
            ended="b",
            resumed_at=4,
            first_step=5,
            last_step=9,
            machine="AMD EPYC (cpu)",
            status=Status.STOPPED,
            stage=Stage.TRAINING,
        ),
    )
