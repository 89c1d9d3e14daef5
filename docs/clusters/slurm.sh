#!/bin/bash
# A run on SLURM that continues by itself after the time limit and after a preemption. Two nodes of four GPUs (DDP).
# Submit: sbatch docs/clusters/slurm.sh recipes/mine.yaml
#SBATCH --job-name=hf-recipes
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
#SBATCH --signal=B:USR1@600
set -uo pipefail

export RECIPE=${1:?usage: sbatch slurm.sh RECIPE [Section.key=value ...]}
shift
export GPUS=${SLURM_GPUS_ON_NODE:-4} CONFIG=${CONFIG:-accelerate_configs/multi_node.yaml}
HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export HEAD PORT=$((20000 + SLURM_JOB_ID % 10000))
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=540 # seconds for a step and a save, before the 600 of --signal are over

# Ten minutes before the limit SLURM sends SIGUSR1 to this script alone. The launchers pass SIGTERM on to the ranks,
# which finish their step and save a checkpoint.
asked=
stop() {
  asked=yes
  scancel --signal=TERM "$SLURM_JOB_ID"
}
trap stop USR1

# One launcher a node. --resume begins where there is no checkpoint yet.
srun --kill-on-bad-exit=1 bash -c 'exec accelerate launch --config_file "$CONFIG" \
  --num_machines "$SLURM_NNODES" --num_processes "$((SLURM_NNODES * GPUS))" --machine_rank "$SLURM_NODEID" \
  --main_process_ip "$HEAD" --main_process_port "$PORT" \
  -m hf_recipes.run "$RECIPE" --resume "$@"' bash "$@" &
run=$!
wait "$run"
status=$?
while kill -0 "$run" 2>/dev/null; do # the signal has interrupted the wait
  wait "$run"
  status=$?
done
if [[ $asked && $status -ne 0 ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
