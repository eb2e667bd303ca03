"""What a client of the v2 API may do: who it is, by its password or its certificate, and what its roles allow.

As long as nobody has turned the checks on, which is the usual case, a check is one look at the tree. After that each
request is looked at anew, in this member's own state: a role that is taken away is gone with the next request.

A client is a user by HTTP basic authentication, or, where client certificates are demanded and no ``Authorization`` is
given, by the common name of its certificate. Who is neither has the role guest for keys, and nothing beyond.

Different from etcd: only the certificate of the client itself can name a user, not those of the authorities above it.

Source: etcd ``server/etcdserver/api/v2http/client_auth.go``; Go ``net/http/request.go`` (BasicAuth).
"""

from __future__ import annotations

import binascii
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from twistedkv.protocols.v2passwords import Passwords
from twistedkv.protocols.v2words import V2Request
from twistedkv.storage.directory import Directory
from twistedkv.v2auth import GUEST, ROOT, Role, User, V2AuthError, is_enabled, stored_role, stored_user
from twistedkv.v2errors import V2Error

_BASIC: Final = "basic "
_READS: Final = frozenset(("GET", "HEAD"))

_log = Logger()


class AccessMember(Protocol):
    """What is asked of the member; see :class:`twistedkv.server.Member`."""

    directory: Directory


class Credentials(NamedTuple):
    """What a client says of itself by basic authentication."""

    user: str
    password: bytes


def basic_credentials(field: str) -> Credentials | None:
    """What an ``Authorization`` field says; None if it is of another kind or malformed."""
    if field[: len(_BASIC)].lower() != _BASIC:
        return None
    try:
        decoded = binascii.a2b_base64(field[len(_BASIC) :].encode("ascii"), strict_mode=True)
    except ValueError:
        return None
    user, colon, password = decoded.partition(b":")
    return Credentials(user.decode("utf-8", "surrogateescape"), password) if colon else None


class V2Gate:
    """A :class:`~twistedkv.protocols.v2words.V2Access` by the users and roles in the v2 store.

    Args:
        member: whose state it is.
        passwords: checks them.
        by_certificate: whether a client's certificate tells who it is, as with ``--client-cert-auth``.
    """

    def __init__(self, member: AccessMember, passwords: Passwords, by_certificate: bool) -> None:
        self._member = member
        self._passwords = passwords
        self._by_certificate = by_certificate

    def open_to_all(self) -> bool:
        """See :class:`~twistedkv.protocols.v2words.V2Access`."""
        return not is_enabled(self._member.directory)

    def may_use_key(self, request: V2Request, key: str, recursive: bool) -> bool | Deferred[bool]:
        """See :class:`~twistedkv.protocols.v2words.V2Access`. A guest needs no more for all below a key than for it."""
        write = request.method not in _READS
        authorization = request.field("authorization")
        if authorization:
            return self._by_password(authorization, lambda user: self._user_may(user, key, write, recursive))
        named = self._named_by_certificate(request)
        if named is not None:
            return self._user_may(named, key, write, recursive)
        guest = self._role(GUEST)
        if guest is not None and guest.allows(key, write, recursive=False):
            return True
        _log.warn("a guest has no access to {key}", key=key)
        return False

    def may_administer(self, request: V2Request) -> bool | Deferred[bool]:
        """See :class:`~twistedkv.protocols.v2words.V2Access`."""
        return request.method in _READS or self.is_root(request)

    def is_root(self, request: V2Request) -> bool | Deferred[bool]:
        """Whether the client has the role root; anybody has while the checks are off."""
        if not is_enabled(self._member.directory):
            return True
        authorization = request.field("authorization")
        if authorization or not self._by_certificate:
            return self._by_password(authorization, _has_root)
        named = self._named_by_certificate(request)
        return named is not None and _has_root(named)

    def _by_password(self, authorization: str, decide: Callable[[User], bool]) -> bool | Deferred[bool]:
        """What ``decide`` says of the user who gives this password, or no."""
        credentials = basic_credentials(authorization)
        if credentials is None:
            _log.warn("no basic authentication, or malformed")
            return False
        user = self._user(credentials.user)
        right = self._passwords.check(*credentials, None if user is None else user.password)

        def decided(right: bool) -> bool:
            if user is None or not right:
                _log.warn("no such user, or a wrong password: {user}", user=credentials.user)
                return False
            return decide(user)

        return right.addCallback(decided) if isinstance(right, Deferred) else decided(right)

    def _named_by_certificate(self, request: V2Request) -> User | None:
        name = request.peer.common_name if self._by_certificate else None
        return self._user(name) if name else None

    def _user_may(self, user: User, key: str, write: bool, recursive: bool) -> bool:
        for name in user.roles or ():
            role = self._role(name)
            if role is not None and role.allows(key, write, recursive):
                return True
        _log.warn("{user} has no access to {key}", user=user.name, key=key)
        return False

    def _user(self, name: str) -> User | None:
        try:
            return stored_user(self._member.directory, name)
        except (V2AuthError, V2Error):
            return None
        except ValueError as error:
            _log.error("the user {user} in the store is none: {error}", user=name, error=error)
            return None

    def _role(self, name: str) -> Role | None:
        try:
            return stored_role(self._member.directory, name)
        except (V2AuthError, V2Error):
            return None
        except ValueError as error:
            _log.error("the role {role} in the store is none: {error}", role=name, error=error)
            return None


def _has_root(user: User) -> bool:
    if ROOT in (user.roles or ()):
        return True
    _log.warn("{user} has not the role root", user=user.name)
    return False
