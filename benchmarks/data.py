"""How fast text becomes rows, in how much memory and on how much disk, against the bare tokenizer, run_clm and TRL.

The text is what every Python has, its own standard library, made as large as asked: files in a seeded order, each time
with other digits, so that no document repeats. Every measurement is a process of its own. CPU seconds are those of the
process and of its children; memory is what the kernel cannot take back (Pss of anonymous pages), of the whole process
tree, above the same imports without work, watched by the process that starts it. Reads of files are in the page cache
on all sides. Writes benchmarks/results/data.json.

    python benchmarks/data.py                    # 10 and 100 MB
    python benchmarks/data.py --sizes 10 100 1000
    python benchmarks/data.py --sizes 1000 --kinds "bare tokenizer" "hf_recipes, 2 processes"  # the others as they are
    python benchmarks/data.py --sizes 10 --rounds 3
    python benchmarks/data.py --chat             # chat rows instead (data_chat.py)
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import re
import resource
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import data_chat

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks/results/data.json"
VOCABULARY, LENGTH, SEED = 16_000, 1024, 0
MB = 10**6


def write_text(path: Path, megabytes: float) -> None:
    """JSON lines of the standard library's files, in rounds with other digits."""
    names = sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py"))
    names = [one for one in names if "site-packages" not in one.parts]
    draw, size = random.Random(SEED), 0
    with path.open("w", encoding="utf-8") as file:
        while True:
            draw.shuffle(names)
            for name in names:
                try:
                    text = name.read_text(encoding="utf-8")
                except UnicodeDecodeError:
                    continue
                text = re.sub(r"\d", lambda _: str(draw.randrange(10)), text)
                file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
                size += len(text.encode())
                if size >= megabytes * MB:
                    return


def save_tokenizer(folder: Path, text: Path) -> None:
    """A byte-level BPE, trained on the smallest text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    lines = text.read_text(encoding="utf-8").splitlines()
    backend.train_from_iterator((json.loads(line)["text"] for line in lines), trainer=trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|endoftext|>", pad_token="<|endoftext|>", model_max_length=10**9
    ).save_pretrained(folder)


# what is measured: each in a process of its own -----------------------------------------------------------------------


def bare(text: Path, folder: Path) -> Callable[[], int]:
    from tokenizers import Tokenizer

    backend = Tokenizer.from_file(str(folder / "tokenizer/tokenizer.json"))

    def work() -> int:
        tokens = 0
        with text.open(encoding="utf-8") as lines:
            batch: list[str] = []
            for line in lines:
                batch.append(json.loads(line)["text"])
                if len(batch) == 32:
                    tokens += sum(map(len, backend.encode_batch_fast(batch)))
                    batch = []
            return tokens + sum(map(len, backend.encode_batch_fast(batch)))

    return work


def ours(text: Path, folder: Path, processes: int) -> Callable[[], int]:
    import datasets  # noqa: F401
    import scipy.io  # noqa: F401  # the first load_dataset imports it
    from transformers import AutoTokenizer, DataCollatorForSeq2Seq  # noqa: F401

    from hf_recipes.data import causal_lm
    from hf_recipes.data.splits import load_splits
    from hf_recipes.recipe.read import read_recipe

    small = folder / "validation.jsonl"
    with text.open(encoding="utf-8") as lines:
        small.write_text("".join(next(lines) for _ in range(2)), encoding="utf-8")
    path = folder / "recipe.yaml"
    path.write_text(
        f"task: causal-lm\nmodel: {{config: {{model_type: gpt2}}}}\ntokenizer: {{pretrained_model_name_or_path: "
        f"{folder}/tokenizer}}\ndataset: {{path: json, data_files: {{train: {text}, validation: {small}}}, "
        f"num_proc: {processes}}}\nTrainingArguments: {{output_dir: out}}\n",
        encoding="utf-8",
    )
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    recipe = read_recipe(str(path))

    def work() -> int:
        # load_dataset's own num_proc would split files; processes that tokenize are what is measured
        splits = load_splits(recipe.without_key("dataset.num_proc"))
        return causal_lm.prepare(splits, tokenizer, recipe, LENGTH).stats["train"].tokens

    return work


def run_clm(text: Path, folder: Path) -> Callable[[], int]:
    """The two maps of transformers' run_clm.py, with its defaults."""
    import datasets
    import scipy.io  # noqa: F401
    from transformers import AutoTokenizer, DataCollatorForSeq2Seq  # noqa: F401

    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")

    def tokenize(examples: dict[str, list]) -> Any:
        return tokenizer(examples["text"])

    def group(examples: dict[str, list]) -> dict[str, list]:
        joined = {name: list(chain(*examples[name])) for name in examples}
        total = len(next(iter(joined.values()))) // LENGTH * LENGTH
        found = {name: [ids[i : i + LENGTH] for i in range(0, total, LENGTH)] for name, ids in joined.items()}
        found["labels"] = found["input_ids"].copy()
        return found

    def work() -> int:
        rows = datasets.load_dataset("json", data_files=str(text), split="train")
        rows = rows.map(tokenize, batched=True, remove_columns=["text"])
        return int(rows.map(group, batched=True).num_rows * LENGTH)

    return work


