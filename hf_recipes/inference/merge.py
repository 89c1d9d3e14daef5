"""An adapter added to the full-precision weights of its base model, and what that changes."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_recipes.catalog.tasks import TASKS
from hf_recipes.common.text import first_line
from hf_recipes.common.write_failures import find_failure
from hf_recipes.errors import ModelError, OutputDirError, RecipeError
from hf_recipes.inference.trained import Found, Trained, load_trained

if TYPE_CHECKING:
    from hf_recipes.inference.evaluate import Evaluation

CHECKED = 16  # texts whose logits are compared
TEXTS = ("The quick brown fox jumps over the lazy dog.", "1 + 1 = 2", "Hello! How are you today?", "x")


@dataclass(frozen=True, kw_only=True)
class Merged:
    """What merging did. `before`, `after`: the metric of the adapter and of the merged model, on the same rows."""

    folder: Path
    dtype: str
    difference: float  # largest of a logit, of the model that was read back and of the adapter in float32
    largest: float  # largest absolute logit, for scale
    before: Evaluation | None = None
    after: Evaluation | None = None


def merge(
    found: Found,
    output: str,
    *,
    dtype: str | None = None,
    base_model: str | None = None,
    data: str | None = None,
    cpu: bool = False,
    say: Callable[[str], None] = print,
) -> Merged:
    """Writes base model plus adapter into `output`, which is complete or absent, and reads it back.

    The sum is made in float32; `dtype` is that of the file, else the base model's in training (of a quantized one the
    dtype that its weights were published in). `data`: a file on which both are evaluated.
    Raises ModelError for a folder without an adapter, for a base model whose file is quantized, and for what does not
    load; OutputDirError for a folder that is there.
    """
    import torch
    import transformers

    target, where = Path(output), str(found.folder)
    if not found.adapter:
        raise ModelError.at(where, "there is no adapter in it: it is a complete model already", "use it as it is")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise OutputDirError.at(output, "is there already", "name another folder with --output")
    trained = load_trained(found, base=base_model, cpu=cpu, precise=True)
    inner = trained.model.get_base_model()
    if getattr(inner, "is_quantized", False) or getattr(inner.config, "quantization_config", None):
        what = "the base model's own file is quantized: adding an adapter to rounded weights loses what was learned"
        raise ModelError.at(where, what, "name the same model in full precision with --base-model")
    texts = _texts(trained, data)
    expected = _logits(trained.model, trained.tokenizer, texts)
    written = getattr(torch, dtype) if dtype else _published_dtype(found, base_model)
    try:
        model = trained.model.merge_and_unload(safe_merge=True)
    except (ValueError, NotImplementedError) as problem:
        raise ModelError.at(
            where, f"peft cannot merge it: {first_line(problem)}", "use the adapter itself"
        ) from problem
    model = model.to(written)
    model.config.dtype = written
    draft = target.with_name(f"{target.name}.part")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir(parents=True)
        model.save_pretrained(draft)
        trained.tokenizer.save_pretrained(draft)
        auto = getattr(transformers, TASKS[found.task].auto_class)
        again = auto.from_pretrained(draft, dtype="auto").to(model.device).eval()
        found_logits = _logits(again, trained.tokenizer, texts)
        differences = [(one - other).abs().max().item() for one, other in zip(expected, found_logits, strict=True)]
        merged = Merged(
            folder=target,
            dtype=str(written).removeprefix("torch."),
            difference=max(differences),
            largest=max(logits.abs().max().item() for logits in expected),
        )
        if data is not None:
            after = replace(trained, model=again, found=replace(found, folder=target, adapter=False))
            merged = _with_metrics(merged, found, after, data, base_model, draft, cpu=cpu, say=say)
        if target.exists():
            target.rmdir()
        draft.rename(target)
    except RecipeError:
        raise
    except Exception as problem:  # safetensors and tokenizers have errors of their own for a full disk
        failure = find_failure(problem, draft)
        if failure is None and not isinstance(problem, OSError):
            raise
        what = failure.what if failure else first_line(problem)
        fix = f"{failure.fix}, or name another folder with --output" if failure else "name another with --output"
        raise OutputDirError.at(output, f"cannot be written: {what}", fix) from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return merged


def _with_metrics(
    one: Merged, found: Found, after: Trained, data: str, base: str | None, draft: Path, *, cpu: bool,
    say: Callable[[str], None],
) -> Merged:  # fmt: skip
    """Evaluates both into `draft`, which is to become the model's folder."""
    from hf_recipes.inference.evaluate import FOLDER, score
    from hf_recipes.inference.inputs import load_file

    rows = load_file(found.recipe, data)
    before = load_trained(found, base=base, cpu=cpu)
    folder = draft / FOLDER
    return replace(
        one,
        before=score(before, rows, data, folder / "adapter", cpu=cpu, say=say),
        after=score(after, rows, data, folder / "merged", cpu=cpu, say=lambda line: None),
    )


def _published_dtype(found: Found, base: str | None) -> Any:
    """The dtype that the file of the base model has, else what training had."""
    import torch
    from transformers import AutoConfig

    stated = found.recipe.get("model.dtype")
    name = base or found.recipe.get("model.pretrained_model_name_or_path")
    if stated not in (None, "auto") and not found.recipe.section("BitsAndBytesConfig"):
        return getattr(torch, str(stated))
    with contextlib.suppress(OSError, ValueError):
        dtype = AutoConfig.from_pretrained(name, trust_remote_code=False).dtype
        if isinstance(dtype, torch.dtype):
            return dtype
    return torch.float32


def _texts(trained: Trained, data: str | None) -> list[str]:
    """Texts of the data, else of any kind."""
    from hf_recipes.inference.inputs import load_file

    if data is None:
        return list(TEXTS)
    rows, found = load_file(trained.recipe, data), []
    for row in rows.select(range(min(CHECKED, rows.num_rows))):
        for value in row.values():
            if isinstance(value, str) and value.strip():
                found.append(value)
                break
            if isinstance(value, list) and value and isinstance(value[0], str):
                found.append(" ".join(value))
                break
    return found or list(TEXTS)


def _logits(model: Any, tokenizer: Any, texts: Sequence[str]) -> list[Any]:
    """In float32, of each text alone."""
    import torch

    found = []
    with torch.inference_mode():
        for text in texts:
            ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=64, verbose=False).to(model.device)
            found.append(model(**ids).logits.float().cpu())
    return found


def describe_merge(one: Merged) -> list[str]:
    """What merging changed, and where the model is."""
    lines = [
        f"merged in float32, written in {one.dtype}, read back",
        f"  largest difference of a logit   {one.difference:.3g}   (logits reach {one.largest:.3g})",
    ]
    if one.before is not None and one.after is not None:
        for name, value in one.before.metrics.items():
            lines.append(f"  {name:<18} {value:.6g} -> {one.after.metrics[name]:.6g}")
    return [*lines, "", f"model    {one.folder}"]
