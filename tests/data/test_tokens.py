"""Prepared rows: the same however they were made, found again by what made them, and never wrong."""

from __future__ import annotations

import json
import os
import pickle
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.process import BaseProcess as Process
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from datasets import Dataset, load_from_disk

from hf_recipes.data.prepared import Prepared
from hf_recipes.data.splits import load_splits
from hf_recipes.data.tokens.encode import Encoding
from hf_recipes.data.tokens.rows import read_rows
from hf_recipes.data.tokens.workers import Worker, WorkerError
from hf_recipes.errors import DataError
from hf_recipes.recipe.recipe import Recipe
from tests.support.tiny_models import TEXTS, bpe, prepare, refusal

Make = Callable[..., Recipe]
ROWS = [{"text": f"{text} {i} — é"} for i in range(300) for text in TEXTS]


@pytest.fixture
def store(folder: Path) -> str:
    """`cache_dir` of a recipe: a store of its own."""
    return f"cache_dir: {folder / 'cache'}"


def folders(prepared: Prepared) -> dict[str, Path]:
    return {
        split: Path(data.cache_files[0]["filename"]).parent
        for split, data in {"train": prepared.train, **prepared.evals}.items()
    }


def content(prepared: Prepared) -> Any:
    rows = {split: data[:] for split, data in {"train": prepared.train, **prepared.evals}.items()}
    return rows, prepared.row_bytes, prepared.ids, prepared.stats, prepared.notes


