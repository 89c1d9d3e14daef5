"""How long training waits for its data loader. Imports neither torch nor transformers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any


class DataWait:
    """Seconds inside the loader's `next`: reading, collating and copying what no worker has made ready yet."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def measure(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The same batches, one at a time, none of them read ahead."""
        while True:
            began = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                self.seconds += time.perf_counter() - began
            yield batch
