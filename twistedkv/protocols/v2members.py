"""``/v2/members``, by which clients see and change who is in the cluster, and ``/v2/machines``, where to reach it.

A change goes the same way as one that comes by gRPC, with the same checks, and is answered when it is applied here.
Whoever goes away before that does not take it back.

Source: etcd ``server/etcdserver/api/v2http/{client,http}.go``, ``v2http/httptypes/{member,errors}.go``. Different from
it: URLs by which no member could be reached, such as one with a query, are refused with 400 (see
:func:`twistedkv.reconfiguration.parse_peer_urls`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, Final, Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from twistedkv.errors import (
    InvalidMemberURLsError,
    KVError,
    MemberExistsError,
    MemberNotFoundError,
    PeerURLExistsError,
)
from twistedkv.members import MemberInfo, Membership
from twistedkv.protocols.answers import (
    ERROR_TEXT,
    JSON,
    MEASURED_BYTES,
    PAGE_NOT_FOUND,
    TEXT,
    Answer,
    Fields,
    Outlet,
    error_text,
)
from twistedkv.protocols.gojson import JSONError, Node, kind, mismatch, scan_whole, unquote
from twistedkv.protocols.gourls import URLsError, check_urls
from twistedkv.protocols.jsonpb import json_string
from twistedkv.protocols.v2words import V2Access, V2Request

MEMBERS_PATH: Final = "/v2/members"
MACHINES_PATH: Final = "/v2/machines"

_Method = Callable[[V2Request, str], Coroutine[Any, Any, Answer]]
"""Serves one method: the request, and what of the path is below :data:`MEMBERS_PATH`."""

_ID: Final = re.compile("[0-9a-fA-F]+")
_ID_END: Final = 1 << 64
_NO_UTF8: Final = re.compile("[\ud800-\udfff]")
_GO_TYPE: Final = 'struct { PeerURLs []string "json:\\"peerURLs\\"" }'  # as which etcd reads a body
_GO_FIELD: Final = "json: cannot unmarshal {kind} into Go struct field .peerURLs of type {type}"
_URL_EXISTS: Final = "membership: peerURL exists"  # etcd api/membership/errors.go
_ID_EXISTS: Final = "membership: ID exists"
_MEMBER_METHODS: Final = error_text(
    405, "Method Not Allowed", Fields([(b"Allow", b"GET,POST,DELETE,PUT"), *ERROR_TEXT.pairs])
)
_MACHINE_METHODS: Final = error_text(405, "Method Not Allowed", Fields([(b"Allow", b"GET,HEAD"), *ERROR_TEXT.pairs]))

_log = Logger()


class ListingMember(Protocol):
    """What is asked of the member; see :class:`twistedkv.server.Member`."""

    cluster_id: int

    @property
    def leader(self) -> int: ...

    @property
    def membership(self) -> Membership: ...


class Newcomer(Protocol):
    """A member that came in."""

    @property
    def member(self) -> MemberInfo: ...


class Changes(Protocol):
    """Carries changes out; see :class:`twistedkv.reconfiguration.Reconfiguration`, which raises KVErrors."""

    def add(self, urls: Iterable[str], is_learner: bool) -> Coroutine[Any, Any, Newcomer]: ...

    def remove(self, member_id: int) -> Coroutine[Any, Any, object]: ...

    def update(self, member_id: int, urls: Iterable[str]) -> Coroutine[Any, Any, object]: ...


class _RefusedError(Exception):
    """The answer to a request that is refused.

    Args:
        status: of the answer.
        message: why.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class V2Members:
    """Serves ``/v2/members`` and what is below it.

    Args:
        member: whose view of the cluster is shown.
        changes: carries changes out.
        access: says who may change anything.
    """

    def __init__(self, member: ListingMember, changes: Changes, access: V2Access) -> None:
        self._member = member
        self._changes = changes
        self._access = access
        cluster = (b"X-Etcd-Cluster-Id", b"%x" % member.cluster_id)
        self._json = Fields([*JSON.pairs, cluster])
        self._bare = Fields([cluster])
        self._text = Fields([*ERROR_TEXT.pairs, cluster])
        self._internal_error = Answer(500, self._json, _message("Internal Server Error"))
        self._methods = {"GET": self._show, "POST": self._add, "DELETE": self._remove, "PUT": self._update}

    def serve(self, request: V2Request, outlet: Outlet) -> Callable[[], None] | None:
        """See :class:`~twistedkv.protocols.v2words.V2Endpoint`."""
        method = self._methods.get(request.method)
        if method is None:
            outlet.respond(_MEMBER_METHODS)
            return None
        serving = Deferred.fromCoroutine(self._serve(method, request, outlet))
        serving.addErrback(lambda failure: _log.failure("answering {path}", failure, path=request.path))
        return serving.cancel

    async def _serve(self, method: _Method, request: V2Request, outlet: Outlet) -> None:
        try:
            answer = await self._answer(method, request)
        except CancelledError:
            return  # the client is gone
        except KVError as error:
            _log.warn("{method} {path}: {error}", method=request.method, path=request.path, error=error)
            answer = self._internal_error
        except Exception:
            _log.failure("{method} {path}", method=request.method, path=request.path)
            answer = self._internal_error
        outlet.respond(answer)

    async def _answer(self, method: _Method, request: V2Request) -> Answer:
        allowed = self._access.may_administer(request)
        if not (await allowed if isinstance(allowed, Deferred) else allowed):
            return Answer(401, JSON, _message("Insufficient credentials"))
        below = request.path.removeprefix(MEMBERS_PATH).removeprefix("/")
        try:
            return await method(request, below)
        except _RefusedError as refused:
            return Answer(refused.status, self._json, _message(refused.message))

    async def _show(self, request: V2Request, below: str) -> Answer:
        membership = self._member.membership
        if not below:
            body = b'{"members":[%b]}\n' % b",".join(map(_described, membership.listed()))
            return Answer(200, self._json, body, len(body) <= MEASURED_BYTES)
        if below != "leader":
            raise _RefusedError(404, "Not found")
        leader = membership.members.get(self._member.leader)
        if leader is None:  # also one that was removed just now
            raise _RefusedError(503, "During election")
        return Answer(200, self._json, _described(leader) + b"\n")

    async def _add(self, request: V2Request, below: str) -> Answer:
        urls = _urls_in(request)
        try:
            added = await self._changes.add(urls, False)
        except (PeerURLExistsError, MemberExistsError, InvalidMemberURLsError) as error:
            raise _refusal(error) from error
        return Answer(201, self._json, _described(added.member) + b"\n")

    async def _remove(self, request: V2Request, below: str) -> Answer:
        if not below:
            return self._no_member_given()
        member_id = _parse_id(below)
        try:
            await self._changes.remove(member_id)
        except MemberNotFoundError as error:
            if member_id in self._member.membership.removed:
                raise _RefusedError(410, f"Member permanently removed: {member_id:x}") from error
            raise _RefusedError(404, f"No such member: {member_id:x}") from error
        return Answer(204, self._bare, b"")

    async def _update(self, request: V2Request, below: str) -> Answer:
        if not below:
            return self._no_member_given()
        member_id = _parse_id(below)
        urls = _urls_in(request)
        try:
            await self._changes.update(member_id, urls)
        except MemberNotFoundError as error:
            if member_id in self._member.membership.removed:
                raise  # etcd's answer is 500 here
            raise _RefusedError(404, f"No such member: {member_id:x}") from error
        except (PeerURLExistsError, InvalidMemberURLsError) as error:
            raise _refusal(error) from error
        return Answer(204, self._bare, b"")

    def _no_member_given(self) -> Answer:
        return error_text(405, "Method Not Allowed", self._text)


