"""`hf_recipes.api`: the commands from Python."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import notebook
import pytest
import torch

from hf_recipes import api
from hf_recipes.errors import RecipeError
from tests.support.tiny_models import write_rows
from tests.support.trained_runs import folder_of, rows_of

SECTIONS = {
    "task": "text-classification",
    "model": {"pretrained_model_name_or_path": "base", "dtype": "float32"},
    "dataset": {
        "path": "json",
        "data_files": {"train": "train.jsonl", "validation": "validation.jsonl"},
        "max_length": 64,
    },
    "TrainingArguments": {"output_dir": "out", "max_steps": 2, "save_strategy": "no", "report_to": "none"},
}


def test_importing_it_loads_no_torch() -> None:
    code = "import sys, hf_recipes.api; sys.exit(bool({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_dict_is_checked_with_every_error() -> None:
    wrong = {**SECTIONS, "TrainingArguments": {"output_dir": "out", "max_stesp": 2}}
    found = api.check(wrong)
    assert (found.ok, found.errors) == (False, 1)
    assert "did you mean 'max_steps'?" in str(found)
    assert str(found).startswith("error: recipe:")
    with pytest.raises(RecipeError, match=r"^recipe:\d+: TrainingArguments has no 'max_stesp'"):
        api.run(wrong)
    assert found._repr_html_().startswith("<pre>")
    assert "<" not in found._repr_html_().removeprefix("<pre>").removesuffix("</pre>")


def test_code_of_the_caller_is_a_callback_a_metric_the_rows_and_the_loss_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import TrainerCallback

    source = folder_of("text-classification")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").symlink_to(source / "base")
    for start, name in ((0, "train.jsonl"), (24, "validation.jsonl")):
        rows = rows_of("sentiment", start, 24)
        write_rows(name, [{"words": row["text"].split(), "good": row["label"]} for row in rows])
    calls: list[str] = []

    class Watch(TrainerCallback):
        def on_step_end(self, *_: object, **__: object) -> None:
            calls.append("step")

    def joined(row: dict) -> dict:
        return {"text": " ".join(row["words"]), "label": row["good"]}

    def scaled(outputs: object, labels: torch.Tensor, num_items_in_batch: object = None) -> torch.Tensor:
        calls.append("loss")
        return 2 * torch.nn.functional.cross_entropy(outputs.logits, labels)  # type: ignore[attr-defined]

    def seen(prediction: object) -> float:
        return len(prediction.label_ids)  # type: ignore[attr-defined]

    hooks = api.Hooks(callbacks=[Watch()], metrics={"rows": seen}, formatting=joined, loss=scaled)
    found = api.run(SECTIONS, {"TrainingArguments.output_dir": "own"}, hooks=hooks)
    assert calls.count("step") == 2 and "loss" in calls
    assert found.metrics["rows"] == 24
    note = "code of the caller: callback Watch, metric rows, formatting joined, loss scaled"
    assert note in found.record.notes
    for wrong, message in (
        (
            api.Hooks(formatting=lambda row: row["gone"]),
            r"hooks.formatting: <lambda> raises KeyError: 'gone'; it gets a",
        ),
        (
            api.Hooks(formatting=joined, metrics={"bad": lambda _: 1 / 0}),
            r"hooks.metrics: bad raises ZeroDivisionError",
        ),
        (
            api.Hooks(formatting=joined, metrics={"f1": seen}),
            r"hooks.metrics: 'f1' is a metric of the task; give yours another name",
        ),
    ):
        with pytest.raises(RecipeError, match=message):
            api.run(SECTIONS, {"TrainingArguments.output_dir": "wrong"}, hooks=wrong)


def test_the_loss_of_the_docs_is_the_recipes_own_whatever_the_accumulation(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trainer adds up what a caller's loss gives for the micro-batches of a step."""
    block = (root / "docs/python.md").read_text(encoding="utf-8").partition("def smooth")[2].partition("\n\n\n")[0]
    names: dict = {"torch": torch}
    exec(f"def smooth{block}", names)
    source = folder_of("text-classification")
    monkeypatch.chdir(tmp_path)
    for name in ("base", "train.jsonl", "validation.jsonl"):
        (tmp_path / name).symlink_to(source / name)
    changes = {"TrainingArguments.gradient_accumulation_steps": 4, "TrainingArguments.per_device_train_batch_size": 2}
    own = api.run(SECTIONS, {**changes, "TrainingArguments.label_smoothing_factor": 0.1})
    hooked = api.run(
        SECTIONS, {**changes, "TrainingArguments.output_dir": "hooked"}, hooks=api.Hooks(loss=names["smooth"])
    )
    losses = [one.record.train_loss for one in (own, hooked)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_script_of_twenty_lines_runs_compares_and_shows_and_mypy_accepts_it(root: Path) -> None:
    script = root / "docs" / "examples" / "compare.py"
    lines = [line for line in script.read_text().splitlines() if line.strip() and not line.startswith(("#", '"""'))]
    assert len(lines) <= 20
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--ignore-missing-imports",
        "--follow-imports=silent",
        str(script),
    ]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", notebook.notebooks(), ids=lambda path: path.name)
