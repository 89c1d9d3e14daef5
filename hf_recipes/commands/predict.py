"""`hf-recipes predict`: texts in, JSON lines out."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from hf_recipes.catalog.tasks import TASKS
from hf_recipes.commands.settings import options_in_fixes, read_settings, with_generation
from hf_recipes.errors import OutputDirError, RecipeError
from hf_recipes.inference import inputs
from hf_recipes.inference.trained import Found, find_trained, load_trained

SECTIONS = ("GenerationConfig", "dataset")  # that --set may name


def command(
    run_dir: str,
    texts: Sequence[str],
    *,
    file: str | None = None,
    output: str | None = None,
    batch_size: int = 32,
    max_new_tokens: int | None = None,
    overrides: Sequence[str] = (),
    base_model: str | None = None,
    task: str | None = None,
    cpu: bool = False,
) -> None:
    """Prints a JSON line a row, in the order of the rows, or writes them to `output`, complete or not at all.

    Raises RecipeError for a folder without a model, rows that cannot be predicted, and settings that do not fit.
    """
    found = find_trained(run_dir, task)
    settings = read_settings(overrides, SECTIONS)
    given = with_generation(found, settings.get("GenerationConfig", {}), max_new_tokens)
    found = replace(found, reading=settings.get("dataset", {}))
    quiet_upstream()
    with options_in_fixes():
        rows = _choose_rows(found, texts, file)
    with _writer(output) as write:
        for line in predict(found, rows, batch_size=batch_size, given=given, base_model=base_model, cpu=cpu):
            write(json.dumps(line, ensure_ascii=False))


def predict(
    found: Found,
    rows: Iterable[inputs.Row],
    *,
    batch_size: int = 32,
    given: Mapping[str, Any] | None = None,
    base_model: str | None = None,
    cpu: bool = False,
) -> Iterator[dict[str, Any]]:
    """What the model says of each row, in their order; see inference/classify.py and inference/generate.py."""
    quiet_upstream()
    trained = load_trained(found, base=base_model, cpu=cpu)
    if TASKS[found.task].generates:
        from hf_recipes.inference.generate import generate

        return generate(trained, rows, batch_size, given)
    from hf_recipes.inference.classify import classify_texts, find_entities

    of_task = {"text-classification": classify_texts, "token-classification": find_entities}
    return of_task[found.task](trained, rows, batch_size)


def _choose_rows(found: Found, texts: Sequence[str], file: str | None) -> Iterable[inputs.Row]:
    if file is not None and texts:
        raise RecipeError.at("argument '--file'", "texts are given, too", "give texts or a file")
    if file is not None:
        return inputs.texts_of_file(found.recipe, file, found.reading)
    if texts and list(texts) != ["-"]:
        return [{"text": text} for text in texts]
    if sys.stdin.isatty():
        what = "there is no text to predict"
        raise RecipeError.at("arguments", what, "give texts, --file FILE, or lines on standard input")
    return inputs.rows_of_stream(sys.stdin.buffer)


@contextlib.contextmanager
def _writer(output: str | None) -> Iterator[Callable[[str], None]]:
    """Prints lines, or writes a file that is complete or absent."""
    if output is None:
        yield click.echo
        return
    path = Path(output)
    draft = path.with_name(f"{path.name}.part")
    try:
        with draft.open("w", encoding="utf-8") as lines:

            def write(line: str) -> None:
                lines.write(f"{line}\n")

            yield write
        os.replace(draft, path)
    except OSError as problem:
        what = f"{output!r} cannot be written ({problem.strerror})"
        raise OutputDirError.at("argument '--output'", what, "choose another place") from None
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


def quiet_upstream() -> None:
    """Results are on stdout; bars and advice of other packages would be between them on a terminal."""
    import logging
    import warnings

    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")  # peft's call
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # "Failed to load CPU gemm_4bit_forward"
