"""plan without three of its rules, for a "before" beside each figure.

Switched off: what CUDA's code allocates inside an operation (cuda_temporaries.py), new segments below the older ones
(cuda_allocator.py), and the replay of a 4-bit model's load (load.py). Everything else is plan as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import peaks_t4

from hf_recipes.plan.trace import cuda_allocator, cuda_temporaries, cuda_workspaces, trace
from hf_recipes.plan.trace.upstream_patches import replace_attribute


@contextmanager
def earlier_rules() -> Iterator[None]:
    passing = {name: rule for name, rule in cuda_workspaces.PASSING.items() if name not in cuda_temporaries.RULES}
    with ExitStack() as stack:
        for owner, name, value in (
            (cuda_workspaces, "PASSING", passing),
            (cuda_temporaries, "layer_norm_backward", lambda *_: ()),
            (cuda_allocator, "Segments", _Upwards),
            (trace, "replay_load", lambda *_: ()),
            (peaks_t4, "replay_load", lambda *_: ()),
        ):
            stack.enter_context(replace_attribute(owner, name, value))
        yield


class _Upwards(cuda_allocator.Segments):
    """Each new segment lies above the older ones."""

    def _address(self, wanted: int) -> int:
        self.highest += wanted
        return self.highest - wanted
