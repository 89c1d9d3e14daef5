"""`accelerate launch ... tests/run_and_die.py STEP RANK RECIPE [arguments of run]`: a rank kills itself at a step."""

import os
import sys

from hf_recipes.cli import main
from hf_recipes.training import trainer
from tests.interrupted import KillAt

if __name__ == "__main__":
    step, rank = int(sys.argv[1]), sys.argv[2]
    if os.environ.get("RANK", "0") == rank:
        upstreams = trainer.callbacks
        trainer.callbacks = lambda *args: [*upstreams(*args), KillAt(step)]
    main(["run", *sys.argv[3:]])
