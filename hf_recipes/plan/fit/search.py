"""`plan --search`: for each length the largest micro-batch that fits, at the recipe's effective batch.

What is allocated while one module runs is affine in the rows and quadratic in the length, so four traces give a curve
and the curve gives the points. What is reserved is not smooth, so each point that is recommended is traced and replayed
itself. Imports neither torch nor transformers.

Example: a recipe of 16 rows of 512 tokens. Its own trace and three more have, while the head runs,

    2 rows of 512    208 MiB     -> (961 - 208) / 14 = 53.8 MiB a row of 512, and 208 - 2 x 53.8 = 100 MiB without rows
    16 rows of 512   961 MiB
    16 rows of 128   261 MiB     -> (261 - 100) / 16 = 10.0 MiB a row of 128
    16 rows of 1024  2,629 MiB   -> (2,629 - 100) / 16 = 158.1 MiB a row of 1024

and one quadratic goes through 10.0, 53.8 and 158.1. With 7,500 MiB usable, 6,757 count as fitting (MARGIN is 1.11): 64
rows of 512 are 100 + 64 x 53.8 = 3,543 MiB, 128 are 6,986. So 64 rows are traced, and, since 6,986 is near, 128 too.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hf_recipes.catalog.gpus import Gpu
from hf_recipes.errors import OutOfTimeError, RecipeError
from hf_recipes.plan.fit.heat_map import HeatMap, format_heat_map
from hf_recipes.plan.fit.verdict import FITS, MARGIN, OUT, TIGHT, Fit, check_fits
from hf_recipes.plan.trace.worker import LAST_VERDICT, time_limit
from hf_recipes.recipe.global_batch import accumulation_of
from hf_recipes.recipe.recipe import Recipe

SECONDS = 30.0  # of a search, its command included: no trace is begun that would end later, one that does is ended
LOCATION = "plan --search"
SHARES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)  # of the recipe's length
MOST_ROWS = 2**16  # where the curve ends
NEAR = 1.1  # of the usable memory: what the curve puts beyond this is not traced
FEW, MANY = 2, 8  # rows of the traces that give the curve; the recipe's own instead of MANY, if they are 4 or more


@dataclass(frozen=True, kw_only=True)
class Point:
    """One length with its largest micro-batch that fits, or, where none does, that is tight (`verdict`). `verified`: by
    a trace of its own, not by the curve alone."""

    micro_batch: int  # 0: not even one row
    length: int
    reserved: int  # bytes
    verified: bool
    verdict: str = FITS
    largest: int = 0  # rows at most at any effective batch, a power of two: by the curve; 0 where there is none


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
    heat_map: HeatMap | None = None


def search(fit: Fit, *, seconds: float = SECONDS, began: float | None = None) -> Frontier:
    """The frontier of the recipe that `fit` is of, around its length, as far as the model's positions reach, with what
    is known after `seconds`. `began`: when they began, by time.monotonic(); None: now. Raises RecipeError for what
    cannot be traced."""
    began = time.monotonic() if began is None else began
    with time_limit(began + seconds - LAST_VERDICT - time.monotonic()):
        return _search(fit, began, seconds)


def _search(fit: Fit, began: float, seconds: float) -> Frontier:
    recipe, wanted = fit.recipe, fit.trace.length
    effective = fit.trace.micro_batch * accumulation_of(recipe)
    lengths = sorted({_round_length(share * wanted, fit.trace.positions) for share in SHARES} | {wanted})
    try:
        curve, took = _measure_curve(fit, lengths)
    except OutOfTimeError:
        return _frontier_of_one(fit, effective, seconds)
    sizes = _divisors(effective)
    guesses = [_largest_point(curve, length, fit, sizes) for length in lengths]
    points = {p.length: p for p in guesses}
    order = sorted(guesses, key=lambda p: (abs(p.length - wanted), p.length))  # the recipe's own length first
    begun, tried = False, set[tuple[int, int]]()
    # The recipe's own length, and the next larger batch where it may fit, in any case.
    while order and (
        not begun or order[0].length == wanted or time.monotonic() - began + took < seconds - LAST_VERDICT
    ):
        batch, order, begun = order[:2], order[2:], True
        started = time.monotonic()
        tried |= {(point.length, point.micro_batch) for point in batch}
        for point in _trace_points([p for p in batch if p.micro_batch], fit, curve, sizes):
            known = points[point.length]
            if not point.verified and known.verified:
                continue  # more rows were tried, and do not fit
            points[point.length] = point
            rows = next((size for size in sizes if size > point.micro_batch), 0)
            more = _predict_point(curve, fit, rows, point.length, point.verdict)
            if not point.verified and point.micro_batch:  # did not fit: once more with fewer rows
                order.insert(0, point)
            elif point.verified and rows and _is_near(more, fit) and (more.length, rows) not in tried:
                order.insert(0 if more.length == wanted else len(order), more)
        took = time.monotonic() - started
    own = points[wanted]  # the recipe's own trace is known, also where the time was over
    if fit.verdict == FITS and not (own.verified and own.micro_batch >= fit.trace.micro_batch):
        points[wanted] = _own_point(fit)
    found = tuple(_with_largest(points[length], curve, fit, sizes) for length in lengths)
    chosen, why = _choose_point(found, wanted)
    return Frontier(
        recipe=recipe,
        gpu=fit.gpu,
        usable=fit.usable,
        effective=effective,
        points=found,
        chosen=chosen,
        why=why,
        heat_map=_map_verdicts(curve, fit, found),
    )


def _own_point(fit: Fit) -> Point:
    """The recipe as it is."""
    rows = fit.trace.micro_batch
    return Point(
        micro_batch=rows,
        length=fit.trace.length,
        reserved=fit.reserved.peak,
        verified=True,
        verdict=fit.verdict,
        largest=rows,
    )


def _frontier_of_one(fit: Fit, effective: int, seconds: float) -> Frontier:
    """What is known before four traces are there."""
    point = replace(_own_point(fit), largest=0)
    why = f"the {seconds:.0f} seconds were over before anything else was traced: give it more (--seconds)"
    fits = fit.verdict in (FITS, TIGHT)
    return Frontier(
        recipe=fit.recipe,
        gpu=fit.gpu,
        usable=fit.usable,
        effective=effective,
        points=(point if fits else replace(point, micro_batch=0),),
        chosen=point if fits else None,
        why=why,
    )


def _with_largest(point: Point, curve: MemoryCurve, fit: Fit, sizes: Sequence[int]) -> Point:
    """Where the effective batch is the limit, the curve tells how many rows would fit."""
    if 2 * point.micro_batch in sizes:
        return replace(point, largest=point.micro_batch)
    free = _largest_point(curve, point.length, fit, [2**i for i in range(MOST_ROWS.bit_length())])
    return replace(point, largest=max(point.micro_batch, free.micro_batch if free.verdict == point.verdict else 0))


def _map_verdicts(curve: MemoryCurve, fit: Fit, points: Sequence[Point]) -> HeatMap:
    """Powers of two up to twice the most rows that fit anywhere; what was traced as the trace has it."""
    most = 2 * max(1, *(point.largest for point in points))
    batches = tuple(2**i for i in range(most.bit_length()) if 2**i <= most)

    def verdict(rows: int, point: Point) -> str:
        if point.verified and rows == point.micro_batch:
            return point.verdict
        predicted = _predict_reserved(curve, rows, min(rows, fit.trace.eval_batch), point.length)
        if predicted * MARGIN <= fit.usable:
            return FITS
        return TIGHT if predicted / curve.slack <= fit.usable else OUT

    return HeatMap(
        batches=batches,
        lengths=tuple(point.length for point in points),
        verdicts=tuple(tuple(verdict(rows, point) for point in points) for rows in batches),
    )


def _is_near(point: Point, fit: Fit) -> bool:
    """Whether the point may fit although the curve, which is some percent off, puts it beyond."""
    factor = MARGIN if point.verdict == FITS else 1.0
    return point.reserved * factor <= NEAR * fit.usable


def override_values(recipe: Recipe, micro_batch: int, length: int, effective: int, eval_batch: int) -> dict[str, Any]:
    """The keys that make the recipe take this micro-batch and length at its effective batch."""
    section = recipe.trainer
    values: dict[str, Any] = {
        f"{section}.per_device_train_batch_size": micro_batch,
        f"{section}.gradient_accumulation_steps": max(1, round(effective / micro_batch)),
        recipe.max_length_key: length,
    }
    if eval_batch > micro_batch:
        values[f"{section}.per_device_eval_batch_size"] = micro_batch
    return values


def format_frontier(found: Frontier) -> list[str]:
    """The table, as the guides have it, and the choice."""
    lines = [
        f"  {'batch':>6} {'largest':>8} {'length':>7} {'tokens/batch':>13} {'effective':>10} {'memory':>7}  ",
    ]
    for point in found.points:
        if not point.micro_batch:
            lines.append(f"  {'-':>6} {'-':>8} {point.length:>7} {'':>13} {'':>10} {'':>7}  not one row fits")
            continue
        share = point.reserved / found.usable
        effective = point.micro_batch * max(1, round(found.effective / point.micro_batch))
        mark = "" if point.verdict == FITS else f"{point.verdict} "
        mark += "<- recommended" if point == found.chosen else "" if point.verified else "predicted, not traced"
        tokens = point.micro_batch * point.length
        lines.append(
            f"  {point.micro_batch:>6} {_largest(point):>8} {point.length:>7} {tokens:>13,} {effective:>10,} "
            f"{share:>7.0%}  {mark}".rstrip()
        )
    return [*lines, f"  {found.why}", *([] if found.heat_map is None else format_heat_map(found.heat_map))]


def _largest(point: Point) -> str:
    """ "64"; "~512", predicted, where the effective batch ends before the memory does; "?" without a curve."""
    return f"~{point.largest}" if point.largest > point.micro_batch else str(point.largest or "?")


def as_json(found: Frontier) -> dict[str, Any]:
    """For tools; bytes are bytes."""

    def plain(point: Point) -> dict[str, Any]:
        values = {"micro_batch": point.micro_batch, "length": point.length, "reserved_bytes": point.reserved}
        largest = point.largest if point.largest or not point.micro_batch else None
        return {**values, "verified": point.verified, "verdict": point.verdict, "largest_batch": largest}

    return {
        "effective_batch": found.effective,
        "usable_bytes": found.usable,
        "points": [plain(point) for point in found.points],
        "recommended": None if found.chosen is None else plain(found.chosen),
        "why": found.why,
    }


# the curve ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class MemoryCurve:
    """Each row c0, c1, c2, c3 of c0 + rows (c1 + c2 length + c3 length^2) bytes: of what is allocated while each module
    runs, forward and backward (`training`) and in evaluation, and, one row, of what is reserved. The largest counts:
    the module that holds the peak changes with the rows and the length, and one module's bytes are smooth."""

    training: np.ndarray
    evaluation: np.ndarray
    reserved: np.ndarray
    slack: float  # reserved over allocated, the least that the curve's traces had


