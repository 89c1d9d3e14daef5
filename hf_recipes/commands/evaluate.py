"""`hf-recipes evaluate`: a trained run or a model folder on other data."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hf_recipes.commands.predict import quiet_upstream, read_settings
from hf_recipes.common.text import first_line
from hf_recipes.errors import ModelError
from hf_recipes.inference.inputs import advising
from hf_recipes.inference.trained import find_trained


def command(
    run_dir: str,
    data: str,
    *,
    output: str | None = None,
    batch_size: int | None = None,
    base_model: str | None = None,
    task: str | None = None,
    cpu: bool = False,
    metrics: Sequence[str] = (),
    trust_remote_code: bool = False,
    overrides: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> None:
    """Prints the metrics and where record and scores lie. Raises RecipeError for what cannot be evaluated."""
    from hf_recipes.inference.evaluate import describe_evaluation, evaluate

    found = find_trained(run_dir, task)
    options = read_settings(overrides, ("dataset",)).get("dataset", {})
    quiet_upstream()
    try:
        with advising(data):
            one = evaluate(
                found, data, output, batch_size=batch_size, base_model=base_model, cpu=cpu, metrics=metrics,
                trusted=trust_remote_code, options=options, say=say,
            )  # fmt: skip
    except RuntimeError as problem:
        if "out of memory" not in str(problem):
            raise
        fix = "give a smaller --batch-size"
        raise ModelError.at(run_dir, f"memory ran out: {first_line(problem)}", fix) from problem
    for line in describe_evaluation(one):
        say(line)
