"""A member on a clock of ours: what outlives its processes, and a process put together as the real one is.

Real are the Raft node, the log in a scratch directory, the state and all that drives them; the database is one in
memory, threads are :mod:`tests.workers`, and the other members are whatever the test connects.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from zope.interface import implementer

from tests.workers import InlineWorker
from twistedkv.apply import Applier
from twistedkv.assembly import hard_state_at
from twistedkv.configload import load_config
from twistedkv.installation import finish_installation
from twistedkv.members import MemberInfo, bootstrap_changes
from twistedkv.metrics import Metrics
from twistedkv.pb.etcdserver_pb2 import Request
from twistedkv.pb.raft_internal_pb2 import InternalRaftRequest
from twistedkv.pb.rpc_pb2 import PutRequest, PutResponse, RangeRequest
from twistedkv.peering import Transport
from twistedkv.protocols.receiver import Receiver
from twistedkv.protocols.turn import Turn
from twistedkv.raft.config import Config as RaftConfig
from twistedkv.raft.log import RaftLog
from twistedkv.raft.messages import Entry, EntryType, HardState, Message, MessageType
from twistedkv.raft.node import RaftNode
from twistedkv.restore import load_state
from twistedkv.server import Member
from twistedkv.storage.backend import BackendError, Batch, RevisionRow
from twistedkv.storage.memory import MemoryBackend
from twistedkv.storage.wal import WAL, Disk, Recovered
from twistedkv.v2events import Event

CLUSTER = 9
SEGMENT_BYTES = 1 << 16


class FaultyDisk(Disk):
    """A disk that is full, or whose syncs fail, when told so. They cost nothing: no test pulls the plug of this one."""

    full = False
    broken = False

    def __init__(self) -> None:
        self.syncs = 0

    def write(self, fd: int, parts: Any, offset: int) -> int:  # type: ignore[override]
        if self.full and any(b"".join(parts)):  # zeros go over blocks that the file has already
            raise OSError(errno.ENOSPC, "No space left on device")
        return Disk.write(fd, parts, offset)

    def sync_data(self, fd: int) -> None:  # type: ignore[override]
        self.syncs += 1
        if self.broken:
            raise OSError(errno.EIO, "Input/output error")

    def sync(self, fd: int) -> None:  # type: ignore[override]
        """Nothing has to last longer than the test."""


class RefusingMemory(MemoryBackend):
    """A database that takes no writes when told so."""

    refuses = False

    def write(self, batch: Batch) -> None:
        if self.refuses:
            raise BackendError("the database is read-only")
        super().write(batch)

    def replace(self, batches: Any) -> None:
        if self.refuses:
            raise BackendError("the database is read-only")
        super().replace(batches)


class UnreadableMemory(MemoryBackend):
    """A database whose revisions cannot be read while there is an error to raise."""

    error: BaseException | None = None

    def scan(self, first: int, last: int, limit: int) -> list[RevisionRow]:
        if self.error is not None:
            raise self.error
        return super().scan(first, last, limit)


class Job(NamedTuple):
    """Something that a thread is to do."""

    function: Any
    args: tuple[Any, ...]


class HeldWorker(InlineWorker):
    """A thread that does at once what it is given, until it is held: then everything waits for :meth:`release`."""

    def __init__(self) -> None:
        self.held = False
        self.queue: deque[Job] = deque()
        self._results: deque[Deferred[Any]] = deque()

    def run(self, blocking: Callable[..., Any], *args: Any, **kwargs: Any) -> Deferred[Any]:
        if not self.held:
            return super().run(blocking, *args, **kwargs)
        done: Deferred[Any] = Deferred()
        self.queue.append(Job(partial(blocking, **kwargs) if kwargs else blocking, args))
        self._results.append(done)
        return done

    def step(self) -> None:
        """Do the first thing that waits, and give its result back."""
        function, args = self.queue.popleft()
        maybeDeferred(function, *args).chainDeferred(self._results.popleft())

    def release(self) -> None:
        """Do what waits, and go on."""
        while self.queue:
            self.step()
        self.held = False


class Answer:
    """A waiter that keeps what it got, and minds getting anything twice."""

    def __init__(self) -> None:
        self.message: bytes | None = None
        self.event: Event | None = None  # of a request for keys of the v2 API
        self.error: BaseException | None = None

    def applied(self, event: Event) -> None:
        assert not self.done, "answered twice"
        self.event = event

    def reply(self, message: bytes) -> None:
        assert not self.done, "answered twice"
        self.message = message

    def fail(self, error: BaseException) -> None:
        assert not self.done, "answered twice"
        self.error = error

    @property
    def done(self) -> bool:
        return self.message is not None or self.event is not None or self.error is not None

    @property
    def revision(self) -> int:
        """The revision that a put was answered with."""
        assert self.message is not None, self.error
        return PutResponse.FromString(self.message).header.revision


@implementer(IReactorTime)
class ProcessClock:
    """A clock as one process has it: when the process is gone, so are its delayed calls."""

    def __init__(self, clock: Any) -> None:
        self._clock = clock
        self._calls: list[IDelayedCall] = []
        self._dead = False

    def seconds(self) -> float:
        return float(self._clock.seconds())

    def callLater(self, delay: float, callable: Callable[..., Any], *args: Any, **kw: Any) -> IDelayedCall:
        call: IDelayedCall = self._clock.callLater(delay, callable, *args, **kw)
        if self._dead:  # what a thread of the dead still gave back
            call.cancel()
        self._calls = [each for each in self._calls if each.active()]
        self._calls.append(call)
        return call

    def getDelayedCalls(self) -> Sequence[IDelayedCall]:
        return [call for call in self._calls if call.active()]

    def die(self) -> None:
        """The process is over."""
        self._dead = True
        for call in self.getDelayedCalls():
            call.cancel()


class Station:
    """Where one member lives: what a test may break, and what a next process finds.

    Args:
        member_id: of the member.
        directory: for the log and whatever else goes into the data directory.
        founders: the members that the cluster begins with; none for a member that joins.
        options: further options, by their flags.
    """

    def __init__(
        self, member_id: int, directory: Path, founders: Sequence[MemberInfo], options: dict[str, str] | None = None
    ) -> None:
        self.member_id = member_id
        self.directory = directory
        self.founders = founders
        self.options = options or {}
        self.disk = FaultyDisk()
        self.backend: MemoryBackend = MemoryBackend()
        self.wal_worker: InlineWorker = HeldWorker()
        self.worker: InlineWorker = HeldWorker()
        self.value_cache_bytes = 1 << 20
        self.failures: list[BaseException] = []
        self.clock: ProcessClock
        self.member: Member

    def open(self, clock: Any, connect: Callable[[Receiver], Transport]) -> Member:
        """A process on what there is; the caller starts the member."""
        self.clock = ProcessClock(clock)
        config = load_config(
            {"data-dir": str(self.directory), "value-cache-bytes": str(self.value_cache_bytes), **self.options}, {}
        )
        loaded = load_state(self.backend, config)
        wal, recovered = self._open_log()
        if finish_installation(wal, recovered, loaded.installed, loaded.described):
            wal.close()
            wal, recovered = WAL.open(self.directory, segment_bytes=SEGMENT_BYTES, disk=self.disk)
        state = loaded.described
        node = RaftNode(
            RaftConfig(self.member_id, Random(self.member_id)),
            RaftLog(recovered.entries, recovered.snapshot.index, recovered.snapshot.term),
            hard_state_at(recovered.hard_state, state.index),
            state.conf_state if state.index else recovered.snapshot.conf_state,
            state.index,
        )
        self.member = Member(
            config,
            self.clock,
            Turn(self.clock),
            node,
            wal,
            self.wal_worker,  # type: ignore[arg-type]
            self.backend,
            self.worker,  # type: ignore[arg-type]
            Applier.of(loaded),
            (state.index, state.term),
            self.member_id,
            CLUSTER,
            loaded.compaction_done,
            Metrics(),
            self.failures.append,
            connect=connect,
        )
        return self.member

    def _open_log(self) -> tuple[WAL, Recovered]:
        if not WAL.exists(self.directory):
            wal = WAL.create(self.directory, b"metadata", segment_bytes=SEGMENT_BYTES, disk=self.disk)
            changes = bootstrap_changes(self.founders)
            if changes:
                entries = [Entry(1, index, change, EntryType.CONF_CHANGE) for index, change in enumerate(changes, 1)]
                wal.append(HardState(1, 0, len(entries)), entries)
            wal.close()
        return WAL.open(self.directory, segment_bytes=SEGMENT_BYTES, disk=self.disk)

    def slow_disk(self) -> HeldWorker:
        """From now on the log's disk takes until the worker is released, or stepped."""
        assert isinstance(self.wal_worker, HeldWorker)
        self.member._writer.average_sync_s = 1.0  # so slow so far that it is waited for on its own thread
        self.wal_worker.held = True
        return self.wal_worker

    def slow_database(self) -> HeldWorker:
        """From now on the database takes until the worker is released, or stepped."""
        assert isinstance(self.worker, HeldWorker)
        self.worker.held = True
        return self.worker

    def elect(self, clock: Any, voters: Sequence[int] = (2, 3)) -> None:
        """Have this member lead, by the votes of members that are not there."""
        node = self.member._node
        node.campaign()
        for kind in (MessageType.PRE_VOTE_RESPONSE, MessageType.VOTE_RESPONSE):
            clock.advance(0)
            term = node.term + (kind is MessageType.PRE_VOTE_RESPONSE)
            for voter in voters:
                self.member._replication.received(Message(kind, self.member_id, sender=voter, term=term))
        clock.advance(0)
        assert self.member.is_leader

    def acknowledge(self, clock: Any, voter: int = 2) -> None:
        """Have a member that is not there say that it has all of the log."""
        node = self.member._node
        index = node.log.last_index
        response = Message(MessageType.APPEND_RESPONSE, self.member_id, sender=voter, term=node.term, index=index)
        self.member._replication.received(response)
        clock.advance(0)

    def crash(self) -> None:
        """The process is gone from one moment to the next."""
        self.clock.die()
        self.member._writer._wal._abandon()

    # --- what clients do -----------------------------------------------------------------------------

    def put(self, key: bytes, value: bytes = b"v", **fields: Any) -> Answer:
        """Ask for a put."""
        return self.propose(InternalRaftRequest(put=PutRequest(key=key, value=value, **fields)))

    def propose(self, request: InternalRaftRequest) -> Answer:
        """Ask for anything that goes through the log."""
        answer = Answer()
        self.member.propose(request.SerializeToString(), answer)
        return answer

    def put_v2(self, path: bytes, value: bytes = b"v", **fields: Any) -> Answer:
        """Ask for a key of the v2 API to be set."""
        answer = Answer()
        request = Request(Method="PUT", Path=b"/1" + path, Val=value, **fields)
        self.member.propose_v2(request.SerializeToString(), answer)
        return answer

    def read(self) -> Answer:
        """Ask for a linearizable read; it is answered when the state may be looked at."""
        answer = Answer()
        self.member.when_readable(lambda: answer.reply(b""), answer.fail)
        return answer

    def get(self, key: bytes) -> bytes | None:
        """The encoded pair of a key, as this member has it now."""
        pairs = self.member.store.range(RangeRequest(key=key)).pairs
        return pairs[0] if pairs else None