def _measure_curve(fit: Fit, lengths: Sequence[int]) -> tuple[MemoryCurve, float]:
    """From four traces, of which the recipe's own may be one; and the seconds that a pair of the others took."""
    started = time.monotonic()
    # a point evaluates no more rows than it trains on: else the recipe's own trace is none of the curve's
    own = fit.trace.micro_batch >= max(2 * FEW, fit.trace.eval_batch)
    many = fit.trace.micro_batch if own else MANY
    middle = fit.trace.length if own else lengths[len(lengths) // 2]
    settings = [(FEW, middle), *([] if own else [(many, middle)]), (many, lengths[0]), (many, lengths[-1])]
    recipes = [_recipe_at(fit, rows, length) for rows, length in settings]
    traced = [_or_raise(one) for one in check_fits(recipes, fit.gpu, usable=fit.usable, layout=fit.layout)]
    if own:
        traced.insert(1, fit)
    peaks = [one.trace.module_peaks for one in traced]
    shared = [name for name in peaks[0] if all(name in one for one in peaks)]
    sizes = np.array([[one[name] for one in peaks] for name in shared], float)
    in_evaluation = np.array([name.startswith("evaluation ") for name in shared])
    at, evaluated = (lengths[0], middle, lengths[-1]), fit.trace.eval_batch
    curve = MemoryCurve(
        training=_coefficients(sizes[~in_evaluation], at, FEW, many),
        evaluation=_coefficients(sizes[in_evaluation], at, min(FEW, evaluated), min(many, evaluated)),
        reserved=_coefficients(np.array([[float(one.reserved.peak) for one in traced]]), at, FEW, many),
        slack=min(one.reserved.peak / one.trace.allocated for one in traced[1:]),
    )
    return curve, (time.monotonic() - started) * 2 / len(settings)


def _coefficients(sizes: np.ndarray, lengths: tuple[int, int, int], few: int, many: int) -> np.ndarray:
    """(K, 4) bytes of the curve's traces -> (K, 4) coefficients. With equal rows, all bytes depend on them."""
    a, b, c, d = sizes.T
    at_middle = (b - a) / (many - few) if many > few else b / many
    c0 = a - few * at_middle
    by_row = ((c - c0) / many, at_middle, (d - c0) / many)
    lines = [_fit_quadratic(lengths, [float(y[i]) for y in by_row]) for i in range(len(sizes))]
    return np.concatenate([c0[:, None], np.array(lines).reshape(-1, 3)], axis=1)


def _fit_quadratic(xs: Sequence[int], ys: Sequence[float]) -> tuple[float, float, float]:
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


def _predict_reserved(curve: MemoryCurve, rows: int, eval_rows: int, length: int) -> float:
    """Bytes that the curve predicts."""
    return max(
        curve.slack * _predict_allocated(curve, rows, eval_rows, length), _largest_bytes(curve.reserved, rows, length)
    )


def _predict_allocated(curve: MemoryCurve, rows: int, eval_rows: int, length: int) -> float:
    return max(_largest_bytes(curve.training, rows, length), _largest_bytes(curve.evaluation, eval_rows, length))


def _largest_bytes(coefficients: np.ndarray, rows: int, length: int) -> float:
    c0, *by_row = coefficients.T
    return float((c0 + rows * (by_row[0] + by_row[1] * length + by_row[2] * length**2)).max(initial=0.0))


def _divisors(number: int) -> list[int]:
    """The micro-batches that make up an effective batch."""
    return [size for size in range(1, number + 1) if number % size == 0]


def _largest_point(curve: MemoryCurve, length: int, fit: Fit, sizes: Sequence[int]) -> Point:
    """The largest of these micro-batches that the curve lets fit."""
    best = Point(micro_batch=0, length=length, reserved=0, verified=False)
    for verdict, factor in ((FITS, MARGIN), (TIGHT, 1 / curve.slack)):
        for rows in sizes:
            if _predict_reserved(curve, rows, min(rows, fit.trace.eval_batch), length) * factor > fit.usable:
                break
            best = _predict_point(curve, fit, rows, length, verdict)
        if best.micro_batch:
            break
    return best


def _predict_point(curve: MemoryCurve, fit: Fit, rows: int, length: int, verdict: str) -> Point:
    """One point as the curve predicts it."""
    reserved = int(_predict_reserved(curve, rows, min(rows, fit.trace.eval_batch), length))
    return Point(micro_batch=rows, length=length, reserved=reserved, verified=False, verdict=verdict)


def _trace_points(points: Sequence[Point], fit: Fit, curve: MemoryCurve, sizes: Sequence[int]) -> list[Point]:
    """The points as their traces have them; one that does not fit comes back unverified with the next fewer rows."""
    recipes = [_recipe_at(fit, point.micro_batch, point.length) for point in points]
    found = []
    for point, one in zip(points, check_fits(recipes, fit.gpu, usable=fit.usable, layout=fit.layout), strict=True):
        if isinstance(one, OutOfTimeError):
            continue  # the curve's prediction stands
        found_fit = _or_raise(one)
        if found_fit.verdict == FITS or found_fit.verdict == point.verdict:
            verdict = found_fit.verdict
            found.append(replace(point, reserved=found_fit.reserved.peak, verified=True, verdict=verdict))
        else:
            fewer = max((size for size in sizes if size < point.micro_batch), default=0)
            found.append(_predict_point(curve, fit, fewer, point.length, point.verdict))
    return found


def _recipe_at(fit: Fit, rows: int, length: int) -> Recipe:
    recipe = fit.recipe
    effective = fit.trace.micro_batch * accumulation_of(recipe)
    values = override_values(recipe, rows, length, max(effective, 2 * rows), fit.trace.eval_batch)
    if recipe.training.get("padding_free") and not recipe.training.get("packing"):
        raise RecipeError.at(
            LOCATION, "a padding_free recipe has no max_length to search over", "add packing: true, or plan --length"
        )
    values[f"{recipe.trainer}.per_device_eval_batch_size"] = min(rows, fit.trace.eval_batch)
    return recipe.with_values(values, LOCATION)


def _or_raise(one: Fit | RecipeError) -> Fit:
    if isinstance(one, RecipeError):
        raise one
    return one


def _round_length(length: float, positions: int | None) -> int:
    found = max(64, round(length / 64) * 64)
    return found if positions is None else min(found, positions)


def _choose_point(points: Sequence[Point], wanted: int) -> tuple[Point | None, str]:
    """The recipe's own length if it fits, else the longest below it that does."""
    sound = [point for point in points if point.verified and point.micro_batch and point.length <= wanted]
    if not sound:
        none = not any(point.micro_batch for point in points)
        return None, "nothing fits: not one row of any of these lengths" if none else "no point was verified in time"
    best = max(sound, key=lambda point: (point.verdict == FITS, point.length))
    why = f"recommended: {best.length} tokens, the longest that fits (the recipe asks for {wanted})"
    if best.length == wanted:
        why = f"recommended: the recipe's {wanted} tokens with the largest batch that fits"
    return best, why if best.verdict == FITS else f"{why}, with PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"
