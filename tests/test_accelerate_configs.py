"""The launch files: accelerate's own parser reads each, and none of them decides what a recipe decides."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.launch_files import FILES as LAUNCHED
from tests.support.launch_files import start

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "accelerate_configs").glob("*.yaml"))
EXPECTED = {  # file -> (distributed_type, processes, machines, use_cpu)
    "cpu": ("NO", 1, 1, True),
    "cpu_2": ("MULTI_GPU", 2, 1, True),
    "deepspeed_zero2": ("DEEPSPEED", 4, 1, False),
    "deepspeed_zero3": ("DEEPSPEED", 4, 1, False),
    "fsdp2": ("FSDP", 4, 1, False),
    "mps": ("NO", 1, 1, False),
    "multi_gpu": ("MULTI_GPU", 4, 1, False),
    "multi_node": ("MULTI_GPU", 8, 2, False),
    "single_gpu": ("NO", 1, 1, False),
}


def load(path: Path):
    from accelerate.commands.config.config_args import load_config_from_file

    return load_config_from_file(str(path))  # unknown keys raise ValueError


def test_there_are_nine_launch_files_and_the_table_names_each():
    assert [path.stem for path in FILES] == sorted(EXPECTED)
    table = (ROOT / "accelerate_configs" / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in FILES if f"`{path.name}`" not in table] == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_launch_file_says_where_and_nothing_of_what(path):
    config = load(path)
    found = (config.distributed_type.value, config.num_processes, config.num_machines, config.use_cpu)
    assert found == EXPECTED[path.stem]
    assert config.mixed_precision == "no"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_launch_file_opens_with_what_it_is_for_and_how_to_run_it(path):
    head = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    assert not head[0].startswith("# Run:")
    run = " ".join(
        line.lstrip("# ").rstrip("\\") for line in head[next(i for i, h in enumerate(head) if "Run:" in h) :]
    )
    assert f"accelerate launch --config_file accelerate_configs/{path.name}" in run
    recipe = next(word for word in run.split() if word.startswith("recipes/"))
    assert (ROOT / recipe).is_file()


def test_an_unknown_key_in_a_launch_file_would_be_refused(tmp_path):
    broken = tmp_path / "broken.yaml"
    broken.write_text((ROOT / "accelerate_configs" / "cpu.yaml").read_text(encoding="utf-8") + "num_procs: 2\n")
    with pytest.raises(ValueError, match="num_procs"):
        load(broken)


def test_sharding_files_leave_accumulation_and_clipping_to_the_recipe():
    for name in ("deepspeed_zero2", "deepspeed_zero3"):
        settings = load(ROOT / "accelerate_configs" / f"{name}.yaml").deepspeed_config
        assert settings["gradient_accumulation_steps"] == "auto"
        assert settings["gradient_clipping"] == "auto"
    assert load(ROOT / "accelerate_configs" / "fsdp2.yaml").fsdp_config["fsdp_version"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["multi_gpu", "fsdp2", "deepspeed_zero2", "deepspeed_zero3"])
def test_a_launch_file_trains_the_recipe_for_four_gpus_in_its_smoke_form_on_two_cpu_processes(folder, name):
    if name.startswith("deepspeed"):
        pytest.importorskip("deepspeed", reason="pip install '.[test]' brings it on Linux")
    status, output = start(name, folder, [str(ROOT / "recipes/gpt-300m-4xa100.yaml"), "--smoke"])
    assert status == 0, output[-3000:]
    record = json.loads((folder / "runs/gpt-300m-4xa100-smoke/record.json").read_text(encoding="utf-8"))
    assert (record["status"], record["steps"], record["batch"]["processes"]) == ("finished", 2, 2)
    assert (folder / "runs/gpt-300m-4xa100-smoke/model.safetensors").is_file()


def test_every_recorded_launch_ended_and_two_processes_have_the_same_losses_under_each_file():
    body = json.loads((ROOT / "benchmarks/results/launch_files.json").read_text(encoding="utf-8"))
    rows = body["rows"]
    assert rows and {row["file"] for row in rows} <= set(LAUNCHED)
    assert [row["file"] for row in rows if row["status"] != "finished" or not row["loads"]] == []
    two = [row["losses"] for row in rows if row["ranks"] == 2]
    for losses in two:
        assert losses == pytest.approx(two[0], rel=1e-5)


SAY_WHO_I_AM = """
import sys
from accelerate import PartialState
state = PartialState(cpu=True)
print(f"rank {state.process_index} of {state.num_processes} on {state.device.type}", file=sys.stderr, flush=True)
"""


@pytest.mark.parametrize(
    ("name", "ranks"),
    [
        pytest.param("cpu", ["rank 0 of 1 on cpu"], marks=pytest.mark.slow),
        # pipeline/test_launch_checks.py launches a run with this one
        pytest.param("cpu_2", ["rank 0 of 2 on cpu", "rank 1 of 2 on cpu"], marks=pytest.mark.slow),
    ],
)
def test_the_cpu_files_start_as_many_processes_as_they_say(tmp_path, name, ranks):
    script = tmp_path / "who.py"
    script.write_text(SAY_WHO_I_AM)
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    command += ["--config_file", str(ROOT / "accelerate_configs" / f"{name}.yaml"), "--main_process_port", "0"]
    done = subprocess.run(
        [*command, str(script)], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300
    )
    assert done.returncode == 0, done.stderr
    # not by lines: two processes that write at once may share one
    assert sorted(re.findall(r"rank \d of \d on cpu", done.stderr)) == ranks
