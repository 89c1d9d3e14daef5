"""From a wheel to models in use: five data files, each from `init` to `compare`, in a folder outside the clone.

    python benchmarks/first_run.py                  with this Python's torch, transformers, ...: some minutes
    python benchmarks/first_run.py --install        installs everything from the package index, as a user would
    python benchmarks/first_run.py --only reviews   one of the files; the others stay in the record

Every command must end with status 0. Writes benchmarks/results/first_run.json, of which docs/first-run.md is made,
unless `--output` names another file. No command reaches the Hub.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import shutil
import site
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "benchmarks" / "results" / "first_run.json"
DATA = ROOT / "recipes" / "data"
ROWS, OTHER, ASKED = 160, 40, 2
LIMIT = 900  # seconds of one command


def rows_of(name: str, split: str, count: int) -> list[dict[str, Any]]:
    lines = (DATA / name / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines[:count]]


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def reviews(folder: Path) -> list[str]:
    for name, split, count in (("reviews.csv", "train", ROWS), ("other-reviews.csv", "validation", OTHER)):
        with (folder / name).open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["review", "opinion"])
            writer.writerows((row["text"], row["label"]) for row in rows_of("sentiment", split, count))
    return [row["text"] for row in rows_of("sentiment", "validation", OTHER + ASKED)[OTHER:]]


def messages(folder: Path) -> list[str]:
    def row(one: Mapping[str, Any]) -> dict[str, Any]:
        asked, answer = f"Is it a good review? {one['text']}", "Yes." if one["label"] == "positive" else "No."
        return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}

    for name, split, count in (("messages.jsonl", "train", ROWS // 2), ("other-messages.jsonl", "validation", OTHER)):
        write_lines(folder / name, [row(one) for one in rows_of("sentiment", split, count)])
    held_out = rows_of("sentiment", "validation", OTHER + ASKED)[OTHER:]
    return [row(one)["messages"][0]["content"] for one in held_out]


def sharegpt(folder: Path) -> list[str]:
    def names(one: Mapping[str, Any]) -> str:
        return " ".join(word for word, tag in zip(one["tokens"], one["tags"], strict=True) if tag != "O") or "Nobody"

    def row(one: Mapping[str, Any]) -> dict[str, Any]:
        asked = f"Who is in this sentence? {' '.join(one['tokens'])}"
        return {"conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": names(one)}]}

    for name, split, count in (("sharegpt.jsonl", "train", ROWS // 2), ("other-sharegpt.jsonl", "validation", OTHER)):
        write_lines(folder / name, [row(one) for one in rows_of("names", split, count)])
    held_out = [row(one) for one in rows_of("names", "validation", OTHER + ASKED)[OTHER:]]
    return [json.dumps({"conversations": one["conversations"][:1]}) for one in held_out]


def names(folder: Path) -> list[str]:
    for name, split, count in (("names.conll", "train", ROWS), ("other-names.conll", "validation", OTHER)):
        sentences = [
            "\n".join(f"{word} {tag}" for word, tag in zip(one["tokens"], one["tags"], strict=True))
            for one in rows_of("names", split, count)
        ]
        (folder / name).write_text("\n\n".join(sentences) + "\n", encoding="utf-8")
    return [" ".join(one["tokens"]) for one in rows_of("names", "validation", OTHER + ASKED)[OTHER:]]


def novel(folder: Path) -> list[str]:
    for name, source in (("novel.txt", "emma"), ("other-novel.txt", "persuasion")):
        paragraphs = (DATA / "austen" / f"{source}.txt").read_text(encoding="utf-8").split("\n\n")
        (folder / name).write_text("\n\n".join(paragraphs[:ROWS]) + "\n", encoding="utf-8")
    return ["Emma was", "Mr. Knightley", "She had"]


# What makes the files and returns lines for `predict`, by the name of the file.
FILES: dict[str, Callable[[Path], list[str]]] = {
    "reviews.csv": reviews, "messages.jsonl": messages, "sharegpt.jsonl": sharegpt, "names.conll": names,
    "novel.txt": novel,
}  # fmt: skip


def commands(file: str) -> list[str]:
    """What a user types for one file, in this order."""
    name = file.partition(".")[0]
    trainer = "SFTConfig" if name in ("messages", "sharegpt") else "TrainingArguments"
    second = f"{trainer}.output_dir=runs/{name}-slow {trainer}.learning_rate=1e-4"
    return [
        f"hf-recipes init --data {file} --model scratch --output {name}.yaml --yes",
        f"hf-recipes run {name}.yaml",
        f"hf-recipes evaluate runs/{name} --data other-{file}",
        f"cat {name}-asked.txt | hf-recipes predict runs/{name}",
        f"hf-recipes run {name}.yaml {second}",
        f"hf-recipes compare runs/{name} runs/{name}-slow",
    ]


def build_wheel(folder: Path) -> Path:
    """The wheel of what git has of this clone, built in a copy."""
    copy = folder / "source"
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.splitlines():
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, copy / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run([*command, str(copy)], check=True, timeout=LIMIT)
    shutil.rmtree(copy)
    return next(folder.glob("*.whl"))


def make_venv(folder: Path, wheel: Path, *, install: bool) -> Path:
    """A new environment with the wheel; its other packages are installed, or this Python's."""
    venv = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", *([] if install else ["--without-pip"]), str(venv)], check=True)
    python = venv / "bin" / "python"
    words = [] if install else ["--no-deps"]
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", *words, str(wheel)]
    subprocess.run(command, check=True, timeout=3600)
    if not install:  # afterwards: pip would find this Python's hf-recipes there, and install nothing
        shown = next(venv.glob("lib/python*/site-packages"))
        (shown / "shared.pth").write_text("\n".join(site.getsitepackages()) + "\n", encoding="utf-8")
    return venv


