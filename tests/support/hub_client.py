"""A client of the Hub in a process of its own, and the small runs that it pushes to the double."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

from hf_recipes.hub.push import format_push_command

QUICK = "Patience(answer_seconds=20, tries=2, first_wait_seconds=0.1, trouble_seconds=1.3)"
HASTY = QUICK.replace("20", "0.5")  # for a Hub that never answers; too short for a busy machine otherwise
WRITE = "use a token with write access"
PICKLE = re.compile(rb"\x80[\x02-\x05].*\.\Z|PK\x03\x04", re.S)


def clean_environment(home: Path, **more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))}
    return {**kept, "HF_HOME": str(home), "OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_TELEMETRY": "1", **more}


IMPORTS = (
    "import json, sys, time; from pathlib import Path\nfrom hf_recipes.errors import RecipeError\n"
    "from hf_recipes.hub.push import *\nfrom hf_recipes.hub.pushed_files import *\n"
    "from hf_recipes.hub.client import Patience\n"
)
# Runs each line of its input as code, as `client` does, and prints a line of JSON for it.
SERVE = """
import contextlib, io
for line in sys.stdin:
    started, printed = time.monotonic(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        exec(json.loads(line))
    print(json.dumps({**out, "seconds": time.monotonic() - started, "printed": printed.getvalue()}), flush=True)
"""


def client(code: str, home: Path, limit: float = 60, **environment: str) -> dict:
    """Runs code in a process of its own, which sets `out`; with what it printed, what it took, and no traceback."""
    code = (
        f"{IMPORTS}started = time.monotonic()\n{code}\n"
        "out['seconds'] = time.monotonic() - started\nprint(json.dumps(out))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=clean_environment(home, **environment),
        timeout=limit,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return {**json.loads(done.stdout.splitlines()[-1]), "printed": done.stdout + done.stderr}


def after_training(run: Path, patience: str = QUICK, **options: object) -> str:
    arguments = "".join(f", {key}={value!r}" for key, value in options.items())
    return (
        f"o = push_after_training(Path({str(run)!r}), patience={patience}{arguments})\n"
        "out = {'pushed': o.pushed, 'message': str(o), 'command': o.command, 'why': o.why, "
        "'unchanged': o.result and o.result.unchanged, 'files': o.result and o.result.files, "
        "'url': o.result and o.result.url}"
    )


def safetensors(metadata: dict[str, str]) -> bytes:
    head = {"__metadata__": metadata, "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    header = json.dumps(head).encode()
    return struct.pack("<Q", len(header)) + header + b"\0\0\0\0"


def small_run(folder: Path, **section: object) -> Path:
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(safetensors({"format": "pt"}))
    (folder / "config.json").write_text('{"model_type": "gpt2"}\n')
    (folder / "training_args.bin").write_bytes(b"\x80\x04K\x01.")
    record = {
        "schema": 1,
        "status": "finished",
        "task": "causal-lm",
        "recipe": {"sections": {"TrainingArguments": section}},
    }
    (folder / "record.json").write_text(json.dumps(record))
    return folder


def not_pushed(run: Path, why: str) -> str:
    command = format_push_command(run, "user/mood")
    return f"not pushed to the Hub; the run itself is complete in {run}\nuser/mood: {why}: {command}"


def timeless(message: str) -> str:
    return re.sub(r" \(tried 2 times in \d+ s\)", "", message)
