"""IO, IOB1, IOB2, IOE2, IOBES, BILOU and BMES are told apart, and entities are scored by the rules of each."""

from __future__ import annotations

import random

import pytest

from hf_recipes.data.tag_schemes import find_scheme, spans, usual_spelling
from hf_recipes.errors import DataError
from hf_recipes.evaluation.metrics import functions

# The same two sentences in every scheme: PER of two words, PER beside it, LOC of one word, LOC of three.
WRITTEN = {
    "IO": ["I-PER I-PER O I-LOC O", "I-LOC I-LOC I-LOC"],
    "IOB1": ["I-PER I-PER B-PER I-LOC O", "I-LOC I-LOC I-LOC"],
    "IOB2": ["B-PER I-PER B-PER B-LOC O", "B-LOC I-LOC I-LOC"],
    "IOE2": ["I-PER E-PER E-PER E-LOC O", "I-LOC I-LOC E-LOC"],
    "IOBES": ["B-PER E-PER S-PER S-LOC O", "B-LOC I-LOC E-LOC"],
    "BILOU": ["B-PER L-PER U-PER U-LOC O", "B-LOC I-LOC L-LOC"],
    "BMES": ["B-PER E-PER S-PER S-LOC O", "B-LOC M-LOC E-LOC"],
}
ENTITIES = [{("PER", 0, 1), ("PER", 2, 2), ("LOC", 3, 3)}, {("LOC", 0, 2)}]


@pytest.mark.parametrize("scheme", WRITTEN)
def test_a_scheme_is_told_by_its_tags_and_its_entities_are_read_by_its_rules(scheme: str) -> None:
    sentences = [text.split() for text in WRITTEN[scheme]]
    found = find_scheme(sentences)
    assert (found.name, found.odd) == (scheme, 0)
    wanted = ENTITIES if scheme != "IO" else [{("PER", 0, 1), ("LOC", 3, 3)}, {("LOC", 0, 2)}]
    assert [spans(tags, scheme, strict=True) for tags in sentences] == wanted
    scores = functions.span_f1(sentences, sentences)
    assert (scores["span_f1"], scores["span_f1_strict"]) == (1.0, 1.0)


def test_the_majority_decides_between_schemes_and_the_others_are_counted() -> None:
    found = find_scheme([["B-X", "I-X"], ["B-X", "O"], ["I-X", "O"]])
    assert (found.name, found.entities, found.odd) == ("IOB2", 3, 1)
    assert find_scheme([["I-X", "I-X"], ["O", "I-X"]], ["O", "B-X", "I-X"]).name == "IOB1"  # CoNLL-2003's own files
    assert find_scheme([], ["O", "B-X", "I-X"]).name == "IOB2"
    assert find_scheme([["O"]]).name == "IOB2"


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        (["PER"], "metric span_f1: the tag 'PER' has no prefix such as 'B-'; use accuracy for tags without spans"),
        (
            ["S-X", "L-X"],
            "metric span_f1: the tags' prefixes L, S do not belong to one scheme (IO, IOB1, IOB2, IOE1, IOE2, IOBES, "
            "BILOU, BMES)",
        ),
    ],
)
def test_tags_of_no_scheme_are_refused(tags: list[str], expected: str) -> None:
    with pytest.raises(DataError) as raised:
        find_scheme([tags])
    assert str(raised.value) == expected


@pytest.mark.parametrize(("scheme", "letters"), [("IOB1", "BI"), ("IOB2", "BI"), ("IOBES", "BIES"), ("BILOU", "BILU")])
def test_random_tags_score_as_in_seqeval_with_the_right_scheme(scheme: str, letters: str) -> None:
    from seqeval import scheme as schemes
    from seqeval.metrics import f1_score

    draw = random.Random(0)
    tags = ["O", *(f"{letter}-{kind}" for letter in letters for kind in ("X", "Y"))]
    gold, predicted = ([[draw.choice(tags) for _ in range(9)] for _ in range(60)] for _ in range(2))
    found = functions.span_f1(predicted, gold, scheme)
    right = getattr(schemes, scheme)
    assert found["span_f1_strict"] == f1_score(gold, predicted, mode="strict", scheme=right)
    both = [[spans(one, scheme, strict=True) for one in sentences] for sentences in (gold, predicted)]
    hits = sum(len(a & b) for a, b in zip(*both, strict=True))
    assert found["span_f1_strict"] == pytest.approx(2 * hits / sum(len(one) for side in both for one in side))
    if scheme != "BILOU":  # whose letters seqeval's default mode does not know
        assert found["span_f1"] == f1_score(gold, predicted)


@pytest.mark.parametrize(
    ("tag", "usual"),
    [
        ("b-per", "B-per"), ("B_PER", "B-PER"), ("PER-B", "B-PER"), ("I:LOC", "I-LOC"), ("o", "O"), ("NOUN", ""),
        ("per", ""), ("B-PER", "B-PER"),
    ],
)  # fmt: skip
def test_other_spellings_of_tags_of_entities_are_known(tag: str, usual: str) -> None:
    assert usual_spelling(tag) == usual
