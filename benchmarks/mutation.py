"""Do the tests notice? Plants small faults in the core, one at a time, and runs the tests nearest to each.

    python benchmarks/mutation.py                       every module, into benchmarks/results/mutation.json
    python benchmarks/mutation.py compare/verdict.py    one module (its part of the record)
    python benchmarks/mutation.py --list compare/verdict.py

Every mutant is planted in a process forked from one that has imported everything: its functions' code is replaced in
place, the tests that reach the changed statement run until one fails, and the process ends. A mutant that no test
notices survives. benchmarks/mutation_reasons.json says of survivors why no test can or should notice them;
benchmarks/tables.py writes docs/testing.md from both.

mutmut 3 and cosmic-ray were tried on paper: the first also changes every text (most of this package's statements are
messages) and replaces functions by trampolines, which tests that inspect signatures do not survive; the second starts
pytest, and so torch, once a mutant.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import gc
import importlib
import json
import os
import platform
import random
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import mutants as operators
import pytest
from mutants import Mutant

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "benchmarks/results/mutation.json"
SEED = 0
HIT = "mutation_hit"

# Modules -> the tests nearest to them, and how many mutants of each module are tried (0: all of them).
GROUPS: tuple[tuple[tuple[str, ...], tuple[str, ...], int], ...] = (
    (
        ("compare/statistics.py", "compare/verdict.py", "compare/pairing.py", "compare/measures.py"),
        ("tests/compare",),
        0,
    ),
    (("evaluation/scores.py",), ("tests/evaluation/test_scores.py", "tests/compare"), 0),
    (
        (
            "data/causal_lm.py",
            "data/chat.py",
            "data/text_classification.py",
            "data/token_classification.py",
            "data/row_checks.py",
        ),
        ("tests/data",),
        0,
    ),
    (("checkpoints/manifest.py", "checkpoints/select.py"), ("tests/checkpoints/test_manifest_and_select.py",), 0),
    (
        ("training/step_guard.py",),
        (
            "tests/training/test_step_guard_alone.py",
            "tests/training/test_gradient_guard.py",
            "tests/training/test_step_guard.py",
        ),
        0,
    ),
    (("training/batch_split.py",), ("tests/training/test_batch_split.py",), 0),
    (("plan/trace/cuda_allocator.py",), ("tests/plan/trace/test_cuda_allocator.py",), 0),
    (
        (
            "recipe/read.py",
            "recipe/merge.py",
            "recipe/validate.py",
            "recipe/yaml_reader.py",
            "recipe/upgrade.py",
            *(f"recipe/rules/{name}.py" for name in ("all_rules", "data", "device", "evaluation", "hub", "model")),
            *(f"recipe/rules/{name}.py" for name in ("optimizer", "precision", "rule")),
        ),
        ("tests/recipe",),
        0,
    ),
)


class Target:
    """A module whose code can be replaced while it is loaded."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.module = importlib.import_module("hf_recipes." + path.removesuffix(".py").replace("/", "."))
        self.file = str(self.module.__file__)
        self.source = Path(self.file).read_text(encoding="utf-8")
        self.tree = ast.parse(self.source)
        self.mutants = operators.mutants(self.tree)
        self.functions: list[Any] = []
        self.caches: list[Any] = []
        self.hits: set[int] = set()

    def find_functions(self) -> None:
        """Every live function of the file, methods, closures and what decorators wrap included."""
        self.functions = [
            found
            for found in gc.get_objects()
            if type(found) is types.FunctionType and found.__code__.co_filename == self.file
        ]
        self.caches = [
            found
            for found in gc.get_objects()
            if hasattr(type(found), "cache_clear") and getattr(found, "__module__", "") == self.module.__name__
        ]

    def replace(self, tree: ast.Module) -> None:
        """The functions get the code that `tree` compiles to; found by qualified name and first line."""
        codes: dict[tuple[str, int], list[types.CodeType]] = {}
        for code in _codes(compile(tree, self.file, "exec")):
            codes.setdefault((code.co_qualname, code.co_firstlineno), []).append(code)
        for function in self.functions:
            found = codes.get((function.__code__.co_qualname, function.__code__.co_firstlineno), [])
            if len(found) == 1:
                function.__code__ = found[0]  # ValueError for one that closes over other variables
        self.clear()

    def instrument(self) -> None:
        setattr(self.module, HIT, self.hits.add)
        self.replace(ast.fix_missing_locations(operators.Instrument(HIT).visit(ast.parse(self.source))))

    def clear(self) -> None:
        for cache in self.caches:
            cache.cache_clear()

    def plant(self, mutant: Mutant) -> None:
        mutant.edit.swap(mutant.edit.new)
        self.replace(ast.fix_missing_locations(self.tree))
        if not mutant.inside:
            self._plant_outside()

    def _plant_outside(self) -> None:
        """Defaults of functions, and a module's constants wherever they were imported by name."""
        fresh = types.ModuleType(self.module.__name__)
        fresh.__file__ = self.file
        exec(compile(self.tree, self.file, "exec"), fresh.__dict__)
        again = {
            (found.__code__.co_qualname, found.__code__.co_firstlineno): found
            for found in gc.get_objects()
            if type(found) is types.FunctionType and found.__globals__ is fresh.__dict__
        }
        for function in self.functions:
            new = again.get((function.__code__.co_qualname, function.__code__.co_firstlineno))
            if new is not None:
                function.__defaults__, function.__kwdefaults__ = new.__defaults__, new.__kwdefaults__
        for name, value in vars(fresh).items():
            old = self.module.__dict__.get(name)
            if isinstance(value, (int, float, tuple)) and type(value) is type(old) and value != old:
                for module in list(sys.modules.values()):
                    if getattr(module, "__dict__", {}).get(name) is old:
                        setattr(module, name, value)


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    for one in code.co_consts:
        if isinstance(one, types.CodeType):
            yield one
            yield from _codes(one)


