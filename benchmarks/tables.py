"""Writes every table of README.md, recipes/README.md and docs from the records in the repository.

    python benchmarks/tables.py            rewrite the files
    python benchmarks/tables.py --check    exit 1 if a file differs from what would be written

tests/test_tables.py runs the check: no figure is typed by hand.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from pathlib import Path
from typing import Any

import data_page
import first_run_page
import merging
import mutation_page
import peaks_page
import plan_models_page
import rank_peaks_page
import recipe_fuzz_page
import record_page
import sharded_page
import speed_page
import torture_page

from hf_recipes.plan.lab_record import read_calibration, read_cells, read_records
from hf_recipes.recipe.convert import LOST, NEEDLESS, TRANSLATED, convert_file
from hf_recipes.recipe.read import read_recipe
from hf_recipes.recipe.schema import own_keys
from hf_recipes.record import ModelFacts, RunRecord
from hf_recipes.record.file import read_record

ROOT = Path(__file__).resolve().parent.parent
HEADLINE = {  # task -> metric
    "causal-lm": "perplexity",
    "chat": "perplexity",
    "text-classification": "f1",
    "token-classification": "span_f1",
}


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def records() -> list[tuple[str, RunRecord]]:
    """(file name, record) of every committed run, by recipe and start."""
    found = [(p.name, read_record(p)) for p in (ROOT / "recipes/results").glob("*.json")]
    return sorted(found, key=lambda pair: (pair[1].recipe.path, pair[1].seed == 42, pair[0]))


def measured() -> str:
    """One row a record: the task's headline metric before and after, steps, time, speed, machine."""
    rows = []
    for name, record in records():
        metric, model = HEADLINE[record.task], record.model or ModelFacts()
        before, after = (record.metrics.of(split) for split in ("before", "eval"))
        was, now = before.get(f"eval_{metric}"), after.get(f"eval_{metric}")
        space = "\N{NO-BREAK SPACE}"
        trained = f" ({model.trainable_parameters / 1e6:.2f}M trained)" if model.adapter else ""
        rows.append(
            [
                f"[{Path(record.recipe.path).stem}]({record.recipe.path})",
                f"{model.parameters / 1e6:.1f}M{trained}",
                metric.replace("_", space),
                f"{number(was)} → **{number(now)}**".replace(" ", space),
                str(record.seed),
                str(record.steps),
                f"{record.time.train_seconds:.0f}{space}s",
                f"{record.tokens_per_second:,.0f}",
                f"[{record.device.kind.upper()}](recipes/results/{name})",
            ]
        )
    head = ["recipe", "parameters", "metric", "before → after", "seed", "steps", "training", "tokens/s", "record"]
    return table(head, rows)


def results(name: str) -> dict[str, Any]:
    """benchmarks/results/NAME.json."""
    found: dict[str, Any] = json.loads((ROOT / f"benchmarks/results/{name}.json").read_text(encoding="utf-8"))
    return found


def why() -> str:
    """README's first table: a question, what answers it, and what was measured."""
    kills, split = results("torture")["totals"], results("survival")["out_of_memory"]
    signals = f" and {kills['signals']:,} signals" if kills["signals"] else ""
    ours, peft = (peaks_page.summary(peaks_page.errors(results("peaks")[name])) for name in ("lab_allocated", "peft"))
    cases = results("comparison")["cases"].values()
    covered = [case[kind]["coverage"] for case in cases for kind in ("no difference", "a difference")]
    largest = max(one["largest_weight_difference"] for one in split)
    checks = results("check_speed")["commands"]

    def slowest(state: str) -> float:
        return max(one["cpu_seconds"] for name, one in checks.items() if name.startswith(f"{state} "))

    rows = [
        [
            "Is the recipe right?",
            "`check` prints every error at once, each with its line and how to fix it, before anything is loaded",
            f"[six mistakes, one call](#is-my-recipe-right); at most {slowest('warm'):.2f} s of CPU, the first time "
            f"{slowest('first'):.2f} s ([record](benchmarks/results/check_speed.json))",
        ],
        [
            "Does it fit, how long will it take?",
            "`plan` predicts peak memory and time without a GPU, weights or data, and names changes that fit",
            f"peak of {ours['rows']} recipes on an H100: median error {ours['median']:.2%}, worst {ours['worst']:.2%}; "
            f"of {peft['rows']} published runs of a 3B model: {peft['median']:.2%}, {peft['worst']:.2%} "
            "([all rows](docs/plan-accuracy.md))",
        ],
        [
            "Will it survive a crash?",
            "checkpoints are complete or absent; `--resume` and `--restart` continue from the latest complete one",
            f"{kills['kills']:,} kills{signals}: {kills['half_checkpoints']} partial checkpoints, "
            f"{kills['equal_ends']:,} of {kills['ends']:,} completed runs equal the uninterrupted run bit for bit "
            "([how](docs/torture.md))",
        ],
        [
            "Will it survive out of memory?",
            "the step is retried with a smaller micro-batch, with the same rows, tokens and schedule",
            f"no step lost; weights differ by at most {largest:.1e} ([how](docs/guards.md))",
        ],
        [
            "Is the new model better?",
            "`compare` tests the scores of the same examples, and says so if it cannot tell",
            f"95 % intervals contained the true difference in {min(covered):.1%} to {max(covered):.1%} of simulated "
            "comparisons ([how](docs/methods/statistics.md))",
        ],
    ]
    return table(["your question", "the answer here", "measured"], rows)