def trl(text: Path, folder: Path) -> Callable[[], int]:
    """SFTTrainer's own preparation of the same file, packed in its default way."""
    import datasets
    import scipy.io  # noqa: F401
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel
    from trl import SFTConfig, SFTTrainer

    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=64, n_head=1, vocab_size=len(tokenizer), n_positions=LENGTH))
    args = SFTConfig(
        output_dir=str(folder / "trl"), max_length=LENGTH, packing=True, bf16=False, use_cpu=True, report_to="none"
    )

    def work() -> int:
        rows = datasets.load_dataset("json", data_files=str(text), split="train")
        trainer = SFTTrainer(model=model, args=args, train_dataset=rows, processing_class=tokenizer)
        return sum(len(ids) for ids in trainer.train_dataset["input_ids"])

    return work


KINDS: dict[str, Callable[[Path, Path], Callable[[], int]]] = {
    "bare tokenizer": bare,
    "hf_recipes, 1 process": lambda text, folder: ours(text, folder, 1),
    "hf_recipes, 2 processes": lambda text, folder: ours(text, folder, 2),
    "run_clm": run_clm,
    "trl": trl,
}


def tree(process: int) -> list[int]:
    """The process and its descendants."""
    found = [process]
    with contextlib.suppress(OSError):  # a thread that ended meanwhile
        for task in Path(f"/proc/{process}/task").glob("*/children"):
            for child in task.read_text().split():
                found += tree(int(child))
    return found


def anonymous_bytes(process: int) -> int:
    total = 0
    for one in tree(process):
        try:
            lines = Path(f"/proc/{one}/smaps_rollup").read_text()
        except OSError:
            continue
        total += sum(int(n) * 1024 for n in re.findall(r"^(?:Pss_Anon|Pss_Shmem): +(\d+) kB", lines, re.MULTILINE))
    return total


