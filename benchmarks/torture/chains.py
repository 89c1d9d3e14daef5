"""Chains: a run is interrupted several times in a row, then reaches its end, which must be the straight run's."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torture import kinds, look
from torture.child import BATCHES, Session, train
from torture.processes import ended, is_alive, kill, start, sweep, wait

KILLS = ("any", "saving", "rotating", "operation", "ending")
SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")
LONGEST = 6  # interruptions in a row
CLOCKS = (-86_400, -3_600, 3_600, 86_400, 0)
ORPHANS_AFTER = 10.0
SECOND_RUNS = ((), ("--resume",), ("--restart", "1"))


class Failure(Exception):
    """What must not happen; counted and recorded, and the torture continues."""


def interrupt_kind(
    name: str, kills: int, signals: int, seed: int, part: tuple[int, int] = (1, 1), *,
    mix: tuple[int, int] = (10, 3), only: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """At least so many kills and signals of one kind of run, drawn in the proportion of `mix`. Chains are numbered; a
    part has each N-th of them, and `only` is one of them, to repeat it."""
    found: dict[str, Any] = dict.fromkeys(("chains", "resumes", "ends", "equal_ends", "seconds"), 0)
    found |= {"kills": Counter(), "signals": Counter(), "ended_as": Counter(), "half": 0, "lost": 0, "staging": 0}
    found |= {"orphans": 0, "second_runs": 0, "second_runs_refused": 0, "failures": []}
    began = time.monotonic()
    seconds, straight = run_straight()
    found |= {"straight_seconds": seconds, "straight": straight}
    found |= {"operations": json.loads(Path("operations.json").read_text(encoding="utf-8"))}
    found |= {"saves": max(1, found["operations"].pop("saves"))}
    chain = part[0] - 1 if only is None else only
    while found["kills"].total() < kills or found["signals"].total() < signals:
        log = Path("child.log")
        log.unlink(missing_ok=True)
        try:
            _run_chain(name, random.Random(f"{seed}/{name}/{chain}"), seconds, straight, mix, found)
        except Exception as problem:
            what = str(problem) if isinstance(problem, Failure) else traceback.format_exc(limit=-3)
            found["failures"].append(
                {"kind": name, "seed": seed, "chain": chain, "mix": mix, "what": what, "log": look.tail()}
            )
            print(f"{name}, chain {chain}: {what}\n    " + "\n    ".join(look.tail().splitlines()[-8:]), flush=True)
            if len(found["failures"]) >= 20:  # a kind that is broken costs no more time
                break
        found["chains"] += 1
        clean()
        chain += part[1]
        if only is not None:
            break
    found["seconds"] = time.monotonic() - began
    return found


def run_straight() -> tuple[float, dict[str, str]]:
    """Seconds and result of the run that nobody interrupts."""
    began = time.monotonic()
    status = wait(start(lambda: train(Session())))
    if status != 0:
        raise SystemExit(f"the straight run ended with {status}:\n{look.tail()}")
    seconds, straight = time.monotonic() - began, look.result()
    clean()
    return seconds, straight


def clean() -> None:
    shutil.rmtree("out", ignore_errors=True)
    for name in ("saves.log", "rank1.pid", "second.log"):
        Path(name).unlink(missing_ok=True)
    if Path(BATCHES).exists():
        Path(BATCHES).write_text("", encoding="utf-8")


def _run_chain(
    name: str, draw: random.Random, seconds: float, straight: dict[str, str], mix: tuple[int, int],
    found: dict[str, Any],
) -> None:  # fmt: skip
    resume = False
    if name == kinds.RAISED:
        _finish(Session(arguments=(f"TrainingArguments.max_steps={kinds.FIRST_STEPS}",)), draw, seconds, found, False)
        resume = True
    for _ in range(draw.randint(1, LONGEST)):
        kind = draw.choices(("kill", "signal"), mix)[0]
        clock = draw.choice(CLOCKS) if name == kinds.CLOCK else 0
        if clock:
            _shuffle_times(draw)
        found["resumes"] += resume
        act = _send_signal if kind == "signal" else _kill_once
        if not act(draw, seconds, resume, clock, found):
            _check_end(straight, found)
            return
        state = look.after_an_end()
        for key in ("half", "lost", "staging"):
            found[key] += state[key]
        if state["half"] or state["lost"]:
            raise Failure(f"after a {kind}: {state}")
        if state["complete"] and look.result()["steps"] == straight["steps"]:
            _check_end(straight, found)
            return
        resume = state["resumable"]
    found["resumes"] += resume
    _finish(Session(resume=resume), draw, seconds, found, True)
    _check_end(straight, found)


def _finish(session: Session, draw: random.Random, seconds: float, found: dict[str, Any], second: bool) -> None:
    """A run to its end, perhaps with a second one in its folder, which must be refused."""
    child = start(lambda: train(session))
    if second and draw.random() < 0.3:
        _try_second(child, draw, seconds, found)
    status = wait(child)
    sweep(child)
    if status != 0:
        raise Failure(f"a run that was left alone ended with {status}" + (", resumed" if session.resume else ""))


def _try_second(child: int, draw: random.Random, seconds: float, found: dict[str, Any]) -> None:
    deadline = time.monotonic() + 20
    while _lock_holder() != child and time.monotonic() < deadline and is_alive(child):
        time.sleep(0.005)
    time.sleep(draw.uniform(0, 0.4 * seconds))
    words = draw.choice(SECOND_RUNS)
    Path("second.log").unlink(missing_ok=True)

    def work() -> None:
        from hf_recipes.cli import main

        main(["run", "recipe.yaml", *words])

    os.kill(child, signal.SIGSTOP)  # else it may end meanwhile, and the second run rightly begins in its folder
    try:
        if _lock_holder() != child or not is_alive(child) or not Path("out/.lock").exists():
            return
        status = wait(start(work, "second.log"), 60)
    finally:
        os.kill(child, signal.SIGCONT)
    said = look.tail("second.log")
    found["second_runs"] += 1
    refused = status == 2 and f"is in use by process {child}" in said
    found["second_runs_refused"] += refused
    if not refused:
        raise Failure(f"a second run ({' '.join(words) or 'plain'}) ended with {status}: {said}")


def _lock_holder() -> int:
    """The process that the lock's file names: a run that was killed leaves its file."""
    try:
        return int(json.loads(Path("out/.lock").read_text(encoding="utf-8"))["pid"])
    except (OSError, ValueError):
        return 0


