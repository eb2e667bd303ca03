"""The plain endpoints of the client port: health, version and metrics.

``/health`` answers as etcd 3.5.1 does, with the ``serializable`` parameter of later 3.5 releases; ``/livez`` and
``/readyz`` are those of 3.5.11 and later. What they know of the member comes through :class:`MemberView`.

Source: etcd 3.5 ``server/etcdserver/api/etcdhttp/{base,health,metrics}.go``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

from twisted.internet.defer import Deferred, succeed

from twistedkv.protocols.answers import (
    ERROR_TEXT,
    JSON,
    NO_METHOD_HERE,
    PAGE_NOT_FOUND,
    TEXT,
    Answer,
    Fields,
    error_text,
)
from twistedkv.protocols.jsonpb import json_string

METRICS_TEXT: Final = Fields([(b"Content-Type", b"text/plain; version=0.0.4; charset=utf-8")])

Query = Mapping[str, Sequence[str]]


class MemberView(Protocol):
    """What the endpoints ask the member. The two checks have time-outs of their own."""

    server_version: str

    @property
    def cluster_version(self) -> str:
        """Empty while it is not decided."""

    @property
    def has_leader(self) -> bool:
        """Whether this member knows a leader."""

    @property
    def is_learner(self) -> bool:
        """Whether this member has no vote."""

    def alarms(self) -> Iterable[str]:
        """The names of the alarms raised by any member."""

    def linearizable_check(self) -> Deferred[None]:
        """Fires once a linearizable read has gone through, or fails with the reason."""

    def serializable_check(self) -> Deferred[None]:
        """Fires once a read from this member's own state has gone through, or fails with the reason."""


class HealthObserver(Protocol):
    """Who counts health checks."""

    def health_checked(self, healthy: bool) -> None:
        """``/health`` was answered."""

    def check_done(self, kind: str, name: str, passed: bool) -> None:
        """One check of ``/livez`` or ``/readyz`` was made."""


class _CheckFailed(Exception):
    """The text is the reason."""


class Endpoints:
    """Answers to everything that is neither gateway nor v2.

    Args:
        member: asked for what it knows.
        exposition: makes the text of ``/metrics``.
        observer: counts health checks.
    """

    def __init__(self, member: MemberView, exposition: Callable[[], bytes], observer: HealthObserver) -> None:
        self._member = member
        self._exposition = exposition
        self._observer = observer
        checks: dict[str, Callable[[], Awaitable[None]]] = {
            "data_corruption": self._check_corruption,
            "serializable_read": member.serializable_check,
            "linearizable_read": member.linearizable_check,
            "non_learner": self._check_voter,
        }
        self._checks = {
            "livez": {name: checks[name] for name in ("serializable_read",)},
            "readyz": checks,
        }

    def answer(self, method: str, path: str, query: Query) -> Deferred[Answer]:
        """The answer to one request; it does not fail."""
        match path:
            case "/metrics":
                return succeed(Answer(200, METRICS_TEXT, self._exposition()))
            case "/version":
                return succeed(self.version() if method == "GET" else NO_METHOD_HERE)
            case "/health":
                return _get(method, self._health(query))
        kind, _, name = path.removeprefix("/").partition("/")
        checks = self._checks.get(kind)
        if checks is None or (name and name not in checks) or path.endswith("/"):
            return succeed(PAGE_NOT_FOUND)
        if name:
            return _get(method, self._run(kind, {name: checks[name]}, query))
        excluded = query.get("exclude", ())
        return _get(method, self._run(kind, {n: c for n, c in checks.items() if n not in excluded}, query))

    def version(self) -> Answer:
        """The server's version and the cluster's."""
        cluster = self._member.cluster_version or "not_decided"
        return Answer(200, JSON, f'{{"etcdserver":"{self._member.server_version}","etcdcluster":"{cluster}"}}'.encode())

    async def _health(self, query: Query) -> Answer:
        reason = await self._sickness(query)
        healthy = not reason
        self._observer.health_checked(healthy)
        body = f'{{"health":"{str(healthy).lower()}","reason":{json_string(reason)}}}'
        return Answer(200, TEXT, body.encode()) if healthy else error_text(503, body)

    async def _sickness(self, query: Query) -> str:
        """Why the member is not healthy; empty if it is."""
        excluded = query.get("exclude", ())
        for alarm in self._member.alarms():
            if alarm not in excluded:
                return f"ALARM {alarm}" if alarm in ("NOSPACE", "CORRUPT") else "ALARM UNKNOWN"
        local = query.get("serializable", ("",))[0] == "true"
        if not local and not self._member.has_leader:
            return "RAFT NO LEADER"
        try:
            await (self._member.serializable_check() if local else self._member.linearizable_check())
        except Exception as error:
            return f"RANGE ERROR:{error}"
        return ""

    async def _run(self, kind: str, checks: Mapping[str, Callable[[], Awaitable[None]]], query: Query) -> Answer:
        lines: list[str] = []
        failed = False
        for name, check in checks.items():
            try:
                await check()
            except Exception as error:
                failed = True
                lines.append(f"[-]{name} failed: {error}\n")
                self._observer.check_done(kind, name, False)
            else:
                lines.append(f"[+]{name} ok\n")
                self._observer.check_done(kind, name, True)
        report = "".join(lines)
        if failed:
            return error_text(503, report)
        return Answer(200, ERROR_TEXT, f"{report if 'verbose' in query else ''}ok\n".encode())

    async def _check_corruption(self) -> None:
        if "CORRUPT" in self._member.alarms():
            raise _CheckFailed("alarm activated: CORRUPT")

    async def _check_voter(self) -> None:
        if self._member.is_learner:
            raise _CheckFailed("not a voter: the member is a learner")


class MonitoringEndpoints(Endpoints):
    """What ``--listen-metrics-urls`` serves: all but the version.

    Source: etcd 3.5 ``server/embed/etcd.go``, serveMetrics.
    """

    def answer(self, method: str, path: str, query: Query) -> Deferred[Answer]:
        """The answer to one request; it does not fail."""
        return succeed(PAGE_NOT_FOUND) if path == "/version" else super().answer(method, path, query)


def _get(method: str, answer: Coroutine[Deferred[Any], Any, Answer]) -> Deferred[Answer]:
    """Run ``answer`` for a GET; nothing else is allowed."""
    if method == "GET":
        return Deferred.fromCoroutine(answer)
    answer.close()
    return succeed(NO_METHOD_HERE)
