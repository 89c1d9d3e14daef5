"""Labels of texts and entities in texts, as transformers' pipelines give them, in batches of similar length."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice, pairwise
from typing import Any

import numpy as np

from hf_recipes.data.tagged_rows import OF_ENTITIES, WORD
from hf_recipes.errors import DataError
from hf_recipes.inference.inputs import Row
from hf_recipes.inference.trained import Trained

WINDOW = 32  # batches that are sorted by length together; results keep the order of the rows
CALL = 8  # batches that are tokenized together
OVERLAP = 0.25  # of the pieces of a long text, as a share of their length
OPENING, CLOSING = "([{\"'\u201c\u2018", ")]}\"'\u201d\u2019,;:!?"  # signs around words
ENDING = re.compile(r"['\u2019](s|d|m|t|ll|re|ve)", re.I)  # alone in tagged English: "Anne 's"
LONGEST_TITLE = 3  # letters of "Mrs.", which is followed by a capital letter within a sentence
LIKELY = 0.5  # from this probability on a label of several is given, where the recipe has no threshold


def in_order(
    rows: Iterable[Row], batch_size: int, length: Callable[[Row], int], predict: Callable[[list[Row]], Sequence[Any]]
) -> Iterator[tuple[Row, Any]]:
    """(row, what `predict` makes of it) in the order of the rows; batches hold rows of similar length."""
    left = iter(rows)
    while window := list(islice(left, WINDOW * batch_size)):
        order = sorted(range(len(window)), key=lambda i: length(window[i]), reverse=True)
        found: list[Any] = [None] * len(window)
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            for place, result in zip(chosen, predict([window[i] for i in chosen]), strict=True):
                found[place] = result
        yield from zip(window, found, strict=True)


def text_of(row: Row, column: str, number: int) -> str:
    """The row's text. Raises DataError with the row's number."""
    text = row.get(column, row.get("text"))
    if not isinstance(text, str) or not text.strip():
        name = column if column in row else "text"
        what = f"has no {column!r} (it has {', '.join(row)})"
        if name in row:
            odd = row[name] is not None and not isinstance(row[name], str)
            what = f"{name!r} is no text" if odd else f"its text in {name!r} is empty"
        raise DataError.at(f"row {number}", what, "give a text in every row")
    return text


def classify_texts(trained: Trained, rows: Iterable[Row], batch_size: int) -> Iterator[dict[str, Any]]:
    """{"text", "label", "score", "probabilities": {label: float}} of each row, texts cut at training's max_length.

    A multi-label model gives "labels", those from the recipe's threshold (0.5) on; a regression model "value". A row of
    texts in pairs has "text_pair" beside "text".
    """
    column = str(trained.recipe.get("dataset.text_column", "text"))
    threshold = float(trained.recipe.get("threshold") or LIKELY)
    pair = trained.recipe.get("dataset.text_pair_column", "text_pair")

    def checked() -> Iterator[Row]:
        for number, row in enumerate(rows):
            second = row.get(pair, row.get("text_pair"))
            yield {"text": text_of(row, column, number), **({"text_pair": second} if isinstance(second, str) else {})}

    def predict(batch: list[Row]) -> list[np.ndarray]:
        pairs = [row["text_pair"] for row in batch if "text_pair" in row]
        return list(_scores(trained, [row["text"] for row in batch], pairs or None))

    for row, scores in in_order(checked(), batch_size, lambda row: len(row["text"]), predict):
        yield {**row, **_describe_scores(trained.model.config, scores, threshold)}


def _scores(trained: Trained, texts: list[str], pairs: list[str] | None) -> np.ndarray:
    """(N, C) as the pipeline gives them: softmax over the labels, sigmoid of each of a multi-label model, or plain."""
    import torch

    encoded = trained.tokenizer(
        texts, pairs, truncation=True, max_length=trained.max_length, padding=True, return_tensors="pt"
    ).to(trained.model.device)
    with torch.inference_mode():
        logits = trained.model(**encoded).logits.float()
    kind = trained.model.config.problem_type
    if kind == "multi_label_classification" or (logits.shape[-1] == 1 and kind != "regression"):
        logits = logits.sigmoid()
    elif kind != "regression":
        logits = logits.softmax(dim=-1)
    scores: np.ndarray = logits.cpu().numpy()
    return scores


def _describe_scores(config: Any, scores: np.ndarray, threshold: float) -> dict[str, Any]:
    names = config.id2label
    if config.problem_type == "regression":
        values = [float(value) for value in scores]
        return {"value": values[0] if len(values) == 1 else values}
    probabilities = {names[i]: float(score) for i, score in enumerate(scores)}
    if config.problem_type == "multi_label_classification":
        labels = [name for name, score in probabilities.items() if score >= threshold]
        return {"labels": labels, "probabilities": probabilities}
    best = int(scores.argmax())
    return {"label": names[best], "score": float(scores[best]), "probabilities": probabilities}


def find_entities(trained: Trained, rows: Iterable[Row], batch_size: int) -> Iterator[dict[str, Any]]:
    """{"text", "entities": [{"entity_group", "score", "word", "start", "end"}]} of each row; start and end count the
    characters of the text. A row of words has them joined by blanks. A word's tag is its first token's, as in training.

    A text longer than training's max_length is read in parts that overlap. Where the tokenizer does not mark the parts
    of words, as WordPiece does, a text is split by `words_of`: training has seen one word at a time.
    """
    column = str(trained.recipe.get("dataset.tokens_column", "tokens"))
    glued = not getattr(trained.tokenizer.backend_tokenizer.model, "continuing_subword_prefix", None)
    tag = _tagger(trained, batch_size, glued)
    record = trained.found.record
    split = glued and record is not None
    pattern = WORD if record and any(OF_ENTITIES in note for note in record.notes) else None

    def checked() -> Iterator[Row]:
        for number, row in enumerate(rows):
            words = row.get(column)
            if isinstance(words, list) and words and all(isinstance(word, str) for word in words):
                yield {"text": " ".join(words), "words": words, "spans": _spans(words)}
                continue
            if column in row:
                what = f"{column!r} is empty" if words in ([], None) else f"{column!r} is no list of words"
                raise DataError.at(f"row {number}", what, 'write {"tokens": ["Anne", "smiled"]}, or a text')
            text = text_of(row, str(trained.recipe.get("dataset.text_column", "text")), number)
            spans = list(words_of(text, pattern)) if split else None
            yield {"text": text, "words": spans and [text[a:b] for a, b in spans], "spans": spans}

    def predict(window: list[Row]) -> list[list[dict[str, Any]]]:
        pieces = list(_cut(trained, window))
        found = iter(tag([piece for parts in pieces for piece in parts]))
        return [_join([(piece, next(found)) for piece in parts], glued) for parts in pieces]

    for row, entities in in_order(checked(), CALL * batch_size, lambda row: len(row["text"]), predict):
        yield {"text": row["text"], "entities": entities}


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """A part of a text that the model reads at once. `owns`: of its entities those count that begin there."""

    text: str
    words: Sequence[str] | None  # where the row has words
    spans: Sequence[tuple[int, int]] | None  # their characters
    start: int  # character of the whole text
    owns: tuple[int, int]  # characters of the whole text


def _cut(trained: Trained, rows: Sequence[Row]) -> Iterator[list[_Piece]]:
    """Of each row one piece, if the model reads it at once, else several that begin and end between words."""
    tokenizer, lengths = trained.tokenizer, [0] * len(rows)
    for split in (False, True):
        room = trained.max_length - tokenizer.num_special_tokens_to_add()  # a token has a byte or more
        long = [i for i, row in enumerate(rows) if len(row["text"].encode()) > room]
        places = [i for i in long if (rows[i]["words"] is not None) == split]
        if places:
            inputs = [rows[i]["words"] or rows[i]["text"] for i in places]
            ids = tokenizer(inputs, is_split_into_words=split, verbose=False)["input_ids"]
            for i, one in zip(places, ids, strict=True):
                lengths[i] = len(one)
    for row, length in zip(rows, lengths, strict=True):
        if length <= trained.max_length:
            owns = (0, len(row["text"]))
            yield [_Piece(text=row["text"], words=row["words"], spans=row["spans"], start=0, owns=owns)]
        else:
            yield _cut_row(trained, row["text"], row["words"], row["spans"])


def _cut_row(
    trained: Trained, text: str, words: Sequence[str] | None, of_words: Sequence[tuple[int, int]] | None
) -> list[_Piece]:
    tokenizer = trained.tokenizer
    spans = of_words or [match.span() for match in re.finditer(r"\S+", text)]
    sizes = [len(tokenizer(f" {text[a:b]}", add_special_tokens=False, verbose=False)["input_ids"]) for a, b in spans]
    room = trained.max_length - tokenizer.num_special_tokens_to_add()
    ranges = list(_ranges(sizes, room, int(OVERLAP * room)))
    middles = [0, *((spans[b][0] + spans[a - 1][1]) // 2 for (_, a), (b, _) in pairwise(ranges)), len(text)]
    return [
        _Piece(
            text=text[spans[first][0] : spans[stop - 1][1]],
            words=None if words is None else words[first:stop],
            spans=None if words is None else [(a - spans[first][0], b - spans[first][0]) for a, b in spans[first:stop]],
            start=spans[first][0],
            owns=(middles[i], middles[i + 1]),
        )
        for i, (first, stop) in enumerate(ranges)
    ]


def words_of(text: str, pattern: re.Pattern[str] | None = None) -> Iterator[tuple[int, int]]:
    """Where a text's words are: the matches of `pattern`, else what stands between blanks, and the signs around it, as
    data of words usually have them. A full stop is a word at the end of a sentence: "Mr. Elliot", "U.S."."""
    if pattern is not None:
        yield from (match.span() for match in pattern.finditer(text))
        return
    for match in re.finditer(r"\S+", text):
        begin, end = match.span()
        if ENDING.fullmatch(match[0]):
            yield begin, end
            continue
        signs: list[tuple[int, int]] = []
        while end - begin > 1 and text[begin] in OPENING:
            yield begin, begin + 1
            begin += 1
        while end - begin > 1 and (text[end - 1] in CLOSING or _ends_sentence(text, begin, end)):
            end -= 1
            signs.append((end, end + 1))
        if signs and all(sign in CLOSING + "." for sign in text[begin:end]):
            yield begin, match.end()  # "...", "?!"
        else:
            yield from [(begin, end), *reversed(signs)]


def _ends_sentence(text: str, begin: int, end: int) -> bool:
    if text[end - 1] != "." or "." in text[begin : end - 1]:
        return False
    after = text[end:].lstrip(CLOSING + " \n\t")[:1] if end + 1 < len(text) else ""
    return not text[end:].strip() or (after.isupper() and end - 1 - begin > LONGEST_TITLE)


def _spans(words: Sequence[str]) -> list[tuple[int, int]]:
    """Where the words stand in a text that joins them by blanks."""
    ends = list(accumulate(len(word) + 1 for word in words))
    return [(end - 1 - len(word), end - 1) for end, word in zip(ends, words, strict=True)]


def _ranges(sizes: Sequence[int], room: int, overlap: int) -> Iterator[tuple[int, int]]:
    """(first word, word after the last) of pieces of `room` tokens that share about `overlap` of them."""
    first = 0
    while True:
        stop, used = first, 0
        while stop < len(sizes) and (used + sizes[stop] <= room or stop == first):
            used += sizes[stop]
            stop += 1
        yield first, stop
        if stop == len(sizes):
            return
        back, shared = stop, 0
        while back - 1 > first and shared + sizes[back - 1] <= overlap:
            back -= 1
            shared += sizes[back]
        first = back


def _tagger(trained: Trained, batch_size: int, glued: bool) -> Callable[[Sequence[_Piece]], list[list[dict[str, Any]]]]:
    """The entities of pieces as transformers' pipeline finds them, their characters those of the piece.

    The pipeline tokenizes and pads text by text; here a window of texts is tokenized at once, and batches hold texts of
    similar length. What the tags of a text mean is the pipeline's own code.
    """
    import warnings

    import torch
    from transformers import TokenClassificationPipeline
    from transformers.pipelines.token_classification import AggregationStrategy

    tokenizer, model = trained.tokenizer, trained.model
    tokenizer.model_max_length = trained.max_length
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    pipe = TokenClassificationPipeline(
        model=inner, tokenizer=tokenizer, aggregation_strategy="first", device=model.device
    )
    # Of byte-level tokenizers, which do not mark the parts of a word: blanks do.
    warnings.filterwarnings("ignore", message="Tokenizer does not support real words")
    passed = set(tokenizer.model_input_names)

    def logits_of(encoded: Any, places: Sequence[int]) -> torch.Tensor:
        """(B, S, C) of some of the texts, padded to the longest."""
        chosen = {name: [values[i] for i in places] for name, values in encoded.items() if name in passed}
        batch = tokenizer.pad(chosen, return_tensors="pt").to(model.device)
        with torch.inference_mode():
            return inner(**batch).logits.float().cpu()

    def tag_same(pieces: Sequence[_Piece], *, split: bool) -> list[list[dict[str, Any]]]:
        """Of pieces that all have words, or none of them."""
        inputs: Any = [list(piece.words or ()) if split else piece.text for piece in pieces]
        encoded = tokenizer(
            inputs, is_split_into_words=split, truncation=True, return_offsets_mapping=True,
            return_special_tokens_mask=True, verbose=False,
        )  # fmt: skip
        order = sorted(range(len(pieces)), key=lambda i: len(encoded["input_ids"][i]), reverse=True)
        found: list[Any] = [None] * len(pieces)
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            logits = logits_of(encoded, places)
            for row, i in enumerate(places):
                ids = np.array(encoded["input_ids"][i])
                before = tokenizer.padding_side == "left"
                own = logits[row, -len(ids) :] if before else logits[row, : len(ids)]
                output = {
                    "logits": own[None],
                    "input_ids": ids[None],
                    "offset_mapping": [encoded["offset_mapping"][i]],
                    "special_tokens_mask": torch.tensor(encoded["special_tokens_mask"][i])[None],
                    "sentence": pieces[i].text,
                }
                if split and glued:
                    found[i] = _entities_of_words(pipe, own, encoded.word_ids(i), encoded.tokens(i), pieces[i])
                    continue
                if split:
                    output |= {"word_ids": encoded.word_ids(i), "word_to_chars_map": pieces[i].spans}
                found[i] = pipe.postprocess([output], aggregation_strategy=AggregationStrategy.FIRST)
        return found

    def tag(pieces: Sequence[_Piece]) -> list[list[dict[str, Any]]]:
        found: list[Any] = [None] * len(pieces)
        for split in (False, True):
            places = [i for i, piece in enumerate(pieces) if (piece.words is not None) == split]
            if places:
                for place, result in zip(places, tag_same([pieces[i] for i in places], split=split), strict=True):
                    found[place] = result
        return found

    return tag


def _entities_of_words(
    pipe: Any, logits: Any, word_ids: Sequence[int | None], tokens: Sequence[str], piece: _Piece
) -> list[dict[str, Any]]:
    """The pipeline's groups where the words are known: each has the tag of its first token. The pipeline itself takes
    what no blank separates for one word, where the tokenizer does not mark the parts of words."""
    from transformers.pipelines.token_classification import AggregationStrategy

    scores = logits.softmax(dim=-1).numpy()
    firsts = {word: place for place, word in reversed(list(enumerate(word_ids))) if word is not None}
    words = [
        {
            "word": tokens[place],
            "scores": scores[place],
            "start": (piece.spans or ())[word][0],
            "end": (piece.spans or ())[word][1],
            "index": place,
            "is_subword": False,
        }
        for word, place in sorted(firsts.items())
    ]
    groups = pipe.aggregate(words, AggregationStrategy.FIRST)
    return [one for one in groups if one["entity_group"] != "O"]


def _join(parts: Sequence[tuple[_Piece, list[dict[str, Any]]]], glued: bool) -> list[dict[str, Any]]:
    """The entities of all pieces of a text, each once. `glued`: their words are to be read in the text."""
    found: list[dict[str, Any]] = []
    for piece, entities in parts:
        earlier = found[-1]["end"] if found else 0  # within a piece entities may share a character of several bytes
        for one in entities:
            start, end = int(one["start"]) + piece.start, int(one["end"]) + piece.start
            covered = piece.text[int(one["start"]) : int(one["end"])]
            start += len(covered) - len(covered.lstrip())  # of tokenizers whose tokens begin with a blank
            end -= len(covered) - len(covered.rstrip())
            if start >= end:
                continue
            word = covered.strip() if glued else one["word"]
            if piece.owns[0] <= start < piece.owns[1] and start >= earlier:
                found.append({**one, "word": word, "score": float(one["score"]), "start": start, "end": end})
    return found
