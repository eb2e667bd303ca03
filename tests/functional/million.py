"""A million keys: how long it takes to load them, what they take in memory, and how soon a member is back.

Run by ``make million`` or ``python -m tests.functional.million``. It fails if a restart takes too long, after SIGKILL
or after SIGTERM, or if a key is not what was written. Every key has a value of its own, made from its number alone.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import grpc

from tests.functional.processes import TLSFiles, TwistedkvProcess
from twistedkv.pb import rpc_pb2 as pb

KEYS = 1_000_000
VALUE_BYTES = 256
PUTS_PER_TXN = 100
MAX_RESTART_S = 15.0

_IN_FLIGHT = 16  # transactions on the one connection
_SAMPLES = 1000
_TIMEOUT_S = 60.0
_TXN = "/etcdserverpb.KV/Txn"
_RANGE = "/etcdserverpb.KV/Range"


class Failure(Exception):
    """The member is too slow, or wrong; the text says which."""


@dataclass(slots=True)
class Million:
    """One run.

    Args:
        server: not started, and without data.
        keys: how many.
        report: takes one line of text.
    """

    server: TwistedkvProcess
    keys: int
    report: Callable[[str], object]

    def run(self) -> None:
        """Load, kill and restart, stop and restart, and check what is there each time.

        Raises:
            Failure: a restart took too long, or a key is wrong.
        """
        self.server.start()
        self._tell("load", self._timed(self._load))
        self._tell_memory()
        self._restart("SIGKILL", self.server.kill9)  # at once: the database is behind, and the log has to be replayed
        self._restart("SIGTERM", self.server.stop)

    def _restart(self, what: str, end: Callable[[], object]) -> None:
        self._tell(f"end by {what}", self._timed(end))
        taken_s = self._timed(self.server.start)
        self._tell(f"restart after {what}", taken_s)
        self._tell_memory()
        self._check()
        if taken_s >= MAX_RESTART_S:
            raise Failure(f"restart after {what}: {taken_s:.1f} s, and {MAX_RESTART_S:.0f} s are too long")

    def _load(self) -> None:
        with self._channel() as channel:
            call = channel.unary_unary(_TXN)
            under_way: deque[Any] = deque()
            for first in range(0, self.keys, PUTS_PER_TXN):
                if len(under_way) == _IN_FLIGHT:
                    under_way.popleft().result()
                numbers = range(first, min(first + PUTS_PER_TXN, self.keys))
                under_way.append(call.future(_txn(numbers), timeout=_TIMEOUT_S))
            for each in under_way:
                each.result()

    def _check(self) -> None:
        """Look at the count and at some keys."""
        with self._channel() as channel:
            call = channel.unary_unary(_RANGE, pb.RangeRequest.SerializeToString, pb.RangeResponse.FromString)
            count = call(pb.RangeRequest(key=b"\0", range_end=b"\0", count_only=True), timeout=_TIMEOUT_S).count
            if count != self.keys:
                raise Failure(f"{count} keys are there, and {self.keys} were written")
            for number in [0, self.keys - 1, *Random(count).sample(range(self.keys), min(_SAMPLES, self.keys))]:
                found = [kv.value for kv in call(pb.RangeRequest(key=_key(number)), timeout=_TIMEOUT_S).kvs]
                if found != [_value(number)]:
                    raise Failure(f"{_key(number)!r} is {found!r}")

    def _channel(self) -> grpc.Channel:
        assert self.server.tls is not None
        tls = self.server.tls
        files = (each.read_bytes() for each in (tls.ca, tls.client_key, tls.client_cert))
        return grpc.secure_channel(self.server.address, grpc.ssl_channel_credentials(*files))

    def _timed(self, step: Callable[[], object]) -> float:
        started = time.monotonic()
        step()
        return time.monotonic() - started

    def _tell(self, what: str, taken_s: float) -> None:
        self.report(f"{what}: {taken_s:.1f} s")

    def _tell_memory(self) -> None:
        self.report(f"resident memory: {self.server.rss_bytes() >> 20} MiB")


def _key(number: int) -> bytes:
    return b"key/%012d" % number


def _value(number: int) -> bytes:
    return (b"%012d " % number * (VALUE_BYTES // 13 + 1))[:VALUE_BYTES]


def _txn(numbers: Iterable[int]) -> bytes:
    puts = [pb.RequestOp(request_put=pb.PutRequest(key=_key(number), value=_value(number))) for number in numbers]
    return pb.TxnRequest(success=puts).SerializeToString()


def main(arguments: list[str] | None = None) -> int:
    """Run it; the exit status is 1 if it fails."""
    parser = argparse.ArgumentParser(prog="python -m tests.functional.million", description=__doc__)
    parser.add_argument("--keys", type=int, default=KEYS, help="how many keys (%(default)s)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        server = TwistedkvProcess(Path(scratch) / "server", TLSFiles.make(Path(scratch) / "tls"))
        try:
            Million(server, options.keys, lambda line: sys.stdout.write(f"{line}\n")).run()
        except Failure as failure:
            sys.stderr.write(f"{failure}\n")
            return 1
        finally:
            server.kill9()
    return 0


if __name__ == "__main__":
    sys.exit(main())
