"""``/v2/stats``: what this member did, what it keeps, and how its followers do.

Source: etcd ``server/etcdserver/api/v2http/client.go`` (statsHandler), ``v2stats/{server,leader}.go``,
``v2store/stats.go``; Go 1.16 ``encoding/json/encode.go`` (floatEncoder) and ``time/time.go`` (Duration.String) for how
numbers and times are written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final, Protocol

from twistedkv.members import Membership
from twistedkv.peerstats import FollowerStats, PeerStats, Rates
from twistedkv.protocols.answers import (
    ERROR_TEXT,
    JSON,
    MEASURED_BYTES,
    PAGE_NOT_FOUND,
    Answer,
    Fields,
    Outlet,
    error_text,
)
from twistedkv.protocols.jsonpb import json_string
from twistedkv.protocols.v2words import V2Request

STATS_PATH: Final = "/v2/stats"

_GET_ONLY: Final = error_text(405, "Method Not Allowed", Fields([(b"Allow", b"GET"), *ERROR_TEXT.pairs]))
_NOT_LEADER: Final = Answer(403, JSON, b'{"message":"not current leader"}')
_NS_IN_S: Final = 1_000_000_000
_UNITS: Final = ((1_000, "ns", 1), (1_000_000, "µs", 1_000), (_NS_IN_S, "ms", 1_000_000))  # below, name, nanoseconds


class Counted(Protocol):
    """Counts requests to the store."""

    @property
    def counts(self) -> Mapping[str, int]:
        """By etcd's names, in etcd's order."""


class Tree(Protocol):
    """The v2 store; see :class:`twistedkv.storage.directory.Directory`."""

    @property
    def counters(self) -> Counted: ...


class Hub(Protocol):
    """Who watches the v2 store; see :class:`twistedkv.v2watch.V2Hub`."""

    @property
    def count(self) -> int:
        """How many do."""


class CountingMember(Protocol):
    """What is asked of the member; see :class:`twistedkv.server.Member`."""

    member_id: int
    leader_changes: list[Callable[[], None]]

    @property
    def leader(self) -> int: ...

    @property
    def is_leader(self) -> bool: ...

    @property
    def membership(self) -> Membership: ...

    @property
    def directory(self) -> Tree: ...

    @property
    def v2hub(self) -> Hub: ...


class V2Stats:
    """Serves ``/v2/stats/self``, ``/v2/stats/leader`` and ``/v2/stats/store``.

    The leader that it shows is the last one there was, which no longer leads while an election goes on; so does etcd.

    Args:
        member: whose figures these are.
        name: of the member, as it is configured.
        stats: of its appends.
        clock_s: monotonic.
        wall_s: the time of day in seconds since 1970.
    """

    def __init__(
        self,
        member: CountingMember,
        name: str,
        stats: PeerStats,
        clock_s: Callable[[], float],
        wall_s: Callable[[], float],
    ) -> None:
        self._member = member
        self._name = name
        self._stats = stats
        self._clock_s = clock_s
        self._wall_s = wall_s
        self._started_at = self._led_at = ""  # times of day, as they are shown
        self._led_s = 0.0  # since when the leader leads
        self._leader = 0
        self._answers = {
            f"{STATS_PATH}/self": self._self,
            f"{STATS_PATH}/leader": self._of_leader,
            f"{STATS_PATH}/store": self._store,
        }

    def start(self) -> None:
        """Count the time from now on. To be called when the member starts, so that no leader is missed."""
        self._started_at = self._led_at = go_time(self._wall_s())
        self._led_s = self._clock_s()
        self._member.leader_changes.append(self._look)
        self._look()

    def stop(self) -> None:
        """Look at the member no more."""
        if self._look in self._member.leader_changes:
            self._member.leader_changes.remove(self._look)

    def serve(self, request: V2Request, outlet: Outlet) -> None:
        """See :class:`~twistedkv.protocols.v2words.V2Endpoint`."""
        answer = self._answers.get(request.path)
        if answer is None:
            outlet.respond(PAGE_NOT_FOUND)
        elif request.method != "GET":
            outlet.respond(_GET_ONLY)
        else:
            outlet.respond(answer())

    def _look(self) -> None:
        leader = self._member.leader
        if leader and leader != self._leader:
            self._leader = leader
            self._led_at = go_time(self._wall_s())
            self._led_s = self._clock_s()

    def _self(self) -> Answer:
        me, leader, stats = self._member.member_id, self._leader, self._stats
        uptime_ns = round((self._clock_s() - self._led_s) * _NS_IN_S)
        leader_info = {
            "leader": json_string(f"{leader:x}" if leader else ""),
            "uptime": json_string(go_duration(uptime_ns)),
            "startTime": json_string(self._led_at),
        }
        return _json(
            {
                "name": json_string(self._name),
                "id": json_string(f"{me:x}"),
                "state": '"StateLeader"' if leader == me else '"StateFollower"',
                "startTime": json_string(self._started_at),
                "leaderInfo": _object(leader_info.items()),
                "recvAppendRequestCnt": str(stats.received.count),
                **_rates("recv", stats.received.rates()),
                "sendAppendRequestCnt": str(stats.sent.count),
                **_rates("send", stats.sent.rates()),
            }
        )

    def _of_leader(self) -> Answer:
        member = self._member
        if not member.is_leader:
            return _NOT_LEADER
        followers = sorted((f"{each:x}", each) for each in member.membership.members if each != member.member_id)
        return _json(
            {
                "leader": json_string(f"{member.member_id:x}"),
                "followers": _object((text, _follower(self._stats.followers[each])) for text, each in followers),
            }
        )

    def _store(self) -> Answer:
        member = self._member
        return _json(
            {name: str(count) for name, count in member.directory.counters.counts.items()}
            | {"watchers": str(member.v2hub.count)}
        )


def go_float(number: float) -> str:
    """A finite number as Go's JSON has it: the fewest digits, an exponent only for what is very small or large."""
    text = repr(number)
    if number and not 1e-6 <= abs(number) < 1e21:
        return text.replace("e-0", "e-")
    if "e" in text:
        text = f"{Decimal(text):f}"
    return text.removesuffix(".0")


