"""The entry of `accelerate launch -m hf_recipes.run RECIPE ...`, which is `hf-recipes run RECIPE ...`."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command `run` with `arguments`, or with those of the process."""
    from hf_recipes.cli import main as command

    command(["run", *(sys.argv[1:] if arguments is None else arguments)])


if __name__ == "__main__":
    main()
