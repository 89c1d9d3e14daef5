"""`plan --search`: for each length the largest micro-batch that fits, at the recipe's effective batch. Light.

What is allocated while one module runs is affine in the rows and quadratic in the length, so few traces give the law
and the law gives the points; what is reserved is not smooth, so each point that is recommended is traced and replayed
itself.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hf_recipes.catalog.gpus import Gpu
from hf_recipes.errors import RecipeError
from hf_recipes.plan.fit.verdict import FITS, MARGIN, TIGHT, Judged, examine_all
from hf_recipes.plan.trace.short_run import accumulation_of
from hf_recipes.recipe.recipe import Recipe

SECONDS = 30.0  # no traces are begun that would end later than this, as long as the last ones took
PLACE = "plan --search"
SHARES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)  # of the recipe's length
NEAR = 1.1  # of the usable memory: what the law says is beyond this is not traced
FEW, MANY = 2, 8  # rows of the traces that the law is read off; the recipe's own instead of MANY, if they are 4 or more


@dataclass(frozen=True, kw_only=True)
class Point:
    """One length with its largest micro-batch that fits, or, where none does, that is tight (`verdict`). `verified`: by
    a trace of its own; else the law's word."""

    micro_batch: int  # 0: not even one row
    length: int
    reserved: int  # bytes
    verified: bool
    verdict: str = FITS


@dataclass(frozen=True, kw_only=True)
class Frontier:
    """Points by length; `chosen` is verified, None where nothing fits."""

    recipe: Recipe
    gpu: Gpu
    usable: int
    effective: int  # sequences of one optimizer step of one process
    points: tuple[Point, ...]
    chosen: Point | None
    why: str


def search(judged: Judged, *, seconds: float = SECONDS) -> Frontier:
    """The frontier of the recipe that `judged` is of, around its length, as far as the model's positions reach. Begins
    no trace that would end after `seconds`. Raises RecipeError for what cannot be traced."""
    began = time.monotonic()
    recipe, wanted = judged.recipe, judged.seen.length
    effective = judged.seen.micro_batch * accumulation_of(recipe)
    lengths = sorted({_rounded(share * wanted, judged.seen.positions) for share in SHARES} | {wanted})
    law, took = _law(judged, lengths)
    guesses = [_largest(law, length, judged, effective) for length in lengths]
    points = {p.length: p for p in guesses}
    order = sorted(guesses, key=lambda p: (abs(p.length - wanted), p.length))  # the recipe's own length first
    begun, tried = False, set[tuple[int, int]]()
    # The recipe's own length, and twice its rows where they may fit, in any case.
    while order and (not begun or order[0].length == wanted or time.monotonic() - began + took < seconds):
        batch, order, begun = order[:2], order[2:], True
        started = time.monotonic()
        tried |= {(point.length, point.micro_batch) for point in batch}
        for point in _verified([p for p in batch if p.micro_batch], judged, law):
            known = points[point.length]
            if not point.verified and known.verified:
                continue  # twice the rows were tried, and do not fit
            points[point.length] = point
            more = _point(law, judged, 2 * point.micro_batch, point.length, point.verdict)
            if not point.verified and point.micro_batch:  # did not fit: once more with half the rows
                order.insert(0, point)
            elif point.verified and _is_near(more, judged, effective) and (more.length, more.micro_batch) not in tried:
                order.insert(0 if more.length == wanted else len(order), more)
        took = time.monotonic() - started
    found = tuple(points[length] for length in lengths)
    chosen, why = _chosen(found, wanted)
    return Frontier(
        recipe=recipe,
        gpu=judged.gpu,
        usable=judged.usable,
        effective=effective,
        points=found,
        chosen=chosen,
        why=why,
    )


def _is_near(point: Point, judged: Judged, effective: int) -> bool:
    """Whether the law is not sure enough that the point does not fit: it is some percent off."""
    factor = MARGIN if point.verdict == FITS else 1.0
    return point.micro_batch <= effective and point.reserved * factor <= NEAR * judged.usable


def words_of(recipe: Recipe, micro_batch: int, length: int, effective: int, eval_batch: int) -> dict[str, Any]:
    """The keys that make the recipe take this micro-batch and length at its effective batch."""
    section = recipe.trainer
    words: dict[str, Any] = {
        f"{section}.per_device_train_batch_size": micro_batch,
        f"{section}.gradient_accumulation_steps": max(1, round(effective / micro_batch)),
        recipe.max_length_key: length,
    }
    if eval_batch > micro_batch:
        words[f"{section}.per_device_eval_batch_size"] = micro_batch
    return words


