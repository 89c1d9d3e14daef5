"""A file of accelerate_configs/ started on this machine's CPU: two processes, whatever it asks for.

Only `num_processes`, `use_cpu` and, with two machines, the address are overridden; the launcher is accelerate's own.
For FSDP2 accelerate's gate for the CPU is opened, and DeepSpeed's own kernel for the CPU left out (sharded_ranks.py).
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FILES = ("cpu", "cpu_2", "multi_gpu", "fsdp2", "deepspeed_zero2", "deepspeed_zero3", "multi_node")


def processes_of(name: str) -> int:
    return 1 if name == "cpu" else 2


def start(name: str, folder: Path, arguments: Sequence[str], seconds: float = 900, module: str = "") -> tuple[int, str]:
    """`accelerate launch --config_file NAME -m hf_recipes.run ARGUMENTS`: exit status and output of all launchers.
    `module`: is started instead, and opens the gate itself."""
    text = (ROOT / "accelerate_configs" / f"{name}.yaml").read_text(encoding="utf-8")
    copied = folder / f"{name}.yaml"
    copied.write_text(text.replace("use_cpu: false", "use_cpu: true"), encoding="utf-8")
    machines = 2 if name == "multi_node" else 1
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ours = ["tests.support.sharded_ranks", "run"] if name.startswith(("fsdp", "deepspeed")) else ["hf_recipes.run"]
    started = [module] if module else ours
    running = []
    for rank in range(machines):
        command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file", str(copied)]
        command += ["--num_processes", str(processes_of(name)), "--main_process_port", port]
        command += ["--main_process_ip", "127.0.0.1", "--machine_rank", str(rank)] if machines > 1 else []
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": path}
        log = open(folder / f"{name}-{rank}.log", "w", encoding="utf-8")  # noqa: SIM115
        words = [*command, "-m", *started, *arguments]
        running.append(subprocess.Popen(words, env=environment, cwd=folder, stdout=log, stderr=log))
    try:
        codes = [each.wait(timeout=seconds) for each in running]
    finally:
        for each in running:
            each.kill()
    output = "".join((folder / f"{name}-{rank}.log").read_text(encoding="utf-8") for rank in range(machines))
    return max(codes, key=abs), output
