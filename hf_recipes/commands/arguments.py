"""What a command line may hold: paths that can be opened, and numbers that mean something. Imports only click."""

from __future__ import annotations

import math
import os
from typing import Any

import click

from hf_recipes.common.files import describe_special_file
from hf_recipes.common.shipped import find
from hf_recipes.errors import RecipeError


class PathText(click.ParamType):
    """The text of a path. A FIFO, a device, a socket or a circle of links is refused as what it is, and never opened.

    `written`: a file that the command writes, which may be a device such as /dev/stdout.
    """

    name = "path"

    def __init__(self, *, written: bool = False) -> None:
        self.written = written

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        path = str(value)
        check_text(path)
        special = describe_special_file(path)
        if special and not (self.written and special.startswith("is a device")):
            raise RecipeError.at(path, special, "name another path")
        return path


class ShippedPath(PathText):
    """A path, or the name of a recipe or launch file that came with the package: `quickstart`, `fsdp2`."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return find(super().convert(value, param, ctx), self.kind)


class Number(click.FloatRange):
    """A finite number of a range."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        found = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return found


def whole(least: int, most: int) -> click.IntRange:
    """A whole number from `least` to `most`."""
    return click.IntRange(min=least, max=most)


def check_text(argument: str) -> None:
    """Raises RecipeError for an argument that no file and no recipe can hold."""
    if "\0" in argument:
        raise RecipeError.at(f"argument {argument[:60]!r}", "it holds a NUL character", "leave it out")
    try:
        os.fsencode(argument).decode("utf-8")
    except UnicodeError:
        raise RecipeError.at(f"argument {argument[:60]!r}", "it is not UTF-8 text", "write it in UTF-8") from None


PATH, PATH_TO_WRITE = PathText(), PathText(written=True)
RECIPE, LAUNCH_FILE = ShippedPath("recipe"), ShippedPath("launch file")