def lines(found: Frontier) -> list[str]:
    """The table, as the guides have it, and the choice."""
    said = [
        f"  {'batch':>6} {'length':>7} {'tokens/batch':>13} {'effective':>10} {'memory':>7}  ",
    ]
    for point in found.points:
        if not point.micro_batch:
            said.append(f"  {'-':>6} {point.length:>7} {'':>13} {'':>10} {'':>7}  not one row fits")
            continue
        share = point.reserved / found.usable
        effective = point.micro_batch * max(1, round(found.effective / point.micro_batch))
        mark = "" if point.verdict == FITS else f"{point.verdict} "
        mark += "<- recommended" if point == found.chosen else "" if point.verified else "predicted, not traced"
        tokens = point.micro_batch * point.length
        said.append(
            f"  {point.micro_batch:>6} {point.length:>7} {tokens:>13,} {effective:>10,} {share:>7.0%}  {mark}".rstrip()
        )
    return [*said, f"  {found.why}"]


def as_json(found: Frontier) -> dict[str, Any]:
    """For tools; bytes are bytes."""

    def plain(point: Point) -> dict[str, Any]:
        words = {"micro_batch": point.micro_batch, "length": point.length, "reserved_bytes": point.reserved}
        return {**words, "verified": point.verified, "verdict": point.verdict}

    return {
        "effective_batch": found.effective,
        "usable_bytes": found.usable,
        "points": [plain(point) for point in found.points],
        "recommended": None if found.chosen is None else plain(found.chosen),
        "why": found.why,
    }


# the law ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Law:
    """Each row c0, c1, c2, c3 of c0 + rows (c1 + c2 length + c3 length^2) bytes: of what is allocated while each module
    runs, forward and backward (`training`) and in evaluation, and, one row, of what is reserved. The largest counts:
    the module that holds the peak changes with the rows and the length, and one module's bytes are smooth."""

    training: np.ndarray
    evaluation: np.ndarray
    reserved: np.ndarray
    slack: float  # reserved over allocated, the least that the law's traces had


