"""Mutants of every recipe through `check` and `upgrade`, and settings that upstream's own classes construct.

    python benchmarks/recipe_fuzz.py                      20,000 mutants and 2,000 settings: some minutes on 2 cores
    python benchmarks/recipe_fuzz.py --mutants 500 --settings 0

Each mutant is one recipe with its text, keys, values, encoding, aliases or tags changed, or settings on the command
line; one in a hundred is a file of up to 1 MB. Counted are tracebacks, answers that took more than 2 s of CPU, and
planted tokens that a message shows: 0 of each. Workers are forked after everything is imported, and read the files as
`hf-recipes check` and `hf-recipes upgrade` do.

A setting is a random choice of keys and values of one class of upstream, which is constructed for real. Where that
works, `check` must accept it, or refuse it for a reason that is listed in the record.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import platform
import random
import re
import tempfile
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "benchmarks/results/recipe_fuzz.json"
RECIPES = sorted([*ROOT.glob("recipes/*.yaml"), *ROOT.glob("docs/examples/*.yaml")])
MOST_SECONDS = 2.0
TOKEN = "hf_" + "PlantedTokenZ" * 3  # no word of a recipe, so that a part of it is found in any message
SHOWN = "PlantedToken"
CHUNK = 250

ODD_VALUES = [
    *("null", "~", "true", "yes", "-1", "0", "1e-400", "1e400", ".nan", "-.inf", "0x" + "f" * 40, "0o777", "1_000"),
    *(
        "9" * 400,
        "9" * 5000,
        "0x" + "f" * 5000,
        "'1'",
        '"1e-4"',
        "''",
        '"\\0"',
        '"\\ud83d\\ude00"',
        '"\\ud83d"',
        '"\\U00110000"',
    ),
    *(
        "[]",
        "{}",
        "[[[[1]]]]",
        "[1, 2",
        "{a: 1",
        "{a: {b: {c: [1, {d: 2}]}}}",
        "[null]",
        "[.nan]",
        "{1: 2}",
        "{[1]: 2}",
    ),
    *("!!python/object:os.system x", "!own x", "!!int a", "!!binary aGk=", "!!set {a}", "&a [*a]", "*nowhere", "&a 1"),
    *(
        "|\n  text",
        ">\n  text",
        "? a\n: b",
        "<<: 1",
        "2026-11-27",
        "1:30",
        "=",
        "<<",
        "- a",
        "@a",
        "`a",
        "%a",
        "\ta",
        "a: b: c",
    ),
    *(
        "../../../../etc/passwd",
        "/dev/zero",
        "/dev/stdin",
        "~",
        "~nobody/x",
        ".",
        "a" * 300,
        "b/" * 3000,
        "é" * 200,
        "C:\\x",
    ),
    *(
        TOKEN,
        f"768{TOKEN}",
        f"'{TOKEN}'",
        f'"hf_\\u0050{TOKEN[4:]}"',
        f"[{TOKEN}]",
        f"{{a: {TOKEN}}}",
        f"https://u:{TOKEN}@h/x",
    ),
    *(
        "auto",
        "all-linear",
        "epoch",
        "adamw_torch",
        "cosine",
        "json",
        "gpt-tiny",
        "gpt2",
        "org/name",
        "bert-base-uncased",
    ),
]
ODD_TEXT = [
    *(
        "\0",
        "\x07",
        "\t",
        "\r",
        "\r\n",
        "\n",
        "\ufeff",
        "\x85",
        "\u2028",
        "é",
        "😀",
        "\\",
        "'",
        '"',
        "#",
        ": ",
        "- ",
        "? ",
    ),
    *(
        "---\n",
        "...\n",
        "%YAML 1.3\n---\n",
        "%YAML 9.9\n---\n",
        "%TAG ! x\n---\n",
        "&a ",
        "*a",
        "*a ",
        "!x ",
        "!!map ",
        "<<: *a\n",
    ),
    *("{", "}", "[", "]", ",", "|", ">", "@", "`", "~", "=", "1e999", TOKEN, f"# {TOKEN}\n", f"{TOKEN}: 1\n"),
    *("extends: a.yaml\n", "task: chat\n", "fp16: true\n", "  " * 30),
]


# mutants ------------------------------------------------------------------------------------------------------------


def mutate(rng: random.Random, texts: list[str]) -> tuple[bytes, list[str]]:
    """(the bytes of a recipe, arguments of `--set`)."""
    text = rng.choice(texts)
    if rng.random() < 0.01:
        return _large(rng, text).encode()[:1_000_000], []
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 5))):
        text = rng.choice(KINDS)(rng, text, texts)
    arguments = [_argument(rng, text) for _ in range(rng.randint(1, 3))] if rng.random() < 0.1 else []
    data = text.encode("utf-8", "surrogatepass")
    if rng.random() < 0.05:
        data = _encode(rng, text, data)
    return data, arguments


def _edit_text(rng: random.Random, text: str, texts: list[str]) -> str:
    at = rng.randrange(len(text) + 1)
    gone = rng.choice((0, 0, 1, 2, 10, 80))
    new = rng.choice((rng.choice(ODD_TEXT), "", chr(rng.randrange(32, 0x2100)), text[at : at + gone] * 2))
    return text[:at] + new + text[at + gone :]


def _edit_lines(rng: random.Random, text: str, texts: list[str]) -> str:
    lines = text.splitlines(keepends=True)
    if not lines:
        return text
    a, b = (rng.randrange(len(lines)) for _ in range(2))
    what = rng.randrange(5)
    if what == 0:
        lines[a], lines[b] = lines[b], lines[a]
    elif what == 1:
        del lines[a]
    elif what == 2:
        lines.insert(b, lines[a])
    elif what == 3:
        lines[a] = " " * rng.randrange(5) + lines[a].lstrip(" ")
    else:
        other = rng.choice(texts).splitlines(keepends=True)
        lines[a:a] = other[: rng.randint(1, 5)]
    return "".join(lines)


def _edit_value(rng: random.Random, text: str, texts: list[str]) -> str:
    found = list(re.finditer(r"(?m)(?<=: )[^\n#{}\[\],]+", text))
    if not found:
        return text + f"\nseed: {rng.choice(ODD_VALUES)}\n"
    match = rng.choice(found)
    return text[: match.start()] + rng.choice(ODD_VALUES) + text[match.end() :]


def _edit_key(rng: random.Random, text: str, texts: list[str]) -> str:
    found = list(re.finditer(r"[A-Za-z_]\w+(?=:)", text))
    if not found:
        return text
    match, other = rng.choice(found), rng.choice(found)
    word = match[0]
    at = rng.randrange(len(word))
    new = rng.choice(
        (
            word[:at] + word[at + 1 :],
            word[:at] + rng.choice("abcxyz_-. ") + word[at:],
            other[0],
            rng.choice(
                (
                    "null",
                    "1",
                    "1.5",
                    ".nan",
                    "true",
                    "~",
                    "''",
                    "? [a]",
                    "<<",
                    "token",
                    "hub_token",
                    TOKEN,
                    "é",
                    "x" * 500,
                )
            ),
            rng.choice(OLD_KEYS),
        )
    )
    return text[: match.start()] + new + text[match.end() :]


def _edit_aliases(rng: random.Random, text: str, texts: list[str]) -> str:
    found = [match.end() for match in re.finditer(r": (?=\S)|:(?=\n)", text)]
    if len(found) < 2:
        return text
    a, b = sorted(rng.sample(found, 2))
    anchor, alias = (
        rng.choice((" &a ", " &a &b ", " &1 ")),
        rng.choice((" *a\n#", " *a ", " *b ", " [*a, *a]\n#", " {<<: *a}\n#")),
    )
    return text[:a] + anchor + text[a:b] + alias + text[b:]


def _edit_tags(rng: random.Random, text: str, texts: list[str]) -> str:
    found = [match.end() for match in re.finditer(r": |- |\[|\{", text)]
    at = rng.choice(found) if found else 0
    tags = (
        "!x ",
        "!!str ",
        "!!int ",
        "!!float ",
        "!!null ",
        "!!seq ",
        "!!map ",
        "!!python/name:os.system ",
        "!<a> ",
        "! ",
        "!!timestamp ",
    )
    return text[:at] + rng.choice(tags) + text[at:]


KINDS: list[Callable[[random.Random, str, list[str]], str]] = [
    *(_edit_text, _edit_lines, _edit_value, _edit_value, _edit_value, _edit_key, _edit_key, _edit_aliases, _edit_tags)
]
OLD_KEYS = (
    "evaluation_strategy",
    "warmup_ratio",
    "no_cuda",
    "push_to_hub_token",
    "fsdp_min_num_params",
    "resume_despite",
)


def _argument(rng: random.Random, text: str) -> str:
    keys = re.findall(r"[A-Za-z_]\w+(?=:)", text) or ["task"]
    dotted = ".".join(rng.choice(keys) for _ in range(rng.choice((1, 2, 2, 2, 3))))
    return rng.choice(
        (
            f"{dotted}={rng.choice(ODD_VALUES)}",
            dotted,
            f"{dotted}=",
            f"={rng.choice(ODD_VALUES)}",
            rng.choice(ODD_VALUES),
        )
    )


def _encode(rng: random.Random, text: str, data: bytes) -> bytes:
    return rng.choice(
        (
            lambda: text.encode("utf-16", "replace"),
            lambda: text.encode("latin-1", "replace"),
            lambda: text.encode("utf-8-sig", "replace"),
            lambda: text.encode("utf-32", "replace"),
            lambda: data[: rng.randrange(len(data) + 1)],
            lambda: data.replace(b"\n", b"\r\n"),
            lambda: data.replace(b"\n", b"\r"),
            lambda: bytes(byte ^ (rng.random() < 0.01) for byte in data),
            lambda: os.urandom(0) + rng.randbytes(200),
        )
    )()


def _large(rng: random.Random, text: str) -> str:
    """A recipe with something that repeats up to a megabyte."""
    size = rng.choice((100_000, 400_000, 900_000))
    word = "".join(rng.choice("abcdefghij_") for _ in range(rng.choice((1, 5, 30))))
    unit = rng.choice(
        (
            "[",
            "{a: ",
            "- ",
            "? ",
            "? a\n",
            "1,",
            "[],",
            "*a,",
            "\n",
            "#\n",
            f"# {word}\n",
            f"{word} ",
            f"{word}\n  ",
            "''",
            "\\n",
            "\\u0041",
            "%FOO bar\n",
            "!x ",
            "&a ",
            "---\n",
            "a: 1\n",
            f"{word}: 1\n",
            "\r",
            "\u2028",
            "://a:",
            "api_key=",
            "eyJ",
            "PRIVATE KEY",
            "=",
            ": ",
            "~",
        )
    )
    numbered = rng.random() < 0.3
    body = (
        "".join(f"{word}{n}: {n}\n" for n in range(size // (len(word) + 12)))
        if numbered
        else unit * (size // len(unit))
    )
    head = rng.choice(
        (
            text,
            text + "\nmetrics: [",
            text + "\nmetrics: '",
            text + '\nmetrics: "',
            text + "\nx: ",
            text + "\nx: |\n  ",
            "",
            "a: &a 1\nb: [",
        )
    )
    return head + body + rng.choice(("", "]", "'", '"', "\n" + text))


def try_mutant(data: bytes, arguments: list[str]) -> dict[str, Any]:
    """What `check` and `upgrade` made of it: CPU seconds, a traceback or None, and whether a token is shown."""
    from hf_recipes.commands.check import check, upgrade_file
    from hf_recipes.errors import RecipeError

    Path("mutant.yaml").write_bytes(data)
    began, lines, trace = time.process_time(), [], None
    try:
        lines, _ = check("mutant.yaml", arguments)
    except Exception:
        trace = traceback.format_exc()
    seconds = time.process_time() - began
    began = time.process_time()
    try:
        lines = [*lines, *upgrade_file("mutant.yaml", dry_run=True)]
    except RecipeError as error:
        lines = [*lines, *map(str, error.errors)]
    except Exception:
        trace = trace or traceback.format_exc()
    seconds = max(seconds, time.process_time() - began)
    return {
        "cpu": seconds,
        "traceback": trace,
        "shown": SHOWN in "\n".join(lines),
        "accepted": lines[:1] != [] and not trace,
    }


def run_chunk(seed: int, count: int) -> dict[str, Any]:
    """`count` mutants drawn with a seed; only what went wrong is kept."""
    rng = random.Random(seed)
    texts = [path.read_text(encoding="utf-8") for path in RECIPES]
    slowest, wrong = 0.0, []
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for number in range(count):
            data, arguments = mutate(rng, texts)
            found = try_mutant(data, arguments)
            slowest = max(slowest, found["cpu"])
            if found["traceback"] or found["shown"] or found["cpu"] > MOST_SECONDS:
                wrong.append(
                    {"seed": seed, "number": number, **found, "data": repr(data[-300:]), "arguments": arguments}
                )
        os.chdir(ROOT)
    return {"count": count, "slowest": slowest, "wrong": wrong}


# settings that upstream constructs ----------------------------------------------------------------------------------


def classes() -> dict[str, tuple[Any, dict[str, Any]]]:
    """Section -> (upstream's class, keywords that it needs on a machine without a GPU)."""
    from peft import LoraConfig
    from transformers import BitsAndBytesConfig, EarlyStoppingCallback, GenerationConfig, TrainingArguments
    from trl import SFTConfig

    cpu = {"use_cpu": True, "bf16": False, "output_dir": "out", "report_to": "none"}
    return {
        "TrainingArguments": (TrainingArguments, cpu),
        "SFTConfig": (SFTConfig, cpu),
        "LoraConfig": (LoraConfig, {}),
        "BitsAndBytesConfig": (BitsAndBytesConfig, {}),
        "GenerationConfig": (GenerationConfig, {}),
        "EarlyStoppingCallback": (EarlyStoppingCallback, {}),
    }


NUMBERS = (0, 1, 2, 3, 7, 8, 10, 16, 64, 100, 512, 1000)
REALS = (0.0, 1e-8, 1e-5, 3e-4, 0.01, 0.05, 0.1, 0.5, 0.9, 0.999, 1.0, 2.0, 10.0)


def draw_settings(rng: random.Random, section: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Some keys of a section with values of the types that upstream declares."""
    chosen = rng.sample(sorted(fields), min(len(fields), rng.choice((1, 1, 2, 3))))
    return {key: value for key in chosen if (value := _draw_value(rng, fields[key])) is not None}


def _draw_value(rng: random.Random, field: Any) -> Any:
    kinds = [kind for kind in field.kinds if kind in ("bool", "int", "float", "str")]
    if field.choices and "str" in field.kinds:
        return rng.choice(sorted(map(str, field.choices)))
    if not kinds:
        return None
    kind = rng.choice(kinds)
    if kind == "bool":
        return rng.random() < 0.5
    if kind == "int":
        return rng.choice(NUMBERS)
    if kind == "float":
        return rng.choice(REALS)
    return None  # texts without choices are names and paths: any is taken


def recipe_of(section: str, values: dict[str, Any], keywords: dict[str, Any]) -> str:
    """A recipe around one section, as YAML (which reads JSON)."""
    trainer = section if section in ("TrainingArguments", "SFTConfig") else "TrainingArguments"
    task = "chat" if section == "SFTConfig" else "causal-lm"
    sections: dict[str, Any] = {
        "task": task,
        "model": {"pretrained_model_name_or_path": "org/model"},
        "dataset": {"path": "org/rows"},
        trainer: {"output_dir": "out", "use_cpu": True},
    }
    if section == "BitsAndBytesConfig":
        sections["LoraConfig"] = {}
    if section == "EarlyStoppingCallback":
        sections[trainer] |= {"eval_strategy": "steps", "save_strategy": "steps", "load_best_model_at_end": True}
    if section == "GenerationConfig":
        sections["sample_prompts"] = ["Once"]
    sections[section] = {
        **sections.get(section, {}),
        **{k: v for k, v in keywords.items() if k in sections.get(section, {})},
        **values,
    }
    return json.dumps(sections)


def run_settings(seed: int, count: int) -> dict[str, Any]:
    """`count` settings that upstream constructs: how many of each class, and each refusal with its reason."""
    import contextlib
    import io
    import warnings

    from hf_recipes.commands.check import check
    from hf_recipes.recipe.schema import installed

    rng = random.Random(seed)
    built, refused = collections.Counter[str](), []
    drawn = 0
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        os.chdir(folder)
        every = classes()
        names = [
            *["TrainingArguments", "SFTConfig"] * 4,
            *["LoraConfig"] * 2,
            "BitsAndBytesConfig",
            "GenerationConfig",
            "EarlyStoppingCallback",
        ]
        while sum(built.values()) < count:
            drawn += 1
            section = rng.choice(names)
            cls, keywords = every[section]
            fields = installed.fields(section)
            values = draw_settings(rng, section, fields)
            if not values:
                continue
            try:
                cls(**{**keywords, **values})
            except Exception:  # upstream refuses it, in whatever way: not what is counted
                continue
            built[section] += 1
            Path("setting.yaml").write_text(recipe_of(section, values, keywords), encoding="utf-8")
            lines, errors = check("setting.yaml")
            if errors:
                why = [line.removeprefix("error: setting.yaml:1: ").removeprefix("error: ") for line in lines[:-1]]
                refused.append({"section": section, "values": values, "why": why})
        os.chdir(ROOT)
    return {"drawn": drawn, "built": dict(built), "refused": refused}


# Beginnings and ends of messages -> why check refuses what upstream constructs.
REASONS = (
    (r"it must be (at least|above|at most)|no token to predict", "out of the range in which training works"),
    (r"belongs into the accelerate file", "how a run is spread over GPUs is given to `accelerate launch`"),
    (r"needs? |takes (its|no)|wants ", "needs another key, and fails or has no effect without it"),
    (r"is refused: code from the Hub", "no code of the Hub is run"),
    (r"contradicts|freezes the adapter|ignores max_length|is one step", "means something else than it looks like"),
    (r"metrics|lists of batches", "the package's own evaluation needs the complete set"),
    (r"auto_find_batch_size", "changes the effective batch and restarts the schedule"),
    (r"saves nothing|has no effect|nothing|never", "has no effect, or saves nothing"),
)


def reason_of(message: str) -> str:
    """Why a setting is refused, in one phrase; "" if no row of REASONS knows it."""
    return next((reason for pattern, reason in REASONS if re.search(pattern, message)), "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutants", type=int, default=20_000)
    parser.add_argument("--settings", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--output", type=Path, default=RECORD)
    asked = parser.parse_args()
    import hf_recipes.commands.check
    import hf_recipes.data.splits  # noqa: F401

    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp()
    run_chunk(-1, 3)  # everything that is imported late, before the workers fork
    record: dict[str, Any] = {"python": platform.python_version(), "seed": asked.seed}
    for key, total in mutants_and_settings(asked).items():
        record[key] = total
    asked.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: value for key, value in record.items() if key != "settings"}, indent=1)[:3000])


def mutants_and_settings(asked: argparse.Namespace) -> dict[str, Any]:
    counts = [min(CHUNK, asked.mutants - start) for start in range(0, asked.mutants, CHUNK)]
    with ProcessPoolExecutor(asked.workers, mp_context=get_context("fork")) as pool:
        chunks = list(pool.map(run_chunk, range(asked.seed, asked.seed + len(counts)), counts))
    wrong = [one for chunk in chunks for one in chunk["wrong"]]
    found: dict[str, Any] = {
        "mutants": {
            "count": sum(counts),
            "tracebacks": sum(bool(one["traceback"]) for one in wrong),
            "over_2_seconds": sum(one["cpu"] > MOST_SECONDS for one in wrong),
            "tokens_shown": sum(one["shown"] for one in wrong),
            "slowest_cpu_seconds": round(max((chunk["slowest"] for chunk in chunks), default=0.0), 2),
            "wrong": wrong[:50],
        }
    }
    if asked.settings:
        with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
            found["settings"] = describe_settings(pool.submit(run_settings, asked.seed, asked.settings).result())
    return found


def describe_settings(found: dict[str, Any]) -> dict[str, Any]:
    """Counts, and the refusals by their reason with one example each."""
    reasons: dict[str, dict[str, Any]] = {}
    for one in found["refused"]:
        for why in one["why"]:
            key = _reason(why)
            reasons.setdefault(key, {"count": 0, "example": {one["section"]: one["values"]}})["count"] += 1
    built = sum(found["built"].values())
    return {
        "built": found["built"],
        "count": built,
        "accepted": built - len(found["refused"]),
        "refused": len(found["refused"]),
        "reasons": dict(sorted(reasons.items(), key=lambda item: -item[1]["count"])),
    }


def _reason(line: str) -> str:
    """A message without its numbers, so that equal reasons are counted as one."""
    return re.sub(r"(?<![\w.])-?\d[\d.e+-]*", "N", line)


if __name__ == "__main__":
    main()
