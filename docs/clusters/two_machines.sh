#!/bin/bash
# A run on two machines without a scheduler (DDP). output_dir has to be a folder that both see, or the first one's own.
# On the first:  docs/clusters/two_machines.sh 0 FIRST_ADDRESS recipes/mine.yaml
# On the second: docs/clusters/two_machines.sh 1 FIRST_ADDRESS recipes/mine.yaml
set -euo pipefail

RANK_OF_MACHINE=${1:?0 on the first machine, 1 on the second}
FIRST=${2:?the address of the first machine}
RECIPE=${3:?a recipe}
shift 3
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=300 # seconds for a step and a save after Ctrl-C or SIGTERM

# GPUS: of one machine. Where one of the two is lost both end, and the same two lines continue.
exec accelerate launch --config_file "${CONFIG:-accelerate_configs/multi_node.yaml}" \
  --num_machines 2 --num_processes "$((2 * ${GPUS:-4}))" --machine_rank "$RANK_OF_MACHINE" \
  --main_process_ip "$FIRST" --main_process_port "${PORT:-29500}" \
  -m hf_recipes.run "$RECIPE" --resume "$@"
