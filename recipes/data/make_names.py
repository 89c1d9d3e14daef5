"""Writes names/{train,validation}.jsonl: sentences of Jane Austen with people (PER) and places (LOC) marked.

    python recipes/data/make_names.py

The labels are SILVER: made by the rules below and by names_lists.py, not by a reader. Train comes from three novels,
validation from Persuasion, so that most of its names are new to the model. Both hold 60 % sentences with a name.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

from names_lists import FAMILIES, GIVEN_NAMES, PLACES, SURNAMES, SURNAMES_AFTER_A_NAME, TITLES, word_set

SPLITS = {
    "train": (("pride_and_prejudice", "emma", "sense_and_sensibility"), 2400),
    "validation": (("persuasion",), 500),
}
SEED, SHARE_WITH_NAMES, FEWEST_WORDS, MOST_WORDS = 42, 0.6, 4, 45

ABBREVIATIONS = "Mr|Mrs|Dr|St|Esq|Col|Capt|Lieut|Rev|Hon|Messrs|Sept|Dec|etc|viz|[A-Z]"
WORD = re.compile(
    rf"(?:{ABBREVIATIONS})\.(?![\w.])|&c\.|'s\b|[A-Za-z0-9]+(?:[-'](?!s\b)[A-Za-z0-9]+)*|--+|\.\.+|[^\sA-Za-z0-9]"
)
ENDS = frozenset(".!?")
MARKS = frozenset("\"'(")
NOT_NAMES = word_set("I O Oh Ah And But The A An My No Yes It He She You We They Is If Do What How Patroness")
PEOPLE = GIVEN_NAMES | SURNAMES | FAMILIES | {name + end for name in SURNAMES for end in ("s", "es")}
PLACES_BY_FIRST_WORD: dict[str, list[list[str]]] = {}
for _place in sorted(PLACES, key=lambda place: -len(WORD.findall(place))):
    _words = WORD.findall(_place)
    PLACES_BY_FIRST_WORD.setdefault(_words[0], []).append(_words)


def words_of(text: str) -> list[str]:
    """Words and marks; "Mr." is one word, "Darcy's" is two, a dash is one."""
    return WORD.findall(text)


def sentences(words: list[str]) -> Iterator[list[str]]:
    """Cut a paragraph after . ! ? and the mark that closes a quotation, where the next word has a capital."""
    start = 0
    for at, word in enumerate(words):
        if word in ENDS:
            after = at + 1
            if words[after : after + 1] == ['"'] and words[:after].count('"') % 2 == 1:
                after += 1  # it closes what this paragraph has opened
            following = next((w for w in words[after:] if w not in MARKS), "A")
            if following[0].isupper():
                yield words[start:after]
                start = after
    if start < len(words):
        yield words[start:]


def as_name(word: str) -> str:
    """Capitals for emphasis are read as a name is written: EMMA is Emma."""
    return word.title() if word.isupper() and len(word) > 2 else word


def person_at(words: list[str], at: int) -> int:
    """How many words from `at` on name one person; 0 if none do."""
    end, titled = at, False
    while end < len(words) and as_name(words[end]) in TITLES:  # Lady Dowager, Sir, Right Hon. Captain
        end, titled = end + 1, True
    first = end
    while end < len(words):
        word = as_name(words[end])
        if word in ("de", "De") and end > at and end + 1 < len(words) and words[end + 1][0].isupper():
            end += 2
            continue
        known = word in PEOPLE or (end > first and word in SURNAMES_AFTER_A_NAME)
        after_title = titled and end == first and word[0].isupper() and word not in NOT_NAMES
        if not (known or after_title):
            break
        end += 1
    return end - at if end > first else 0


def place_at(words: list[str], at: int) -> int:
    """How many words from `at` on name one place; the longest of the list wins; 0 if none does."""
    for place in PLACES_BY_FIRST_WORD.get(as_name(words[at]), ()):
        if [as_name(word) for word in words[at : at + len(place)]] == place:
            return len(place)
    return 0


def tags_of(words: list[str]) -> list[str]:
    """One BIO tag a word."""
    tags: list[str] = []
    while len(tags) < len(words):
        at = len(tags)
        if (length := place_at(words, at)) > 0:
            kind = "LOC"
        elif (length := person_at(words, at)) > 0:
            kind = "PER"
        else:
            tags.append("O")
            continue
        tags += [f"B-{kind}"] + [f"I-{kind}"] * (length - 1)
    return tags


def rows_of(novel: Path) -> list[dict[str, list[str]]]:
    """Every sentence of fitting length, once."""
    rows: dict[str, dict[str, list[str]]] = {}
    for paragraph in novel.read_text(encoding="utf-8").split("\n\n"):
        for words in sentences(words_of(paragraph)):
            if FEWEST_WORDS <= len(words) <= MOST_WORDS:
                rows.setdefault(" ".join(words), {"tokens": words, "tags": tags_of(words)})
    return list(rows.values())


def draw(rows: list[dict[str, list[str]]], count: int) -> list[dict[str, list[str]]]:
    """`count` rows in a fixed random order, SHARE_WITH_NAMES of them with at least one name."""
    order = random.Random(SEED).sample(rows, len(rows))
    named = [row for row in order if set(row["tags"]) != {"O"}][: round(count * SHARE_WITH_NAMES)]
    plain = [row for row in order if set(row["tags"]) == {"O"}][: count - len(named)]
    return random.Random(SEED).sample(named + plain, count)


def spans_of(row: dict[str, list[str]]) -> list[tuple[str, str]]:
    """(kind, words) of every name of a row."""
    found: list[tuple[str, str]] = []
    for word, tag in zip(row["tokens"], row["tags"], strict=True):
        if tag.startswith("B-"):
            found.append((tag[2:], word))
        elif tag.startswith("I-"):
            found[-1] = (tag[2:], f"{found[-1][1]} {word}")
    return found


def main() -> None:
    here = Path(__file__).parent
    (here / "names").mkdir(exist_ok=True)
    seen: set[tuple[str, str]] = set()
    for split, (novels, count) in SPLITS.items():
        rows = draw([row for novel in novels for row in rows_of(here / "austen" / f"{novel}.txt")], count)
        spans = [span for row in rows for span in spans_of(row)]
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (here / "names" / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
        kinds = {kind: sum(1 for found, _ in spans if found == kind) for kind in ("PER", "LOC")}
        new = f", {sum(span not in seen for span in spans) / len(spans):.0%} of them new" if seen else ""
        print(f"{split}: {len(rows)} sentences, {sum(len(row['tokens']) for row in rows)} words, names {kinds}{new}")
        seen.update(spans)


if __name__ == "__main__":
    main()