def clean(output: str, folder: Path) -> str:
    """Without the paths of this machine."""
    for path, shown in ((str(folder), "~"), (sys.prefix, "~/venv"), (str(ROOT), "clone")):
        output = output.replace(path, shown)
    return output


def run_all(folder: Path, venv: Path, wanted: Sequence[str], say: Callable[[str], None]) -> dict[str, Any]:
    """{file: [{"command", "output", "status", "seconds"}]}; stops a file at the first command that fails."""
    dropped = ("PYTHONPATH", "PYTHONHOME", "PYTEST_CURRENT_TEST")
    variables = {name: value for name, value in os.environ.items() if name not in dropped}
    variables |= {"PATH": f"{venv / 'bin'}:{os.environ['PATH']}", "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    variables |= {"CUDA_VISIBLE_DEVICES": "", "COLUMNS": "100", "VIRTUAL_ENV": str(venv)}
    found: dict[str, Any] = {}
    for file in wanted:
        asked = FILES[file](folder)
        (folder / f"{file.partition('.')[0]}-asked.txt").write_text("\n".join(asked) + "\n", encoding="utf-8")
        found[file] = []
        for command in commands(file):
            began = time.perf_counter()
            done = subprocess.run(
                ["bash", "-o", "pipefail", "-c", command], cwd=folder, env=variables, text=True, timeout=LIMIT,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
            seconds = round(time.perf_counter() - began, 1)
            say(f"{done.returncode}  {seconds:6.1f} s  {command}")
            output = clean(done.stdout, folder)
            found[file].append({"command": command, "output": output, "status": done.returncode, "seconds": seconds})
            if done.returncode:
                say(output)
                break
        recipe = folder / f"{file.partition('.')[0]}.yaml"
        if recipe.is_file():
            found[file][0]["recipe"] = recipe.read_text(encoding="utf-8")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--install", action="store_true", help="install every package anew")
    parser.add_argument("--only", nargs="*", default=[], metavar="TEXT", help="files whose name contains it")
    parser.add_argument("--output", default=str(RECORD), metavar="FILE")
    given = parser.parse_args(arguments)
    wanted = [name for name in FILES if not given.only or any(part in name for part in given.only)]
    with tempfile.TemporaryDirectory(prefix="first-run-") as place:
        folder = Path(place)
        began = time.perf_counter()
        wheel = build_wheel(folder)
        venv = make_venv(folder, wheel, install=given.install)
        work = folder / "work"
        work.mkdir()
        ready = round(time.perf_counter() - began, 1)
        found = run_all(work, venv, wanted, print)
        output = Path(given.output)
        kept = json.loads(output.read_text(encoding="utf-8"))["files"] if given.only and output.exists() else {}
        files = {**kept, **found}
        record = {
            "wheel": wheel.name,
            "wheel_bytes": wheel.stat().st_size,
            "installed": given.install,
            "python": platform.python_version(),
            "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores",
            "seconds_to_install": ready,
            "files": {name: files[name] for name in FILES if name in files},
        }
    output.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return int(any(step["status"] for steps in found.values() for step in steps))


if __name__ == "__main__":
    sys.exit(main())
