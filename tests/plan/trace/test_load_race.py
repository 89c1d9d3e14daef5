"""What a 4-bit model's load leaves reserved where threads read ahead of the quantiser."""

import json

from hf_recipes.plan import replay_trace, reserved_range
from hf_recipes.plan.trace.load_race import _reordered, race_range
from hf_recipes.plan.trace.trace import trace_here
from tests.support.tiny_recipes import LLAMA, tiny

MIB = 2**20
# Two weights: the original is read, its packed form made, the original given back; and one that is not quantised.
LOAD = [(0, 64 * MIB), (0, -64 * MIB)]
WEIGHTS = [[(1, 40 * MIB), (2, 10 * MIB), (1, -40 * MIB)], [(3, 40 * MIB), (4, 10 * MIB), (3, -40 * MIB)], [(5, MIB)]]


def test_weights_that_are_read_ahead_lie_beside_each_other():
    one_by_one = _reordered([LOAD, *WEIGHTS], 0)
    assert one_by_one == [*LOAD, *WEIGHTS[0], *WEIGHTS[1], *WEIGHTS[2]]
    ahead = _reordered([LOAD, *WEIGHTS], 1)
    assert ahead == [*LOAD, WEIGHTS[0][0], WEIGHTS[1][0], *WEIGHTS[0][1:], WEIGHTS[2][0], *WEIGHTS[1][1:]]
    assert sorted(_reordered([LOAD, *WEIGHTS], 1 << 30)) == sorted(one_by_one)


def test_the_interval_holds_the_load_one_by_one_and_the_load_of_all_at_once():
    events = [*LOAD, *(event for weight in WEIGHTS for event in weight), (6, 4 * MIB)]
    least, most = race_range(events, (2, 3, 3, 1))
    assert (least, most) == (66 * MIB, 106 * MIB)  # the second original beside the first, or in its place


def test_without_such_a_load_there_is_one_value():
    assert race_range([(1, 30 * MIB)], ()) == (30 * MIB, 30 * MIB)


def test_a_4_bit_recipes_trace_knows_its_load():
    quantised = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    sections = {"BitsAndBytesConfig": quantised, "LoraConfig": {"r": 4, "target_modules": "all-linear"}}
    trace = trace_here(tiny("causal-lm", LLAMA, sections=sections), evaluation=False)
    weights = sum(trace.load)
    assert len(trace.load) > 10 and trace.load[0] == 2 and weights < len(trace.events)
    alive = {}
    for storage, change in trace.events[:weights]:
        alive[storage] = alive.get(storage, 0) + change
    assert all(size >= 0 for size in alive.values())
    least, most = reserved_range(trace)
    assert least <= replay_trace(trace).peak <= most
    assert json.loads(trace.to_json())["load"] == list(trace.load) and type(trace).from_json(trace.to_json()) == trace
