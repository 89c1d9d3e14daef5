"""Everything that a user can read is in plain English, with the terms of the Hugging Face world.

Read are: every string in the package (messages, help, docstrings), its comments and templates, the docs, the README and
its neighbours, the headers of recipes, `--help` of every command, and the report of a run.
"""

from __future__ import annotations

import ast
import html
import io
import json
import re
import shutil
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path

import click
import pytest

from hf_recipes.cli import commands
from hf_recipes.compare.runs import read_runs
from hf_recipes.recipe.schema.own_keys import DATASET, MODEL, SECTION_HELP, TOP
from hf_recipes.report.of_run import build_report
from hf_recipes.report.page import page

# A phrase as a regular expression, and what to write instead.
INSTEAD = {
    r"\bmend(s|ed|ing|able)?\b": "fix",
    r"\ba doubt\b|\bdoubts\b|\bdoubtful\b": "warning",
    r"(?<!model )(?<!dataset )\bcards?\b": "GPU; the model card is 'model card'",
    r"\bwords? of (?!a row\b)|\bwords? that (is|are|upstream)\b|\bno word that\b": "keys, arguments, options or values",
    r"\b(its|ours?|own|whose|upstream's) words?\b": "keys, arguments, options or values",
    r"\bverbs?\b": "command",
    r"\b(go|goes|going|went) on\b": "continue or resume",
    r"\bwhole (checkpoint|one|record|run|file|line)s?\b|\bwhole or not\b": "complete",
    r"\b(is|was|are|not|no|newest|nothing) whole\b": "complete",
    r"\baloud\b": "with a message, or printed",
    r"\bforetell|\bforetold\b": "predict",
    r"\btaken for (what|it|true|this)\b": "mistaken for, or assumed to be",
    r"\bin pieces\b": "with a smaller micro-batch",
    r"\bLight[.:;]|\b(is|are|stays) light\b": "imports neither torch nor transformers",
    r"\bblot(s|ted|ting)?\b": "mask",
    r"\btold\b|\btells? (what|which|whether|that|of|it)\b": "reported, given, shown",
    r"\bsaid\b": "reported, given, printed",
    r"\blent\b|\bborrowed\b": "name the machine and its record",
    r"\bfrom memory\b|\bwas written by\b(?! save_)": "name the source, and the test that checks it",
    r"\bfaults?\b(?! tolerance)": "error",
    r"\bjudg(e|es|ed|ing)\b": "check or decide",
    r"\bstrange\b": "unknown",
    r"\banew\b": "again, or from the beginning",
    r"\bheeds?\b": "follow or use",
    r"\bour own\b|\bof ours\b": "built-in, or of this package",
    r"\bdespite\b": "the key's new name (disable_guards, resume_allow)",
    r"\bstands (there|on|at|beside)\b|\blies (there|in|beside)\b": "is",
    r"\blonely\b": "single",
    r"\bhas it(s)? not\b|\bhas the \w+ it\b": "an ordinary sentence",
}
# (file, phrase found in lower case): why it may stay. At most ten.
ALLOWED: dict[tuple[str, str], str] = {}
MOST_ALLOWED = 10
PHRASES = [
    (re.compile(pattern, re.IGNORECASE if "Light" not in pattern else 0), say) for pattern, say in INSTEAD.items()
]


def _strings_and_comments(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of every string and comment in a Python file; docstrings included."""
    source = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and not re.fullmatch(r"[\w.-]*", node.value):
            yield node.lineno, node.value  # a single name is a key, not a text
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    yield from enumerate(path.read_text(encoding="utf-8").splitlines(), 1)


def _comments(path: Path) -> Iterator[tuple[int, str]]:
    """The comments of a YAML file."""
    yield from ((number, line.partition("#")[2]) for number, line in _lines(path) if "#" in line)


def _texts(root: Path) -> Iterator[tuple[str, int, str]]:
    """(file, line, text) of everything that users read."""
    for path in sorted((root / "hf_recipes").rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.suffix == ".py":
            yield from ((name, line, text) for line, text in _strings_and_comments(path))
        elif path.suffix in (".j2", ".md"):
            yield from ((name, line, text) for line, text in _lines(path))
    pages = [*root.glob("*.md"), *root.glob("docs/**/*.md"), *root.glob("accelerate_configs/*.md")]
    for path in sorted([*pages, *root.glob("recipes/*.md"), *root.glob("benchmarks/*.md")]):
        yield from ((path.relative_to(root).as_posix(), line, text) for line, text in _lines(path))
    for path in sorted([*root.glob("recipes/*.yaml"), *root.glob("accelerate_configs/*.yaml")]):
        yield from ((path.relative_to(root).as_posix(), line, text) for line, text in _comments(path))


def _found(texts: Iterable[tuple[str, int, str]]) -> list[tuple[str, int, str, str]]:
    """(file, line, phrase, what to write instead)."""
    return [
        (name, line + text[: match.start()].count("\n"), match[0], say)
        for name, line, text in texts
        for pattern, say in PHRASES
        for match in pattern.finditer(text)
    ]


def _as_lines(found: list[tuple[str, int, str, str]]) -> str:
    return "\n".join(f"{name}:{line}: {phrase!r}: write {say}" for name, line, phrase, say in found)


def test_what_users_read_is_in_plain_english(root: Path) -> None:
    found = [one for one in _found(_texts(root)) if (one[0], one[2].lower()) not in ALLOWED]
    assert not found, _as_lines(found)


def test_at_most_ten_uses_are_allowed_and_each_is_there(root: Path) -> None:
    assert len(ALLOWED) <= MOST_ALLOWED
    assert set(ALLOWED) <= {(name, phrase.lower()) for name, _, phrase, _ in _found(_texts(root))}


def test_the_help_of_every_command_is_in_plain_english() -> None:
    helps = {
        name: command.get_help(click.Context(command, info_name=name)) for name, command in commands.commands.items()
    }
    assert len(helps) > 10
    found = _found((f"{name} --help", 1, text) for name, text in helps.items())
    assert not found, _as_lines(found)


def test_the_json_schema_is_in_plain_english() -> None:
    """Only what this package writes: upstream's own documentation stays as it is."""
    texts = [field.help for table in (TOP, MODEL, DATASET) for field in table.values()] + list(SECTION_HELP.values())
    found = _found(("hf-recipes schema", 1, text) for text in texts)
    assert not found, _as_lines(found)


def test_a_report_is_in_plain_english(root: Path, folder: Path) -> None:
    shutil.copytree(root / "tests/data/run-587a747/runs/seed1", folder / "run")
    text = html.unescape(
        re.sub(r"<style.*?</style>|<[^>]*>", "", page(build_report(read_runs(["run"])[0])), flags=re.S)
    )
    recorded = (folder / "run" / "record.json").read_text()  # by an older version, in its words
    lines = [line for line in text.splitlines() if line.strip() and json.dumps(line.strip())[1:-1] not in recorded]
    assert len(lines) > 20
    found = _found((f"report: {line.strip()}", 1, line) for line in lines)
    assert not found, _as_lines(found)


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("does it fit the card?", "card"),
        ("the model card of a run; a Hub model's model card", ""),
        ("its line and its mend", "mend"),
        ("the newest whole checkpoint", "whole checkpoint"),
        ("TrainingArguments has no word that is known here", "no word that"),
        ("the same command goes on", "goes on"),
        ("Fault tolerance", ""),
    ],
)
def test_a_phrase_is_found_with_its_replacement(text: str, phrase: str) -> None:
    found = [one[2] for one in _found(iter([("a.py", 1, text)]))]
    assert found[:1] == [phrase] * bool(phrase)
