"""`hf-recipes doctor`: is this machine ready? Imports torch only to ask for the GPU."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from hf_recipes.common.environment import PACKAGES, package_version
from hf_recipes.common.text import GIB, first_line, format_bytes

TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "COMET_API_KEY", "MLFLOW_TRACKING_TOKEN")
LITTLE_DISK = 10 * GIB
OPTIONAL = ("flash_attn", "liger_kernel", "deepspeed", "kernels", "torchao")


def command(*, as_json: bool = False) -> tuple[list[str], bool]:
    """The lines to print, and whether something is wrong."""
    facts = gather_facts()
    problems = list(find_problems(facts))
    if as_json:
        return [json.dumps({"facts": facts, "problems": problems}, indent=1)], bool(problems)
    width = max(map(len, facts))
    lines = [f"{name:<{width}}  {value}" for name, value in facts.items()]
    lines += ["", *(f"error: {one}" for one in problems)] if problems else ["", "nothing is wrong"]
    return lines, bool(problems)


def gather_facts() -> dict[str, str]:
    """Name -> value of what a run depends on. No token is read: only whether there is one."""
    found = {"python": f"{platform.python_version()} ({sys.executable})", "system": platform.platform()}
    found |= {name: package_version(name) or "not installed" for name in PACKAGES}
    optional = [name for name in OPTIONAL if importlib.util.find_spec(name)]
    found["optional"] = ", ".join(optional) or "none of " + ", ".join(OPTIONAL)
    found |= _describe_gpu()
    found["memory"] = _describe_memory()
    for name, path in _caches().items():
        found[name] = _describe_place(path)
    found["this folder"] = _describe_place(Path.cwd())
    there = [name for name in TOKENS if os.environ.get(name)]
    if (Path(_caches()["Hub cache"]).parent / "token").is_file():
        there.append("the Hub's token file")
    found["tokens"] = ", ".join(there) or "none"
    found["offline"] = "yes (HF_HUB_OFFLINE)" if os.environ.get("HF_HUB_OFFLINE", "0") not in ("0", "") else "no"
    return found


def _describe_gpu() -> dict[str, str]:
    try:
        import torch
    except Exception as problem:  # a broken installation may raise anything
        return {"GPU": f"unknown: torch does not load ({first_line(problem)})"}
    if torch.cuda.is_available():
        names = []
        for index in range(torch.cuda.device_count()):
            one = torch.cuda.get_device_properties(index)
            free = torch.cuda.mem_get_info(index)[0]
            names.append(f"{one.name}, {format_bytes(one.total_memory)} ({format_bytes(free)} free)")
        return {"GPU": "; ".join(names), "CUDA": f"{torch.version.cuda} (torch's)"}
    if torch.backends.mps.is_available():
        return {"GPU": "Apple (MPS)"}
    driver = shutil.which("nvidia-smi")
    if driver and torch.version.cuda is None:
        return {"GPU": "not usable: this torch has no CUDA, and nvidia-smi is there"}
    return {"GPU": "not usable: nvidia-smi is there, and torch sees no GPU" if driver else "none"}


def _describe_memory() -> str:
    try:
        pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
        available = re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())
        free = f", {format_bytes(int(available[1]) * 1024)} available" if available else ""
        return f"{format_bytes(pages * size)}{free}; {os.cpu_count()} CPU cores"
    except (OSError, ValueError):
        return f"{os.cpu_count()} CPU cores"


def _caches() -> Mapping[str, Path]:
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    return {
        "Hub cache": Path(os.environ.get("HF_HUB_CACHE") or home / "hub"),
        "data set cache": Path(os.environ.get("HF_DATASETS_CACHE") or home / "datasets"),
    }


def _existing(path: Path) -> Path:
    return path if path.exists() or path.parent == path else _existing(path.parent)


def _describe_place(path: Path) -> str:
    there = _existing(path)
    free = format_bytes(shutil.disk_usage(there).free)
    writable = "" if os.access(there, os.W_OK) else ", cannot be written"
    return f"{path} ({free} free{writable})"


def find_problems(facts: Mapping[str, str]) -> Iterator[str]:
    """What would end a run, each with its fix."""
    for name, value in facts.items():
        if "cannot be written" in value:
            yield f"{name}: {value}; choose another folder (HF_HOME, HF_DATASETS_CACHE)"
        if value.startswith(("not usable", "unknown")):
            yield f"{name}: {value}; install torch for your driver: https://pytorch.org/get-started"
    if shutil.disk_usage(Path.cwd()).free < LITTLE_DISK:
        yield f"this folder has less than {format_bytes(LITTLE_DISK)} free: a run's checkpoints may not fit"
    yield from _unmet()


def _unmet() -> Iterator[str]:
    """Installed packages that are older or newer than this package needs."""
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        wanted = requires("hf_recipes") or []
    except PackageNotFoundError:
        return
    for text in wanted:
        try:
            one = Requirement(text)
        except InvalidRequirement:
            continue
        if one.marker is not None and not one.marker.evaluate({"extra": ""}):
            continue
        there = package_version(one.name)
        if there is None:
            yield f"{one.name} is not installed; pip install '{one.name}{one.specifier}'"
        elif not one.specifier.contains(there.partition("+")[0], prereleases=True):
            fix = f"pip install '{one.name}{one.specifier}'"
            yield f"{one.name} {there} is installed, and {one.specifier} is needed; {fix}"