def gpu_state() -> str:
    """README's sentence of what has run on a GPU."""
    cells = [(cell, cell.measured) for cell in read_records(ROOT / "recipes/results/lab") if cell.measured is not None]
    whole = {cell.recipe for cell, measured in cells if cell.gib is None and measured.finished}
    gpus = sorted({cell.gpu for cell, _ in cells})
    return (
        f"The [lab](docs/lab.md#what-an-h100-showed) ran five training steps of {len(whole)} recipes on a GPU "
        f"({', '.join(gpus)}) beside plan's predictions. No run has been trained to its end on a GPU, and nothing has "
        "run on any other GPU, on Apple's or on AMD's. Everything else was tested on CPUs."
    )


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def launches() -> str:
    """The table of accelerate_configs/README.md, for docs/launching.md."""
    lines = (ROOT / "accelerate_configs/README.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("|")]
    return "\n".join(re.sub(r"^\| `(\w+\.yaml)`", r"| [`\1`](../accelerate_configs/\1)", line) for line in rows)


def launch_runs() -> str:
    """What each file of accelerate_configs/ has really run on (benchmarks/launch_files.py)."""
    body = json.loads((ROOT / "benchmarks/results/launch_files.json").read_text(encoding="utf-8"))
    rows = {row["file"]: row for row in body["rows"]}
    shown = []
    for path in sorted((ROOT / "accelerate_configs").glob("*.yaml")):
        row, link = rows.get(path.stem), f"[`{path.name}`](../accelerate_configs/{path.name})"
        if row is None or row["status"] != "finished":
            shown.append([link, "no run is recorded", "", "", ""])
            continue
        ranks = row["ranks"]
        where = f"{ranks} CPU process{'es' * (ranks > 1)}" + ", two launchers" * (path.stem == "multi_node")
        loss = f"{row['losses'][0]:.6f}, {row['losses'][-1]:.6f}"
        shown.append([link, where, f"{row['status']}, {row['steps']} steps", loss, "yes" if row["loads"] else "no"])
    return table(["file", "ran on", "the run", "losses", "loads in transformers"], shown)


def recipes_page() -> str:
    """recipes/README.md: every recipe with its purpose and its newest record."""
    newest = {record.recipe.path: (name, record) for name, record in records()}
    rows = []
    for path in sorted((ROOT / "recipes").glob("*.yaml")):
        recipe = read_recipe(str(path))
        purpose = path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
        result = "–"
        if f"recipes/{path.name}" in newest:
            name, record = newest[f"recipes/{path.name}"]
            metric = HEADLINE[record.task]
            after = record.metrics.of("eval").get(f"eval_{metric}")
            result = f"[{metric.replace('_', ' ')} {number(after)}](results/{name})"
        rows.append([f"[{path.stem}]({path.name})", recipe.task, purpose, result])
    return (
        "# Recipes\n\n"
        "The header of each file says how to run it, what was measured, and where a guide's claim could not be right. "
        "Two real\nsteps of any of them, on a CPU and offline: `hf-recipes run RECIPE --smoke`.\n\n"
        f"{table(['recipe', 'task', 'what it is for', 'measured'], rows)}\n\n"
        "The data in this repository: [data/README.md](data/README.md). This page is written by\n"
        "`python benchmarks/tables.py` from the recipes' first lines and the records in `recipes/results`.\n"
    )


def converted() -> str:
    """What `convert` makes of real files of other tools (tests/data/other_tools), each of which then passes `check`."""
    rows = []
    for path in sorted((ROOT / "tests/data/other_tools").glob("*/*.y*ml")):
        made = convert_file(str(path))
        lost = [f"`{key}`" for key, (fate, line) in made.fates.items() if fate == LOST or "not translated: " in line]
        counts = [str(made.count(fate)) for fate in (TRANSLATED, NEEDLESS)]
        rows.append([made.tool, path.name, str(len(made.fates)), *counts, ", ".join(lost) or "-"])
    return table(["tool", "file", "keys", "translated", "left out", "not translated, or in part"], rows)


def keys_page() -> str:
    """docs/recipe.md's tables of sections and of the keys that upstream lacks."""
    rows = []
    for section, keys in (("", own_keys.TOP), ("model", own_keys.MODEL), ("dataset", own_keys.DATASET)):
        rows += [[f"`{section + '.' if section else ''}{name}`", key.help or ""] for name, key in keys.items()]
    sections = [[f"`{name}`", text.replace("<", "&lt;")] for name, text in own_keys.SECTION_HELP.items()]
    own = table(["key", "meaning"], rows)
    return f"{table(['section', 'what it is'], sections)}\n\nKeys that upstream lacks:\n\n{own}"


def simulated() -> str:
    """docs/methods/statistics.md's table, of benchmarks/results/comparison.json."""
    found = results("comparison")
    head = ["runs", "true difference", "pairs", "interval contains it", "test at 5 % rejects"]
    rows = []
    for name, case in found["cases"].items():
        for kind in ("no difference", "a difference"):
            one = case[kind]
            rates = [f"{one[key]:.1%}" for key in ("coverage", "rejected")]
            rows.append([name, f"{one['truth']:.3g}", f"{one['pairs']:,}", *rates])
    return table(head, rows)


def simulated_few(part: str = "few") -> str:
    """docs/methods/statistics.md's table of few examples (and of other kinds of scores): the least and the greatest
    coverage over the levels."""
    rows: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in results("comparison")[part]["rows"]:
        rows.setdefault((row["metric"], row["examples"]), []).append(row)

    def ends(found: list[dict[str, Any]], key: str) -> str:
        values = [row[key] for row in found]
        return f"{min(values):.1%} to {max(values):.1%}"

    head = ["metric", "examples", "a run's interval contains its value", "that of a difference contains it"]
    keys = ("one_run", "coverage_of_difference")
    return table(head, [[name, str(n), *(ends(found, key) for key in keys)] for (name, n), found in rows.items()])


def simulated_seeds() -> str:
    """docs/methods/statistics.md's table of recipes over seeds."""
    rows: dict[tuple[int, int], dict[float, float]] = {}
    for row in results("comparison")["seeds"]["rows"]:
        rows.setdefault((row["examples"], row["seeds"]), {})[row["effect"]] = row["coverage"]
    effects = list(next(iter(rows.values())))
    head = ["examples", "seeds of each", *(f"seeds add {effect:g}" for effect in effects)]
    body = [[f"{n:,}", str(seeds), *(f"{found[e]:.1%}" for e in effects)] for (n, seeds), found in rows.items()]
    return table(head, body)


def compare_cost() -> str:
    """docs/methods/statistics.md's table, of benchmarks/results/compare_cost.json."""
    found = results("compare_cost")
    rows = [
        [one["task"], f"{one['examples']:,}", f"{one['resamples']:,}", f"{one['seconds']:.1f} s"]
        for one in found["compare"]
    ]
    scores = found["scores"]
    share = scores["scores_seconds"] / scores["evaluation_seconds"]
    sentence = f"Writing scores, texts and intervals of {scores['rows']:,} rows took {share:.1%} of the evaluation "
    sentence += "(`recipes/quickstart.yaml`, on a CPU)."
    return f"{table(['task', 'examples', 'resamples', 'compare'], rows)}\n\n{sentence}"


def predict_speed() -> str:
    """docs/using.md's table, of benchmarks/results/predict_speed.json."""
    found = results("predict_speed")
    rows = [
        [one["task"], str(one["rows"]), f"{one['ratio']:.2f}", f"{one['smallest']:.2f} to {one['largest']:.2f}"]
        for one in found["tasks"]
    ]
    return table(["task", "rows", "pipeline's CPU time / ours", f"of {found['tasks'][0]['pairs']} pairs"], rows)


def chat_speed() -> str:
    """docs/faq.md's table, of benchmarks/results/chat_speed.json."""
    found = results("chat_speed")
    rows = [
        [
            f"{kind} ({one['template']})",
            f"{one['rows']:,}",
            "" if one["tokens"] is None else f"{one['tokens']:,}",
            ", ".join(f"{pair['ours']:.1f}" for pair in one["pairs"]),
            ", ".join(f"{pair['trl']:.1f}" for pair in one["pairs"]),
            f"{one['times_as_fast']:.1f}",
        ]
        for kind, one in found["kinds"].items()
    ]
    head = ["rows", "count", "tokens", "CPU seconds here", "CPU seconds of TRL", "times as fast (median)"]
    profiled = {kind: one["profile"][0] for kind, one in found["kinds"].items() if "profile" in one}
    longest = [f"{kind} {one['share']:.0%}" for kind, one in profiled.items() if "encode_batch" in one["function"]]
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    sentence = f"Pairs one after the other, the same labels on both sides ({versions}; benchmarks/chat_speed.py)."
    if longest:
        sentence += (
            f" Share of the tokenizer itself in our time under a profiler, which slows all else: {', '.join(longest)}."
        )
    return f"{table(head, rows)}\n\n{sentence}"


def problem_types() -> str:
    """docs/classification.md's table, of benchmarks/results/problem_types.json."""
    found = results("problem_types")
    rows = []
    for kind, one in found["kinds"].items():
        (long, short), (more, fewer) = one["steps"], one["values"]
        name = next(iter(more))
        verdicts = ", ".join(f"{metric} {verdict}" for metric, verdict in one["verdicts"].items())
        values = [f"{metric} {value:.3f}" for metric, value in more.items()]
        rows.append([
            f"{kind} ({one['data']})", ", ".join(values), f"{fewer[name]:.3f}",
            f"{one['largest_difference']:.0e}", verdicts,
        ])  # fmt: skip
        steps = f"{long} and {short} steps"
    versions = " and ".join(f"{name} {version}" for name, version in found["versions"].items())
    head = ["kind", f"after {long} steps", f"after {short}: the first", "largest difference", "the short run is"]
    sentence = f"MiniLM after {steps}. The difference is that of any metric of both runs to {versions} on the saved "
    return f"{table(head, rows)}\n\n{sentence}scores (benchmarks/problem_types.py)."


def fault_tolerance() -> dict[str, str]:
    """docs/guards.md's tables, of benchmarks/results/survival.json."""
    found = results("survival")
    head = [
        "trainer",
        "out of memory in",
        "pieces",
        "steps lost",
        "largest difference of a weight",
        "of the evaluation loss",
    ]
    rows = [
        [one["trainer"], one["place"], str(one["pieces"]), str(one["steps_lost"])]
        + [f"{one[name]:.1e}" for name in ("largest_weight_difference", "eval_loss_difference")]
        for one in found["out_of_memory"]
    ]
    cost = [
        [one["size"], str(one["pairs"]), f"{one['step_seconds'] * 1000:.0f} ms"]
        + [f"{one['ratio'] - 1:+.1%} ({one['low'] - 1:+.1%} to {one['high'] - 1:+.1%})"]
        for one in found["cost"]
    ]
    return {"out_of_memory": table(head, rows), "guard_cost": table(["model", "pairs", "a step", "cost"], cost)}


def lab_verdicts() -> str:
    """plan's verdict of each size, and how it ended."""
    ends: dict[tuple[str, str], dict[str, int]] = {}
    for cell in read_records(ROOT / "recipes/results/lab"):
        if cell.gib is not None and cell.predicted is not None and cell.measured is not None:
            counts = ends.setdefault((cell.gpu, cell.predicted.verdict), {})
            counts[cell.measured.outcome] = counts.get(cell.measured.outcome, 0) + 1
    rows = [
        [gpu, verdict, *(str(c.get(end, 0)) for end in ("finished", "out of memory"))]
        for (gpu, verdict), c in sorted(ends.items())
    ]
    return table(["GPU, as 8 to 40 GiB", "plan's verdict", "finished", "out of memory"], rows)


def plan_times() -> str:
    """docs/methods/plan.md: what plan costs, from results/plan_times.json."""
    lines = [
        "| recipe | runs | `import transformers.trainer` | first plan | beyond the import | second plan | `--search` |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in results("plan_times")["rows"]:
        middle = {key: statistics.median(run[key] for run in row["runs"] if key in run) for key in row["runs"][0]}
        beyond = statistics.median(run["first"] - run["import"] for run in row["runs"])
        searched = f"{middle['search_wall']:.0f} s by the clock" if "search_wall" in middle else ""
        lines.append(
            f"| {row['recipe']} | {len(row['runs'])} | {middle['import']:.1f} s | {middle['first']:.1f} s "
            f"| {beyond:.1f} s | {middle['second']:.2f} s | {searched} |"
        )
    return "\n".join(lines)


def optimizer_states() -> str:
    """docs/methods/plan.md: states by plan's rule beside the packages' own, from results/optimizer_states.json."""
    lines = ["| optim | package | states by rule, bytes | states of the package, bytes |", "| --- | --- | --- | --- |"]
    for row in results("optimizer_states")["rows"]:
        lines.append(f"| {row['optim']} | {row['package']} | {row['rule']:,} | {row['real']:,} |")
    return "\n".join(lines)


def lab_gpus() -> str:
    """The calibrations."""
    rows = []
    for path in sorted((ROOT / "recipes/results/lab").glob("*.jsonl")):
        gpu = read_calibration(path)
        if gpu is None:
            continue
        alone = [cell.measured for cell in read_cells(path) if cell.measured is not None and cell.gib is None]
        used = min(one.context_bytes for one in alone if one.context_bytes is not None)
        rates = " / ".join(f"{gpu.flops[kind] / 1e12:.0f}" for kind in ("bf16", "fp16", "tf32", "fp32"))
        context = f"{gpu.context_bytes / 2**20:.0f}, {used / 2**20:.0f} in use"
        rows.append(
            [gpu.name, str(gpu.versions["torch"]), context, f"{gpu.cublas_bytes / 2**20:.0f}", rates]
            + [f"{gpu.bandwidth / 1e12:.2f}", f"{gpu.launch_seconds * 1e6:.1f}"]
        )
    head = ["GPU", "torch", "context MiB", "cuBLAS MiB", "TFLOP/s bf16 / fp16 / tf32 / fp32", "TB/s", "launch us"]
    return table(head, rows)


def filled(path: Path, blocks: dict[str, str]) -> str:
    """The file's text with each `<!-- table: NAME -->` ... `<!-- end -->` block filled."""
    text = path.read_text(encoding="utf-8")
    marked = re.findall(r"^<!-- table: (\w+) -->$", text, re.MULTILINE)
    assert sorted(marked) == sorted(blocks), f"{path} has the tables {marked}, and {list(blocks)} are made"
    for name, block in blocks.items():
        mark = f"<!-- table: {name} -->"
        head, _, rest = text.partition(mark)
        text = f"{head}{mark}\n{block}\n<!-- end -->{rest.partition('<!-- end -->')[2]}"
    return text


def pages() -> dict[Path, str]:
    """Path -> the text that it must have."""
    blocks: dict[str, dict[str, str]] = {
        "README.md": {"why": why(), "measured": measured(), "gpu_state": gpu_state(), **sharded_page.summary()},
        "docs/methods/statistics.md": {
            "comparison": simulated(),
            "few_examples": simulated_few(),
            "kinds": simulated_few("kinds"),
            "over_seeds": simulated_seeds(),
            "compare_cost": compare_cost(),
        },
        "docs/using.md": {"predict_speed": predict_speed(), "merging": merging.table()},
        "docs/classification.md": {"problem_types": problem_types()},
        "docs/faq.md": {"chat_speed": chat_speed()},
        "docs/guards.md": fault_tolerance(),
        "docs/methods/plan.md": {
            "plan_times": plan_times(),
            "optimizer_states": optimizer_states(),
            **plan_models_page.blocks(),
            **rank_peaks_page.blocks(),
        },
        "docs/lab.md": {"gpus": lab_gpus(), "verdicts": lab_verdicts()},
        "docs/launching.md": {"launches": launches(), "launch_runs": launch_runs(), **sharded_page.blocks()},
        "docs/data.md": data_page.blocks(),
        "docs/speed.md": speed_page.blocks(),
        "docs/recipe.md": {"keys": keys_page(), "converted": converted()},
    }
    return {
        ROOT / "recipes/README.md": recipes_page(),
        ROOT / "docs/first-run.md": first_run_page.page(),
        ROOT / "docs/torture.md": torture_page.page(),
        ROOT / "docs/testing.md": mutation_page.page() + recipe_fuzz_page.section(),
        ROOT / "docs/record.md": record_page.page(),
        **{ROOT / name: filled(ROOT / name, found) for name, found in blocks.items()},
    }


def main() -> None:
    differ = [path for path, text in pages().items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    if "--check" in sys.argv:
        for path in differ:
            print(f"{path.relative_to(ROOT)} differs: run python benchmarks/tables.py")
        sys.exit(bool(differ))
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
