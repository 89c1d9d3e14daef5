"""Text files that are complete or absent, whenever the process is killed. Imports neither torch nor transformers."""

from __future__ import annotations

import os
from pathlib import Path


def put(path: Path, text: str) -> Path:
    """Writes UTF-8 text beside the file and renames it into place; returns the path. Raises OSError that names it."""
    draft = path.with_name(f"{path.name}.part")
    try:
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, path)
    except OSError as problem:
        draft.unlink(missing_ok=True)
        raise type(problem)(problem.errno, problem.strerror, str(path)) from problem
    return path
