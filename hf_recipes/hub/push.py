"""Uploads a finished run to the Hub: which files, the search for tokens, the push, and the check of what arrived.

Only names on an allow-list are uploaded: weights as safetensors, tokenizer, model card, record, recipe and scores.
Checkpoints, optimizer states, logs and pickles (`training_args.bin` has `hub_token` in clear text) are never uploaded.

A Hub that is down, slow or refuses never costs the run: `push_after_training` returns an outcome, `push` raises one
HubError, and both end with the command that pushes later. The token comes from HF_TOKEN or `hf auth login`, through
huggingface_hub; it is never in a message and never in an uploaded file.
"""

from __future__ import annotations

import hashlib
import re
import shlex
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hf_recipes.common import run_lock
from hf_recipes.common.files import put
from hf_recipes.errors import Diagnostic, HubError, RecipeError
from hf_recipes.hub.client import (
    Patience,
    explain_error,
    find_unavailable,
    limited_client,
    mask_tokens,
    require_login,
    silence_client,
)
from hf_recipes.hub.copies import check_base_model, make_copies
from hf_recipes.hub.model_card import model_card
from hf_recipes.hub.pushed_files import files_to_push, lost_weight_errors, token_errors
from hf_recipes.record import COMPLETE, NAME, EndStep
from hf_recipes.record.file import find_record, read_record

FULL_WEIGHTS = re.compile(r"(model|pytorch_model)(-\d{5}-of-\d{5})?\.(safetensors|bin)")
NOT_CHECKED = "pushed, but not checked"


@dataclass(frozen=True, kw_only=True)
class PushResult:
    """What a push did."""

    url: str
    repo_id: str
    commit: str
    files: tuple[str, ...]  # paths in the repository, sorted
    unchanged: bool  # True if the Hub had every file already
    warnings: tuple[Diagnostic, ...] = ()  # e.g. that the uploaded files could not be checked


@dataclass(frozen=True, kw_only=True)
class PushOutcome:
    """The outcome of a push after training. `message` is for the user; if nothing was pushed it ends with `command`."""

    pushed: bool
    message: str
    command: str
    why: str = ""
    result: PushResult | None = None

    def __str__(self) -> str:
        return self.message


def push(
    run_dir: Path,
    *,
    repo_id: str,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    patience: Patience | None = None,
    base_model: str | None = None,
) -> PushResult:
    """Uploads adapter or model, tokenizer, model card, record, recipe and scores of a run; then checks what arrived.

    repo_id: "name" or "org/name", created if missing. private: None leaves it to the Hub (public, unless the
    organization has another default). revision: a branch, created if missing. Files that the Hub has already are
    not sent again. A run folder without a model card gets one if it has a record. base_model: the Hub's id of the model
    that was trained from, where the run has only its path. Paths of this machine are shortened in what is sent.

    Raises HubError, with the command that pushes later, when there is no token, the Hub cannot be reached or refuses,
    a file contains a token, the repository is public although private was asked for, or an uploaded file differs.
    """
    run_dir, patience = Path(run_dir), patience or Patience()
    command = format_push_command(run_dir, repo_id, private)
    _check_repo_id(repo_id)
    if base_model is not None:
        check_base_model(base_model)
    _refuse_earlier_weights(run_dir)
    try:
        files = _write_card(run_dir, files_to_push(run_dir), repo_id)
        tokens = require_login(repo_id, command)
        errors = token_errors(run_dir, files, tokens)
        record = find_record(run_dir)
        if not errors and not (record is not None and record.diverged):  # which only --diverged pushes
            errors = lost_weight_errors(run_dir, files)
    except OSError as error:  # a folder or file that may not be read or written
        raise HubError.at(
            str(error.filename or run_dir), str(error.strerror or error), f"fix it, then: {command}"
        ) from None
    if errors:
        raise HubError([_with_command(each, command) for each in errors])
    with tempfile.TemporaryDirectory(prefix="hf-recipes-push-") as folder:
        sources, warnings = make_copies(run_dir, files, Path(folder), base_model)
        ask = _Ask(repo_id=repo_id, private=private, revision=revision, message=commit_message, sources=sources)
        result = _push_with_patience(run_dir, ask, patience, tokens, command)
        return replace(result, warnings=(*warnings, *result.warnings))


def _refuse_earlier_weights(run_dir: Path) -> None:
    """Raises HubError where the record is of a run that has not saved its model: the weights are those of another."""
    record = find_record(run_dir)
    if record is None or record.schema < 3 or not record.sessions or EndStep.WEIGHTS in record.done:
        return
    if record.status not in COMPLETE and record.recipe.training.get("do_train") is not False:
        what = f"its record is of a run that has not saved its model (it is {record.status.value!r}, in {record.stage})"
        fix = "finish that run with --resume, and then push; a model in this folder is of an earlier run"
        raise HubError.at(str(run_dir), what, fix)


