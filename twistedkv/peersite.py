"""What members ask each other over the peer port besides Raft: a table of paths, and the two that are about members.

A path in the table that ends with a slash is for all paths below it; the longest that fits counts, as with Go's
``http.ServeMux``. That mux also redirects to tidied paths, which no member asks for, and which is not here.

Sources: etcd ``server/etcdserver/api/etcdhttp/peer.go``, ``server/etcdserver/server.go`` (DowngradeEnabledHandler).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final, NamedTuple, Protocol
from urllib.parse import unquote

from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from twistedkv.apply import Applier
from twistedkv.errors import (
    ConnectionLostTimeoutError,
    KVError,
    LeaderFailureTimeoutError,
    LearnerNotReadyError,
    MemberNotFoundError,
    NotLearnerError,
    RequestTimeoutError,
)
from twistedkv.members import MemberInfo
from twistedkv.protocols.answers import ERROR_TEXT, JSON, PAGE_NOT_FOUND, Answer, Fields, error_text
from twistedkv.reconfiguration import PROMOTE_PATH, Reconfiguration, inner_text, members_json

DOWNGRADE_PATH: Final = "/downgrade/enabled"

_DECIMAL: Final = re.compile("0*([0-9]{1,20})")
_INTERNAL: Final = b'{"message":"Internal Server Error"}'  # etcd api/etcdhttp/types/errors.go
_STATUSES: Final[Mapping[type[KVError], int]] = {
    MemberNotFoundError: 404,
    NotLearnerError: 412,
    LearnerNotReadyError: 412,
    RequestTimeoutError: 408,
    LeaderFailureTimeoutError: 408,
    ConnectionLostTimeoutError: 408,
}

_log = Logger()


class PeerRequest(NamedTuple):
    """One question of another member."""

    path: str  # decoded, without a query
    fields: Mapping[str, str]  # of the header, with names in lower case
    body: bytes


Handler = Callable[[PeerRequest], Deferred[Answer]]


class SiteMember(Protocol):
    """What is asked about; see :class:`twistedkv.server.Member`."""

    applier: Applier
    cluster_id: int

    def when_readable(self, ready: Callable[[], None], fail: Callable[[KVError], None]) -> None: ...


class PeerSite:
    """Answers the paths of the peer port that are not the transport's own.

    Args:
        member: who is asked.
        reconfiguration: promotes learners.
    """

    def __init__(self, member: SiteMember, reconfiguration: Reconfiguration) -> None:
        self._member = member
        self._reconfiguration = reconfiguration
        self._handlers: dict[str, tuple[str, Handler]] = {}
        cluster = (b"X-Etcd-Cluster-Id", b"%x" % member.cluster_id)
        self._json = Fields([*JSON.pairs, cluster])
        self._error = Fields([*ERROR_TEXT.pairs, cluster])
        self._plain = Fields([(b"Content-Type", b"text/plain"), cluster])
        self.add(PROMOTE_PATH, "POST", self._promote)
        self.add(DOWNGRADE_PATH, "GET", self._downgrade_enabled)

    def add(self, path: str, method: str, handler: Handler) -> None:
        """Have ``handler`` answer ``method`` at ``path``; other methods are refused there.

        Raises:
            ValueError: the path is taken.
        """
        if path in self._handlers:
            raise ValueError(f"{path} is registered twice")
        self._handlers[path] = (method, handler)

    def answer(self, method: str, path: str, fields: Mapping[str, str], body: bytes) -> Deferred[Answer]:
        """Answer one request; what :class:`twistedkv.protocols.peer.Peers` takes as ``extra``."""
        path = unquote(path)
        known = path if path in self._handlers else max(self._directories_of(path), key=len, default=None)
        if known is None:
            return succeed(PAGE_NOT_FOUND)
        expected, handler = self._handlers[known]
        if method != expected:
            allow = Fields([(b"Allow", expected.encode("ascii")), *ERROR_TEXT.pairs])
            return succeed(error_text(405, "Method Not Allowed", allow))
        return maybeDeferred(handler, PeerRequest(path, fields, body))

    def _directories_of(self, path: str) -> Sequence[str]:
        return [each for each in self._handlers if each.endswith("/") and path.startswith(each)]

    # --- members -----------------------------------------------------------------------------------

    def _promote(self, request: PeerRequest) -> Deferred[Answer]:
        text = request.path.removeprefix(PROMOTE_PATH)
        number = _DECIMAL.fullmatch(text)
        if number is None or int(number[1]) >= 1 << 64:
            return succeed(error_text(404, f"member {text} not found in cluster", self._error))
        # etcd sends it on where it does not lead; two members who take each other for the leader would not stop at it.
        promoted = Deferred.fromCoroutine(self._reconfiguration.promote_here(int(number[1])))
        return promoted.addCallbacks(self._promoted, partial(self._not_promoted, text))

    def _promoted(self, members: Sequence[MemberInfo]) -> Answer:
        return Answer(200, self._json, members_json(members))

    def _not_promoted(self, member: str, failure: Failure) -> Answer:
        error = failure.value
        _log.warn("did not promote member {member}: {error}", member=member, error=error)
        if not isinstance(error, KVError):
            _log.failure("promoting a member", failure)
        elif type(error) in _STATUSES:
            return error_text(_STATUSES[type(error)], inner_text(error), self._error)
        return Answer(500, self._json, _INTERNAL)

    # --- downgrade ---------------------------------------------------------------------------------

    def _downgrade_enabled(self, request: PeerRequest) -> Deferred[Answer]:
        readable: Deferred[None] = Deferred()
        self._member.when_readable(lambda: readable.callback(None), readable.errback)

        def ready(_: None) -> Answer:
            return Answer(200, self._plain, b"true" if self._member.applier.downgrade.enabled else b"false")

        def refused(failure: Failure) -> Answer:
            return error_text(500, f"failed linearized read: {failure.value}", self._error)

        return readable.addCallbacks(ready, refused)
