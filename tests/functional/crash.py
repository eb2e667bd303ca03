"""The crash test: writers on several connections, SIGKILL at a random moment, restart, and an audit of the history.

Every write carries values of its own, so that what is found can be traced to who wrote it. The audit reads back each
revision since the last one and holds it against what was acknowledged, what was in doubt when the server died, and the
model's HashKV of the whole history.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Protocol

from tests.functional.clients import GrpcClient
from tests.functional.model import Changes, StoreModel
from tests.functional.processes import ServerProcess
from twistedkv.pb import rpc_pb2 as pb
from twistedkv.pb.kv_pb2 import KeyValue

FAST_ELECTION = ("--heartbeat-interval", "10", "--election-timeout", "100")
"""Options with which a lone member leads soon after its start."""

_KEYS = [b"key/%02d" % n for n in range(48)]
_ALL = {"key": b"\x00", "range_end": b"\x00"}
_UNAVAILABLE = 14
_WRITES_TIMEOUT_S = 60.0
_WRITES = (20, 1500)  # acknowledged in one round before the kill, at least and at most


class Violation(AssertionError):
    """A promise was broken; the text says which and where."""


class History(Protocol):
    """What a server says of its past."""

    def revision(self) -> int:
        """The current revision."""

    def puts_at(self, revision: int) -> tuple[Sequence[KeyValue], int]:
        """What exactly this revision put, and how many keys were live at it."""

    def live_at(self, revision: int) -> Sequence[KeyValue]:
        """All keys as of a revision."""

    def hash_kv(self) -> int:
        """HashKV of the current revision."""


class Auditor:
    """Holds a server's history against what it promised to writers. Thread-safe where writers call it.

    Args:
        patient: what is in doubt may still happen after an audit, because not every server that it went to has died.
    """

    def __init__(self, *, patient: bool = False) -> None:
        self.model = StoreModel()
        self.acknowledged = 0  # writes, ever
        self.newest = self.model.revision  # that was acknowledged
        self.doubtful = 0  # writes, ever
        self.adopted = 0  # revisions that a kill left in doubt and that turned out to have happened
        self._patient = patient
        self._changed = threading.Condition()
        self._failures: list[Exception] = []
        self._promised: dict[int, Changes] = {}
        self._doubtful: list[Changes] = []

    def acknowledge(self, revision: int, changes: Changes) -> None:
        """The server said that these changes are revision ``revision``.

        Raises:
            Violation: it said so of another write already, or the revision is an old one.
        """
        with self._changed:
            if revision in self._promised or revision <= self.model.revision:
                raise Violation(f"revision {revision} was given out twice")
            self._promised[revision] = changes
            self.newest = max(self.newest, revision)
            self.acknowledged += 1
            self._changed.notify_all()

    def leave_in_doubt(self, changes: Changes) -> None:
        """The server died before it answered, or did not answer in time."""
        with self._changed:
            self._doubtful.append(changes)
            self.doubtful += 1

    def fail(self, error: Exception) -> None:
        """A writer met what it should not; :meth:`wait_for` and :meth:`audit` raise it."""
        with self._changed:
            self._failures.append(error)
            self._changed.notify_all()

    def wait_for(self, acknowledged: int, timeout_s: float) -> None:
        """Wait until so many writes, ever, are acknowledged.

        Raises:
            Violation: they were not within the time.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self.acknowledged >= acknowledged or self._failures, timeout_s):
                raise Violation(f"{self.acknowledged} of {acknowledged} writes got through in {timeout_s} s")
            self._raise_failure()

    def audit(self, history: History) -> None:
        """Read back all that is new.

        Raises:
            Violation: a promise is broken.
        """
        self._raise_failure()
        current = history.revision()
        lost = [revision for revision in self._promised if revision > current]
        if lost:
            raise Violation(f"acknowledged revisions {sorted(lost)} are lost: the store is at {current}")
        if current < self.model.revision:
            raise Violation(f"the store went back from revision {self.model.revision} to {current}")
        for revision in range(self.model.revision + 1, current + 1):
            self._audit_revision(history, revision)
        found = {kv.key: kv for kv in history.live_at(current)}
        if found != self.model.live:
            wrong = sorted(key for key in found.keys() | self.model.live if found.get(key) != self.model.live.get(key))
            raise Violation(f"keys {wrong} at revision {current} are not what their history made them")
        if (hashed := history.hash_kv()) != self.model.hash_kv():
            raise Violation(f"HashKV at revision {current} is {hashed}, of the model {self.model.hash_kv()}")
        self._promised.clear()
        if not self._patient:
            self._doubtful.clear()

    def _raise_failure(self) -> None:
        if self._failures:
            raise self._failures[0]

    def _audit_revision(self, history: History, revision: int) -> None:
        changes = self._changes_at(history, revision)
        if not changes:
            raise Violation(f"revision {revision} changed nothing")
        promised = self._promised.get(revision)
        if promised is None:
            for doubtful in self._doubtful:
                if self._effective(doubtful) == changes:
                    self._doubtful.remove(doubtful)
                    self.adopted += 1
                    break
            else:
                raise Violation(f"revision {revision} was written by nobody: {changes!r}")
        elif self._effective(promised) != changes:
            raise Violation(f"revision {revision} was acknowledged as {dict(promised)!r} and is {changes!r}")
        self.model.apply(changes)

    def _changes_at(self, history: History, revision: int) -> dict[bytes, bytes | None]:
        puts, count = history.puts_at(revision)
        changes: dict[bytes, bytes | None] = {kv.key: kv.value for kv in puts}
        if count != len(self.model.live.keys() | changes):  # some are gone: which ones needs a look at all
            present = {kv.key for kv in history.live_at(revision)}
            changes.update(dict.fromkeys(self.model.live.keys() - present))
        return changes

    def _effective(self, changes: Changes) -> dict[bytes, bytes | None]:
        """Without deletions of what was not there."""
        return {key: value for key, value in changes.items() if value is not None or key in self.model.live}


