"""Any code on meta tensors as a card would run it: what the benchmarks use for measurements that no recipe made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from hf_recipes.plan.trace.autocast import Simulation, replace_autocast
from hf_recipes.plan.trace.cuda_allocator import rounded
from hf_recipes.plan.trace.cuda_workspaces import CudaWorkspaces
from hf_recipes.plan.trace.peak import PeakSummary, summarize_peak
from hf_recipes.plan.trace.tracker import Tracker
from hf_recipes.plan.trace.upstream_patches import patch_upstream_for_meta


@contextmanager
def watching(capability: tuple[int, int], *, uniform: bool = True) -> Iterator[Tracker]:
    """Everything made on torch.device("meta") inside is recorded as if on a card of this compute capability."""
    tracker = Tracker(device="meta", uniform=uniform, workspaces=CudaWorkspaces(capability))
    simulation = Simulation(tracker, capability)
    with ExitStack() as stack:
        stack.enter_context(patch_upstream_for_meta(cuda=True))
        stack.enter_context(replace_autocast(simulation, "cuda"))
        stack.enter_context(simulation)
        stack.enter_context(tracker)
        yield tracker


def account_of(tracker: Tracker, since: int = 0) -> PeakSummary:
    """The peak of what was recorded from the event `since` on; what lived before counts, too."""
    return summarize_peak(tracker.events, tracker.storages, tracker.backward_begins, None, rounded, since)
