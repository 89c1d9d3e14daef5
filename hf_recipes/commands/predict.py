"""`hf-recipes predict`: texts in, JSON lines out."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from hf_recipes.catalog.tasks import TASKS
from hf_recipes.errors import OutputDirError, RecipeError
from hf_recipes.inference import inputs
from hf_recipes.inference.trained import Found, find_trained, load_trained


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
    given = generation_settings(found, overrides, max_new_tokens, of_data=file is not None)
    with inputs.advising(file), _writer(output) as write:
        rows = _choose_rows(found, texts, file, dataset_settings(overrides))
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


def read_settings(overrides: Sequence[str], sections: Sequence[str]) -> Mapping[str, Mapping[str, Any]]:
    """Section -> values of `--set Section.key=value`, checked as in a recipe. Raises RecipeError for other sections,
    and for keys and values that `check` reports."""
    from hf_recipes.recipe.merge import arguments_document
    from hf_recipes.recipe.validate import validate_sections

    document = arguments_document(overrides)
    document = document if document.errors else validate_sections(document)
    # Which keys `dataset` has depends on the file's format: its reader refuses others.
    odd = [one for one in document.warnings if "argument 'dataset." not in one.location]
    if document.errors or odd:
        raise RecipeError([*document.errors, *odd])
    wrong = [name for name in document.values or {} if name not in sections]
    if wrong:
        what = f"{wrong[0]} has no effect on this command"
        fix = " or ".join(f"{name}.key=value" for name in sections)
        raise RecipeError.at("argument '--set'", what, f"write {fix}")
    return {name: dict(values or {}) for name, values in (document.values or {}).items()}


def dataset_settings(overrides: Sequence[str]) -> Mapping[str, Any]:
    """Keys of `dataset` that read a file."""
    return read_settings(overrides, ("dataset", "GenerationConfig")).get("dataset", {})


def generation_settings(
    found: Found, overrides: Sequence[str], max_new_tokens: int | None, *, of_data: bool = False
) -> dict[str, Any]:
    """GenerationConfig's arguments of the command line. `of_data`: those of `dataset` are allowed beside them. Raises
    RecipeError for another section, and for a task that generates nothing."""
    sections = ("GenerationConfig", "dataset") if of_data else ("GenerationConfig",)
    given = dict(read_settings(overrides, sections).get("GenerationConfig", {}))
    if max_new_tokens is not None:
        given["max_new_tokens"] = max_new_tokens
    if given and not TASKS[found.task].generates:
        what = f"a model for {TASKS[found.task].title} generates no text"
        raise RecipeError.at("argument '--set'" if overrides else "argument '--max-new-tokens'", what, "leave it out")
    return given


def _choose_rows(
    found: Found, texts: Sequence[str], file: str | None, options: Mapping[str, Any]
) -> Iterable[inputs.Row]:
    if file is not None and texts:
        raise RecipeError.at("argument '--file'", "texts are given, too", "give texts or a file")
    if file is not None:
        rows = inputs.load_file(found.recipe, file, options)
        for key, default in TASKS[found.task].columns.items():  # the model's own names are looked for in a row
            given, own = options.get(key), str(found.recipe.get(f"dataset.{key}") or default)
            if given in rows.column_names and given != own:
                rows = rows.remove_columns([own] if own in rows.column_names else []).rename_column(given, own)
        if rows.column_names == ["text"] and Path(file).name.lower().removesuffix(".gz").endswith(".txt"):
            return (row for row in rows if row["text"].strip())  # empty lines, as of standard input
        return rows
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
