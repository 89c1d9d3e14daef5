"""The same plan a second time starts no child, and a changed recipe, file or package is traced again."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from hf_recipes.errors import OutOfTimeError
from hf_recipes.plan.trace import answer_cache, worker
from tests.support.tiny_recipes import GPT2, tiny

ANSWER = {"trace": {"allocated": 5}}


@pytest.fixture(autouse=True)
def _cache_of_this_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_cache, "cache_folder", lambda: str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def request(**changes: Any) -> dict[str, Any]:
    """A request as the parent sends it."""
    model = changes.pop("model", {"pretrained_model_name_or_path": "mine"})
    sections = {"task": "causal-lm", "model": model, "TrainingArguments": {"output_dir": "runs/a"}}
    recipe = {"path": changes.pop("path", "a.yaml"), "sections": sections, "locations": changes.pop("locations", {})}
    return {"kind": "trace", "recipe": recipe, "length": 32, "folder": os.getcwd(), **changes}


def test_an_equal_request_is_answered_from_the_cache_whatever_the_lines_of_its_recipe() -> None:
    assert answer_cache.load_answer(request()) is None
    answer_cache.save_answer(request(), ANSWER)
    assert answer_cache.load_answer(request()) == ANSWER
    assert answer_cache.load_answer(request(path="b.yaml", locations={"task": "b.yaml:7"})) == ANSWER
    assert answer_cache.load_answer(request(length=33)) is None
    assert answer_cache.load_answer(request(model={"pretrained_model_name_or_path": "other"})) is None


def test_a_changed_config_of_the_same_size_is_traced_again() -> None:
    Path("mine").mkdir()
    Path("mine/config.json").write_text('{"n_layer": 2}', encoding="utf-8")
    answer_cache.save_answer(request(), ANSWER)
    state = os.stat("mine/config.json")
    Path("mine/config.json").write_text('{"n_layer": 3}', encoding="utf-8")
    os.utime("mine/config.json", ns=(state.st_atime_ns, state.st_mtime_ns))
    assert answer_cache.load_answer(request()) is None
    Path("mine/config.json").write_text('{"n_layer": 2}', encoding="utf-8")
    assert answer_cache.load_answer(request()) == ANSWER


def test_what_a_run_writes_into_its_output_folder_changes_nothing_and_data_below_the_datasets_folder_does() -> None:
    Path("rows").mkdir()
    Path("rows/a-1.jsonl").write_text("{}\n", encoding="utf-8")

    def asked() -> dict[str, Any]:
        found = request()
        found["recipe"]["sections"]["dataset"] = {"path": "rows", "data_files": {"train": "a-*.jsonl"}}
        return found

    answer_cache.save_answer(asked(), ANSWER)
    Path("runs/a").mkdir(parents=True)
    Path("runs/a/record.json").write_text("{}", encoding="utf-8")
    assert answer_cache.load_answer(asked()) == ANSWER
    Path("rows/a-2.jsonl").write_text("{}\n", encoding="utf-8")
    assert answer_cache.load_answer(asked()) is None


def test_data_in_folders_below_the_datasets_folder_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("rows/train").mkdir(parents=True)
    file = Path("rows/train/a.jsonl")
    file.write_text("{}\n", encoding="utf-8")
    asked = request()
    asked["recipe"]["sections"]["dataset"] = {"path": "rows"}
    answer_cache.save_answer(asked, ANSWER)
    assert answer_cache.load_answer(asked) == ANSWER
    file.write_text("[]\n", encoding="utf-8")
    assert answer_cache.load_answer(asked) is None
    monkeypatch.setattr(answer_cache, "MOST_FILES", 0)  # more are not compared, and nothing is taken from the cache
    answer_cache.save_answer(asked, ANSWER)
    assert answer_cache.load_answer(asked) is None


def test_a_model_that_comes_into_the_hubs_cache_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    asked = request(model={"pretrained_model_name_or_path": "org/name"})
    answer_cache.save_answer(asked, ANSWER)
    commit = tmp_path / "hub" / "models--org--name" / "snapshots" / "abc"
    commit.mkdir(parents=True)
    (commit / "config.json").write_text("{}", encoding="utf-8")
    assert answer_cache.load_answer(asked) is None


def test_an_upgraded_package_is_traced_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer_cache.save_answer(request(), ANSWER)
    (tmp_path / "site" / "torch-99.0.dist-info").mkdir(parents=True)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert answer_cache.load_answer(request()) is None


def test_errors_are_not_kept_a_damaged_entry_is_no_answer_and_the_oldest_go_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answer_cache.save_answer(request(), {"crash": "out of files"})
    answer_cache.save_answer(request(), {"late": True})
    assert answer_cache.load_answer(request()) is None
    monkeypatch.setattr(answer_cache, "MOST", 2)
    for length in (1, 2, 3):
        answer_cache.save_answer(request(length=length), ANSWER)
        time.sleep(0.01)
    assert [answer_cache.load_answer(request(length=length)) for length in (1, 2, 3)] == [None, ANSWER, ANSWER]
    for entry in Path(answer_cache.cache_folder(), "plans").iterdir():
        entry.write_bytes(entry.read_bytes()[:-3])
    assert answer_cache.load_answer(request(length=3)) is None


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setattr(answer_cache, "cache_folder", lambda: str(tmp_path / "file"))
    answer_cache.save_answer(request(), ANSWER)
    assert answer_cache.load_answer(request()) is None
    monkeypatch.setattr(answer_cache, "cache_folder", lambda: "")
    answer_cache.save_answer(request(), ANSWER)


def test_a_trace_that_is_not_done_in_time_is_ended_by_the_clock_and_by_its_own_computing_time(
    real_child: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer_cache, "cache_folder", lambda: "")  # another test may have this answer
    with (
        pytest.raises(OutOfTimeError, match="the time limit was over before the trace was done"),
        worker.time_limit(0.05),
    ):
        worker.trace_recipe(tiny("causal-lm", GPT2))
    assert not worker._children  # it was ended, not waited for
    # The child's own limit, as it serves: the answer says so, and the child continues.
    requests = [json.dumps({"kind": "trace", "recipe": {}, "n": n}) for n in range(2)]
    answers: list[str] = []
    monkeypatch.setattr(worker, "CPU_SECONDS", 0.2)
    monkeypatch.setattr(worker, "_answer", lambda request: _busy() if request["n"] == 0 else ANSWER)
    monkeypatch.setattr(worker.gc, "collect", lambda: 0)

    class Answers:
        write = staticmethod(answers.append)
        flush = staticmethod(lambda: None)

    worker._serve(requests, Answers())  # type: ignore[arg-type]
    assert [json.loads(answer) for answer in answers] == [{"slow": 0.2}, ANSWER]


def test_a_child_that_will_be_asked_next_starts_with_the_first_and_is_not_waited_for_at_the_end(
    real_child: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer_cache, "cache_folder", lambda: "")
    monkeypatch.setattr(worker.os, "cpu_count", lambda: 4)
    worker.expect_traces(6)
    with pytest.raises(OutOfTimeError), worker.time_limit(0.05):
        worker.trace_recipe(tiny("causal-lm", GPT2))
    assert list(worker._children) == [1]  # two at most
    child = worker._children[1]
    assert child.poll() is None and "main(ahead=True)" in child.args[-1]
    worker.close()
    assert child.returncode == -signal.SIGKILL


def _busy() -> dict[str, Any]:
    while True:
        sum(range(1000))