class ServerHistory:
    """The history of a running server, over gRPC."""

    def __init__(self, client: GrpcClient) -> None:
        self._client = client

    def revision(self) -> int:
        """The current revision, by a linearizable read."""
        return self._range(pb.RangeRequest(**_ALL, count_only=True)).header.revision

    def puts_at(self, revision: int) -> tuple[Sequence[KeyValue], int]:
        """By a Range whose count ignores its bounds, as etcd's does."""
        bounds = {"min_mod_revision": revision, "max_mod_revision": revision}
        answer = self._range(pb.RangeRequest(**_ALL, revision=revision, serializable=True, **bounds))
        return answer.kvs, answer.count

    def live_at(self, revision: int) -> Sequence[KeyValue]:
        """By a Range over everything."""
        return self._range(pb.RangeRequest(**_ALL, revision=revision, serializable=True)).kvs

    def hash_kv(self) -> int:
        """As the server computes it."""
        reply = self._client.call(pb.HashKVRequest())
        if not isinstance(reply.message, pb.HashKVResponse):
            raise Violation(f"HashKV failed after the restart: {reply.code} {reply.text}")
        return reply.message.hash

    def _range(self, request: pb.RangeRequest) -> pb.RangeResponse:
        reply = self._client.call(request)
        if not isinstance(reply.message, pb.RangeResponse):
            raise Violation(f"Range failed after the restart: {reply.code} {reply.text}: {request}")
        return reply.message


class Writer(threading.Thread):
    """One connection that writes until the server is gone.

    Args:
        name: goes into every value.
        server: the server to write to.
        auditor: hears of every acknowledged write and of the one in doubt.
        random: the dice of this writer alone.
    """

    def __init__(self, name: str, server: ServerProcess, auditor: Auditor, random: Random) -> None:
        super().__init__(name=name, daemon=True)
        self._server = server
        self._auditor = auditor
        self._dice = Dice(name, random)

    def run(self) -> None:
        """Write, until a call fails."""
        client = GrpcClient(self._server)
        try:
            going = True
            while going:
                going = self._write(client)
        except Exception as error:
            self._auditor.fail(error)
        finally:
            client.close()

    def _write(self, client: GrpcClient) -> bool:
        changes = self._dice.changes()
        request = request_for(changes)
        reply = client.call(request)
        match reply.message:
            case None if reply.code == _UNAVAILABLE:
                self._auditor.leave_in_doubt(changes)
                return False
            case None:
                raise Violation(f"a write was refused: {reply.code} {reply.text}: {request}")
            case pb.DeleteRangeResponse(deleted=0):
                pass  # no revision of its own
            case answer:
                self._auditor.acknowledge(answer.header.revision, changes)
        return True


class Dice:
    """Throws what one writer writes next: puts, deletions and transactions of both over a few keys.

    Args:
        name: goes into every value, so that no two writers write the same.
        random: the dice of this writer alone.
    """

    def __init__(self, name: str, random: Random) -> None:
        self._name = name.encode()
        self._random = random
        self._count = 0

    def changes(self) -> Changes:
        """The next write; with several changes always one that has a revision of its own."""
        size = self._random.choice([1, 1, 1, 1, 2, 3])
        changes: dict[bytes, bytes | None] = {}
        for key in sorted(self._random.sample(_KEYS, size)):
            self._count += 1
            # The first change of several is a put, so that a transaction always has a revision of its own.
            delete = self._random.random() < 0.2 and (size == 1 or bool(changes))
            changes[key] = None if delete else b"%s/%d" % (self._name, self._count)
        return changes


def request_for(changes: Changes) -> pb.PutRequest | pb.DeleteRangeRequest | pb.TxnRequest:
    """The request that makes these changes in one revision."""
    if len(changes) == 1:
        ((key, value),) = changes.items()
        return pb.DeleteRangeRequest(key=key) if value is None else pb.PutRequest(key=key, value=value)
    ops = [
        pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=key))
        if value is None
        else pb.RequestOp(request_put=pb.PutRequest(key=key, value=value))
        for key, value in changes.items()
    ]
    return pb.TxnRequest(success=ops)


@dataclass(slots=True)
class CrashTest:
    """Rounds of load, kill, restart and audit on one server.

    Args:
        server: started already, and empty.
        random: when to kill and what to write.
        writers: connections, each with one write in flight.
    """

    server: ServerProcess
    random: Random
    writers: int = 6
    auditor: Auditor = field(default_factory=Auditor)

    def round(self, number: int) -> None:
        """One round.

        Raises:
            Violation: a promise was broken.
        """
        threads = [
            Writer(f"round {number} writer {n}", self.server, self.auditor, Random(self.random.random()))
            for n in range(self.writers)
        ]
        enough = self.auditor.acknowledged + self.random.randint(*_WRITES)
        for thread in threads:
            thread.start()
        try:
            self.auditor.wait_for(enough, _WRITES_TIMEOUT_S)
        finally:
            self.server.kill9()
            for thread in threads:
                thread.join()
        self.server.start()
        client = GrpcClient(self.server)
        try:
            self.auditor.audit(ServerHistory(client))
        finally:
            client.close()