@dataclass(frozen=True, kw_only=True)
class _Ask:
    """What is pushed, and where to."""

    repo_id: str
    private: bool | None
    revision: str | None
    message: str | None
    sources: Mapping[str, Path]  # by the path in the repository


def _push_with_patience(
    run_dir: Path, ask: _Ask, patience: Patience, tokens: tuple[str, ...], command: str
) -> PushResult:
    repo_id = ask.repo_id
    started, tried = time.monotonic(), 0
    while True:
        tried += 1
        with silence_client(), limited_client(patience) as failures:
            try:
                return _push_once(run_dir, ask)
            except HubError as error:
                raise HubError([_with_command(each, command) for each in error.errors]) from None
            except Exception as error:
                seconds = time.monotonic() - started
                over = find_unavailable(error) or tried >= patience.tries or seconds > patience.trouble_seconds
                if not failures or over:  # without a failed call a retry gets the same answer
                    what, fix = explain_error(error, repo_id, failures)
                    times = f" (tried {tried} times in {seconds:.0f} s)" if tried > 1 else ""
                    # `from None`: the chained errors show URLs and headers
                    raise HubError.at(repo_id, mask_tokens(what + times, tokens), f"{fix}: {command}") from None
        time.sleep(patience.first_wait_seconds * 2 ** (tried - 1))


def push_after_training(
    run_dir: Path,
    *,
    repo_id: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    patience: Patience | None = None,
) -> PushOutcome:
    """`push` for the end of a run: never raises (except for Ctrl-C), because the run is complete whatever the Hub does.

    repo_id, private and revision default to the record's hub_model_id, hub_private_repo and hub_revision, repo_id
    then to the folder's name.
    """
    run_dir = Path(run_dir)
    settings = _read_hub_settings(run_dir)
    repo_id = repo_id or settings.get("hub_model_id") or run_dir.resolve().name
    private = settings.get("hub_private_repo") if private is None else private
    command = format_push_command(run_dir, repo_id, private)
    try:
        result = push(
            run_dir,
            repo_id=repo_id,
            private=private,
            revision=revision or settings.get("hub_revision"),
            commit_message=commit_message,
            patience=patience,
        )
    except RecipeError as error:
        reason = str(error)
    except Exception as error:  # e.g. a disk that fails: the run is complete all the same
        reason = mask_tokens(f"{type(error).__name__}: {error}")
    else:
        return PushOutcome(pushed=True, message=_format_result(result), command=command, result=result)
    message = f"not pushed to the Hub; the run itself is complete in {run_dir}\n{reason}"
    message += "" if reason.endswith(command) else f"\npush later with: {command}"
    return PushOutcome(pushed=False, message=message, why=reason, command=command)


def push_command(
    run_dir: str,
    repo: str | None = None,
    private: bool = False,
    diverged: bool = False,
    base_model: str | None = None,
) -> str:
    """`hf-recipes push RUN_DIR [--repo ORG/NAME] [--private] [--base-model ORG/NAME]`: the line to print.

    `diverged`: such a run, too. Raises HubError.
    """
    folder = Path(run_dir)
    with run_lock.hold_folder(folder, "argument RUN_DIR", for_writing=False):  # first: a run may be writing its files
        settings = _read_hub_settings(folder)
        files_to_push(folder)
        record = find_record(folder)
        if record is not None and record.diverged and not diverged:
            raise HubError.at(run_dir, f"the run diverged: {record.diverged}", "push another run, or add --diverged")
        result = push(
            folder,
            repo_id=repo or settings.get("hub_model_id") or folder.resolve().name,
            private=private or settings.get("hub_private_repo"),  # False is not "make it public": None leaves it open
            revision=settings.get("hub_revision"),
            base_model=base_model,
        )
    return _format_result(result)


def format_push_command(run_dir: Path, repo_id: str, private: bool | None = None) -> str:
    """The command that pushes this run: `hf-recipes push runs/a --repo org/name`."""
    return shlex.join(["hf-recipes", "push", str(run_dir), "--repo", repo_id, *(["--private"] if private else [])])


