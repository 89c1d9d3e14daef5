"""Which scheme the tags of entities follow, and the entities of a sentence by it.

IO, IOB1 and IOB2 share their prefixes: which of them data follow shows in how entities begin. (Sources: Ramshaw &
Marcus 1995; Tjong Kim Sang & Veenstra 1999; seqeval.scheme.) Importing this file is fast: seqeval is imported where it
is used.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from hf_recipes.errors import DataError

PREFIXES = "BILOUESM"
# Scheme -> seqeval's class of it, and letters to replace first: BILOU and BMES are IOBES with other letters, which
# seqeval's default mode does not know. IO is IOB1 without its B.
SEQEVAL: dict[str, tuple[str, dict[str, str]]] = {
    "IO": ("IOB1", {}),
    "IOB1": ("IOB1", {}),
    "IOB2": ("IOB2", {}),
    "IOE1": ("IOE1", {}),
    "IOE2": ("IOE2", {}),
    "IOBES": ("IOBES", {}),
    "BILOU": ("IOBES", {"L": "E", "U": "S"}),
    "BMES": ("IOBES", {"M": "I"}),
}
# By their prefixes alone, the first that has all of them.
LETTERS = (("IOBES", "BIOES"), ("BILOU", "BILOU"), ("BMES", "BMOES"))

Span = tuple[str, int, int]  # type, first word, last word


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """The scheme of some tags; `odd` of `entities` entities do not begin (or end) as the scheme has it."""

    name: str
    entities: int = 0
    odd: int = 0


def is_prefixed(tag: str) -> bool:
    """Whether a tag is "O", or has a prefix such as "B-"."""
    return tag == "O" or (len(tag) > 2 and tag[0] in PREFIXES and tag[1] == "-")


def usual_spelling(tag: str) -> str:
    """ "B-PER" for b-per, B_PER and PER-B, "O" for o; "" for a tag that is none of an entity."""
    begins = re.fullmatch(rf"([{PREFIXES}])[-_:.](.+)", tag, re.IGNORECASE)
    ends = re.fullmatch(rf"(.+)[-_:.]([{PREFIXES}])", tag)
    if begins:
        return f"{begins[1].upper()}-{begins[2]}"
    return f"{ends[2]}-{ends[1]}" if ends else "O" if tag == "o" else ""


def type_of(tag: str) -> str:
    """ "PER" of "B-PER"; "O" as it is."""
    return tag if tag == "O" else tag[2:]


def find_scheme(sentences: Iterable[Sequence[str]], names: Iterable[str] = ()) -> Scheme:
    """The scheme of the tags of these sentences. `names`: further tags that the model has.

    Raises DataError for tags without prefixes, and for prefixes that no scheme has together.
    """
    tags, starts, ends = set(names), {"B": 0, "I": 0}, {"E": 0, "I": 0}
    for sentence in sentences:
        tags.update(sentence)
        _count_ends(sentence, starts, ends)
    for tag in sorted(tags):
        if not is_prefixed(tag):
            what = f"the tag {tag!r} has no prefix such as 'B-'"
            raise DataError.at("metric span_f1", what, "use accuracy for tags without spans")
    prefixes = {tag[0] for tag in tags} - {"O"}
    if prefixes == {"I"}:
        return Scheme(name="IO", entities=starts["I"])
    if prefixes <= {"B", "I"}:
        name, odd = ("IOB1", starts["B"]) if starts["I"] > starts["B"] else ("IOB2", starts["I"])
        return Scheme(name=name, entities=starts["B"] + starts["I"], odd=odd)
    if prefixes <= {"I", "E"}:
        name, odd = ("IOE1", ends["E"]) if ends["I"] > ends["E"] else ("IOE2", ends["I"])
        return Scheme(name=name, entities=ends["E"] + ends["I"], odd=odd)
    for name, letters in LETTERS:
        if prefixes <= set(letters):
            return Scheme(name=name)
    found = ", ".join(sorted(prefixes))
    what = f"the tags' prefixes {found} do not belong to one scheme ({', '.join(SEQEVAL)})"
    raise DataError.at("metric span_f1", what)


def _count_ends(sentence: Sequence[str], starts: dict[str, int], ends: dict[str, int]) -> None:
    """By prefix, the tags with which entities begin and end. A B between two tags of one type begins an entity in
    IOB1 and IOB2 alike, an E ends one in IOE1 and IOE2: they say nothing."""
    before, padded = "O", [*sentence, "O"]
    for tag, after in pairwise(padded):
        if tag != "O" and type_of(before) != type_of(tag) and tag[0] in starts:
            starts[tag[0]] += 1
        if tag != "O" and type_of(after) != type_of(tag) and tag[0] in ends:
            ends[tag[0]] += 1
        before = tag


def spans(tags: Sequence[str], scheme: str, *, strict: bool) -> set[Span]:
    """The entities of a sentence. strict: only those that are well formed in the scheme (seqeval's strict mode); else
    as conlleval and seqeval's default mode read them."""
    from seqeval import scheme as schemes
    from seqeval.metrics.sequence_labeling import get_entities

    read = as_seqeval([tags], scheme)[0]
    if not strict:
        return set(get_entities(read))
    found = schemes.Entities([read], getattr(schemes, SEQEVAL[scheme][0])).entities[0]
    return {(entity.tag, entity.start, entity.end - 1) for entity in found}


def as_seqeval(sentences: Iterable[Sequence[str]], scheme: str) -> list[list[str]]:
    """Tags with the letters that seqeval reads."""
    letters = SEQEVAL[scheme][1]
    return [[letters.get(tag[0], tag[0]) + tag[1:] for tag in sentence] for sentence in sentences]