def state(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("section", ["TrainingArguments", "SFTConfig"])
def test_several_processes_make_the_rows_of_one(
    make: Make, folder: Path, section: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, found = bpe(), []
    for processes, unit in ((1, 2**23), (1, 997), (1, 20_000), (3, 8000)):  # here; apart; here; three
        monkeypatch.setattr("hf_recipes.data.tokens.source.UNIT", unit)
        recipe = make("causal-lm", f"num_proc: {processes}, cache_dir: {folder / str(unit)}", section=section)
        found.append(content(prepare(recipe, ROWS, tokenizer, length=32)))
    assert found[0] == found[1] == found[2] == found[3]


def test_prepared_rows_are_found_again_and_nothing_is_written(make: Make, store: str, folder: Path) -> None:
    tokenizer = bpe()
    first = prepare(make("causal-lm", store), ROWS, tokenizer, length=32)
    before = state(folder / "cache")
    again = prepare(make("causal-lm", store), ROWS, tokenizer, length=32)
    assert content(first) == content(again) and state(folder / "cache") == before


def test_whatever_changes_a_row_has_another_folder_and_equal_rows_share_one(make: Make, store: str) -> None:
    recipe, tokenizer = make("causal-lm", store), bpe()
    base = folders(prepare(recipe, ROWS, tokenizer, length=32))["train"]
    same = Dataset.from_list([{"other": 1, **row} for row in ROWS]).select(range(len(ROWS)))
    assert folders(prepare(recipe, same, bpe(), length=32))["train"] == base
    with_another_end = bpe()
    with_another_end.eos_token = "<|im_end|>"
    others = [
        prepare(recipe, ROWS, tokenizer, length=31),
        prepare(recipe, [*ROWS[:-1], {"text": ROWS[-1]["text"] + "."}], tokenizer, length=32),
        prepare(recipe, [*ROWS[1:], ROWS[0]], tokenizer, length=32),
        prepare(recipe, ROWS, bpe(TEXTS[:2]), length=32),
        prepare(recipe, ROWS, bpe(bos=True), length=32),
        prepare(recipe, ROWS, with_another_end, length=32),
        prepare(make("causal-lm", store, section="SFTConfig"), ROWS, tokenizer, length=32),
    ]
    assert len({base, *(folders(one)["train"] for one in others)}) == 1 + len(others)


def test_a_tokenizer_that_truncates_or_pads_by_itself_loses_nothing(make: Make, store: str) -> None:
    plain, cutting = bpe(), bpe()
    cutting.backend_tokenizer.enable_truncation(4)
    cutting.backend_tokenizer.enable_padding(length=50)
    recipe = make("causal-lm", store)
    assert content(prepare(recipe, ROWS, cutting, length=32)) == content(prepare(recipe, ROWS, plain, length=32))


def test_a_tokenizer_with_code_of_its_own_is_called(make: Make, store: str) -> None:
    class Loud(type(bpe())):  # type: ignore[misc]
        def __call__(self, text: Any, **kwargs: Any) -> Any:
            return super().__call__([one.upper() for one in text], **kwargs)

    tokenizer = bpe()
    loud = Loud(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    found = prepare(make("causal-lm", store), ROWS, loud, length=32)
    assert tokenizer.decode(found.train[0]["input_ids"]).startswith(TEXTS[0].upper()[:20])


def test_numpy_alone_and_datasets_alone_read_the_rows(make: Make, store: str, root: Path) -> None:
    prepared = prepare(make("causal-lm", store, section="SFTConfig"), ROWS, bpe(), length=20)
    code = re.findall(r"```python\n(.*?)```", (root / "docs/data.md").read_text(encoding="utf-8"), re.DOTALL)
    for split, data in {"train": prepared.train, **prepared.evals}.items():
        folder = folders(prepared)[split]
        names: dict[str, Any] = {"folder": str(folder)}
        exec(code[0], names)
        assert [row.tolist() for row in names["rows"]] == list(data["input_ids"])
        assert {row.dtype for row in names["rows"]} == {np.dtype("uint16")}
        assert list(load_from_disk(str(folder))["input_ids"]) == list(data["input_ids"])
    assert np.load(folders(prepared)["eval"] / "bytes.npy").tolist() == prepared.row_bytes["eval"]


def test_a_token_takes_two_bytes_of_the_disk_and_four_in_a_large_vocabulary(make: Make, store: str) -> None:
    tokenizer = bpe()
    tokenizer.add_tokens([f"<{i}>" for i in range(2**16)])
    largest = len(tokenizer) - 1
    rows = [{"input_ids": [largest, 5, 6] * 20} for _ in range(200)]
    found = prepare(make("causal-lm", store), rows, tokenizer, length=64)
    assert found.train[0]["input_ids"][:2] == [largest, 5]
    index = json.loads((folders(found)["train"] / "index.json").read_text(encoding="utf-8"))
    assert index["dtype"] == "uint32"
    small = prepare(make("causal-lm", store), ROWS * 3, bpe(), length=512)
    size = sum(path.stat().st_size for path in folders(small)["train"].iterdir())
    assert size < 2.2 * small.stats["train"].tokens


def test_damaged_rows_are_made_again(make: Make, store: str, folder: Path) -> None:
    recipe, tokenizer = make("causal-lm", store), bpe()
    first = prepare(recipe, ROWS, tokenizer, length=32)
    good = content(first)
    for name in ("data-00000.arrow", "index.json", "bytes.npy", "state.json"):
        place = folders(first)["eval"]
        path = place / name
        found = bytearray(path.read_bytes())
        found[len(found) // 2] ^= 1
        path.write_bytes(found)
        assert read_rows(place) is None, name
        assert content(prepare(recipe, ROWS, tokenizer, length=32)) == good
    (place / "ids.npy").unlink()
    assert content(prepare(recipe, ROWS, tokenizer, length=32)) == good


def test_whatever_takes_the_place_of_rows_they_are_made_again(make: Make, store: str) -> None:
    recipe, tokenizer = make("causal-lm", store), bpe()
    first = prepare(recipe, ROWS, tokenizer, length=32, held_out=ROWS[:40])
    good, places = content(first), folders(first)
    train = places["train"]

    def made_again() -> None:
        assert content(prepare(recipe, ROWS, tokenizer, length=32, held_out=ROWS[:40])) == good

    shutil.rmtree(train)
    train.write_text("a file")
    train.with_name("rows.part").write_text("a file")
    made_again()
    shutil.rmtree(train)
    shutil.copytree(places["eval"], train)  # complete, but of other texts
    made_again()
    shutil.rmtree(train)
    (train.parent / "lock").unlink(missing_ok=True)
    (train.parent / "lock").mkdir()
    with pytest.raises(DataError, match=r"/lock' is not what is stored there: Is a directory; remove it"):
        made_again()


def test_rows_that_were_copied_to_another_machine_are_read(make: Make, store: str, folder: Path) -> None:
    first = prepare(make("causal-lm", store), ROWS, bpe(), length=32)
    good = content(first)
    shutil.copytree(folder / "cache", folder / "copy")
    again = prepare(make("causal-lm", f"cache_dir: {folder / 'copy'}"), ROWS, bpe(), length=32)
    assert content(again) == good and not list((folder / "copy").rglob("*.npz"))


def start(recipe: Recipe, tokenizer: Any, answer: Path, *, limit: int | None = None, rows: Any = ROWS) -> Process:
    """Prepares the rows, or those that the recipe names, in a process of its own, which writes what it made, or the
    error, into `answer`."""

    def work() -> None:
        if limit is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            data = load_splits(recipe).train if rows is None else rows
            made = repr(content(prepare(recipe, data, tokenizer, length=32)))
        except DataError as problem:
            made = str(problem)
        answer.write_text(made, encoding="utf-8")

    answer.unlink(missing_ok=True)
    process = get_context("fork").Process(target=work)
    process.start()
    return process


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])  # 200 take ten minutes
def test_a_killed_preparation_is_continued_and_its_rows_are_the_same(
    make: Make, folder: Path, monkeypatch: pytest.MonkeyPatch, kills: int
) -> None:
    monkeypatch.setattr("hf_recipes.data.tokens.source.UNIT", 3000)
    tokenizer, answer, draw, partial = bpe(), folder / "answer", random.Random(kills), 0
    expected = repr(content(prepare(make("causal-lm", f"cache_dir: {folder / 'whole'}"), ROWS, tokenizer, length=32)))
    for kill in range(kills):
        cache = folder / f"cache-{kill // 2}"  # every second kill hits what an earlier one left
        recipe = make("causal-lm", f"num_proc: {1 + kill // 2 % 2}, cache_dir: {cache}")
        process = start(recipe, tokenizer, answer)
        parts, more = len(list(cache.rglob("*.npz"))), draw.randrange(12)
        while process.is_alive() and len(list(cache.rglob("*.npz"))) < parts + more:
            time.sleep(0.001)
        process.kill()
        process.join()
        partial += bool(list(cache.rglob("*.npz")))
        if kill % 2:
            done = start(recipe, tokenizer, answer)
            done.join(60)
            assert answer.read_text(encoding="utf-8") == expected
            shutil.rmtree(cache)
    assert partial  # some kills left a part of the work


def test_a_full_disk_in_the_middle_is_named_and_the_next_call_continues(
    make: Make, folder: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_recipes.data.tokens.source.UNIT", 3000)
    tokenizer, answer = bpe(), folder / "answer"
    expected = repr(content(prepare(make("causal-lm", f"cache_dir: {folder / 'whole'}"), ROWS, tokenizer, length=32)))
    recipe = make("causal-lm", f"num_proc: 2, {store}")
    start(recipe, tokenizer, answer, limit=20_000).join(60)  # parts are smaller, the Arrow file is larger
    assert answer.read_text(encoding="utf-8") == (
        f"environment: the prepared rows cannot be written to '{folder / 'cache/hf_recipes'}': no file may be larger "
        "than 19.5 KiB here (ulimit -f); raise that limit (what is prepared so far is used again), or set "
        "dataset.cache_dir to another folder"
    )
    parts = {name: one for name, one in state(folder / "cache").items() if name.endswith(".npz")}
    assert parts
    start(recipe, tokenizer, answer).join(60)
    assert answer.read_text(encoding="utf-8") == expected


@pytest.mark.parametrize("own", [True, False])
def test_a_cache_without_room_for_the_data_is_named_by_what_decides_it(
    make: Make, folder: Path, own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arrow names no file, and what it has written is gone before the room on the disk could be asked for."""
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    cache = folder / "cache"
    monkeypatch.setenv("HF_DATASETS_CACHE", str(cache))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(cache))
    setting, name = (f", cache_dir: {cache}", "dataset.cache_dir") if own else ("", "HF_DATASETS_CACHE")
    start(make("causal-lm", f"data_files: a.jsonl{setting}"), bpe(), folder / "answer", limit=9000, rows=None).join(60)
    assert (folder / "answer").read_text(encoding="utf-8") == (
        f"environment: the cache {name} ({cache}) cannot be written: no file may be larger than 8.8 KiB here "
        f"(ulimit -f); raise that limit, or set {name} to another folder"
    )


@pytest.mark.parametrize("own", [True, False])
def test_a_store_without_room_is_named_by_what_decides_it(
    make: Make, folder: Path, own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "file").write_text("")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(folder / "file/cache"))
    with pytest.raises(DataError) as raised:
        prepare(make("causal-lm", f"cache_dir: {folder / 'file/other'}" if own else ""), ROWS, bpe(), length=32)
    setting = "dataset.cache_dir" if own else "HF_DATASETS_CACHE or dataset.cache_dir"
    assert str(raised.value).endswith(f"(what is prepared so far is used again), or set {setting} to another folder")


def encoding() -> Encoding:
    backend = bpe().backend_tokenizer.to_str()
    return Encoding(backend=backend, split_special_tokens=False, eos=0, dtype="uint16", with_sizes=True)


def test_a_worker_that_dies_is_started_again(folder: Path) -> None:
    worker = Worker(encoding())
    worker.write(["a"], folder / "0.npz")
    assert worker.process is not None
    os.kill(worker.process.pid, signal.SIGKILL)
    worker.write(["a"], folder / "1.npz")
    worker.kill()
    assert (folder / "0.npz").read_bytes() == (folder / "1.npz").read_bytes()


@pytest.mark.parametrize("busy", [False, True])
def test_a_worker_whose_parent_is_killed_ends_without_a_word(busy: bool) -> None:
    """While it reads, or before it answers."""
    folder_of_part = "/nonexistent/0.npz"
    process = subprocess.Popen(
        [sys.executable, "-m", "hf_recipes.data.tokens.worker"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    process.stdout.close()
    message = pickle.dumps((["a"], folder_of_part))
    process.stdin.write(pickle.dumps(encoding()) + (message if busy else message[:-5]))
    process.stdin.close()
    assert process.stderr.read() == b"" and process.wait(60) == 0
    process.stderr.close()


def test_rows_that_no_worker_survives_are_reported(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(WorkerError, match="status 1"):
        Worker(encoding()).write(["a"], folder / "0.npz")


def test_a_process_waits_for_the_one_that_prepares(
    make: Make, folder: Path, store: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    """Two threads with two open files of the lock are as two processes to the kernel."""
    from filelock import FileLock

    first = prepare(make("causal-lm", store), ROWS, bpe(), length=32)
    good, place = content(first), folders(first)["train"]
    (place / "index.json").unlink()
    monkeypatch.setattr("hf_recipes.data.tokens.parts.PATIENCE", 0.1)
    found: list[Any] = []
    lock = FileLock(place.parent / "lock", thread_local=False)
    lock.acquire()
    waiting = threading.Thread(target=lambda: found.append(prepare(make("causal-lm", store), ROWS, bpe(), length=32)))
    waiting.start()
    waiting.join(1)
    assert waiting.is_alive() and not (place / "index.json").exists()
    lock.release()
    waiting.join(60)
    assert content(found[0]) == good
    assert "waits: another process prepares the train split" in capfd.readouterr().out


def test_a_list_of_ids_with_a_value_that_is_missing_is_refused(make: Make, store: str) -> None:
    rows = [{"input_ids": [1, None, 2]}]
    assert refusal(make("causal-lm", store), rows, bpe(), length=32) == (
        "recipe.yaml:3: the train split has a list of token ids with a value that is no id; "
        "name the tokenizer that wrote these ids in the tokenizer section"
    )


def test_a_store_that_cannot_be_written_is_named(make: Make, folder: Path) -> None:
    (folder / "file").write_text("")
    with pytest.raises(DataError, match=r"the prepared rows cannot be written to '.*file/cache/hf_recipes'"):
        prepare(make("causal-lm", f"cache_dir: {folder / 'file/cache'}"), ROWS, bpe(), length=32)


def test_a_file_that_changes_while_it_is_read_is_named(make: Make, folder: Path) -> None:
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS * 20), encoding="utf-8")
    ended = threading.Event()

    def write() -> None:
        with path.open("ab", buffering=0) as file:
            while not ended.is_set():
                file.write(b'{"text": "one more"}\n')
                time.sleep(0.001)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        with pytest.raises(DataError, match=r"^recipe.yaml:3: a.jsonl changed while it was read; run again when it is"):
            load_splits(make("causal-lm", f"data_files: a.jsonl, cache_dir: {folder / 'cache'}"))
    finally:
        ended.set()
        writer.join()
    assert load_splits(make("causal-lm", f"data_files: a.jsonl, cache_dir: {folder / 'cache'}")).train.num_rows > 80


def test_a_file_that_is_removed_before_it_is_read_is_named(
    make: Make, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "a.jsonl").write_text('{"text": "a"}\n' * 20, encoding="utf-8")
    whole = datasets.load_dataset

    def removed(*args: Any, **kwargs: Any) -> Any:
        (folder / "a.jsonl").unlink(missing_ok=True)
        return whole(*args, **kwargs)

    monkeypatch.setattr("datasets.load_dataset", removed)
    with pytest.raises(DataError, match=r"^recipe.yaml:3: a.jsonl was removed while it was read; put it back and run"):
        load_splits(make("causal-lm", f"data_files: a.jsonl, cache_dir: {folder / 'cache'}"))


def test_another_text_of_the_same_size_and_time_makes_other_rows(make: Make, folder: Path) -> None:
    """As `touch -r` or a copy that keeps times leaves it."""
    path, tokenizer = folder / "a.jsonl", bpe()
    recipe = make("causal-lm", f"data_files: a.jsonl, cache_dir: {folder / 'cache'}")
    found = []
    for word in ("sea", "day"):
        path.write_text("".join(json.dumps({"text": f"the {word} {i:02}"}) + "\n" for i in range(80)), encoding="utf-8")
        os.utime(path, (1e9, 1e9))
        rows = load_splits(recipe)
        found.append(tokenizer.decode(prepare(recipe, rows.train, tokenizer, length=32).train[0]["input_ids"]))
    assert "sea" in found[0] and "day" in found[1]


@pytest.mark.parametrize("damage", ["changed", "cut off", "empty"])
def test_a_table_of_datasets_that_was_damaged_is_made_again(make: Make, folder: Path, damage: str) -> None:
    write = "".join(json.dumps({"text": f"the sea {i:02}"}) + "\n" for i in range(80))
    (folder / "a.jsonl").write_text(write, encoding="utf-8")
    recipes = [
        make("causal-lm", f"data_files: {{train: a.jsonl, validation: a.jsonl}}, cache_dir: {folder / 'cache'}{split}")
        for split in ("", ", split: {train: train, validation: 'validation[:10%]'}")
    ]
    good = [list(load_splits(one).train["text"]) for one in recipes]
    before = state(folder / "cache")
    assert [list(load_splits(one).train["text"]) for one in recipes] == good
    after = state(folder / "cache")
    assert {name: after[name] for name in before if name.endswith(".arrow")} == {
        name: one for name, one in before.items() if name.endswith(".arrow")
    }
    for table in (folder / "cache").rglob("json-train.arrow"):
        found = table.read_bytes()
        found = found.replace(b"sea 03", b"sky 03") if damage == "changed" else found[: len(found) // 2]
        table.unlink()
        table.write_bytes(b"" if damage == "empty" else found)
    for _ in range(2):
        assert [list(load_splits(one).train["text"]) for one in recipes] == good


def test_every_recipe_that_reads_a_replaced_file_reads_it_again(make: Make, folder: Path) -> None:
    """`datasets` has a table for each recipe's arguments, and each is of the old file."""
    path = folder / "a.jsonl"
    (folder / "v.jsonl").write_text('{"text": "a"}\n')
    data = f"cache_dir: {folder / 'cache'}, data_files: "
    recipes = [
        make("causal-lm", f"{data}a.jsonl"),
        make("causal-lm", f"{data}{{train: a.jsonl, validation: v.jsonl}}"),
        make("causal-lm", f"{data}a.jsonl, split: 'train[:50%]'"),
        make("causal-lm", f"{data}a.jsonl, features: {{text: {{dtype: string, _type: Value}}}}"),
    ]
    for word in ("sea", "day", "joy"):
        path.write_text("".join(json.dumps({"text": f"the {word} {i:02}"}) + "\n" for i in range(80)), encoding="utf-8")
        os.utime(path, (1e9, 1e9))
        for _ in range(2):
            assert [load_splits(one).train[0]["text"].split()[1] for one in recipes] == [word] * len(recipes)