def verify_push(
    run_dir: Path,
    files: tuple[str, ...],
    *,
    repo_id: str,
    revision: str | None = None,
    sources: Mapping[str, Path] | None = None,
) -> list[Diagnostic]:
    """An error for each file that the repository lacks, or has with another size or checksum.

    The Hub gives the sha256 of large files and git's blob sha1 of the rest. Raises huggingface_hub's errors.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    tree = HfApi(token=True).list_repo_tree(repo_id, recursive=True, revision=revision)
    there = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
    errors = []
    for name in files:
        entry, path = there.get(name), (sources or {}).get(name, Path(run_dir) / name)
        if entry is None:
            what = "did not arrive"
        elif entry.size != path.stat().st_size:
            what = f"has {entry.size:,} bytes on the Hub and {path.stat().st_size:,} bytes in {run_dir}"
        elif (entry.lfs.sha256 != _sha256(path)) if entry.lfs else (entry.blob_id != _git_sha1(path)):
            what = f"differs between the Hub and {run_dir}"
        else:
            continue
        errors.append(Diagnostic(location=f"{repo_id}/{name}", message=what, fix="push again"))
    return errors


def _push_once(run_dir: Path, ask: _Ask) -> PushResult:
    from huggingface_hub import CommitOperationAdd, HfApi

    repo_id, private, revision, files = ask.repo_id, ask.private, ask.revision, tuple(ask.sources)
    api = HfApi(token=True, library_name="hf_recipes")  # True: send the token even where implicit tokens are off
    created = api.create_repo(repo_id, private=private, exist_ok=True)
    repo_id = created.repo_id  # with the user's name before it, if it had none
    if revision is not None and not revision.startswith("refs/"):
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    before = api.model_info(repo_id, revision=revision)
    if private and before.private is False:  # the Hub ignores `private` for an existing repository
        raise HubError.at(
            repo_id,
            "is public on the Hub, but a private repository was asked for; nothing was uploaded",
            "make it private in its settings or name another repository",
        )
    there = {sibling.rfilename for sibling in before.siblings or ()}
    if "adapter_config.json" in there and "adapter_config.json" not in files:
        raise HubError.at(
            repo_id,
            "contains an adapter (adapter_config.json), which from_pretrained would apply to this "
            "model; nothing was uploaded",
            "delete the adapter there or name another repository",
        )
    full = sorted(name for name in there if FULL_WEIGHTS.fullmatch(name))
    if full and not any(FULL_WEIGHTS.fullmatch(name) for name in files):
        raise HubError.at(
            repo_id,
            f"contains a full model ({full[0]}), which from_pretrained would load in this adapter's place; "
            "nothing was uploaded",
            "delete the model there or name another repository",
        )
    commit = api.create_commit(
        repo_id,
        operations=[CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in ask.sources.items()],
        commit_message=ask.message or f"Push {run_dir.resolve().name} with hf_recipes",
        revision=revision,
    )
    warnings: tuple[Diagnostic, ...] = ()
    try:
        errors = verify_push(run_dir, files, repo_id=repo_id, revision=revision, sources=ask.sources)
    except Exception as error:  # the push succeeded; only the check did not
        what = f"{NOT_CHECKED}: {explain_error(error, repo_id)[0]}"
        warnings = (Diagnostic(location=repo_id, message=mask_tokens(what)),)
    else:
        if errors:
            raise HubError(errors)
    return PushResult(
        url=str(created),
        repo_id=repo_id,
        commit=commit.oid,
        files=files,
        unchanged=commit.oid == before.sha,
        warnings=warnings,
    )


def _format_result(result: PushResult) -> str:
    done = "unchanged on the Hub" if result.unchanged else "pushed"
    unchecked = any(each.message.startswith(NOT_CHECKED) for each in result.warnings)
    checked = "" if unchecked else ", sizes and checksums checked"
    line = f"{done}: {result.url} ({len(result.files)} files, commit {result.commit[:8]}{checked})"
    return "\n".join([line, *(f"warning: {each}" for each in result.warnings)])


def _read_hub_settings(run_dir: Path) -> Mapping[str, Any]:
    """The trainer's section of the recipe in record.json: hub_model_id, hub_private_repo, hub_revision."""
    record = find_record(run_dir)
    return record.recipe.training if record is not None else {}


def _check_repo_id(repo_id: str) -> None:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise HubError.at(
            repr(repo_id), f"is not a repository name: {error}".rstrip("."), "name one with --repo ORG/NAME"
        ) from None


def _write_card(run_dir: Path, files: tuple[str, ...], repo_id: str) -> tuple[str, ...]:
    if "README.md" in files or "record.json" not in files:
        return files
    put(run_dir / "README.md", model_card(read_record(run_dir / NAME), repo_id=repo_id))
    return tuple(sorted([*files, "README.md"]))


def _with_command(each: Diagnostic, command: str) -> Diagnostic:
    return Diagnostic(location=each.location, message=each.message, fix=f"{each.fix}, then: {command}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _git_sha1(path: Path) -> str:
    """git's name of a blob, as the Hub gives it for files outside LFS: sha1 of "blob SIZE NUL CONTENT"."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
