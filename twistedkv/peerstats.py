"""The appends that a member sends and takes, and how quickly its followers got theirs: what ``/v2/stats`` shows.

It counts by writes, each of one or more appends, because that is what is on the hot path: a write costs some additions
and an entry of a queue of bounded length. All arithmetic is done by who asks. Bytes are those of the frames on the
wire; etcd counts the messages as protobuf encodes them, some thirty bytes more each.

Source: etcd ``server/etcdserver/api/v2stats/{server,leader,queue}.go``. Different from it: a leader is who Raft says,
not who the last append came from; a rate that has no time to be measured over is none, where etcd's JSON has no body
then; and a deviation that rounding makes the root of a negative number is 0.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable
from math import sqrt
from typing import Final, NamedTuple

CAPACITY: Final = 200  # appends that a rate is of; etcd v2stats/queue.go, queueCapacity
STALE_S: Final = 1.0  # without an append, after which there is no rate
NO_MINIMUM_MS: Final = float(1 << 63)  # of a follower that got nothing; etcd v2stats/leader.go, Follower


class Rates(NamedTuple):
    """How fast appends go by; zeros if none does."""

    appends_per_s: float
    bytes_per_s: float


class Latency(NamedTuple):
    """How long appends took, in milliseconds."""

    current: float  # of the last write
    average: float
    standard_deviation: float
    minimum: float
    maximum: float


class Appends:
    """The appends that go one way.

    Args:
        clock_s: monotonic.
    """

    __slots__ = ("_clock_s", "_writes", "count")

    def __init__(self, clock_s: Callable[[], float]) -> None:
        self.count = 0
        self._clock_s = clock_s
        self._writes: deque[tuple[float, int, int]] = deque(maxlen=CAPACITY)  # when, how many, bytes

    def note(self, count: int, size: int) -> None:
        """So many appends went by, with so many bytes together."""
        self.count += count
        self._writes.append((self._clock_s(), count, size))

    def rates(self) -> Rates:
        """Over the last :data:`CAPACITY` appends. What is stale is forgotten, and counts for no later rate."""
        writes = self._writes
        if not writes:
            return Rates(0.0, 0.0)
        end_s = writes[-1][0]
        if self._clock_s() - end_s > STALE_S:
            writes.clear()
            return Rates(0.0, 0.0)
        appends = size = 0
        start_s = end_s
        for noted_s, count, size_of_one in reversed(writes):
            start_s = noted_s
            appends += count
            size += size_of_one
            if appends >= CAPACITY:
                break
        duration_s = end_s - start_s
        if duration_s <= 0:
            return Rates(0.0, 0.0)
        return Rates(appends / duration_s, size / duration_s)


class FollowerStats:
    """The appends to one follower, on its append stream or by post."""

    __slots__ = ("_current_ms", "_maximum_ms", "_minimum_ms", "_square_sum", "_sum_ms", "failed", "succeeded")

    def __init__(self) -> None:
        self.succeeded = 0
        self.failed = 0
        self._current_ms = 0.0
        self._sum_ms = 0.0
        self._square_sum = 0.0  # of the milliseconds of each append
        self._minimum_ms = NO_MINIMUM_MS
        self._maximum_ms = 0.0

    def success(self, count: int, seconds: float) -> None:
        """So many appends, at least one, were sent in so many seconds together."""
        sum_ms = seconds * 1000
        each_ms = sum_ms / count
        self.succeeded += count
        self._current_ms = each_ms
        self._sum_ms += sum_ms
        self._square_sum += sum_ms * each_ms
        if each_ms < self._minimum_ms:
            self._minimum_ms = each_ms
        if each_ms > self._maximum_ms:
            self._maximum_ms = each_ms

    def latency(self) -> Latency:
        """What all successes come to, a single one to the nanosecond."""
        average_ms = deviation_ms = 0.0
        if self.succeeded:
            average_ms = self._sum_ms / self.succeeded
            deviation_ms = sqrt(max(0.0, self._square_sum / self.succeeded - average_ms * average_ms))
        current, minimum, maximum = (round(ms, 6) for ms in (self._current_ms, self._minimum_ms, self._maximum_ms))
        return Latency(current, average_ms, deviation_ms, minimum, maximum)


class PeerStats:
    """The figures of one member, since it started.

    Args:
        clock_s: monotonic.
    """

    def __init__(self, clock_s: Callable[[], float]) -> None:
        self.sent = Appends(clock_s)
        self.received = Appends(clock_s)
        self.followers: defaultdict[int, FollowerStats] = defaultdict(FollowerStats)  # by the member's id