class V2Machines:
    """Serves ``/v2/machines``: the client URLs of all members, sorted.

    Args:
        member: whose view of the cluster is shown.
    """

    def __init__(self, member: ListingMember) -> None:
        self._member = member

    def serve(self, request: V2Request, outlet: Outlet) -> None:
        """See :class:`~twistedkv.protocols.v2words.V2Endpoint`; who sends the answer leaves out the body for HEAD."""
        if request.path != MACHINES_PATH:
            outlet.respond(PAGE_NOT_FOUND)
        elif request.method not in ("GET", "HEAD"):
            outlet.respond(_MACHINE_METHODS)
        else:
            members = self._member.membership.members.values()
            urls = sorted(url for member in members for url in member.client_urls)
            body = ", ".join(urls).encode("utf-8", "replace")
            outlet.respond(Answer(200, TEXT, body, len(body) <= MEASURED_BYTES))


def _refusal(error: KVError) -> _RefusedError:
    match error:
        case PeerURLExistsError():
            return _RefusedError(409, _URL_EXISTS)
        case MemberExistsError():
            return _RefusedError(409, _ID_EXISTS)
        case _:
            return _RefusedError(400, error.text)


def _message(text: str) -> bytes:
    """An error's body, which has no line end."""
    return b'{"message":%b}' % _string(text)


def _described(member: MemberInfo) -> bytes:
    return b'{"id":"%x","name":%b,"peerURLs":[%b],"clientURLs":[%b]}' % (
        member.id,
        _string(member.name),
        b",".join(map(_string, member.peer_urls)),
        b",".join(map(_string, member.client_urls)),
    )


def _string(text: str) -> bytes:
    """As Go writes it: a byte that is no UTF-8 becomes U+FFFD, which is escaped then."""
    return _NO_UTF8.sub(r"\\ufffd", json_string(text)).encode("utf-8")


def _parse_id(text: str) -> int:
    """The id in ``text``.

    Raises:
        _RefusedError: it is none.
    """
    if not _ID.fullmatch(text) or (number := int(text, 16)) >= _ID_END:
        raise _RefusedError(404, f"No such member: {text}")
    return number


def _urls_in(request: V2Request) -> Sequence[str]:
    """The peer URLs that a body names.

    Raises:
        _RefusedError: it is no JSON, does not say that it is, or names none that could be one.
    """
    content_type = request.field("content-type")
    name, semicolon, _ = content_type.partition(";")
    if semicolon:
        content_type = name.lower().strip()
    if content_type != "application/json":
        raise _RefusedError(415, f"Bad Content-Type {content_type}, accept application/json")
    try:
        urls = _peer_urls(scan_whole(request.body))
        check_urls(urls)
    except (JSONError, URLsError) as error:
        raise _RefusedError(400, str(error)) from error
    return urls


def _peer_urls(node: Node) -> list[str]:
    """What a body says, read as Go reads it: names in any case, and null for nothing."""
    if node == b"null":
        return []
    if not isinstance(node, dict):
        raise mismatch(node, _GO_TYPE)
    urls: list[str] = []
    for name, value in node.items():
        if name.casefold() != "peerurls":
            continue
        if value == b"null":
            urls = []
        elif isinstance(value, list):
            urls = [_text(each) for each in value]
        else:
            raise JSONError(_GO_FIELD.format(kind=kind(value), type="[]string"))
    return urls


def _text(node: Node) -> str:
    if node == b"null":
        return ""
    if isinstance(node, bytes) and node.startswith(b'"'):
        return unquote(node)
    raise JSONError(_GO_FIELD.format(kind=kind(node), type="string"))
