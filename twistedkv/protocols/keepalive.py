"""gRPC's keepalive on the server's side: how often a client may ping, and when a silent one is pinged.

Source: grpc-go ``internal/transport/http2_server.go`` (handlePing, keepalive) and ``internal/transport/defaults.go``;
etcd ``server/embed/etcd.go`` (serveClients) for what its options make of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Final

from twistedkv.protocols.limits import calm_down

NO_MIN_TIME_S: Final = 300.0  # grpc-go's own least time, which rules where etcd gives it none
IDLE_MIN_TIME_S: Final = 7200.0  # grpc-go: without an open stream there is nothing to keep alive
MAX_STRIKES: Final = 2


@dataclass(frozen=True, slots=True)
class Keepalive:
    """How a connection is kept alive; the defaults are etcd's."""

    min_time_s: float = 5.0  # least time between two pings of a client; 0 stands for NO_MIN_TIME_S, as in etcd
    interval_s: float = 7200.0  # silence after which the client is pinged; 0 is never
    timeout_s: float = 20.0  # time for the client to say anything after that; 0 is for ever, so it is not pinged
    policed: bool = True  # a client that pings too often is thrown out

    @property
    def pings(self) -> bool:
        """Silent clients are pinged."""
        return self.interval_s > 0 and self.timeout_s > 0


DEFAULT_KEEPALIVE: Final = Keepalive()


class PingPolice:
    """Counts the pings of one client that come too soon.

    An answer on any stream forgives them all: clients that estimate the bandwidth ping once for each round trip in
    which data came, and none of those counts.

    Args:
        min_time_s: least time between two pings while a stream is open; 0 stands for ``NO_MIN_TIME_S``.
    """

    __slots__ = ("_last_s", "_min_time_s", "_progress", "_strikes")

    def __init__(self, min_time_s: float) -> None:
        self._min_time_s = min_time_s or NO_MIN_TIME_S
        self._last_s = -inf
        self._strikes = 0
        self._progress = 0

    def count(self, now_s: float, progress: int, idle: bool) -> None:
        """Take note of a ping.

        Args:
            progress: differs from that of the ping before if HEADERS or DATA went out in between.
            idle: no stream is open.

        Raises:
            ProtocolError: it was one too many.
        """
        since_s, self._last_s = now_s - self._last_s, now_s
        if progress != self._progress:
            self._progress = progress
            self._strikes = 0
        elif since_s < (IDLE_MIN_TIME_S if idle else self._min_time_s):
            self._strikes += 1
            if self._strikes > MAX_STRIKES:
                raise calm_down("too_many_pings")
