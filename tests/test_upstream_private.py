"""The private points of upstream that this package relies on are what the table says they are."""

import importlib
import inspect
from pathlib import Path

import pytest

import hf_recipes
from tests.support.upstream_private_points import DEEPSPEED_POINTS, PRIVATE_POINTS, PrivatePoint

PACKAGE = Path(hf_recipes.__file__).parent


def installed(point: PrivatePoint) -> object:
    module, _, path = point.name.partition(":")
    found = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("point", PRIVATE_POINTS, ids=lambda point: point.name)
def test_a_private_point_of_upstream_is_still_what_the_table_says(point):
    found = installed(point)
    assert point.signature or point.lines, "a row that nothing checks"
    if point.signature:
        assert str(inspect.signature(found)) == point.signature
    source = inspect.getsource(found)
    assert [line for line in point.lines if line not in source] == []


@pytest.mark.parametrize("point", DEEPSPEED_POINTS, ids=lambda point: point.name)
def test_a_private_point_of_deepspeed_is_still_what_the_table_says(point):
    pytest.importorskip("deepspeed", reason="pip install '.[test]' brings it on Linux")
    test_a_private_point_of_upstream_is_still_what_the_table_says(point)


def test_no_private_point_is_named_twice_and_each_is_used_where_the_table_says():
    points = (*PRIVATE_POINTS, *DEEPSPEED_POINTS)
    assert len({point.name for point in points}) == len(points)
    for point in points:
        assert point.why and (PACKAGE / point.used_by).is_file()
