"""Users, roles and what they may do, as the v2 API has them: the legacy authentication, which is not that of v3.

They are kept as JSON in the v2 store below ``/2``: ``/2/enabled`` holds ``true`` or ``false``, ``/2/users/<name>`` a
user with a bcrypt hash, ``/2/roles/<name>`` a role. Whoever changes them sends ordinary requests for the store through
the log, so that all members agree. The role ``root`` is not kept: it is always there and may do everything; the user
``root`` always has it. Whoever shows no credentials has the role ``guest``.

A list that is missing and one that is empty are two things here, None and ``()``: Go's ``nil`` is shown as ``null``,
and a change from one to the other counts as one.

Different from etcd: an empty name, an empty pattern or a name with a slash matches nothing. There some of them end the
request's connection, because what they lead to is no file.

Sources: etcd ``server/etcdserver/api/v2auth/{auth,auth_requests}.go``; Go ``encoding/json`` for what a request's body
may be: names in any case, ``null`` for nothing, the last of several, anything behind the first value.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from http import HTTPStatus
from typing import Final

from twistedkv.storage.directory import Directory
from twistedkv.v2authjson import Parsed, Texts, fields, go_string, go_strings, parsed, text, texts
from twistedkv.v2errors import V2Code, V2Error

AUTH: Final = "/2"  # of the store, whose nodes are these
ENABLED: Final = f"{AUTH}/enabled"
USERS: Final = f"{AUTH}/users"
ROLES: Final = f"{AUTH}/roles"
ROOT: Final = "root"  # a user's name, and a role's
GUEST: Final = "guest"

_MOST_DECODED: Final = 256  # users, and as many roles, that are not parsed again as long as they stay the same


class V2AuthError(Exception):
    """A request about users, roles or the checks themselves was refused.

    Args:
        status: of the HTTP answer.
        text: for its body.
    """

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


@dataclass(frozen=True, slots=True)
class Permissions:
    """What a role may do: patterns of the keys that it reads and writes.

    A pattern is a key, or the beginning of keys if a ``*`` is at its end.
    """

    read: Texts = None
    write: Texts = None

    @property
    def is_empty(self) -> bool:
        """Whether there is no pattern."""
        return not self.read and not self.write

    def granted(self, more: Permissions | None) -> Permissions:
        """These and ``more``, sorted.

        Raises:
            V2AuthError: one of them is there already.
        """
        if more is None:
            return self
        return Permissions(_with(self.read, more.read, "read"), _with(self.write, more.write, "write"))

    def revoked(self, those: Permissions | None) -> Permissions:
        """These without ``those``, sorted; those that are not there are no matter."""
        if those is None:
            return self
        return Permissions(
            tuple(sorted({*(self.read or ())} - {*(those.read or ())})),
            tuple(sorted({*(self.write or ())} - {*(those.write or ())})),
        )

    def allow(self, key: str, write: bool, recursive: bool) -> bool:
        """Whether they suffice for ``key``; with ``recursive`` for all that begins with it, too."""
        for pattern in (self.write if write else self.read) or ():
            if pattern.endswith("*"):
                if key.startswith(pattern[:-1]):
                    return True
            elif pattern and key == pattern and not recursive:
                return True
        return False

    def encoded(self) -> str:
        """As JSON."""
        return f'{{"kv":{{"read":{go_strings(self.read)},"write":{go_strings(self.write)}}}}}'


@dataclass(frozen=True, slots=True)
class Role:
    """A role; ``grant`` and ``revoke`` are what a request wants of one, and are mostly None."""

    name: str
    permissions: Permissions
    grant: Permissions | None = None
    revoke: Permissions | None = None

    @property
    def is_change(self) -> bool:
        """Whether something is to be granted or revoked, so that there must be such a role."""
        wanted = (self.grant, self.revoke)
        return any(permissions is not None and not permissions.is_empty for permissions in wanted)

    @classmethod
    def decoded(cls, data: bytes) -> Role:
        """From JSON.

        Raises:
            ValueError: it is none.
        """
        role = cls("", Permissions())
        for name, value in fields(parsed(data), ("role", "permissions", "grant", "revoke")):
            match name:
                case "role":
                    role = replace(role, name=text(value, role.name))
                case "permissions":
                    role = replace(role, permissions=_permissions(value, role.permissions))
                case "grant":
                    role = replace(role, grant=_nullable_permissions(value, role.grant))
                case _:
                    role = replace(role, revoke=_nullable_permissions(value, role.revoke))
        return role

    def encoded(self) -> str:
        """As JSON, for the store as well as for a client."""
        parts = [f'"role":{go_string(self.name)}', f'"permissions":{self.permissions.encoded()}']
        for name, permissions in (("grant", self.grant), ("revoke", self.revoke)):
            if permissions is not None:
                parts.append(f'"{name}":{permissions.encoded()}')
        return f"{{{','.join(parts)}}}"

    def merged(self, change: Role) -> Role:
        """This one with what ``change`` grants, and then without what it revokes.

        Raises:
            V2AuthError: something is granted that was granted before, or nothing changes.
        """
        merged = Role(self.name, self.permissions.granted(change.grant).revoked(change.revoke))
        if merged == self:
            raise _error(HTTPStatus.BAD_REQUEST, "Role not updated. Use grant/revoke to update the role.")
        return merged

    def allows(self, key: str, write: bool, recursive: bool) -> bool:
        """See :meth:`Permissions.allow`; root may do everything."""
        return self.name == ROOT or self.permissions.allow(key, write, recursive)


ROOT_ROLE: Final = Role(ROOT, Permissions(("/*",), ("/*",)))
GUEST_ROLE: Final = Role(GUEST, Permissions(("/*",), ("/*",)))  # as it is when nobody has made one


@dataclass(frozen=True, slots=True)
class User:
    """A user; ``grant`` and ``revoke`` are what a request wants of one, and are mostly None."""

    name: str
    password: str = ""  # in the store its hash; "" in a request that says nothing of it
    roles: Texts = None
    grant: Texts = None
    revoke: Texts = None

    @classmethod
    def decoded(cls, data: bytes) -> User:
        """From JSON.

        Raises:
            ValueError: it is none.
        """
        user = cls("")
        for name, value in fields(parsed(data), ("user", "password", "roles", "grant", "revoke")):
            match name:
                case "user":
                    user = replace(user, name=text(value, user.name))
                case "password":
                    user = replace(user, password=text(value, user.password))
                case "roles":
                    user = replace(user, roles=texts(value))
                case "grant":
                    user = replace(user, grant=texts(value))
                case _:
                    user = replace(user, revoke=texts(value))
        return user

    def encoded(self) -> str:
        """As JSON, for the store; for a client without the password."""
        parts = [f'"user":{go_string(self.name)}']
        if self.password:
            parts.append(f'"password":{go_string(self.password)}')
        parts.append(f'"roles":{go_strings(self.roles)}')
        parts += (
            f'"{name}":{go_strings(texts)}' for name, texts in (("grant", self.grant), ("revoke", self.revoke)) if texts
        )
        return f"{{{','.join(parts)}}}"

    def shown_with(self, roles: Iterable[Role]) -> str:
        """As JSON for a client who wants to see the roles, too."""
        encoded = ",".join(role.encoded() for role in roles)
        return f'{{"user":{go_string(self.name)}' + (f',"roles":[{encoded}]}}' if encoded else "}")

    def with_password(self, password: str) -> User:
        """This one with another password, or another hash."""
        return replace(self, password=password)

    def rooted(self) -> User:
        """This one with the role root, if it is the user root."""
        if self.name != ROOT or ROOT in (self.roles or ()):
            return self
        return replace(self, roles=(*(self.roles or ()), ROOT))

    def merged(self, change: User, password_hash: str) -> User:
        """This one with the roles that ``change`` grants, and then without those that it revokes.

        Args:
            change: what is wanted.
            password_hash: of its password; "" leaves this one's.

        Raises:
            V2AuthError: a role is granted that it has, or revoked that it has not, or nothing changes.
        """
        roles = {*(self.roles or ())}
        for role in change.grant or ():
            if role in roles:
                raise _error(HTTPStatus.CONFLICT, f"Granting duplicate role {role} for user {self.name}")
            roles.add(role)
        for role in change.revoke or ():
            if role not in roles:
                raise _error(HTTPStatus.CONFLICT, f"Revoking ungranted role {role} for user {self.name}")
            roles.remove(role)
        merged = User(self.name, password_hash or self.password, tuple(sorted(roles)))
        if merged == self:
            raise _error(HTTPStatus.BAD_REQUEST, "User not updated. Use grant/revoke/password to update the user.")
        return merged


_user: Final = lru_cache(_MOST_DECODED)(User.decoded)  # each request looks at some of them
_role: Final = lru_cache(_MOST_DECODED)(Role.decoded)


# --- what the store holds --------------------------------------------------------------------------


def is_enabled(directory: Directory) -> bool:
    """Whether the checks are made. Quick, and counted as the read that it is in etcd."""
    node = directory.node(ENABLED)
    if node is None:
        directory.counters.counts["getsFail"] += 1
        return False
    directory.counters.counts["getsSuccess"] += 1
    return node.value == "true"


def user_names(directory: Directory) -> list[str]:
    """Of all users, sorted; those that begin with ``_`` are hidden."""
    return sorted(_names(directory, USERS))


def role_names(directory: Directory) -> list[str]:
    """Of all roles, sorted; those that begin with ``_`` are hidden."""
    return sorted((ROOT, *_names(directory, ROLES)))


def stored_user(directory: Directory, name: str) -> User:
    """The user of this name, its hash as the password.

    Raises:
        V2AuthError: there is none.
        ValueError: what is in the store is none.
    """
    value = _value(directory, USERS, name)
    if value is None:
        raise _error(HTTPStatus.NOT_FOUND, f"User {name} does not exist.")
    return _user(value).rooted()


def stored_role(directory: Directory, name: str) -> Role:
    """The role of this name.

    Raises:
        V2AuthError: there is none.
        ValueError: what is in the store is none.
    """
    if name == ROOT:
        return ROOT_ROLE
    value = _value(directory, ROLES, name)
    if value is None:
        raise _error(HTTPStatus.NOT_FOUND, f"Role {name} does not exist.")
    return _role(value)


# --- refusals --------------------------------------------------------------------------------------


def _error(status: HTTPStatus, text: str) -> V2AuthError:
    return V2AuthError(status, f"auth: {text}")


def already_enabled() -> V2AuthError:
    """The checks are to be turned on, and are."""
    return _error(HTTPStatus.CONFLICT, "already enabled")


def already_disabled() -> V2AuthError:
    """The checks are to be turned off, and are."""
    return _error(HTTPStatus.CONFLICT, "already disabled")


def no_root_user() -> V2AuthError:
    """The checks are to be turned on, and nobody could turn them off."""
    return _error(HTTPStatus.CONFLICT, "No root user available, please create one")


def root_is_needed() -> V2AuthError:
    """The user root is to go while nobody else may turn the checks off."""
    return _error(HTTPStatus.FORBIDDEN, "Cannot delete root user while auth is enabled.")


def no_password(user: str) -> V2AuthError:
    """A user is to be made without a password."""
    return _error(HTTPStatus.BAD_REQUEST, f"Cannot create user {user} with an empty password")


def user_exists(user: str) -> V2AuthError:
    """A user is to be made that is there."""
    return _error(HTTPStatus.CONFLICT, f"User {user} already exists.")


def no_such_user(user: str) -> V2AuthError:
    """A user is to go that is not there."""
    return _error(HTTPStatus.NOT_FOUND, f"User {user} does not exist")


def role_exists(role: str) -> V2AuthError:
    """A role is to be made that is there."""
    return _error(HTTPStatus.CONFLICT, f"Role {role} already exists.")


def no_such_role(role: str) -> V2AuthError:
    """A role is to go that is not there."""
    return _error(HTTPStatus.NOT_FOUND, f"Role {role} doesn't exist.")


def role_is_root() -> V2AuthError:
    """The role root is to be made, changed or removed."""
    return _error(HTTPStatus.FORBIDDEN, f"Cannot modify role {ROOT}: is root role.")


# --- how it is done --------------------------------------------------------------------------------


def _with(patterns: Texts, more: Texts, kind: str) -> tuple[str, ...]:
    found = {*(patterns or ())}
    for pattern in more or ():
        if pattern in found:
            raise _error(HTTPStatus.CONFLICT, f"Granting duplicate {kind} permission {pattern}")
        found.add(pattern)
    return tuple(sorted(found))


def _names(directory: Directory, path: str) -> Iterator[str]:
    try:
        listing = directory.get(path).node
    except V2Error as error:
        if error.code is V2Code.KEY_NOT_FOUND:
            return
        raise
    for node in listing.nodes:
        yield node.key[node.key.rfind("/") + 1 :]


def _value(directory: Directory, path: str, name: str) -> bytes | None:
    """What the store holds of ``name``; None if there is nothing, or a directory."""
    if not name or "/" in name:
        return None
    try:
        value = directory.get(f"{path}/{name}").node.value
    except V2Error as error:
        if error.code is V2Code.KEY_NOT_FOUND:
            return None
        raise
    return None if value is None else value.encode("utf-8", "surrogateescape")


def _permissions(value: Parsed, before: Permissions) -> Permissions:
    permissions = before
    for _, patterns in fields(value, ("kv",)):
        for name, inner in fields(patterns, ("read", "write")):
            if name == "read":
                permissions = replace(permissions, read=texts(inner))
            else:
                permissions = replace(permissions, write=texts(inner))
    return permissions


def _nullable_permissions(value: Parsed, before: Permissions | None) -> Permissions | None:
    return None if value is None else _permissions(value, before or Permissions())
