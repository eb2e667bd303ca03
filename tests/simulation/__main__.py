"""Run seeds by hand: ``python -m tests.simulation 17``, or ``python -m tests.simulation 0 200`` for a range.

One that fails shows what happened last. ``--digest 17`` prints a number that is the same for equal runs.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from zlib import crc32

from tests.simulation.truth import Violation
from tests.simulation.world import World, run_seed, scratch


def digest(seed: int, directory: Path) -> str:
    """A short text for a whole run."""
    world = World(seed, directory, keep=None)
    world.run()
    lines = world.lines()
    return f"{len(lines)} lines, {crc32(chr(10).join(lines).encode()):08x}"


def main(arguments: list[str]) -> int:
    """Do what is asked; the number of seeds that failed."""
    if arguments[0] == "--digest":
        with scratch() as directory:
            print(digest(int(arguments[1]), Path(directory)))
        return 0
    first = int(arguments[0])
    end = int(arguments[1]) if len(arguments) > 1 else first + 1
    failed = 0
    for seed in range(first, end):
        began_s = time.process_time()
        with scratch() as directory:
            try:
                world = run_seed(seed, Path(directory))
            except Violation as violation:
                failed += 1
                print(violation if end == first + 1 else f"seed {seed} FAILED: {violation.__cause__}", flush=True)
                continue
        print(
            f"seed {seed}: {world.clock.steps} steps in {time.process_time() - began_s:.2f} s,"
            f" {world.truth.last} entries, revision {world.truth.revision}, {world.checks.elections} elections,"
            f" {world.history.answers} answers and {world.history.unknown} unknown,"
            f" {world.promises.expired} leases expired, {dict(world.counts)}",
            flush=True,
        )
    return failed


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1:]), 1))
