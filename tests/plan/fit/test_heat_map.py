"""The map of `plan --search`, and the largest batch that fits whatever the effective batch is: by the curve alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from hf_recipes.plan.fit import heat_map, search
from hf_recipes.plan.fit.search import Frontier, MemoryCurve, Point
from hf_recipes.plan.fit.verdict import FITS, OUT, TIGHT
from hf_recipes.recipe.recipe import Recipe

MIB = 2**20
# 100 MiB without rows, 1 MiB a row of 64 tokens; reserved is what is allocated
LINE = np.array([[100.0 * MIB, 0.0, MIB / 64, 0.0]])
CURVE = MemoryCurve(training=LINE, evaluation=np.zeros((0, 4)), reserved=LINE, slack=1.0)


def fit(usable: int) -> Any:
    recipe = Recipe(path="recipe.yaml", sections={}, locations={})
    return SimpleNamespace(usable=usable, recipe=recipe, trace=SimpleNamespace(eval_batch=8))


def test_the_largest_batch_is_not_capped_by_the_effective_batch() -> None:
    where = fit(1024 * MIB)
    capped = search._largest_point(CURVE, 64, where, [1, 2, 4, 8, 16])
    assert capped.micro_batch == 16
    free = search._with_largest(capped, CURVE, where, [1, 2, 4, 8, 16])
    assert (free.micro_batch, free.largest) == (16, 512)  # 612 x 1.11 of 1,024 MiB; 1,024 rows would take 1,124
    smaller = Point(micro_batch=8, length=64, reserved=0, verified=True)
    assert search._with_largest(smaller, CURVE, where, [1, 2, 4, 8, 16]).largest == 8  # the memory is its limit
    twelve = search._divisors(12)  # not 8: 8 x 2 is another effective batch
    assert search._largest_point(CURVE, 64, where, twelve).micro_batch == twelve[-1] == 12
    assert search._largest_point(CURVE, 64, fit(120 * MIB), twelve).micro_batch == 6  # 106 x 1.11 of 120 MiB


def test_the_map_says_what_fits_what_is_tight_and_what_does_not() -> None:
    where = fit(237 * MIB)  # 128 rows of 64 tokens are 228 MiB: without the margin only
    points = tuple(
        Point(micro_batch=rows, length=length, reserved=0, verified=False, largest=rows)
        for length, rows in ((64, 64), (128, 32))
    )
    found = search._map_verdicts(CURVE, where, points)
    assert (found.batches, found.lengths) == ((1, 2, 4, 8, 16, 32, 64, 128), (64, 128))
    assert [row[0] for row in found.verdicts] == [FITS] * 7 + [TIGHT]
    assert [row[1] for row in found.verdicts] == [FITS] * 6 + [TIGHT, OUT]
    lines = heat_map.format_heat_map(found)
    assert lines[1].split() == ["128", "+", "."] and lines[-2].split() == ["1", "#", "#"]
    assert lines[-1].split() == ["64", "128"]
    drawn = heat_map.svg(found, "a recipe & a GPU")
    assert drawn.count("<title>") == 16 and "128 x 128: does not fit" in drawn and "a recipe &amp; a GPU" in drawn
    assert "prefers-color-scheme: dark" in drawn and ":root { color-scheme: light dark }" in drawn


def test_a_point_that_was_traced_is_on_the_map_as_its_trace_has_it() -> None:
    point = Point(micro_batch=2, length=64, reserved=0, verified=True, verdict=TIGHT, largest=2)
    found = search._map_verdicts(CURVE, fit(1024 * MIB), (point,))
    assert found.verdicts == ((FITS,), (TIGHT,), (FITS,))


def test_the_table_marks_a_largest_batch_that_is_predicted() -> None:
    points = (
        Point(micro_batch=16, length=64, reserved=MIB, verified=True, largest=512),
        Point(micro_batch=8, length=128, reserved=MIB, verified=True, largest=8),
        Point(micro_batch=0, length=256, reserved=0, verified=False),
    )
    found = Frontier(
        recipe=cast(Any, None),
        gpu=cast(Any, None),
        usable=4 * MIB,
        effective=16,
        points=points,
        chosen=points[0],
        why="x",
    )
    head, *lines = search.format_frontier(found)
    assert head.split()[:3] == ["batch", "largest", "length"]
    assert [line.split()[1] for line in lines[:3]] == ["~512", "8", "-"]
    assert [one["largest_batch"] for one in cast(Any, search.as_json(found))["points"]] == [512, 8, 0]
