"""`hf-recipes runs`: what ran, how well it did, and how surely."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hf_recipes.catalog.metrics import LOWER_IS_BETTER
from hf_recipes.catalog.tasks import TASKS
from hf_recipes.commands.compare import command as compare
from hf_recipes.commands.of_runs import SORTS as OFFERED
from hf_recipes.commands.runs import SORTS, command
from hf_recipes.compare.measures import MEASURES
from hf_recipes.errors import RecipeError, RecordError
from hf_recipes.record import (
    Memory,
    MetricInterval,
    Metrics,
    ModelFacts,
    RecipeFacts,
    RunRecord,
    Status,
)
from hf_recipes.record.file import write_record

NOW = datetime.datetime(2026, 11, 25, 12, tzinfo=datetime.UTC)


def _record(name: str, task: str, hours: float, **facts: Any) -> None:
    folder = Path(name)
    folder.mkdir(parents=True)
    ended = (NOW - datetime.timedelta(hours=hours)).isoformat()
    model = ModelFacts(name="m")
    facts = {"task": task, "status": Status.FINISHED, "ended": ended, "model": model, **facts}
    write_record(folder, RunRecord(**facts))


@pytest.fixture
def three(folder: Path) -> None:
    interval = {"eval": {"f1": MetricInterval(value=0.9, low=0.88, high=0.92)}}
    metrics = Metrics(eval={"eval_f1": 0.9})
    memory = Memory(peak_rss_bytes=2**30, peak_reserved_bytes=3 * 2**30)
    _record("runs/a", "text-classification", 30, metrics=metrics, intervals=interval, memory=memory)
    _record(
        "runs/deep/b", "text-classification", 0.05, metrics=Metrics(eval={"eval_f1": 0.95}), tokens_per_second=1234.5
    )
    _record("runs/c", "chat", 5, status=Status.OUT_OF_MEMORY)


def test_runs_are_listed_newest_first_with_metric_interval_memory_speed_and_age(three: None) -> None:
    assert command("runs", now=NOW) == [
        "run     status         task                 model  steps  metric (95%)              peak  tokens/s    age",
        "deep/b  finished       text-classification  m      –      f1 0.95                      –     1,234  3 min",
        "c       out of memory  chat                 m      –      –                            –         –    5 h",
        "a       finished       text-classification  m      –      f1 0.9 (0.88 to 0.92)  3.0 GiB         –    1 d",
    ]


def test_runs_are_sorted_best_first_and_those_without_a_figure_last(three: None) -> None:
    def order(sort: str) -> list[str]:
        return [one["run"] for one in json.loads("\n".join(command("runs", sort=sort, as_json=True, now=NOW)))]

    assert order("metric") == ["c", "deep/b", "a"]  # by task, then by value
    assert order("name") == ["a", "c", "deep/b"]
    assert order("speed")[0] == "deep/b" and order("memory")[0] == "a"


def test_a_record_that_cannot_be_read_is_named_and_the_others_are_listed(three: None) -> None:
    Path("runs/cut").mkdir()
    Path("runs/cut/record.json").write_text('{"schema": 1, "ta')
    lines = command("runs", now=NOW)
    assert len(lines) == 5 and lines[-1].startswith("warning: left out: runs/cut/record.json: is no complete record")


def test_odd_times_and_names_of_a_record_cost_no_other_run_its_line(three: None) -> None:
    _record("runs/odd", "chat", 1, ended="2026-11-27", model=ModelFacts(name="a\x1b[31m\nb"))
    lines = command("runs", now=NOW)
    assert len(lines) == 5
    assert [line.split()[-1] for line in lines if line.startswith("odd")] == ["–"]
    assert [line.split()[3] for line in lines if line.startswith("odd")] == ["a?[31m?b"]


def test_a_folder_without_runs_says_so(folder: Path) -> None:
    for name, what in (("none", "no such folder"), (".", r"no record\.json in it or below")):
        with pytest.raises(RecipeError, match=what):
            command(name)


def test_tags_that_are_no_spans_are_listed_by_their_accuracy(folder: Path) -> None:
    metrics = Metrics(eval={"eval_loss": 0.5, "eval_accuracy": 0.75})
    _record("runs/tags", "token-classification", 1, metrics=metrics)
    assert "accuracy 0.75" in command("runs", now=NOW)[1]


def test_less_is_better_of_losses_errors_perplexity_and_bits_per_byte_only() -> None:
    compared = {measure.name: measure for measures in MEASURES.values() for measure in measures}
    assert {"loss", "mse", "perplexity", "bits_per_byte"} == LOWER_IS_BETTER
    assert {name for name, measure in compared.items() if not measure.higher_is_better} == LOWER_IS_BETTER - {"loss"}
    assert {name for task in TASKS.values() for name in task.metrics} <= set(compared)


def test_the_command_line_offers_every_order_of_the_list() -> None:
    assert tuple(SORTS) == OFFERED


def test_the_committed_records_are_listed_without_torch(root: Path) -> None:
    arguments = ["-X", "importtime", "-m", "hf_recipes", "runs", "recipes", "--sort", "metric"]
    ended = subprocess.run([sys.executable, *arguments], cwd=root, capture_output=True, text=True)
    assert ended.returncode == 0 and "quickstart--cpu" in ended.stdout
    assert not any(line.endswith((" torch", " scipy", " pyarrow")) for line in ended.stderr.splitlines())


def test_whatever_is_called_record_json_is_left_out_with_one_line(
    three: None, capsys: pytest.CaptureFixture[str]
) -> None:
    odd: dict[str, Callable[[Path], object]] = {
        "list": lambda path: path.write_text("[1]"),
        "text": lambda path: path.write_text('"a"'),
        "number": lambda path: path.write_text("1e999"),
        "nested": lambda path: path.write_text("[" * 100_000),
        "bytes": lambda path: path.write_bytes(b"\xff\x00"),
        "fifo": os.mkfifo,
        "folder": lambda path: path.mkdir(),
        "loop": lambda path: path.symlink_to("record.json"),
        "nowhere": lambda path: path.symlink_to("/nowhere/record.json"),
        "version": lambda path: path.write_text('{"schema": -1, "task": "chat"}'),
        "large": lambda path: (path.touch(), os.truncate(path, 100_000_000)),
        "socket": lambda path: socket.socket(socket.AF_UNIX).bind(os.path.relpath(path)),
    }
    for name, make in odd.items():
        Path("runs", name).mkdir()
        make(Path("runs", name, "record.json"))
    lines = command("runs", now=NOW)
    assert [line.split(":")[:2] for line in lines[4:]] == [["warning", " left out"]] * len(odd)
    assert sorted(line.split(": ")[2].split("/")[1] for line in lines[4:]) == sorted(odd)
    assert len(json.loads("\n".join(command("runs", as_json=True, now=NOW)))) == 3
    assert capsys.readouterr().err.count("warning: left out: ") == len(odd)


def test_scores_that_a_record_names_elsewhere_are_not_opened(folder: Path) -> None:
    shutil.copytree(Path(__file__).parents[1] / "data/run-587a747/runs/seed1", "a")
    good = json.loads(Path("a/record.json").read_text())
    for i, name in enumerate(("../a/scores.parquet", str(Path("a/scores.parquet").absolute()), "x\0", "link.parquet")):
        Path(f"runs/{i}").mkdir(parents=True)
        Path(f"runs/{i}/link.parquet").symlink_to(Path("a/scores.parquet").absolute())
        Path(f"runs/{i}/record.json").write_text(json.dumps({**good, "scores": {"eval": name}, "intervals": None}))
        assert json.loads("\n".join(command(f"runs/{i}", as_json=True, now=NOW)))[0]["low"] is None
        with pytest.raises(RecordError, match="which is not in the run's folder; evaluate the run again"):
            compare(["a", f"runs/{i}"])


def test_a_comparison_leaves_out_what_cannot_be_read_where_two_runs_are_left(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = Path(__file__).parents[1] / "data/run-587a747/runs"
    shutil.copytree(runs / "seed1", "a")
    shutil.copytree(runs / "seed42", "b")
    Path("c").mkdir()
    Path("c/record.json").write_text("[1]")
    os.mkfifo("fifo")
    lines = compare(["a", "c", "b", "fifo"])
    assert lines[:2] == [
        "warning: left out: c/record.json: is no record of a run; restore the file, or give a run's folder",
        "warning: left out: fifo: is a pipe (FIFO), not a file; restore the file",
    ]
    assert lines[2:] == compare(["a", "b"])
    assert json.loads("\n".join(compare(["a", "c", "b"], as_json=True)))["findings"]
    assert "warning: left out: c/record.json" in capsys.readouterr().err
    for paths in (["a", "c"], ["a", "b", "none"]):
        with pytest.raises(RecordError):
            compare(paths)


# --- a page of runs --------------------------------------------------------------------------------------------------


def _page(name: str = "page.html") -> tuple[str, dict[str, Any]]:
    text = Path(name).read_text()
    data = text.partition('<script type="application/json" id="data">')[2].partition("</script>")[0]
    return text, json.loads(data)


def test_a_page_of_runs_has_their_figures_their_settings_their_curves_and_why_one_failed(folder: Path) -> None:
    history = tuple({"step": step, "loss": 1 / step, "eval_runtime": 1.0} for step in range(1, 1001))
    for i, rate in enumerate((1e-4, 1e-3)):
        sections = {"TrainingArguments": {"learning_rate": rate, "output_dir": f"runs/{i}", "num_train_epochs": 1}}
        _record(
            f"runs/{i}", "text-classification", i, metrics=Metrics(eval={"eval_f1": 0.9}), log_history=history,
            recipe=RecipeFacts(sections=sections),
        )  # fmt: skip
    _record("runs/bad", "chat", 5, status=Status.FAILED, error="ValueError: </script><b>no\nsecond line")
    assert command("runs", html="page.html", now=NOW) == ["written: page.html (3 runs)"]
    text, data = _page()
    assert text.count("</script>") == 2  # no text of a record ends a script
    by_name = {one["name"]: one for one in data["runs"]}
    assert by_name["bad"]["reason"] == "ValueError: </script><b>no" and by_name["bad"]["failed"]
    assert (by_name["0"]["metric"], by_name["0"]["value"], by_name["0"]["failed"]) == ("f1", 0.9, False)
    assert "TrainingArguments.learning_rate" in data["differing"]
    assert not [key for key in data["differing"] if "output_dir" in key]
    assert list(by_name["0"]["curves"]) == ["loss"] and len(by_name["0"]["curves"]["loss"]) == 300
    assert by_name["0"]["curves"]["loss"][-1] == [1000.0, 0.001]


def test_a_page_that_cannot_be_written_is_refused(three: None) -> None:
    with pytest.raises(RecipeError, match=r"argument '--html': 'no/such/page.html' cannot be written"):
        command("runs", html="no/such/page.html", now=NOW)


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")
def test_the_page_filters_hides_sorts_and_draws(three: None, tmp_path: Path) -> None:
    command("runs", html="page.html", now=NOW)
    probe = """<script>addEventListener("load", () => { const names = () => [...document.querySelectorAll("tbody tr")]
      .map(row => row.cells[1].textContent), found = [names()], set = (id, name, value) => {
      const one = document.getElementById(id); one[name] = value; one.dispatchEvent(new Event("input")); };
      set("hide", "checked", true); found.push(names()); set("hide", "checked", false);
      set("filter", "value", "deep"); found.push(names()); set("filter", "value", "");
      document.querySelectorAll("th button")[6].click(); found.push(names());
      const at = document.createElement("pre"); at.id = "found"; at.textContent = JSON.stringify(found);
      document.body.append(at); });</script></body>"""
    page = tmp_path / "probe.html"
    page.write_text(Path("page.html").read_text().replace("</body>", probe))
    words = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    done = subprocess.run([str(CHROMIUM), *words, page.as_uri()], capture_output=True, text=True, timeout=120)
    found = json.loads(done.stdout.partition('<pre id="found">')[2].partition("</pre>")[0])
    assert found == [["a", "c", "deep/b"], ["a", "deep/b"], ["deep/b"], ["a", "deep/b", "c"]]
