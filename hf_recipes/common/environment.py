"""Where a run happens: package versions, commit, time, peak memory. Imports neither torch nor transformers."""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version

import hf_recipes
from hf_recipes import __version__

PACKAGES = (
    "hf_recipes",
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "trl",
    "bitsandbytes",
    "datasets",
    "evaluate",
    "tokenizers",
    "safetensors",
    "scikit-learn",
    "seqeval",
    "numpy",
)


def package_version(name: str) -> str | None:
    """The installed version; None for a package that is not there."""
    if name == "hf_recipes":  # it runs from a copy of the repository, too
        return __version__
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def package_versions() -> dict[str, str | None]:
    """PACKAGES and their versions."""
    return {name: package_version(name) for name in PACKAGES}


def current_commit() -> str | None:
    """The commit of the working directory's repository, with "+" if the tree differs from it; None outside one."""
    return _commit_of(".")


@cache
def package_commit() -> str | None:
    """The commit of the repository that this package runs from, with "+" if the package's files differ from it; None
    where it is installed."""
    return _commit_of(os.path.dirname(os.path.abspath(hf_recipes.__file__)), ".")


def _commit_of(folder: str, *paths: str) -> str | None:
    status = ["git", "status", "--porcelain", "--untracked-files=no", "--", *paths]
    try:
        head = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, timeout=10, check=True
        )
        changed = subprocess.run(status, cwd=folder, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def timestamp() -> str:
    """Now, in UTC: "2026-11-22T16:07:11+00:00"."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def peak_rss_bytes() -> int:
    """Peak resident memory of this process since its start."""
    import resource

    scale = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
