"""A rank kills itself at a step: `accelerate launch tests/support/kill_at_step.py STEP RANK RECIPE [arguments]`."""

import os
import sys

from hf_recipes.cli import main
from hf_recipes.training import trainer
from tests.support.killed_runs import KillAt

if __name__ == "__main__":
    step, rank = int(sys.argv[1]), sys.argv[2]
    if os.environ.get("RANK", "0") == rank:
        upstreams = trainer.callbacks
        trainer.callbacks = lambda *args: [*upstreams(*args), KillAt(step)]
    main(["run", *sys.argv[3:]])