class Session:
    """The pytest plugin: runs every test once to learn what it reaches, then each mutant in a fork."""

    def __init__(self, modules: Sequence[str], options: argparse.Namespace, sample: int) -> None:
        self.modules, self.options, self.sample = modules, options, sample
        self.failed = ""
        self.seconds: dict[str, float] = {}
        self.reached: dict[str, set[tuple[str, int]]] = {}
        self.shared: dict[Any, set[tuple[str, int]]] = {}
        self.found: list[dict[str, Any]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed = self.failed or report.nodeid

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Any:
        """What a shared fixture reaches counts for every test that asks for it."""
        outside = self._take()
        try:
            return (yield)
        finally:
            inside = self._take()
            self.shared.setdefault(fixturedef, set()).update(inside)
            self._put(outside | inside)

    def _take(self) -> set[tuple[str, int]]:
        found = {(target.path, line) for target in getattr(self, "targets", ()) for line in target.hits}
        for target in getattr(self, "targets", ()):
            target.hits.clear()
        return found

    def _put(self, hits: set[tuple[str, int]]) -> None:
        for target in self.targets:
            target.hits.update(line for path, line in hits if path == target.path)

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self.targets = [Target(path) for path in self.modules]
        for target in self.targets:
            target.find_functions()
            target.instrument()
        self.items = self._first_run(session.items)
        for target in self.targets:
            target.replace(target.tree)
        if "torch" in sys.modules:  # with one thread: a pool of threads is gone in a fork
            sys.modules["torch"].set_num_threads(1)
        gc.collect()
        gc.freeze()
        for target in self.targets:
            self.found.append(self._module(target))
        return True

    def _first_run(self, items: Sequence[pytest.Item]) -> list[pytest.Item]:
        """Each test once, unchanged; those that fail or are skipped notice nothing and are left out."""
        good = []
        for item, following in zip(items, [*items[1:], None], strict=True):
            for target in self.targets:
                target.clear()
            self.failed = ""
            self._take()
            start = time.process_time()
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            self.seconds[item.nodeid] = time.process_time() - start
            self.reached[item.nodeid] = self._take()
            if self.failed:
                print(f"fails unchanged, left out: {self.failed}", file=sys.stderr)
            else:
                good.append(item)
        for item in good:
            for definitions in item._fixtureinfo.name2fixturedefs.values():  # type: ignore[attr-defined]
                for definition in definitions:
                    self.reached[item.nodeid] |= self.shared.get(definition, set())
        return good

    def _module(self, target: Target) -> dict[str, Any]:
        tried = list(target.mutants)
        count = self.options.sample or self.sample
        if count and count < len(tried):
            tried = sorted(random.Random(SEED).sample(tried, count), key=lambda mutant: mutant.line)
        noticed, survivors, killers = 0, [], dict[str, int]()
        started = time.time()
        for mutant, outcome, by in self._outcomes(target, tried, killers):
            if outcome == "survived" or outcome == "not reached":
                survivors.append(
                    {"line": mutant.line, "function": mutant.function, "kind": mutant.kind}
                    | {"before": mutant.before, "after": mutant.after, "reached": outcome == "survived"}
                )
                print(f"{target.path}:{mutant.line}: {outcome}: {mutant.before}  ->  {mutant.after}", flush=True)
            else:
                noticed += 1
                killers[by] = killers.get(by, 0) + 1
        survivors.sort(key=lambda one: (one["line"], one["before"], one["after"]))
        share = noticed / max(1, len(tried))
        print(
            f"{target.path}: {noticed} of {len(tried)} noticed ({share:.1%}), {time.time() - started:.0f} s", flush=True
        )
        return {
            "module": target.path,
            "mutants": len(target.mutants),
            "tried": len(tried),
            "noticed": noticed,
            "survivors": survivors,
        }

    def _outcomes(self, target: Target, tried: Sequence[Mutant], killers: dict[str, int]) -> Iterator[tuple]:
        """(mutant, outcome, the test that noticed), `--jobs` of them at a time."""
        running: dict[int, tuple[Mutant, int, Path]] = {}
        waiting = list(tried)
        while waiting or running:
            while waiting and len(running) < self.options.jobs:
                mutant = waiting.pop(0)
                items = self._reaching(target, mutant, killers)
                if not items:
                    yield mutant, "not reached", ""
                    continue
                folder = Path(tempfile.mkdtemp(prefix="mutant-"))
                reader, child = self._fork(target, mutant, items, folder)
                running[child] = (mutant, reader, folder)
            if not running:
                continue
            child, status = os.waitpid(-1, 0)
            if child not in running:
                continue
            mutant, reader, folder = running.pop(child)
            ready, _, _ = select.select([reader], [], [], 0)
            by = os.read(reader, 4096).decode() if ready else ""
            os.close(reader)
            shutil.rmtree(folder, ignore_errors=True)
            yield mutant, "survived" if status == 0 else "noticed", by or "a signal or the time-out"

    def _reaching(self, target: Target, mutant: Mutant, killers: dict[str, int]) -> list[pytest.Item]:
        """The tests that reach the statement: those first that noticed others, then the fast ones."""
        where = (target.path, mutant.statement)
        items = self.items
        if mutant.inside:
            items = [item for item in items if where in self.reached[item.nodeid]]
        else:
            items = [item for item in items if any(path == target.path for path, _ in self.reached[item.nodeid])]
        return sorted(items, key=lambda item: (-killers.get(item.nodeid, 0), self.seconds[item.nodeid]))

    def _fork(self, target: Target, mutant: Mutant, items: Sequence[pytest.Item], folder: Path) -> tuple[int, int]:
        reader, writer = os.pipe()
        child = os.fork()
        if child:
            os.close(writer)
            return reader, child
        code = 2
        try:
            os.setpgid(0, 0)
            quiet = os.open(os.devnull, os.O_RDWR)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            limit = 10 + 2 * self.options.budget + 2 * max(self.seconds[item.nodeid] for item in items)
            signal.signal(signal.SIGPROF, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_PROF, limit)  # of CPU time: the machine may be busy
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(int(limit * 15))
            resource.setrlimit(resource.RLIMIT_DATA, (8 << 30, 8 << 30))
            items[0].config._tmp_path_factory._basetemp = folder  # type: ignore[attr-defined]
            try:
                target.plant(mutant)
            except ValueError:
                os._exit(0)  # not planted, so not noticed
            code = self._notice(items, writer)
        except BaseException:
            code = 3
        finally:
            os._exit(code)

    def _notice(self, items: Sequence[pytest.Item], writer: int) -> int:
        self.failed = ""
        start = time.process_time()
        for item, following in zip(items, [*items[1:], None], strict=True):
            if time.process_time() - start > self.options.budget:
                return 0  # the tests that are left are not run, and notice nothing
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if self.failed:
                os.write(writer, self.failed.encode()[:4000])
                return 1
        return 0


def one_group(number: int, options: argparse.Namespace) -> None:
    """In a process of its own: the group's modules, as JSON into --output."""
    modules, tests, sample = GROUPS[number]
    if options.modules:
        modules = tuple(path for path in modules if path in options.modules)
    os.chdir(ROOT)
    session = Session(modules, options, sample)
    arguments = ["-n", "0", "-p", "no:cacheprovider", "--capture=sys", "-q", *tests]
    code = pytest.main(arguments, plugins=[session])
    if len(session.found) != len(modules):
        sys.exit(f"pytest ended with {code}")
    Path(options.output).write_text(json.dumps(session.found), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Do the tests notice? Plants small faults in the core.")
    parser.add_argument("modules", nargs="*", help="such as compare/verdict.py; all of them without")
    parser.add_argument("--list", action="store_true", help="print the mutants and run nothing")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time")
    parser.add_argument("--sample", type=int, default=0, help="mutants a module (seeded); 0: as the table says")
    parser.add_argument("--budget", type=float, default=5.0, help="CPU seconds of tests a mutant")
    parser.add_argument("--group", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--output", help=argparse.SUPPRESS)
    options = parser.parse_args()
    known = [path for modules, _, _ in GROUPS for path in modules]
    unknown = [path for path in options.modules if path not in known]
    if unknown:
        parser.error(f"not in GROUPS: {', '.join(unknown)}")
    if options.list:
        for path in options.modules or known:
            tree = ast.parse((ROOT / "hf_recipes" / path).read_text(encoding="utf-8"))
            found = operators.mutants(tree)
            for mutant in found if options.modules else ():
                print(f"{path}:{mutant.line}: {mutant.kind}: {mutant.before}  ->  {mutant.after}")
            print(f"{path}: {len(found)} mutants")
        return
    if options.group is not None:
        one_group(options.group, options)
        return
    record = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {"modules": []}
    for number, (modules, tests, _) in enumerate(GROUPS):
        wanted = [path for path in modules if not options.modules or path in options.modules]
        if not wanted:
            continue
        with tempfile.TemporaryDirectory() as folder, contextlib.suppress(KeyboardInterrupt):
            output = Path(folder, "found.json")
            subprocess.run([sys.executable, __file__, *sys.argv[1:], "--group", str(number), "--output", str(output)])
            if not output.exists():
                sys.exit(f"{', '.join(wanted)}: the tests did not run")
            for one in json.loads(output.read_text(encoding="utf-8")):
                kept = [other for other in record["modules"] if other["module"] != one["module"]]
                record["modules"] = [*kept, {**one, "tests": list(tests), "budget_seconds": options.budget}]
        record["modules"].sort(key=lambda one: known.index(one["module"]) if one["module"] in known else len(known))
        record |= {"seed": SEED, "python": platform.python_version(), "date": time.strftime("%Y-%m-%d")}
        RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
