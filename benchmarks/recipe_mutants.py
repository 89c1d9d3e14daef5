"""Mutants of recipes for benchmarks/recipe_fuzz.py: text, keys, values, encodings, aliases and tags changed."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable

TOKEN = "hf_" + "PlantedTokenZ" * 3  # no word of a recipe, so that a part of it is found in any message
SHOWN = "PlantedToken"
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
