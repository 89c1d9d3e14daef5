"""Metrics of generated text against a reference, per example: exact match, ROUGE and BLEU's counts.

ROUGE is Google's (rouge_score, with stemming), BLEU is sacrebleu's; `pip install 'hf_recipes[generation]'` has both.
Each example gives numbers whose sums are all that a corpus value needs, so that examples can be resampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from hf_recipes.catalog.metrics import GENERATED
from hf_recipes.errors import MetricError

NAMES = tuple(GENERATED)  # that a user can ask for
ROUGE = GENERATED["rouge"]
ORDER = 4  # BLEU's longest n-gram
PACKAGES = {"rouge": "rouge_score", "bleu": "sacrebleu"}

Column = list[Any]  # a value an example


def check_packages(names: Sequence[str], where: str) -> None:
    """Before a model is loaded. Raises MetricError for a metric whose package is not installed."""
    for name in names:
        package = PACKAGES.get(name)
        if package is not None and find_spec(package) is None:
            fix = "run: pip install 'hf_recipes[generation]'"
            raise MetricError.at(where, f"{name} needs {package}, which is not installed", fix)


def score_texts(names: Sequence[str], predictions: Sequence[str], references: Sequence[str]) -> dict[str, Column]:
    """Column -> a value an example: exact_match 0 or 1 (blanks at the ends do not count), rouge1, rouge2 and rougeL as
    F1 in [0, 1], bleu the 2 * ORDER + 2 counts of sacrebleu (matches, n-grams, lengths of both texts)."""
    found: dict[str, Column] = {}
    if "exact_match" in names:
        pairs = zip(predictions, references, strict=True)
        found["exact_match"] = [int(one.strip() == other.strip()) for one, other in pairs]
    if "rouge" in names:
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer(ROUGE, use_stemmer=True)
        every = [scorer.score(other, one) for one, other in zip(predictions, references, strict=True)]
        found |= {name: [float(one[name].fmeasure) for one in every] for name in ROUGE}
    if "bleu" in names:
        from sacrebleu.metrics import BLEU

        bleu = BLEU()
        rows = []
        for one, other in zip(predictions, references, strict=True):
            part = bleu.corpus_score([one], [[other]])
            rows.append([*map(float, part.counts), *map(float, part.totals), float(part.sys_len), float(part.ref_len)])
        found["bleu"] = rows
    return found
