"""Linearizable reads (Raft thesis §6.4): one question to the quorum answers all reads that were asked before it.

A read waits for two things: that a round which began after it was confirmed by a quorum, and that the state has applied
the index which the round gave. One round is under way at a time; what is asked meanwhile takes the next one.

Source: etcd ``server/etcdserver/v3_server.go``, linearizableReadLoop and requestCurrentIndex.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from twistedkv.errors import KVError, RequestTimeoutError

RETRY_S = 0.5  # the question may be lost on its way; etcd readIndexRetryTime


class Reader(NamedTuple):
    """Somebody who waits to read."""

    deadline_s: float
    ready: Callable[[], None]
    fail: Callable[[KVError], None]


class ReadGate:
    """Who waits to read, and for what. The driver asks the node and reports what comes.

    Args:
        timeout_s: after which a reader is told that its request timed out.
        new_id: makes ids that are unique in the cluster, since the leader is asked by all members.
    """

    def __init__(self, timeout_s: float, new_id: Callable[[], int]) -> None:
        self._timeout_s = timeout_s
        self._new_id = new_id
        self._asked: list[Reader] = []  # for the next round
        self._round: list[Reader] = []  # the round under way is for these
        self._context = b""
        self._sent_s = 0.0
        self.asked_again = 0  # rounds whose answer took too long
        self.lost = 0  # rounds that a change of leader ended
        self._confirmed: deque[tuple[int, list[Reader]]] = deque()  # index to be applied, ascending

    @property
    def waiting(self) -> bool:
        """Whether anybody waits."""
        return bool(self._asked or self._round or self._confirmed)

    def ask(self, ready: Callable[[], None], fail: Callable[[KVError], None], now_s: float) -> None:
        """Call ``ready`` once the state is as new as any write acknowledged before now, else ``fail``."""
        self._asked.append(Reader(now_s + self._timeout_s, ready, fail))

    def next_question(self, now_s: float) -> bytes | None:
        """The context to ask the node about now: of a new round, or of one that has waited too long for its answer."""
        if self._round:
            if now_s - self._sent_s < RETRY_S:
                return None
            self.asked_again += 1
        elif self._asked:
            self._round, self._asked = self._asked, []
            self._context = self._new_id().to_bytes(8, "big")
        else:
            return None
        self._sent_s = now_s
        return self._context

    def not_asked(self) -> None:
        """There was nobody to ask: the round was none, and its reads take the next one."""
        self._asked = self._round + self._asked
        self._round = []

    def answered(self, context: bytes, index: int) -> None:
        """The quorum confirmed a round: its reads may be served once ``index`` is applied."""
        if self._round and context == self._context:
            self._confirmed.append((index, self._round))
            self._round = []

    def applied(self, index: int) -> None:
        """The state has applied the log up to ``index``."""
        confirmed = self._confirmed
        while confirmed and confirmed[0][0] <= index:
            for reader in confirmed.popleft()[1]:
                reader.ready()

    def open(self) -> None:
        """The state as it is now may answer everybody: nobody else can have acknowledged a write."""
        everybody = self._take_all()
        for reader in everybody:
            reader.ready()

    def leader_changed(self) -> None:
        """The round under way may have been lost with the former leader: it is asked anew.

        etcd fails its reads instead; asking again keeps all that was promised, since a later round confirms more.
        """
        if self._round:
            self.lost += 1
            self.not_asked()

    def expire(self, now_s: float) -> None:
        """Tell those whose time is up. Deadlines are in the order in which readers came."""
        for readers in (*(waiting for _, waiting in self._confirmed), self._round, self._asked):
            late = 0
            while late < len(readers) and readers[late].deadline_s <= now_s:
                late += 1
            expired = readers[:late]
            del readers[:late]
            for reader in expired:
                reader.fail(RequestTimeoutError())

    def end(self, error: KVError) -> None:
        """Tell everybody that there will be no answer."""
        for reader in self._take_all():
            reader.fail(error)

    def _take_all(self) -> list[Reader]:
        everybody = [reader for _, readers in self._confirmed for reader in readers]
        everybody += self._round + self._asked
        self._confirmed.clear()
        self._round, self._asked = [], []
        return everybody
