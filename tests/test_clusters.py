"""docs/clusters/: each file is read by its engine's own schema or parser, and a preempted job continues by itself."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.support.forks import is_loss

ROOT = Path(__file__).resolve().parents[1]
CLUSTERS = ROOT / "docs" / "clusters"
SCRIPTS = ("slurm.sh", "two_machines.sh")
# Long options of sbatch that a script may hold (SLURM 24.05, man sbatch); no package ships their parser.
SBATCH = {
    *("account", "array", "chdir", "comment", "constraint", "cpus-per-gpu", "cpus-per-task", "dependency", "error"),
    *("exclusive", "gpus", "gpus-per-node", "gpus-per-task", "gres", "job-name", "mail-type", "mail-user", "mem"),
    *("mem-per-cpu", "mem-per-gpu", "no-requeue", "nodelist", "nodes", "ntasks", "ntasks-per-node", "open-mode"),
    *("output", "partition", "qos", "requeue", "reservation", "signal", "time", "wait-all-nodes"),
}
SKY = {
    **{"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NUM_GPUS_PER_NODE": "4", "SKYPILOT_NODE_RANK": "1"},
    "SKYPILOT_NODE_IPS": "192.0.2.1\n192.0.2.2",
}
TORCH_RUNTIME = {  # what the runtime torch-distributed sets
    **{"PET_NNODES": "2", "PET_NPROC_PER_NODE": "4", "PET_NODE_RANK": "1"},
    **{"PET_MASTER_ADDR": "192.0.2.1", "PET_MASTER_PORT": "29400"},
}
SLURM = {
    **{"SLURM_JOB_ID": "4711", "SLURM_NNODES": "2", "SLURM_NODEID": "1", "SLURM_GPUS_ON_NODE": "4"},
    "SLURM_JOB_NODELIST": "node[1-2]",
}


def _yaml(path: Path) -> dict:
    from ruamel.yaml import YAML

    return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))


def _program(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!{sys.executable}\n{text}", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


SAY_ARGUMENTS = "import json, sys\nprint(json.dumps(sys.argv[1:]))\n"
RUN_TASK = "import os, sys\nword = next(i for i, a in enumerate(sys.argv[1:], 1) if a == 'bash')\n" + (
    "os.execvp('bash', sys.argv[word:])\n"
)


def _accelerate_arguments(script: list[str], environment: Mapping[str, str], folder: Path) -> list[str]:
    """What the script gives to `accelerate`, which only prints it here; `srun` runs its task on this machine."""
    tools = folder / "tools"
    _program(tools, "accelerate", SAY_ARGUMENTS)
    _program(tools, "srun", RUN_TASK)
    _program(tools, "scontrol", "print('node1')\nprint('node2')\n")
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        script, env={**os.environ, **environment, "PATH": path}, cwd=folder, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def _command(name: str) -> tuple[list[str], dict[str, str]]:
    """How the file's command is started on the second of two nodes of four GPUs, and with what environment."""
    if name == "slurm.sh":
        return ["bash", str(CLUSTERS / name), "recipes/mine.yaml", "TrainingArguments.seed=3"], SLURM
    if name == "two_machines.sh":
        return ["bash", str(CLUSTERS / name), "1", "192.0.2.1", "recipes/mine.yaml", "TrainingArguments.seed=3"], {}
    if name == "skypilot.yaml":
        file = _yaml(CLUSTERS / name)
        return ["bash", "-c", file["run"]], {**file["envs"], **SKY, "CONFIG": "accelerate_configs/multi_node.yaml"}
    trainer = _yaml(CLUSTERS / name)["spec"]["trainer"]
    given = {each["name"]: each["value"] for each in trainer["env"]}
    assert given["CONFIG"] == "/app/accelerate_configs/multi_node.yaml"
    given["CONFIG"] = "accelerate_configs/multi_node.yaml"
    return [*trainer["command"], *trainer["args"]], {**given, **TORCH_RUNTIME}


