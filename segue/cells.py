"""Long work cell by cell: what is done is kept in a file, so that work which was interrupted goes on where it stopped
and ends with the same table."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from segue.files import read_json, write_json
from segue.progress import Meter

SECONDS = "(seconds)"  # no cells: how long the file's values took, and
PROCESSOR = "(processor)"  # how much of that, over all cores, was computing


class Cells:
    """JSON values by name, kept in the file `path` (None: nowhere). meter: is told how many there are. earlier,
    earlier_processor: seconds that the sittings before this one took, and those that processors computed in them."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.values: dict[str, Any] = read_json(path) if path is not None and path.exists() else {}
        self.earlier = float(self.values.pop(SECONDS, 0.0))
        self.earlier_processor = float(self.values.pop(PROCESSOR, 0.0))
        self.begin = time.perf_counter()
        self.begin_processor = processor_seconds()
        self.meter: Meter = lambda done, note="": None

    def compute(self, wanted: Mapping[str, Callable[[], Any]], workers: int) -> dict[str, Any]:
        """The values of all that are wanted, by name. Those not yet there are computed, in up to `workers` processes of
        one thread each (the functions must then be importable ones, or `functools.partial` of such)."""
        missing = {name: compute for name, compute in wanted.items() if name not in self.values}
        workers = min(workers, len(missing))
        if workers > 1:
            import torch

            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(workers, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                running = {pool.submit(compute): name for name, compute in missing.items()}
                try:
                    for future in as_completed(running):
                        self._keep(running[future], future.result())
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
        else:
            for name, compute in missing.items():
                self._keep(name, compute())
        return {name: self.values[name] for name in wanted}

    def _keep(self, name: str, value: Any) -> None:
        # Through JSON either way, so that a resumed run sees exactly what the first one saw.
        self.values[name] = json.loads(json.dumps(value))
        self.meter(len(self.values), name)
        if self.path is not None:
            write_json(self.path, self.values | {SECONDS: self.seconds, PROCESSOR: self.processor})

    @property
    def seconds(self) -> float:
        """Of this sitting so far and those before it."""
        return round(self.earlier + time.perf_counter() - self.begin, 1)

    @property
    def processor(self) -> float:
        """Seconds that processors computed, this process and those of cells that have ended: what the work costs
        whatever else the machine does, on two cores at best twice `seconds`."""
        return round(self.earlier_processor + processor_seconds() - self.begin_processor, 1)


def processor_seconds() -> float:
    """Computed by this process so far, and by processes it started that have ended."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system