def _law(judged: Judged, lengths: Sequence[int]) -> tuple[Law, float]:
    """From four traces, of which the recipe's own may be one; and the seconds that a pair of the others took."""
    started = time.monotonic()
    # a point evaluates no more rows than it trains on: else the recipe's own trace is none of the law's
    own = judged.seen.micro_batch >= max(2 * FEW, judged.seen.eval_batch)
    many = judged.seen.micro_batch if own else MANY
    middle = judged.seen.length if own else lengths[len(lengths) // 2]
    settings = [(FEW, middle), *([] if own else [(many, middle)]), (many, lengths[0]), (many, lengths[-1])]
    recipes = [_at(judged, rows, length) for rows, length in settings]
    traced = [_or_raise(one) for one in examine_all(recipes, judged.gpu, usable=judged.usable, spread=judged.spread)]
    if own:
        traced.insert(1, judged)
    locations = [one.seen.locations for one in traced]
    shared = [name for name in locations[0] if all(name in one for one in locations)]
    sizes = np.array([[one[name] for one in locations] for name in shared], float)
    in_evaluation = np.array([name.startswith("evaluation ") for name in shared])
    at, evaluated = (lengths[0], middle, lengths[-1]), judged.seen.eval_batch
    law = Law(
        training=_coefficients(sizes[~in_evaluation], at, FEW, many),
        evaluation=_coefficients(sizes[in_evaluation], at, min(FEW, evaluated), min(many, evaluated)),
        reserved=_coefficients(np.array([[float(one.held.peak) for one in traced]]), at, FEW, many),
        slack=min(one.held.peak / one.seen.allocated for one in traced[1:]),
    )
    return law, (time.monotonic() - started) * 2 / len(settings)


def _coefficients(sizes: np.ndarray, lengths: tuple[int, int, int], few: int, many: int) -> np.ndarray:
    """(K, 4) bytes of the law's traces -> (K, 4) coefficients. Where the rows were the same, all is laid to them."""
    a, b, c, d = sizes.T
    at_middle = (b - a) / (many - few) if many > few else b / many
    c0 = a - few * at_middle
    by_row = ((c - c0) / many, at_middle, (d - c0) / many)
    lines = [_through(lengths, [float(y[i]) for y in by_row]) for i in range(len(sizes))]
    return np.concatenate([c0[:, None], np.array(lines).reshape(-1, 3)], axis=1)


def _through(xs: Sequence[int], ys: Sequence[float]) -> tuple[float, float, float]:
    """Coefficients of the quadratic (line, constant) through the distinct points."""
    if len(set(xs)) == 1:
        return ys[0], 0.0, 0.0
    if len(set(xs)) == 2:
        slope = (ys[-1] - ys[0]) / (xs[-1] - xs[0])
        return ys[0] - slope * xs[0], slope, 0.0
    (x0, x1, x2), (y0, y1, y2) = xs, ys
    c = ((y2 - y0) / (x2 - x0) - (y1 - y0) / (x1 - x0)) / (x2 - x1)
    b = (y1 - y0) / (x1 - x0) - c * (x0 + x1)
    return y0 - b * x0 - c * x0**2, b, c


def _reserved(law: Law, rows: int, eval_rows: int, length: int) -> float:
    """What the law foretells."""
    return max(law.slack * _allocated(law, rows, eval_rows, length), _most(law.reserved, rows, length))


def _allocated(law: Law, rows: int, eval_rows: int, length: int) -> float:
    return max(_most(law.training, rows, length), _most(law.evaluation, eval_rows, length))


def _most(coefficients: np.ndarray, rows: int, length: int) -> float:
    c0, *by_row = coefficients.T
    return float((c0 + rows * (by_row[0] + by_row[1] * length + by_row[2] * length**2)).max(initial=0.0))


def _largest(law: Law, length: int, judged: Judged, effective: int) -> Point:
    """The largest power of two (at most the effective batch) that the law lets fit."""
    best = Point(micro_batch=0, length=length, reserved=0, verified=False)
    for verdict, factor in ((FITS, MARGIN), (TIGHT, 1 / law.slack)):
        rows = 1
        while rows <= effective:
            if _reserved(law, rows, min(rows, judged.seen.eval_batch), length) * factor > judged.usable:
                break
            best = _point(law, judged, rows, length, verdict)
            rows *= 2
        if best.micro_batch:
            break
    return best


def _point(law: Law, judged: Judged, rows: int, length: int, verdict: str) -> Point:
    """The law's word on one point."""
    reserved = int(_reserved(law, rows, min(rows, judged.seen.eval_batch), length))
    return Point(micro_batch=rows, length=length, reserved=reserved, verified=False, verdict=verdict)


def _verified(points: Sequence[Point], judged: Judged, law: Law) -> list[Point]:
    """The points with what their traces say; one that does not fit comes back unverified with half its rows."""
    recipes = [_at(judged, point.micro_batch, point.length) for point in points]
    found = []
    for point, one in zip(
        points, examine_all(recipes, judged.gpu, usable=judged.usable, spread=judged.spread), strict=True
    ):
        judged_one = _or_raise(one)
        if judged_one.verdict == FITS or judged_one.verdict == point.verdict:
            verdict = judged_one.verdict
            found.append(replace(point, reserved=judged_one.held.peak, verified=True, verdict=verdict))
        else:
            found.append(_point(law, judged, point.micro_batch // 2, point.length, point.verdict))
    return found


def _at(judged: Judged, rows: int, length: int) -> Recipe:
    recipe = judged.recipe
    effective = judged.seen.micro_batch * accumulation_of(recipe)
    words = words_of(recipe, rows, length, max(effective, 2 * rows), judged.seen.eval_batch)
    if recipe.training.get("padding_free") and not recipe.training.get("packing"):
        raise RecipeError.at(
            PLACE, "a padding_free recipe has no max_length to search over", "add packing: true, or plan --length"
        )
    words[f"{recipe.trainer}.per_device_eval_batch_size"] = min(rows, judged.seen.eval_batch)
    return recipe.with_values(words, PLACE)


def _or_raise(one: Judged | RecipeError) -> Judged:
    if isinstance(one, RecipeError):
        raise one
    return one


def _rounded(length: float, positions: int | None) -> int:
    found = max(64, round(length / 64) * 64)
    return found if positions is None else min(found, positions)


def _chosen(points: Sequence[Point], wanted: int) -> tuple[Point | None, str]:
    """The recipe's own length if it fits, else the longest below it that does."""
    sound = [point for point in points if point.verified and point.micro_batch and point.length <= wanted]
    if not sound:
        none = not any(point.micro_batch for point in points)
        return None, "nothing fits: not one row of any of these lengths" if none else "no point was verified in time"
    best = max(sound, key=lambda point: (point.verdict == FITS, point.length))
    why = f"recommended: {best.length} tokens, the longest that fits (the recipe asks for {wanted})"
    if best.length == wanted:
        why = f"recommended: the recipe's {wanted} tokens with the largest power of two that fits"
    return best, why if best.verdict == FITS else f"{why}, with PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"
