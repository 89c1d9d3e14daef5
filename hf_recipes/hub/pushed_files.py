"""Which files of a run folder a push sends, and the search for tokens in them.

Only names on an allow-list are uploaded: weights as safetensors, tokenizer, model card, record, recipe and scores.
Imports neither torch nor transformers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hf_recipes.common import tensor_values
from hf_recipes.common.secrets import locate_secret
from hf_recipes.errors import Diagnostic, HubError
from hf_recipes.hub.client import SHORTEST_TOKEN

# Everything that may be uploaded, by its path in the run folder. Weights: safetensors only.
WEIGHTS = re.compile(r"(adapter_)?model(-\d{5}-of-\d{5})?\.safetensors")

MODEL_FILES = ("adapter_config.json", "config.json", "generation_config.json", "model.safetensors.index.json")

TOKENIZER_FILES = (  # the names in `vocab_files_names` of transformers' tokenizers, and what save_pretrained adds
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "vocab.json", "vocab.txt", "merges.txt", "bpe.codes", "normalizer.json", "tokenizer.model", "spiece.model",
    "sentencepiece.bpe.model", "sentencepiece.model", "spm.model",
)  # fmt: skip

TEMPLATES = re.compile(r"additional_chat_templates/[\w.-]+\.jinja")

RUN_FILES = ("README.md", "record.json", "recipe.yaml", "scores.parquet")

TEXTS = (".json", ".yaml", ".md", ".jinja", ".txt")
LARGEST_HEADER_BYTES = 100_000_000  # safetensors' own limit


def files_to_push(run_dir: Path) -> tuple[str, ...]:
    """The paths in run_dir, relative and sorted, that a push sends. Raises HubError if there is no model."""
    if not run_dir.is_dir():
        raise HubError.at(str(run_dir), "is not a run folder", "give the folder that a run wrote (its output_dir)")
    paths = [*run_dir.iterdir(), *run_dir.glob("additional_chat_templates/*")]
    names = {path.relative_to(run_dir).as_posix() for path in paths if path.is_file()}
    known = {*MODEL_FILES, *TOKENIZER_FILES, *RUN_FILES}
    files = {name for name in names if name in known or WEIGHTS.fullmatch(name) or TEMPLATES.fullmatch(name)}
    real = run_dir.resolve()
    if outside := sorted(name for name in files if not (run_dir / name).resolve().is_relative_to(real)):
        what = "is a symbolic link that leads out of the run folder; nothing was uploaded"
        raise HubError.at(str(run_dir / outside[0]), what, "put the file itself there, or remove the link")
    if not any(WEIGHTS.fullmatch(name) for name in files):
        raise HubError.at(
            str(run_dir),
            "contains no model and no adapter (model.safetensors, adapter_model.safetensors)",
            "push a run that has finished, or a folder that save_pretrained wrote",
        )
    if "model.safetensors.index.json" in files:
        index = run_dir / "model.safetensors.index.json"
        if missing := sorted(set((read_json_object(index).get("weight_map") or {}).values()) - files):
            raise HubError.at(str(index), f"names {missing[0]}, which is missing", "save the model again")
    return tuple(sorted(files))


def token_errors(run_dir: Path, files: tuple[str, ...], tokens: tuple[str, ...] = ()) -> list[Diagnostic]:
    """An error for each file that contains a secret (one of `tokens`, or of a known form) or is a pickle.

    Of safetensors only the header is read (names, shapes, metadata); of parquet also the compressed columns.
    """
    known = tuple(token for token in tokens if len(token) >= SHORTEST_TOKEN)
    errors = []
    for name in files:
        location = str(run_dir / name)
        for content in _contents(run_dir / name):
            if content is None:
                errors.append(
                    Diagnostic(location=location, message=f"is not a {name.rsplit('.')[-1]} file", fix="save it again")
                )
            # A pickle starts with its protocol (2 to 5), an archive of torch.save with the signature of a zip file.
            elif re.match(rb"\x80[\x02-\x05]|PK\x03\x04", content):
                errors.append(Diagnostic(location=location, message="is a pickle under another name", fix="delete it"))
            elif name.endswith(TEXTS) and not _is_utf8(content):
                errors.append(Diagnostic(location=location, message="is not UTF-8 text", fix="save it as UTF-8"))
            elif found := locate_secret(content, known):
                kind, line = found
                errors.append(
                    Diagnostic(
                        location=f"{location}:{line}" if name.endswith((".json", ".yaml", ".md")) else location,
                        message=f"contains {kind}; nothing was uploaded",
                        fix="remove it from the file, and revoke it if others could read it",
                    )
                )
            else:
                continue
            break
    return errors


def lost_weight_errors(run_dir: Path, files: tuple[str, ...]) -> list[Diagnostic]:
    """An error for each file of weights that has some that are not finite, whatever its record says."""
    errors = []
    for name in files:
        if not name.endswith(".safetensors"):
            continue
        try:
            lost = tensor_values.describe_lost(*tensor_values.count_in_safetensors(run_dir / name))
        except tensor_values.ValuesError as problem:
            lost = str(problem)
        if lost:
            what = f"{lost}; nothing was uploaded"
            errors.append(
                Diagnostic(location=str(run_dir / name), message=what, fix="train it again, or push another run")
            )
    return errors


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def read_json_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise HubError.at(str(path), f"is not JSON ({error})", "restore it or delete it") from None
    if not isinstance(value, dict):
        raise HubError.at(str(path), "is not a JSON object", "restore it or delete it")
    return value


def _contents(path: Path) -> Iterator[bytes | None]:
    """The parts of a file that can contain text; None where its content does not match its name."""
    if path.suffix == ".safetensors":
        yield _safetensors_header(path)
        return
    yield path.read_bytes()
    if path.suffix == ".parquet":
        yield from _parquet_texts(path)


def _safetensors_header(path: Path) -> bytes | None:
    """The JSON header: 8 bytes of its length (little-endian), then the JSON (safetensors' README, "Format")."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length) if length <= LARGEST_HEADER_BYTES else b""
    try:
        return header if isinstance(json.loads(header), dict) else None
    except ValueError:
        return None


def _parquet_texts(path: Path) -> Iterator[bytes | None]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        for batch in pq.ParquetFile(path).iter_batches():
            for column in batch.columns:
                if not (pa.types.is_primitive(column.type) or pa.types.is_boolean(column.type)):
                    yield "\n".join(map(str, column.to_pylist())).encode()
    except pa.ArrowInvalid:
        yield None
