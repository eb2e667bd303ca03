"""A client that writes without a pause through whichever member answers, and remembers what was acknowledged."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import grpc

from tests.functional.clients import GrpcClient
from tests.functional.processes import ServerProcess
from twistedkv.pb import rpc_pb2 as pb
from twistedkv.pb.kv_pb2 import KeyValue

ATTEMPT_TIMEOUT_S = 3.0  # less than a server waits: another member may answer sooner


class Writer(threading.Thread):
    """Puts ``prefix/0``, ``prefix/1`` … one after the other, each until it is acknowledged.

    Args:
        members: gives those that may be asked at the moment.
        prefix: of its keys, its own.
    """

    def __init__(self, members: Callable[[], Sequence[ServerProcess]], prefix: bytes) -> None:
        super().__init__(daemon=True)
        self.acknowledged: dict[bytes, int] = {}  # the revision of each key
        self.longest_pause_s = 0.0  # between two acknowledgements
        self.failure: BaseException | None = None
        self._members = members
        self._prefix = prefix
        self._over = threading.Event()
        self._clients: dict[ServerProcess, GrpcClient] = {}
        self._turn = 0

    def run(self) -> None:
        try:
            number, acknowledged_s = 0, time.monotonic()
            while not self._over.is_set():
                key = b"%b/%06d" % (self._prefix, number)
                revision = self._put(key)
                if revision is None:
                    continue
                now_s = time.monotonic()
                self.longest_pause_s = max(self.longest_pause_s, now_s - acknowledged_s)
                acknowledged_s = now_s
                self.acknowledged[key] = revision
                number += 1
        except BaseException as error:
            self.failure = error
        finally:
            for client in self._clients.values():
                client.close()

    def finish(self, timeout_s: float = 30.0) -> None:
        """Write no more.

        Raises:
            RuntimeError: it hangs, or failed.
        """
        self._over.set()
        self.join(timeout_s)
        if self.is_alive() or self.failure is not None:
            raise RuntimeError(f"the writer did not end well: {self.failure}")

    def _put(self, key: bytes) -> int | None:
        """The revision of an acknowledged put; None if the member asked did not say."""
        members = self._members()
        member = members[self._turn % len(members)]
        client = self._clients.get(member)
        if client is None:
            client = self._clients[member] = GrpcClient(member)
        reply = client.call(pb.PutRequest(key=key, value=b"v:" + key), timeout_s=ATTEMPT_TIMEOUT_S)
        if reply.code == 0 and isinstance(reply.message, pb.PutResponse):
            return int(reply.message.header.revision)
        if reply.code not in (grpc.StatusCode.UNAVAILABLE.value[0], grpc.StatusCode.DEADLINE_EXCEEDED.value[0], 2):
            raise RuntimeError(f"{member.name}: {reply.code} {reply.text}")
        self._turn += 1
        self._clients.pop(member).close()
        self._over.wait(0.02)
        return None


def missing(writers: Sequence[Writer], member: ServerProcess, prefix: bytes) -> list[bytes]:
    """The acknowledged keys that a linearizable read of ``member`` does not have, or has otherwise."""
    client = GrpcClient(member)
    try:
        end = prefix[:-1] + bytes([prefix[-1] + 1])
        reply = client.call(pb.RangeRequest(key=prefix, range_end=end))
        if not isinstance(reply.message, pb.RangeResponse):
            raise RuntimeError(f"{member.name}: {reply.code} {reply.text}")
        found: dict[bytes, KeyValue] = {pair.key: pair for pair in reply.message.kvs}
    finally:
        client.close()
    return [
        key for writer in writers for key in writer.acknowledged if key not in found or found[key].value != b"v:" + key
    ]
