"""``/v2/auth``: who uses the v2 API, in which roles, and whether anybody looks at that.

``enable`` says whether the checks are made and turns them on and off; ``users`` and ``roles`` list all, or below them
show, make, change and remove one. As long as the checks are off anybody may do all of it; then only those with the role
root, while ``enable`` may be read by anybody.

Whoever goes away before the answer does not take a change back.

Source: etcd ``server/etcdserver/api/v2http/client_auth.go``, ``api/etcdhttp/base.go`` (WriteError).
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from http import HTTPStatus
from typing import Final, Protocol

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from twistedkv import v2auth
from twistedkv.errors import KVError
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
from twistedkv.protocols.v2access import V2Gate
from twistedkv.protocols.v2authstore import AuthStore
from twistedkv.protocols.v2json import error_json
from twistedkv.protocols.v2words import V2Request
from twistedkv.v2auth import Role, User, V2AuthError
from twistedkv.v2authjson import go_string
from twistedkv.v2errors import V2Error

AUTH_PATH: Final = "/v2/auth"

_ENABLE_PATH: Final = f"{AUTH_PATH}/enable"
_KINDS: Final = ("users", "roles")
_LIST_METHODS: Final = ("GET",)
_METHODS: Final = ("GET", "PUT", "DELETE")
_BAD_ESCAPE: Final = re.compile("%(?![0-9A-Fa-f]{2})")  # in a query, which etcd reads as a form and does not use

_log = Logger()


class NamedCluster(Protocol):
    """What is asked of the member; see :class:`twistedkv.server.Member`."""

    cluster_id: int


class V2Auth:
    """Answers the requests at ``/v2/auth`` and below.

    Args:
        member: of the cluster whose id the answers carry.
        gate: says who may do it.
        store: does it.
    """

    def __init__(self, member: NamedCluster, gate: V2Gate, store: AuthStore) -> None:
        self._fields = Fields([*JSON.pairs, (b"X-Etcd-Cluster-Id", b"%x" % member.cluster_id)])
        self._done = Answer(HTTPStatus.OK, self._fields, b"")
        self._internal_error = _message(HTTPStatus.INTERNAL_SERVER_ERROR, "Internal Server Error", self._fields)
        self._gate = gate
        self._store = store

    def serve(self, request: V2Request, outlet: Outlet) -> Callable[[], None] | None:
        """See :class:`~twistedkv.protocols.v2words.V2Endpoint`."""
        gone = False

        def leave() -> None:
            nonlocal gone
            gone = True

        def respond(answer: Answer) -> None:
            if not gone:
                outlet.respond(answer)

        answering = Deferred.fromCoroutine(self._answer(request)).addCallback(respond)
        answering.addErrback(lambda failure: _log.failure("answering {path}", failure, path=request.path))
        return leave

    async def _answer(self, request: V2Request) -> Answer:
        if request.path == _ENABLE_PATH:
            return await self._guarded(request, _METHODS, self._enable, self._gate.may_administer)
        _, _, _, *below = posixpath.normpath(request.path).split("/")
        match below:
            case ["users"]:
                return await self._guarded(request, _LIST_METHODS, self._users, self._gate.is_root)
            case ["roles"]:
                return await self._guarded(request, _LIST_METHODS, self._roles, self._gate.is_root)
            case ["users", _]:
                return await self._guarded(request, _METHODS, self._user, self._gate.is_root)
            case ["roles", _]:
                return await self._guarded(request, _METHODS, self._role, self._gate.is_root)
            case [kind, *_] if kind in _KINDS:
                return _message(HTTPStatus.BAD_REQUEST, "Invalid path")
        return PAGE_NOT_FOUND

    async def _guarded(
        self,
        request: V2Request,
        methods: tuple[str, ...],
        carry_out: _CarryOut,
        allowed: Callable[[V2Request], bool | Deferred[bool]],
    ) -> Answer:
        """What ``carry_out`` answers, if it is one of the methods and the client may do it."""
        if request.method not in methods:
            allow = (b"Allow", ",".join(methods).encode("ascii"))
            return error_text(405, "Method Not Allowed", Fields([allow, *ERROR_TEXT.pairs]))
        may = allowed(request)
        if not (await may if isinstance(may, Deferred) else may):
            return _message(HTTPStatus.UNAUTHORIZED, "Insufficient credentials")
        try:
            return await carry_out(request, request.path.rstrip("/").rpartition("/")[2])
        except V2AuthError as error:
            return _message(error.status, error.text, self._fields)
        except V2Error as error:
            fields = Fields([*self._fields.pairs, (b"X-Etcd-Index", b"%d" % error.index)])
            return Answer(error.status, fields, error_json(error))
        except KVError as error:
            _log.warn("{method} {path}: {error}", method=request.method, path=request.path, error=error)
        except Exception:
            _log.failure("{method} {path}", method=request.method, path=request.path)
        return self._internal_error

    # --- one of the paths each ---------------------------------------------------------------------

    async def _enable(self, request: V2Request, name: str) -> Answer:
        match request.method:
            case "GET":
                enabled = v2auth.is_enabled(self._store.directory)
                return self._shown('{"enabled":true}' if enabled else '{"enabled":false}')
            case "PUT":
                await self._store.enable()
            case _:
                await self._store.disable()
        return self._done

    async def _users(self, request: V2Request, name: str) -> Answer:
        names = v2auth.user_names(self._store.directory)
        if _BAD_ESCAPE.search(request.query):
            return self._internal_error
        shown: list[str] = []
        for each in names:
            user = v2auth.stored_user(self._store.directory, each)
            shown.append(user.shown_with(self._roles_there_are(user)))
        return self._shown(f'{{"users":[{",".join(shown)}]}}' if shown else '{"users":null}')

    async def _user(self, request: V2Request, name: str) -> Answer:
        match request.method:
            case "GET":
                user = v2auth.stored_user(self._store.directory, name)
                if _BAD_ESCAPE.search(request.query):
                    return self._internal_error
                roles = [v2auth.stored_role(self._store.directory, role) for role in user.roles or ()]
                return self._shown(user.shown_with(roles))
            case "PUT":
                return await self._put_user(request, name)
            case _:
                await self._store.delete_user(name)
                return self._done

    async def _put_user(self, request: V2Request, name: str) -> Answer:
        try:
            wanted = User.decoded(request.body)
        except ValueError as error:
            raise _bad("Invalid JSON in request body.") from error
        if wanted.name != name:
            raise _bad("User JSON name does not match the name in the URL")
        created = False
        if wanted.grant or wanted.revoke:
            if wanted.roles:
                raise _bad("User JSON contains both roles and grant/revoke")
            user = await self._store.update_user(wanted)
        elif wanted.roles:
            user = await self._store.create_user(wanted)  # with 200, as etcd
        else:
            user, created = await self._store.create_or_update_user(wanted)
        status = HTTPStatus.CREATED if created else HTTPStatus.OK
        return self._shown(user.with_password("").encoded(), status)

    async def _roles(self, request: V2Request, name: str) -> Answer:
        names = v2auth.role_names(self._store.directory)
        if _BAD_ESCAPE.search(request.query):
            return self._internal_error
        roles = (v2auth.stored_role(self._store.directory, each).encoded() for each in names)
        return self._shown(f'{{"roles":[{",".join(roles)}]}}')

    async def _role(self, request: V2Request, name: str) -> Answer:
        match request.method:
            case "GET":
                return self._shown(v2auth.stored_role(self._store.directory, name).encoded())
            case "PUT":
                return await self._put_role(request, name)
            case _:
                await self._store.delete_role(name)
                return self._done

    async def _put_role(self, request: V2Request, name: str) -> Answer:
        try:
            wanted = Role.decoded(request.body)
        except ValueError as error:
            raise _bad("Invalid JSON in request body.") from error
        if wanted.name != name:
            raise _bad("Role JSON name does not match the name in the URL")
        if not wanted.is_change:
            await self._store.create_role(wanted)
            return self._shown(wanted.encoded(), HTTPStatus.CREATED)
        if not wanted.permissions.is_empty:
            raise _bad("Role JSON contains both permissions and grant/revoke")
        return self._shown((await self._store.update_role(wanted)).encoded())

    # --- answers -----------------------------------------------------------------------------------

    def _roles_there_are(self, user: User) -> list[Role]:
        roles: list[Role] = []
        for name in user.roles or ():
            try:
                roles.append(v2auth.stored_role(self._store.directory, name))
            except (V2AuthError, ValueError):  # a name that a user kept: etcd passes over it, too
                continue
        return roles

    def _shown(self, text: str, status: HTTPStatus = HTTPStatus.OK) -> Answer:
        return _answer(status, self._fields, f"{text}\n")


class _CarryOut(Protocol):
    """Does what a request asks for of the user or role of this name, and answers."""

    async def __call__(self, request: V2Request, name: str, /) -> Answer: ...


def _bad(text: str) -> V2AuthError:
    return V2AuthError(HTTPStatus.BAD_REQUEST, text)


def _message(status: HTTPStatus, text: str, fields: Fields = JSON) -> Answer:
    return _answer(status, fields, f'{{"message":{go_string(text)}}}')


def _answer(status: HTTPStatus, fields: Fields, text: str) -> Answer:
    body = text.encode()
    return Answer(status, fields, body, len(body) <= MEASURED_BYTES)
