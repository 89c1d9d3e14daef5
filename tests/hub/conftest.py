from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.hub_client import IMPORTS, SERVE, clean_environment, small_run
from tests.support.hub_double import HubDouble


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return small_run(tmp_path / "mood")


@pytest.fixture
def long_client(module_client: tuple[HubDouble, Callable[[str], dict]]) -> tuple[HubDouble, Callable[[str], dict]]:
    """`module_client`, its hub without an earlier test's trouble."""
    module_client[0].trouble.clear()
    return module_client


@pytest.fixture(scope="module")
def module_client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[HubDouble, Callable[[str], dict]]]:
    """A hub, and a function that runs code in one client process of it, one call after another."""
    home = tmp_path_factory.mktemp("home")
    with (
        HubDouble() as hub,
        subprocess.Popen(
            [sys.executable, "-c", IMPORTS + SERVE],
            env=clean_environment(home, **hub.environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        assert process.stdin is not None and process.stdout is not None

        def call(code: str) -> dict:
            process.stdin.write(json.dumps(code) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield hub, call
        process.stdin.close()
