"""Changes of what the v2 API keeps of users and roles: requests for the v2 store that go through the log.

They are etcd's own requests, so that every member of a mixed cluster carries them out. What depends on what is there
is looked at first, in a state that is as new as any write acknowledged before. As in etcd that is no transaction: of
two changes of one user at the same time the later one wins.

Source: etcd ``server/etcdserver/api/v2auth/{auth,auth_requests}.go``. Different from it: where the state cannot be
read, because there is no leader, the reason is told, and not that there is no such user.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from twistedkv import v2auth
from twistedkv.pb.etcdserver_pb2 import Request
from twistedkv.protocols.v2passwords import Passwords
from twistedkv.storage.directory import Directory
from twistedkv.v2auth import GUEST, GUEST_ROLE, ROOT, Role, User, V2AuthError
from twistedkv.v2errors import V2Code, V2Error
from twistedkv.v2events import Event

_DIRECTORIES: Final = (v2auth.AUTH, f"{v2auth.USERS}/", f"{v2auth.ROLES}/")  # as etcd writes their paths

_log = Logger()


class Proposal(Protocol):
    """Who is told what became of a request; see :class:`twistedkv.waiting.V2Waiter`."""

    def applied(self, event: Event) -> None: ...

    def fail(self, error: BaseException) -> None: ...


class StoringMember(Protocol):
    """What is asked of the member; see :class:`twistedkv.server.Member`."""

    directory: Directory

    def propose_v2(self, fields: bytes, waiter: Proposal) -> None: ...

    def when_readable(self, ready: Callable[[], None], fail: Callable[[BaseException], None]) -> None: ...


class AuthStore:
    """Changes users, roles and whether the checks are made.

    All of it raises V2AuthError for what is refused, V2Error for what the v2 store refuses, KVError where no answer is
    to be had, and ValueError where the store holds something that is no user or role.

    Args:
        member: by which the changes go.
        passwords: makes the hashes.
    """

    def __init__(self, member: StoringMember, passwords: Passwords) -> None:
        self._member = member
        self._passwords = passwords
        self._directories_made = False

    @property
    def directory(self) -> Directory:
        """What there is, as this member sees it."""
        return self._member.directory

    async def enable(self) -> None:
        """Turn the checks on, for which there must be a user root. A role guest is made if there is none."""
        if v2auth.is_enabled(self.directory):
            raise v2auth.already_enabled()
        await self._readable()
        try:
            v2auth.stored_user(self.directory, ROOT)
        except V2AuthError as error:
            raise v2auth.no_root_user() from error
        try:
            v2auth.stored_role(self.directory, GUEST)
        except V2AuthError:
            await self.create_role(GUEST_ROLE)
        await self._put(v2auth.ENABLED, "true", exists=True)
        _log.info("v2 auth is on")

    async def disable(self) -> None:
        """Turn the checks off."""
        if not v2auth.is_enabled(self.directory):
            raise v2auth.already_disabled()
        await self._put(v2auth.ENABLED, "false", exists=True)
        _log.info("v2 auth is off")

    async def create_user(self, user: User) -> User:
        """Make a user who is not there; the user root gets the role root."""
        user = user.rooted()
        if not user.password:
            raise v2auth.no_password(user.name)
        user = user.with_password(await self._passwords.hashed(user.password.encode()))
        try:
            await self._put(f"{v2auth.USERS}/{user.name}", user.encoded(), exists=False)
        except V2Error as error:
            if error.code is V2Code.NODE_EXISTS:
                raise v2auth.user_exists(user.name) from error
            raise
        _log.info("made the v2 user {user}", user=user.name)
        return user

    async def update_user(self, change: User) -> User:
        """Change the roles or the password of a user."""
        await self._readable()
        user = v2auth.stored_user(self.directory, change.name)
        password_hash = await self._passwords.hashed(change.password.encode()) if change.password else ""
        user = user.merged(change, password_hash)
        await self._put(f"{v2auth.USERS}/{user.name}", user.encoded(), exists=True)
        _log.info("changed the v2 user {user}", user=user.name)
        return user

    async def create_or_update_user(self, user: User) -> tuple[User, bool]:
        """The one if the user is not there, else the other; and whether it was the one."""
        await self._readable()
        try:
            v2auth.stored_user(self.directory, user.name)
        except V2AuthError:
            return await self.create_user(user), True
        return await self.update_user(user), False

    async def delete_user(self, name: str) -> None:
        """Remove a user, but root only while the checks are off."""
        if name == ROOT and v2auth.is_enabled(self.directory):
            raise v2auth.root_is_needed()
        try:
            await self._delete(f"{v2auth.USERS}/{name}")
        except V2Error as error:
            if error.code is V2Code.KEY_NOT_FOUND:
                raise v2auth.no_such_user(name) from error
            raise
        _log.info("removed the v2 user {user}", user=name)

    async def create_role(self, role: Role) -> None:
        """Make a role that is not there."""
        if role.name == ROOT:
            raise v2auth.role_is_root()
        try:
            await self._put(f"{v2auth.ROLES}/{role.name}", role.encoded(), exists=False)
        except V2Error as error:
            if error.code is V2Code.NODE_EXISTS:
                raise v2auth.role_exists(role.name) from error
            raise
        _log.info("made the v2 role {role}", role=role.name)

    async def update_role(self, change: Role) -> Role:
        """Grant a role permissions, or revoke them."""
        if change.name == ROOT:
            raise v2auth.role_is_root()
        await self._readable()
        role = v2auth.stored_role(self.directory, change.name).merged(change)
        await self._put(f"{v2auth.ROLES}/{role.name}", role.encoded(), exists=True)
        _log.info("changed the v2 role {role}", role=role.name)
        return role

    async def delete_role(self, name: str) -> None:
        """Remove a role; users who have it keep its name."""
        if name == ROOT:
            raise v2auth.role_is_root()
        try:
            await self._delete(f"{v2auth.ROLES}/{name}")
        except V2Error as error:
            if error.code is V2Code.KEY_NOT_FOUND:
                raise v2auth.no_such_role(name) from error
            raise
        _log.info("removed the v2 role {role}", role=name)

    # --- by the log --------------------------------------------------------------------------------

    async def _readable(self) -> None:
        done: Deferred[None] = Deferred()
        self._member.when_readable(lambda: done.callback(None), done.errback)
        await done

    async def _put(self, path: str, value: str, *, exists: bool) -> None:
        await self._make_directories()
        await self._propose(Request(Method="PUT", Path=path.encode(), Val=value.encode(), PrevExist=exists))

    async def _delete(self, path: str) -> None:
        await self._make_directories()
        data = path.encode("utf-8", "surrogateescape")  # of a URL
        await self._propose(Request(Method="DELETE", Path=data, PrevExist=True))

    async def _make_directories(self) -> None:
        """Once for each member and start, as etcd does: that they are there already is no matter."""
        if self._directories_made:
            return
        requests = [Request(Method="PUT", Path=path.encode(), Dir=True, PrevExist=False) for path in _DIRECTORIES]
        requests.append(Request(Method="PUT", Path=v2auth.ENABLED.encode(), Val=b"false", PrevExist=False))
        for request in requests:
            try:
                await self._propose(request)
            except V2Error as error:
                if error.code is not V2Code.NODE_EXISTS:
                    raise
        self._directories_made = True

    async def _propose(self, request: Request) -> None:
        proposed = _Proposed()
        self._member.propose_v2(request.SerializeToString(), proposed)
        await proposed.outcome


class _Proposed:
    """Waits for one request to be applied."""

    def __init__(self) -> None:
        self.outcome: Deferred[Event] = Deferred()

    def applied(self, event: Event) -> None:
        self.outcome.callback(event)

    def fail(self, error: BaseException) -> None:
        self.outcome.errback(error)