def measure_here(kind: str, text: Path, folder: Path) -> None:
    """In the child: prints its memory before the work, and then what it measured, as JSON."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    work = {**KINDS, **data_chat.KINDS}[kind](text, folder)
    print(json.dumps({"before": anonymous_bytes(os.getpid())}), flush=True)

    def cpu(who: int) -> float:
        used = resource.getrusage(who)
        return used.ru_utime + used.ru_stime

    began, before = time.perf_counter(), cpu(resource.RUSAGE_SELF)
    tokens = work()
    seconds, own = time.perf_counter() - began, cpu(resource.RUSAGE_SELF) - before
    used = {"cpu_seconds": own + cpu(resource.RUSAGE_CHILDREN), "own_cpu_seconds": own, "seconds": seconds}
    print(json.dumps({"tokens": tokens, **used}))


def measure(kind: str, text: Path, folder: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        environment = {
            **os.environ,
            "HF_DATASETS_CACHE": cache,
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, __file__, "--measure", kind, str(text), str(folder)]
        errors = Path(cache) / "stderr"
        with errors.open("w") as file:
            child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=file, text=True)
        assert child.stdout is not None
        first = next((line for line in child.stdout if line.startswith('{"before"')), "{}")
        before = peak = json.loads(first).get("before", 0)
        while child.poll() is None:  # watched from here: what that costs is no work of the child's
            peak = max(peak, anonymous_bytes(child.pid))
            time.sleep(0.25)
        output = child.stdout.read()
        if child.returncode:
            raise SystemExit(f"{kind}: {errors.read_text()}")
        found: dict[str, Any] = {**json.loads(output.splitlines()[-1]), "peak_bytes": peak - before}
        rows = [*Path(cache).glob("hf_recipes/*/rows/*"), *Path(cache).glob("json/**/cache-*.arrow")]
        source = sum(path.stat().st_size for path in Path(cache).glob("json/**/json-train*.arrow"))
        found["disk_bytes"] = sum(path.stat().st_size for path in rows if path.suffix == ".arrow")
        found["source_bytes"] = source
        return found


def reads(text: Path, folder: Path) -> dict[str, float]:
    """Microseconds for a random row: through the index with NumPy alone, from one flat np.memmap of the same ids, and
    as a row of `datasets`."""
    import numpy as np

    cache = folder / "reads"
    environment = {**os.environ, "HF_DATASETS_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, __file__, "--measure", "hf_recipes, 2 processes", str(text), str(folder)]
    subprocess.run(command, env=environment, capture_output=True, check=True)
    from datasets import load_from_disk

    place = max(cache.glob("hf_recipes/*/rows"), key=lambda one: (one / "data-00000.arrow").stat().st_size)
    index = json.loads((place / "index.json").read_text(encoding="utf-8"))
    rows: list[Any] = []
    for name, batches in index["files"].items():
        for batch in batches:
            tokens = np.asarray(np.memmap(place / name, index["dtype"], "r", batch["tokens_at"], batch["tokens"]))
            ends = np.memmap(place / name, "int32", "r", batch["ends_at"], batch["rows"] + 1)
            rows += [tokens[begin:end] for begin, end in pairwise(ends)]  # as docs/data.md does
    flat_file = folder / "flat.bin"
    with flat_file.open("wb") as file:
        for row in rows:
            file.write(row.tobytes())
    flat = np.memmap(flat_file, index["dtype"], "r")
    data = load_from_disk(str(place))
    order = random.Random(SEED).choices(range(len(rows)), k=20_000)

    ways: dict[str, Callable[[int], Any]] = {
        "np.memmap": lambda i: flat[i * LENGTH : (i + 1) * LENGTH].astype(np.int64),
        "index": lambda i: rows[i].astype(np.int64),
        "datasets": lambda i: data[i]["input_ids"],
    }
    assert all(list(ways["index"](i)) == list(ways["np.memmap"](i)) == ways["datasets"](i) for i in order[:200])
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(7):
        for name, read in ways.items():
            some = order if name != "datasets" else order[:2000]
            began = time.process_time()
            for i in some:
                read(i)
            best[name] = min(best[name], (time.process_time() - began) / len(some) * 1e6)
    return best


def versions() -> dict[str, str]:
    return {name: version(name) for name in ("datasets", "tokenizers", "transformers", "trl", "pyarrow")}


def about() -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{os.cpu_count()} CPUs, {platform.machine()}, Python {platform.python_version()}",
        "versions": versions(),
    }


def measure_text(sizes: list[int], kinds: list[str], rounds: int, folder: Path) -> dict[str, Any]:
    """The record with these sizes and kinds made new, and the others as they are. Of several rounds, in which the kinds
    take turns, the one of the median CPU seconds."""
    made: dict[str, Any] = {}
    microseconds = None
    for megabytes in sorted(sizes):
        text = folder / f"{megabytes}.jsonl"
        write_text(text, megabytes)
        if not (folder / "tokenizer").exists():
            small = folder / "10.jsonl"
            if not small.exists():
                write_text(small, 10)
            save_tokenizer(folder / "tokenizer", small)
        with text.open(encoding="utf-8") as lines:
            size = sum(len(json.loads(line)["text"].encode()) for line in lines)
        runs: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
        for kind in kinds * rounds:
            runs[kind].append(measure(kind, text, folder))
            print(megabytes, kind, runs[kind][-1], flush=True)
        middle = {kind: sorted(one, key=lambda run: run["cpu_seconds"])[rounds // 2] for kind, one in runs.items()}
        made[str(megabytes)] = {
            "text_bytes": size,
            "kinds": {k: {**one, "rounds": rounds} for k, one in middle.items()},
        }
        if megabytes == 100:
            microseconds = reads(text, folder)
        text.unlink()
    record = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {"sizes": {}}  # as it is by now
    for name, one in made.items():
        known = {**record["sizes"].get(name, {}).get("kinds", {}), **one["kinds"]}
        record["sizes"][name] = {**one, "kinds": {kind: known[kind] for kind in KINDS if kind in known}}
    record["read_microseconds"] = microseconds or record["read_microseconds"]
    ordered = {size: record["sizes"][size] for size in sorted(record["sizes"], key=int)}
    return {**record, **about(), "vocabulary": VOCABULARY, "max_length": LENGTH, "sizes": ordered}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", nargs="*", type=int, default=[10, 100], help="megabytes of text")
    parser.add_argument("--kinds", nargs="*", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--rounds", type=int, default=1, help="the median of an odd number; the kinds take turns")
    parser.add_argument("--chat", nargs="*", choices=list(data_chat.ROWS), help="chat rows instead of text")
    parser.add_argument("--folder", help="where the data lies while it is measured")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        kind, text, folder = given.measure
        measure_here(kind, Path(text), Path(folder))
        return
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        if given.chat is None:
            result, record = RESULT, measure_text(given.sizes, given.kinds, given.rounds, Path(name))
        else:
            result = RESULT.with_name("data_chat.json")
            kinds = data_chat.measure_kinds(measure, Path(name), given.chat or list(data_chat.ROWS))
            before = json.loads(result.read_text(encoding="utf-8"))["kinds"] if result.exists() else {}
            record = {**about(), "max_length": data_chat.LENGTH, "kinds": {**before, **kinds}}
    result.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