@pytest.mark.parametrize("name", ["slurm.sh", "two_machines.sh", "skypilot.yaml", "trainjob.yaml"])
def test_a_cluster_file_starts_one_launcher_a_node_with_a_command_that_begins_and_continues(name, folder):
    from accelerate.commands.launch import launch_command_parser

    script, environment = _command(name)
    words = _accelerate_arguments(script, environment, folder)
    assert words.pop(0) == "launch"
    given = launch_command_parser().parse_args(words)  # refuses what accelerate does not know
    assert (given.num_machines, given.num_processes, given.machine_rank) == (2, 8, 1)
    assert given.main_process_ip in ("192.0.2.1", "node1") and given.main_process_port is not None
    assert given.module and given.training_script == "hf_recipes.run"
    assert (ROOT / given.config_file).is_file()
    assert "--resume" in given.training_script_args
    if name in SCRIPTS:
        assert given.training_script_args == ["recipes/mine.yaml", "--resume", "TrainingArguments.seed=3"]
    else:
        assert given.training_script_args[2].startswith("TrainingArguments.output_dir=/runs/")


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_bash(name):
    assert subprocess.run(["bash", "-n", str(CLUSTERS / name)], capture_output=True, text=True).stderr == ""
    assert os.access(CLUSTERS / name, os.X_OK)


def test_the_directives_of_the_slurm_script_are_sbatchs_and_the_grace_is_shorter_than_its_notice():
    text = (CLUSTERS / "slurm.sh").read_text(encoding="utf-8")
    directives = re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", text, re.M)
    assert len(directives) == text.count("#SBATCH") and {name for name, _ in directives} <= SBATCH
    found = dict(directives)
    notice = re.fullmatch(r"B:USR1@(\d+)", found["signal"])
    assert notice and int(notice[1]) > int(re.search(r"SHUTDOWN_TIMEOUT=(\d+)", text)[1])
    assert "requeue" in found and found["open-mode"] == "append" and found["ntasks-per-node"] == "1"
    body = text.index("set -uo")
    assert max(m.start() for m in re.finditer("^#SBATCH", text, re.M)) < body  # sbatch stops at the first command


def test_the_trainjob_is_one_to_kubeflows_own_models_with_nothing_left_out():
    from kubeflow_trainer_api import models

    body = _yaml(CLUSTERS / "trainjob.yaml")
    job = models.TrainerV1alpha1TrainJob.from_dict(body)
    assert job.to_dict() == body  # a key that the models do not know would be lost
    pod = body["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"][0]
    pod = pod["template"]["spec"]["template"]["spec"]
    grace = next(
        int(each["value"]) for each in body["spec"]["trainer"]["env"] if each["name"].endswith("SHUTDOWN_TIMEOUT")
    )
    assert pod["terminationGracePeriodSeconds"] > grace
    assert pod["containers"][0]["volumeMounts"][0]["name"] == pod["volumes"][0]["name"]


def test_the_skypilot_file_is_a_task_to_skypilots_own_schema():
    """tests/data/skypilot.json has the schemas of skypilot, which needs an older click than this package's."""
    import jsonschema

    schemas = json.loads((ROOT / "tests" / "data" / "skypilot.json").read_text(encoding="utf-8"))
    body = _yaml(CLUSTERS / "skypilot.yaml")
    jsonschema.Draft7Validator.check_schema(schemas["resources"])
    jsonschema.validate(body, schemas["task"])
    jsonschema.validate(body["resources"], schemas["resources"])
    for mount in body["file_mounts"].values():
        jsonschema.validate(mount, schemas["storage"])
    with pytest.raises(jsonschema.ValidationError, match="use_spots"):
        jsonschema.validate({"use_spots": True}, schemas["resources"])


# --- the preempted job, replayed ------------------------------------------------------------------------------------

TEXT = """
task: causal-lm
model:
  config: {{model_type: llama, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 1, num_attention_heads: 2,
           num_key_value_heads: 1, max_position_embeddings: 64}}
BpeTrainer: {{vocab_size: 384}}
dataset:
  path: text
  data_files: {{train: {root}/recipes/data/austen/persuasion.txt}}
  sample_by: paragraph
  split: {{train: "train[:6%]"}}
  max_length: 32
TrainingArguments:
  output_dir: out
  use_cpu: true
  max_steps: {steps}
  per_device_train_batch_size: 4
  learning_rate: 1e-3
  logging_steps: 1
  eval_strategy: "no"
  save_strategy: "no"
"""
SRUN = """
import os, signal, subprocess, sys
word = next(i for i, a in enumerate(sys.argv[1:], 1) if a == 'bash')
child = subprocess.Popen(sys.argv[word:], start_new_session=True, env={**os.environ, 'SLURM_NODEID': '0'})
open('step.pid', 'w').write(str(child.pid))
sys.exit(abs(child.wait()))
"""
SCANCEL = "import os, signal, sys\nassert sys.argv[1] == '--signal=TERM'\nos.kill(int(open('step.pid').read()), 15)\n"
SCONTROL = "import sys\nprint('127.0.0.1')\nopen('calls', 'a').write(' '.join(sys.argv[1:]) + chr(10))\n"


