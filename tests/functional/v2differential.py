"""The differential test of the v2 API: one sequence of steps on two servers, every answer and every event compared.

Both must be in the same state when it begins: two new servers, or two that have been through the same. See
:mod:`tests.functional.v2comparison` for what counts as equal.

Run by hand with ``python -m tests.functional.v2differential --help``: it names seed and step of a difference, and the
same seed with that many steps is the shortest failing run of it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.functional.processes import (
    START_TIMEOUT_S,
    EtcdProcess,
    ServerFailed,
    ServerProcess,
    TLSFiles,
    TwistedkvProcess,
)
from tests.functional.v2badinput import DIRECTORIES, FORMS, PAGES, PARAMETERS, PATHS, SIZES
from tests.functional.v2client import Reply, Request, V2Client
from tests.functional.v2operations import Ask, Expire, Finish, Open, Step, V2OperationSource, target_of
from tests.functional.v2pair import OpenPoll, Pair, Parted, poll_of

V2_OPTIONS: dict[type[ServerProcess], tuple[str, ...]] = {
    EtcdProcess: ("--enable-v2", "--strict-reconfig-check=false"),  # else a young member refuses changes
    TwistedkvProcess: ("--strict-reconfig-check=false",),
}
TABLES = {
    "directories": DIRECTORIES,
    "parameters": PARAMETERS,
    "forms": FORMS,
    "paths": PATHS,
    "sizes": SIZES,
    "pages": PAGES,
}
_CHECK_EVERY = 100  # steps between comparisons of the whole tree


@dataclass(frozen=True, slots=True)
class Difference:
    """A step in which the two servers did not show the same."""

    seed: int
    number: int  # of the step, from 1
    step: Step
    request: str  # the one of the step's requests that was answered differently
    expected: str
    found: str

    def __str__(self) -> str:
        return (
            f"seed {self.seed}, step {self.number}: {self.step}\n  asked    {self.request}\n"
            f"  expected {self.expected}\n  found    {self.found}\n"
            f"  again: python -m tests.functional.v2differential --seed {self.seed} --steps {self.number}"
        )


class Run:
    """One sequence.

    Args:
        pair: in equal states.
        seed: of the dice.
        expire_odds: of a step that waits for keys to expire; it takes more than two seconds.
    """

    def __init__(self, pair: Pair, seed: int, expire_odds: float = 0.0) -> None:
        self._pair = pair
        self._seed = seed
        self._source = V2OperationSource(Random(seed), expire_odds)
        self._polls: list[OpenPoll] = []

    def run(self, steps: int) -> Difference | None:
        """Take so many steps; the first difference ends the run, and is returned."""
        number, step = 0, None
        try:
            self._pair.wipe()
            for number in range(1, steps + 1):
                step = self._source.next()
                self._take(step)
                if number % _CHECK_EVERY == 0 or number == steps:
                    self._pair.compare_trees()
            for step in self._source.finish_all():
                self._take(step)
        except Parted as parted:
            step = step or Ask(Request("GET", target_of([])))
            return Difference(self._seed, number, step, parted.request, parted.expected, parted.found)
        finally:
            for poll in self._polls:
                poll.expected.close()
                poll.found.close()
        return None

    def expire(self) -> None:
        """Take a step that waits for keys to expire.

        Raises:
            Parted: something is not the same.
        """
        self._take(self._source.expiry())

    def _take(self, step: Step) -> None:
        match step:
            case Ask():
                if step.only_on_file is None or not self._is_directory(step.only_on_file):
                    self._ask(step.request)
            case Open():
                self._polls.append(self._pair.open(step))
            case Finish():
                self._pair.finish(self._polls.pop(step.number))
            case Expire():
                self._expire(step)

    def _ask(self, request: Request) -> Reply:
        reply = self._pair.ask(request)
        self._source.follow(request, reply)
        return reply

    def _is_directory(self, path: bytes) -> bool:
        elements = [element for element in path.split(b"/") if element]
        reply = self._ask(Request("GET", target_of(elements, b"sorted=true")))
        return reply.status == 200 and b'"dir":true' in reply.body.partition(b'"nodes":')[0]

    def _expire(self, step: Expire) -> None:
        """Watch what ends from above, from below and at the very path, and wait for the last."""
        place = step.place.strip(b"/")
        watched = [
            *(([], True, True), ([place], True, True), ([place, b"ed"], False, False), ([place, b"e0"], False, True)),
            *(([place, b"ed", b"x", b"y"], False, False), ([place, b"ed", b"x"], True, True)),
        ]
        polls = [
            self._pair.open(poll_of(path, recursive=recursive, stream=stream)) for path, recursive, stream in watched
        ]
        *before, final = step.requests
        for request in before:
            self._ask(request)
        awaited = self._pair.open(poll_of([step.last.strip(b"/")], recursive=False, stream=True))
        made = self._ask(final)
        last_index = int(made.one("x-etcd-index") or 0) + 1  # an event of it after it was made: its end
        self._pair.compare(awaited, last_index)
        for poll in polls:
            self._pair.finish(poll)
        self._pair.compare_trees()


def started(servers: Sequence[ServerProcess]) -> list[V2Client]:
    """Start servers, and wait until each has made the nodes of its own, which count in the index.

    The version of the cluster is the last of them.

    Raises:
        ServerFailed: one does not start.
    """
    for server in servers:
        server.spawn()
    clients = []
    for server in servers:
        server.wait_until_ready()
        client = V2Client(server)
        deadline = time.monotonic() + START_TIMEOUT_S
        while b"not_decided" in client.ask(Request("GET", b"/version")).body:
            if time.monotonic() > deadline:
                raise ServerFailed(f"{server.label} has no cluster version:\n{server.log_tail()}")
        clients.append(client)
    return clients


def main(arguments: list[str]) -> int:
    """Run sequences against real etcd and twistedkv, and write the first difference of each; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.functional.v2differential", description=main.__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--seeds", type=int, default=1, help="so many, from --seed on, each with new servers (default 1)"
    )
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--expire", type=float, default=0.0, help="odds of a step that waits for keys to expire")
    parser.add_argument("--tables", action="store_true", help="before each sequence also the tables of bad input")
    parser.add_argument("--plaintext", action="store_true", help="without TLS")
    parser.add_argument("--subject", choices=["twistedkv", "etcd"], default="twistedkv")
    chosen = parser.parse_args(arguments)
    kinds = [EtcdProcess, TwistedkvProcess if chosen.subject == "twistedkv" else EtcdProcess]
    tables = TABLES if chosen.tables else {}
    failed = False
    for seed in range(chosen.seed, chosen.seed + chosen.seeds):
        with tempfile.TemporaryDirectory() as scratch:
            tls = None if chosen.plaintext else TLSFiles.make(Path(scratch) / "tls")
            servers = [kind(Path(scratch) / f"{n}", tls, V2_OPTIONS[kind]) for n, kind in enumerate(kinds)]
            try:
                pair = Pair(*started(servers))
                for name, table in tables.items():
                    for wrong in pair.table(table):
                        failed = True
                        sys.stdout.write(f"{name} {wrong}\n")
                difference = Run(pair, seed, chosen.expire).run(chosen.steps)
                pair.close()
            finally:
                for server in servers:
                    server.stop()
        if difference:
            failed = True
            sys.stdout.write(f"{difference}\n")
        sys.stdout.write(
            f"{chosen.steps} steps with seed {seed}, {pair.events} events: {'parted' if difference else 'equal'}\n"
        )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