def _check_end(straight: dict[str, str], found: dict[str, Any]) -> None:
    found["ends"] += 1
    differ = look.differences(look.result(), straight)
    found["equal_ends"] += not differ
    if differ:
        raise Failure(f"the end is not the straight run's: {', '.join(differ)}")


def _shuffle_times(draw: random.Random) -> None:
    """Files' times say nothing either."""
    for path in Path("out").rglob("*"):
        moment = time.time() + draw.uniform(-1e6, 1e5)
        os.utime(path, (moment, moment))


# --- one interruption ------------------------------------------------------------------------------------------------


def _kill_once(draw: random.Random, seconds: float, resume: bool, clock: int, found: dict[str, Any]) -> bool:
    """Starts a run and kills it; False if it was at its end before the moment came."""
    way = draw.choice(KILLS)
    two = Path("two").exists()
    alone = two and draw.random() < 0.5
    dies_at = draw.randint(1, found["operations"][way]) if way in found["operations"] else 0
    Path("rank1.pid").unlink(missing_ok=True)
    child = start(lambda: train(Session(resume=resume, dies_at=dies_at, ending=way == "ending", clock=clock)))
    moment = time.monotonic() + draw.uniform(0, seconds)
    pause = draw.uniform(0, 0.03 if way == "saving" else 0.01)
    skip = draw.randint(0, found["saves"] - 1)  # appearances that are let pass: not always the first save is hit
    seen: set[str] = set()
    signs = {"saving": (".staging-",), "rotating": (".removing-", "checkpoint-")}.get(way, ())
    deadline = time.monotonic() + 120
    while (status := ended(child)) is None:
        if time.monotonic() > deadline:
            kill(child)
            raise Failure("a run hangs")
        if way == "any" and time.monotonic() >= moment:
            status = kill(child, alone=alone)
            break
        if signs:
            names = {path.name for path in Path("out").iterdir()} if Path("out").is_dir() else set()
            marks = {name for name in names if name.startswith(signs)}
            if marks - seen:
                if not skip:
                    time.sleep(pause)
                    status = kill(child, alone=alone)
                    break
                skip, seen = skip - 1, seen | marks
        time.sleep(0.0005 if signs else 0.003)
    _count_orphans(child, found)
    if status == 0:
        return False
    if status != -signal.SIGKILL and not two:
        raise Failure(f"a run failed by itself ({status})")
    found["kills"][way] += 1
    return True


def _send_signal(draw: random.Random, seconds: float, resume: bool, clock: int, found: dict[str, Any]) -> bool:
    """Starts a run and sends it a signal, to the process or to its group; False if it finished all the same."""
    name, group = draw.choice(SIGNALS), draw.random() < 0.5
    number = getattr(signal, name)
    child = start(lambda: train(Session(resume=resume, clock=clock)))
    moment = time.monotonic() + draw.uniform(0.05, seconds)
    while (status := ended(child)) is None and time.monotonic() < moment:
        time.sleep(0.003)
    if status is None:
        (os.killpg if group else os.kill)(child, number)
        status = wait(child, 60)
    _count_orphans(child, found)
    if status == 0:
        return False
    found["signals"][f"{name}, {'group' if group else 'process'}"] += 1
    if status not in (128 + number, -number):
        raise Failure(f"after {name} to the {'group' if group else 'process'} the run ended with {status}")
    found["ended_as"]["documented" if status > 0 else "before the run listened"] += 1
    return True


def _count_orphans(child: int, found: dict[str, Any]) -> None:
    """Processes of a dead run's group that still run after ten seconds."""
    found_left = wait_for_none(lambda: members(child))
    sweep(child)
    found["orphans"] += len(found_left)
    if found_left:
        raise Failure(f"{len(found_left)} processes were left of a run that had ended")


def wait_for_none(left: Callable[[], list[int]], seconds: float = ORPHANS_AFTER) -> list[int]:
    deadline = time.monotonic() + seconds
    while (found := left()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def members(group: int) -> list[int]:
    """Living processes of a group."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit() and is_alive(int(path.name)):
            try:
                if os.getpgid(int(path.name)) == group:
                    found.append(int(path.name))
            except ProcessLookupError:
                continue
    return found


# --- folders ---------------------------------------------------------------------------------------------------------


def in_scratch(
    run: dict[str, Any], work: Callable[[], Any], *, two: bool = False,
    prepare: Callable[[Path, dict[str, Any]], None] = kinds.prepare,
) -> Any:  # fmt: skip
    """`work` in a folder of its own with the recipe, its model and its rows. Weights are made in a fork of its own:
    this process must not start torch's threads."""
    home = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="torture-") as scratch:
        os.chdir(scratch)
        try:
            if wait(start(lambda: prepare(Path(scratch), run))) != 0:
                raise SystemExit(look.tail())
            if two:
                Path("two").touch()
            return work()
        finally:
            os.chdir(home)
