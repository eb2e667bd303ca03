"""Requests on their way into the log: collected over a turn, given to Raft as one batch, and waited for.

While nobody leads they are kept, and given to the next leader as long as their clients wait. What a former leader was
given and the next one's log does not have is lost, most likely: its clients hear of it when the new leader's first
entry is applied, and not only when their time is up.

Source: etcd ``server/etcdserver/v3_server.go`` (processInternalRaftRequestOnce, parseProposeCtxErr) and ``server.go``
(configure).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Any, Final, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from twistedkv.errors import (
    ConnectionLostTimeoutError,
    KVError,
    LeaderChangedError,
    LeaderFailureTimeoutError,
    NotLeaderError,
    RequestTimeoutError,
    RequestTooLargeError,
    TooManyRequestsError,
)
from twistedkv.members import Membership
from twistedkv.metrics import Metrics
from twistedkv.pb.raft_pb2 import ConfChange
from twistedkv.peering import Transport
from twistedkv.raft.messages import ProposalDropped, Role
from twistedkv.raft.node import RaftNode
from twistedkv.v2request import PlainSet, encode_entry
from twistedkv.waiting import MOST_NOTED_BYTES, Outcome, V2Waiter, Waiter, WaitingRoom
from twistedkv.wire import prefixed, varint, varint_of_id

MOST_BYTES: Final = 64 << 20  # that may wait for Raft before new ones are refused
V2_MOST_BYTES: Final = 12 << 20  # of a request for v2 keys: Go takes forms of 10 MiB, and etcd does not look again

_HEADER_TAG: Final = varint(100 << 3 | 2)  # InternalRaftRequest.header


class Connections(Protocol):
    """Who is in the cluster, and who is heard of; see :class:`twistedkv.server.Member`."""

    peers: Transport

    @property
    def membership(self) -> Membership: ...


class Proposals:
    """The requests of this member's clients, and its changes of the members.

    Args:
        node: Raft.
        waiting: who waits for which.
        new_id: makes request ids, each greater than the one before.
        clock: for time-outs.
        timeout_s: how long a request may take.
        election_s: an election timeout.
        limit_bytes: of one request.
        metrics: counts what failed.
        stir: has the drive loop call :meth:`give` soon.
    """

    def __init__(
        self,
        node: RaftNode,
        waiting: WaitingRoom,
        new_id: Callable[[], int],
        clock: IReactorTime,
        timeout_s: float,
        election_s: float,
        limit_bytes: int,
        metrics: Metrics,
        stir: Callable[[], None],
    ) -> None:
        self._node = node
        self._waiting = waiting
        self._new_id = new_id
        self._clock = clock
        self._timeout_s = timeout_s
        self._election_s = election_s
        self._limit_bytes = limit_bytes
        self._metrics = metrics
        self._stir = stir
        self._datas: list[bytes] = []  # not given to Raft yet
        self._ids: list[int] = []  # of the same
        self._bytes = 0
        self._led: dict[int, int] = {}  # of those, the ones that count only in this term, led by this member
        self._given = 0  # the id of the last request that Raft was given
        self._before_leader = (0, 0)  # a leader's term, and the last request that Raft was given before it led
        self._leader_since_s = 0.0
        self._changes: deque[ConfChange] = deque()  # of the members
        self._change_given = False  # the first of them is on its way

    @property
    def any(self) -> bool:
        """Whether there is anything to give."""
        return bool(self._datas or (self._changes and not self._change_given))

    def add(self, body: bytes, waiter: Waiter, *, leading: bool = False) -> None:
        """Take one request; ``waiter`` gets the answer once it is applied, or an error.

        Args:
            body: the request as an encoded field of ``InternalRaftRequest``: tag, length, message.
            leading: whether it is the word of a leader, which counts only if it goes into this member's own log in the
                term that is. A leader that was stopped for a while does not know yet that another one leads, which
                would take what is sent on to it for a client's.
        """
        request_id = self._admit(waiter, leading)
        if request_id:
            header = prefixed(_HEADER_TAG, b"\x08" + varint_of_id(request_id))
            self._take(request_id, body + header, self._limit_bytes, waiter, leading)

    def add_v2(
        self,
        fields: bytes,
        waiter: V2Waiter | Waiter,
        *,
        leading: bool = False,
        plain: tuple[str, str] | None = None,
    ) -> None:
        """Take one request for keys of the v2 API; else as :meth:`add`.

        Args:
            fields: an encoded ``etcdserverpb.Request`` without an id.
            waiter: of the passing of time (``SYNC``) an ordinary one, which gets an empty answer.
            plain: path and value, if it sets a file of a client's and says nothing else.
        """
        request_id = self._admit(waiter, leading)
        if request_id:
            entry = encode_entry(request_id, fields)
            if plain is not None and len(entry) <= MOST_NOTED_BYTES:
                self._waiting.note_set(entry, PlainSet(request_id, *plain))
            self._take(request_id, entry, V2_MOST_BYTES, waiter, leading)

    def _admit(self, waiter: Waiter | V2Waiter, leading: bool) -> int:
        """An id for one more request; 0 if it is refused, which ``waiter`` was told."""
        if leading and self._node.role is not Role.LEADER:
            waiter.fail(NotLeaderError())
            return 0
        if self._bytes > MOST_BYTES:
            waiter.fail(TooManyRequestsError())
            return 0
        return self._new_id()

    def _take(self, request_id: int, data: bytes, limit_bytes: int, waiter: Waiter | V2Waiter, leading: bool) -> None:
        if len(data) > limit_bytes:
            waiter.fail(RequestTooLargeError())
            return
        self._waiting.add(request_id, waiter, self._clock.seconds())
        self._bytes += len(data)
        self._datas.append(data)
        self._ids.append(request_id)
        if leading:
            self._led[request_id] = self._node.term

    def change_members(self, change: ConfChange) -> Deferred[None]:
        """Take a change of the members; fires once it is applied here.

        They are given one after the other, since Raft takes no second one before the first is applied. Fails with the
        KVError by which it was refused, or with a time-out.
        """
        outcome = Outcome()
        change.id = self._new_id()
        self._waiting.add(change.id, outcome, self._clock.seconds())
        self._changes.append(change)

        def over(result: Any) -> Any:
            if self._changes[0] is change:
                self._change_given = False
            self._changes.remove(change)
            if self._changes:
                self._stir()
            return None if isinstance(result, bytes) else result

        return outcome.deferred.addBoth(over)

    def give(self) -> None:
        """Give Raft what it takes now."""
        self._note_leader()
        if self._led:
            self._withdraw()
        if self._datas:
            try:
                self._node.propose(self._datas)
            except ProposalDropped:
                return  # nobody leads, the leader hands over, or much is uncommitted: they wait
            self._given = self._ids[-1]
            self._datas, self._ids, self._bytes = [], [], 0
            self._led.clear()
        if self._changes and not self._change_given and not self._node.change_is_pending:
            # While one is pending the leader would make nothing of it, and its client would wait in vain.
            try:
                self._node.propose_conf_change(self._changes[0])
            except ProposalDropped:
                return
            self._change_given = True
            self._given = max(self._given, self._changes[0].id)

    def _withdraw(self) -> None:
        """Take back what this member wanted to say as the leader of a term in which it leads no more."""
        node = self._node
        now = node.term if node.role is Role.LEADER else None
        for request_id in [each for each, term in self._led.items() if term != now]:
            del self._led[request_id]
            position = bisect_left(self._ids, request_id)
            if self._ids[position : position + 1] == [request_id]:  # else its time was up
                self._bytes -= len(self._datas[position])
                del self._ids[position], self._datas[position]
            waiter = self._waiting.take(request_id)
            if waiter is not None:
                waiter.fail(LeaderChangedError())

    def leader_began(self) -> None:
        """A leader is known, who was not before."""
        self._leader_since_s = self._clock.seconds()
        self._note_leader()

    def _note_leader(self) -> None:
        """What was given so far was given to others; the drive loop may tell of this leader after it was given more."""
        term = self._node.term
        if self._node.leader and self._before_leader[0] != term:
            self._before_leader = (term, self._given)

    def term_began(self, term: int) -> None:
        """The first entry of a leader is applied: what its log had of earlier terms was answered."""
        led, last_before = self._before_leader
        if term == led:
            kept = {change.id for change in islice(self._changes, int(self._change_given), None)}  # were not given
            for waiter in self._waiting.up_to(last_before, kept):
                self._metrics.proposals_failed += 1
                waiter.fail(LeaderFailureTimeoutError())  # not: failed. Forwarded late, it may still come

    def expire(self, connections: Connections) -> None:
        """Tell those whose time is up why, as far as one can know."""
        now_s = self._clock.seconds()
        expired = self._waiting.expired(now_s)
        if not expired:
            return
        late = bisect_right(self._ids, expired[-1][0])  # nobody waits for these: they shall not come to life later
        self._bytes -= sum(map(len, self._datas[:late]))
        del self._ids[:late], self._datas[:late]
        for _, waiter in expired:
            self._metrics.proposals_failed += 1
            waiter.fail(self._timeout_error(now_s, connections))

    def _timeout_error(self, now_s: float, connections: Connections) -> KVError:
        """Why a request that began a time-out ago was not answered; etcd ``v3_server.go``, parseProposeCtxErr."""
        began_s = now_s - self._timeout_s
        elected_s, leader, me = self._leader_since_s, self._node.leader, self._node.config.id

        def is_connected(member: int) -> bool:
            since_s = connections.peers.active_since(member)
            return member == me or (since_s is not None and since_s <= began_s)

        if elected_s - 2 * self._election_s < began_s < elected_s:
            return LeaderFailureTimeoutError()
        if not leader:
            return RequestTimeoutError()
        voters = [voter.id for voter in connections.membership.voters()]
        good = sum(map(is_connected, voters)) > len(voters) // 2 if leader == me else is_connected(leader)
        return RequestTimeoutError() if good else ConnectionLostTimeoutError()