def go_duration(ns: int) -> str:
    """A time that has passed, as Go writes it: ``1h2m3.5s``, ``6.112600522s``, ``30.081453ms``."""
    if ns <= 0:
        return "0s"
    for below_ns, unit, size_ns in _UNITS:
        if ns < below_ns:
            return _decimal(ns, size_ns) + unit
    minutes, ns = divmod(ns, 60 * _NS_IN_S)
    text = _decimal(ns, _NS_IN_S) + "s"
    if not minutes:
        return text
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{text}" if hours else f"{minutes}m{text}"


def go_time(seconds: float) -> str:
    """A time of day, given since 1970, as Go's JSON has it: in the zone of this machine, with the digits it needs."""
    whole = int(seconds)
    ns = int((seconds - whole) * _NS_IN_S)
    moment = datetime.fromtimestamp(whole, UTC).astimezone()
    digits = f"{ns:09d}".rstrip("0")
    zone = moment.strftime("%z")
    return (
        moment.strftime("%Y-%m-%dT%H:%M:%S")
        + (f".{digits}" if digits else "")
        + ("Z" if zone == "+0000" else f"{zone[:3]}:{zone[3:5]}")
    )


def _decimal(number: int, unit: int) -> str:
    whole, rest = divmod(number, unit)
    digits = f"{rest:0{len(str(unit)) - 1}d}".rstrip("0") if rest else ""
    return f"{whole}.{digits}" if digits else str(whole)


def _rates(direction: str, rates: Rates) -> dict[str, str]:
    shown = {f"{direction}PkgRate": rates.appends_per_s, f"{direction}BandwidthRate": rates.bytes_per_s}
    return {name: go_float(rate) for name, rate in shown.items() if rate}


def _follower(stats: FollowerStats) -> str:
    latency = stats.latency()
    shown = {
        "current": latency.current,
        "average": latency.average,
        "standardDeviation": latency.standard_deviation,
        "minimum": latency.minimum,
        "maximum": latency.maximum,
    }
    counts = {"fail": str(stats.failed), "success": str(stats.succeeded)}
    return _object(
        {
            "latency": _object((name, go_float(number)) for name, number in shown.items()),
            "counts": _object(counts.items()),
        }.items()
    )


def _object(members: Iterable[tuple[str, str]]) -> str:
    """A JSON object of values that are JSON already."""
    return "{" + ",".join(f'"{name}":{value}' for name, value in members) + "}"


def _json(members: Mapping[str, str]) -> Answer:
    """An answer without a line end."""
    body = _object(members.items()).encode("utf-8")
    return Answer(200, JSON, body, len(body) <= MEASURED_BYTES)
