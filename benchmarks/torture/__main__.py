"""Kills, signals, corruption and full disks: does a run survive, and end in the straight run's bits?

    python benchmarks/torture                          all of it, into benchmarks/results/torture.json
    python benchmarks/torture --part 1/2               a half of it, into runs/torture; in another terminal 2/2
    python benchmarks/torture --merge                  the parts of runs/torture, into benchmarks/results/torture.json
    python benchmarks/torture --again TEXT --part 1/2   of an earlier part, what has TEXT in its name: measured again
    python benchmarks/torture --kills 12 --signals 4   a short one, printed only
    python benchmarks/torture --repeat "KIND:CHAIN"    one chain again, as a recorded failure names it (--seed, and
                                                       --kills and --signals of a short one), printed only

Everything is real: `hf-recipes run` on small models, signals, files damaged on disk, a tmpfs that fills up. This
process imports torch once and forks each run, so that a start costs no import. A run is killed

    any         at a moment drawn evenly over the run's whole time
    saving      up to 30 ms after a staging folder appears
    rotating    up to 10 ms after a checkpoint is put in place, or is being removed
    operation   just before the N-th operation on a file or folder after the first save began (open, rename, remove,
                mkdir, rmdir, fsync)
    ending      the same after the final weights are being saved: between weights, evaluation, record, card and report

or gets SIGTERM, SIGINT, SIGUSR1 or SIGHUP at any moment, alone or with its whole group. While some run, a second run is
tried in their folder. What must not happen is recorded as a failure with its seed and log; the other chains are run
all the same.
`python benchmarks/tables.py` makes docs/torture.md of the record.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent.parent
PARTS = ROOT / "runs/torture"
KILLS, SIGNALS, SUPERVISORS, LAUNCHERS, REAL = 1000, 320, 40, 40, 4
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from torture import chains, files, kinds, processes, record, supervised  # noqa: E402


def torture(
    kills: int, signals: int, seed: int, part: tuple[int, int], *, parents: tuple[int, int, int], damage: bool,
    only: str = "",
) -> dict[str, Any]:  # fmt: skip
    """`part`: (1, 2) is the first half. `parents`: kills of supervisors, launchers' stand-ins, real launchers. `only`:
    what has this in its name."""
    processes.preload()
    began = time.monotonic()
    found: dict[str, Any] = {"runs": {}, "parents": {}, "files": [], "disks": [], "seed": seed}
    found |= {"part": part[0], "of": part[1], "steps": kinds.STEPS, "save_steps": kinds.SAVES, **record.provenance()}
    for i, (name, run) in enumerate(kinds.RUNS.items()):
        many = [share_of(number, part, i) for number in (kills, signals)]
        if any(many) and only in name:
            found["runs"][name] = chains.in_scratch(
                run,
                lambda name=name, many=many: chains.interrupt_kind(name, *many, seed, part, mix=(kills, signals)),
                two=name == kinds.TWO,
            )
            _say(name, found["runs"][name])
    first, two = next(iter(kinds.RUNS.values())), kinds.RUNS[kinds.TWO]
    if damage and part[0] == 1:
        found["files"] = chains.in_scratch(first, files.damaged_files)
        found["disks"] = chains.in_scratch(first, lambda: [files.full_disk(50, look_before=on) for on in (True, False)])
    starts = {
        "--restart's supervisor": (supervised.supervisor, parents[0], first),
        "a launcher's stand-in (2 processes)": (supervised.forked_launcher, parents[1], two),
        "accelerate launch (2 processes)": (supervised.real_launcher, parents[2], two),
    }
    for name, (begin, count, run) in starts.items():
        if count and only in name:
            found["parents"][name] = chains.in_scratch(
                run,
                lambda name=name, begin=begin, count=count: supervised.kill_parents(name, begin, count, seed, part),
                two=run is two,
            )
            _say(name, found["parents"][name])
    found["seconds"] = time.monotonic() - began
    found["totals"] = record.totals(found)
    return found


def replace_groups(found: dict[str, Any], path: Path) -> dict[str, Any]:
    """An earlier part with the groups that were measured again, e.g. since this program counted them wrong."""
    earlier: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    names = [*found["runs"], *found["parents"]]
    for group in ("runs", "parents"):
        earlier[group] |= found[group]
    earlier["again"] = [*earlier.get("again", ()), {"names": names, "commit": found["commit"], "when": found["when"]}]
    return {**earlier, "totals": record.totals(earlier)}


def share_of(number: int, part: tuple[int, int], kind: int) -> int:
    """What falls to one kind in one part."""
    places = len(kinds.RUNS) * part[1]
    place = kind * part[1] + part[0] - 1
    return number // places + (place < number % places)


def _say(name: str, run: dict[str, Any]) -> None:
    counts = {**run, **{key: sum(run[key].values()) for key in ("kills", "signals") if key in run}}
    shown = ("kills", "signals", "parents", "resumes", "ends", "equal_ends", "orphans", "second_runs_refused")
    print(f"{name}: " + ", ".join(f"{key} {counts[key]}" for key in shown if key in counts), end="")
    print(f", failures {len(run['failures'])}, {run.get('seconds', 0):.0f} s", flush=True)


def repeat(wanted: str, seed: int, mix: tuple[int, int]) -> None:
    name, _, chain = wanted.rpartition(":")
    processes.preload()
    run = kinds.RUNS[name]
    found = chains.in_scratch(
        run, lambda: chains.interrupt_kind(name, 1, 1, seed, mix=mix, only=int(chain)), two=name == kinds.TWO
    )
    print(json.dumps(found, indent=1))


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--kills", type=int, default=0, help="so many only, without files and disks; not recorded")
    words.add_argument("--signals", type=int, default=0, help="as --kills")
    words.add_argument("--parents", type=int, default=0, help="as --kills: of supervisors, and of launchers' stand-ins")
    words.add_argument("--seed", type=int, default=1)
    words.add_argument("--part", default="1/1", metavar="K/N", help="every N-th chain, from the K-th")
    words.add_argument(
        "--only", default="", metavar="TEXT", help="runs whose name contains it; with --kills, --signals"
    )
    words.add_argument("--again", default="", metavar="TEXT", help="of an earlier part, what has TEXT in its name")
    words.add_argument("--merge", action="store_true", help="join the parts")
    words.add_argument("--repeat", metavar="KIND:CHAIN")
    given = words.parse_args()
    os.chdir(ROOT)
    if given.merge:
        found = record.merge([json.loads(path.read_text(encoding="utf-8")) for path in PARTS.glob("*-of-*.json")])
        record.write(found, record.RESULT)
        print(json.dumps(found["totals"], indent=1))
        return
    if given.repeat:
        repeat(given.repeat, given.seed, (given.kills or KILLS, given.signals or SIGNALS))
        return
    part = tuple(int(word) for word in given.part.split("/"))
    short = given.kills + given.signals + given.parents > 0
    many = (given.kills, given.signals) if short else (KILLS, SIGNALS)
    parents = (given.parents, given.parents, 0) if short else (SUPERVISORS, LAUNCHERS, REAL)
    only, path = given.again or (given.only if short else ""), PARTS / f"{part[0]}-of-{part[1]}.json"
    found = torture(*many, given.seed, (part[0], part[1]), parents=parents, damage=not short and not only, only=only)
    if given.again:
        found = replace_groups(found, path)
    print(json.dumps(found["totals"], indent=1))
    if not short:
        record.write(found, path)
    if not short and part[1] == 1:
        record.write(record.merge([found]), record.RESULT)


if __name__ == "__main__":
    main()