def test_a_notebook_executes_and_shows_what_is_in_it(path: Path) -> None:
    committed = json.loads(path.read_text())
    fresh = notebook.execute(committed)

    def kinds(one: dict) -> list[list[str]]:
        return [
            sorted(key for output in cell.get("outputs", ()) for key in output.get("data", ())) for cell in one["cells"]
        ]

    assert kinds(fresh) == kinds(committed)
    shown = "".join(line for cell in fresh["cells"] for out in cell.get("outputs", ()) for line in out.get("text", ()))
    assert "finished after" in shown and "\r" not in shown


def test_twenty_lines_run_compare_evaluate_and_predict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = folder_of("text-classification")
    monkeypatch.chdir(tmp_path)
    for name in ("base", "train.jsonl", "validation.jsonl"):
        (tmp_path / name).symlink_to(source / name)
    a = api.run(SECTIONS, {"TrainingArguments.output_dir": "a"})
    b = api.run(SECTIONS, {"TrainingArguments.output_dir": "b", "TrainingArguments.learning_rate": 1e-3})
    assert a.metrics.keys() >= {"loss", "f1", "accuracy"}
    assert "<td>f1</td>" in a._repr_html_() and repr(a).startswith("Ran('a', finished: loss ")
    found = api.compare(a, b, resamples=200)
    assert str(found) and found.values
    write_rows("other.jsonl", rows_of("sentiment", 300, 20))
    other = api.evaluate(b, "other.jsonl")
    assert other.folder == Path("b/evaluations/other") and other.record.data["eval"].rows == 20
    labels = api.predict(b, ["a good film", {"text": "a bad one"}])
    assert [one["text"] for one in labels] == ["a good film", "a bad one"]
    with pytest.raises(RecipeError):
        api.predict(b, "one text")


def test_a_recipe_that_lacks_its_trainer_and_what_is_no_recipe_are_refused() -> None:
    with pytest.raises(RecipeError, match="recipe: "):
        api.run({"task": "chat"})
    assert not api.check({"task": "text-classification", "model": {"pretrained_model_name_or_path": "x"}}).ok
    for wrong in (3, None):
        with pytest.raises(RecipeError, match="give a path, a name or a dict"):
            api.check(wrong)  # type: ignore[arg-type]
        with pytest.raises(RecipeError, match="give a run's folder"):
            api.predict(wrong, ["a"])  # type: ignore[arg-type]


def test_rows_that_are_neither_texts_nor_columns_are_refused() -> None:
    with pytest.raises(RecipeError, match="row 1: is int; give texts, or dicts"):
        api.predict("runs", ["a", 2])  # type: ignore[list-item]


def test_a_type_checker_reads_the_types_of_the_package() -> None:
    import hf_recipes

    assert (Path(hf_recipes.__file__).parent / "py.typed").is_file()