@pytest.mark.slow
def test_a_job_that_slurm_signals_before_its_limit_saves_is_requeued_and_continues_where_it_was(
    root: Path, folder: Path, write_recipe: Callable[..., str]
) -> None:
    recipe = write_recipe(TEXT.format(root=root, steps=5000))
    tools = folder / "tools"
    for name, text in (("srun", SRUN), ("scancel", SCANCEL), ("scontrol", SCONTROL)):
        _program(tools, name, text)
    _program(tools, "accelerate", "from accelerate.commands.accelerate_cli import main\nmain()\n")
    environment = {**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    environment |= {**SLURM, "SLURM_NNODES": "1", "SLURM_GPUS_ON_NODE": "2"}
    environment["CONFIG"] = str(root / "accelerate_configs" / "cpu_2.yaml")

    def start(*words: str) -> subprocess.Popen[str]:
        log = open("job.log", "a")  # noqa: SIM115 -- as --open-mode=append
        script = ["bash", str(CLUSTERS / "slurm.sh"), recipe, *words]
        return subprocess.Popen(script, env=environment, cwd=folder, stdout=log, stderr=log, text=True)

    job = start()
    _wait_for(lambda: is_loss(Path("job.log").read_text()), job)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(timeout=900) != 0
    first = Path("job.log").read_text()
    assert "there is no checkpoint in 'out' yet: this run starts from the beginning" in first
    assert Path("calls").read_text().splitlines()[-1] == "requeue 4711"
    (saved,) = Path("out").glob("checkpoint-*")
    step = int(saved.name.partition("-")[2])

    job = start(f"TrainingArguments.max_steps={step + 2}", "resume_allow=[recipe]")  # the end, without waiting for it
    assert job.wait(timeout=900) == 0, Path("job.log").read_text()[-3000:]
    assert f"resuming from out/{saved.name}, step {step} of {step + 2}" in Path("job.log").read_text()
    record = json.loads(Path("out/record.json").read_text())
    assert (record["status"], record["steps"], record["batch"]["processes"]) == ("finished", step + 2, 2)
    assert Path("calls").read_text().splitlines().count("requeue 4711") == 1


@pytest.mark.slow
def test_two_machines_are_two_launchers_that_meet_at_the_first_ones_address(
    root: Path, folder: Path, write_recipe: Callable[..., str]
) -> None:
    recipe = write_recipe(TEXT.format(root=root, steps=4).replace('save_strategy: "no"', "save_steps: 2"))
    tools = folder / "tools"
    _program(tools, "accelerate", "from accelerate.commands.accelerate_cli import main\nmain()\n")
    environment = {**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    config = (root / "accelerate_configs" / "multi_node.yaml").read_text().replace("use_cpu: false", "use_cpu: true")
    Path("cpu.yaml").write_text(config)
    environment |= {"CONFIG": "cpu.yaml", "GPUS": "1", "PORT": str(_free_port())}
    machines = []
    for rank in ("0", "1"):
        script = ["bash", str(CLUSTERS / "two_machines.sh"), rank, "127.0.0.1", recipe]
        log = open(f"machine{rank}.log", "w")  # noqa: SIM115
        machines.append(subprocess.Popen(script, env=environment, cwd=folder, stdout=log, stderr=log))
    assert [machine.wait(timeout=900) for machine in machines] == [0, 0], Path("machine0.log").read_text()[-3000:]
    assert "x 2 devices x 1 accumulation" in Path("machine0.log").read_text()
    record = json.loads(Path("out/record.json").read_text())
    assert (record["status"], record["steps"], record["batch"]["processes"]) == ("finished", 4, 2)
    assert json.loads(Path("out/checkpoint-4/manifest.json").read_text())["world_size"] == 2


def _wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 900) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, Path("job.log").read_text()[-3000:]
        assert time.monotonic() < end
        time.sleep(0.2)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
