"""Changes of the members that clients ask for: what is refused at once, and what goes through the log.

The log refuses what does not fit the members when its turn comes, equally on all of them; see
:mod:`twistedkv.members`. Before that the member that is asked looks whether the change could leave the cluster without
a quorum, by what it sees of the others now. Only the leader knows how far a learner has come, so others send a
promotion on to it, over the peer port.

Sources: etcd ``server/etcdserver/server.go`` (AddMember and what follows), ``server/etcdserver/util.go``,
``server/etcdserver/cluster_util.go`` (promoteMemberHTTP), ``client/pkg/types/urls.go``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple, Protocol
from urllib.parse import urlsplit

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from twistedkv.errors import (
    InvalidMemberURLsError,
    KVError,
    LearnerNotReadyError,
    MemberNotFoundError,
    NoLeaderError,
    NotLeaderError,
    NotLearnerError,
    RequestTimeoutError,
    UnhealthyError,
)
from twistedkv.founding import parse_members
from twistedkv.members import MemberInfo, Membership, promotion
from twistedkv.members import member_id as make_member_id
from twistedkv.optiontypes import parse_url
from twistedkv.pb.raft_pb2 import (
    ConfChange,
    ConfChangeAddLearnerNode,
    ConfChangeAddNode,
    ConfChangeRemoveNode,
    ConfChangeType,
    ConfChangeUpdateNode,
)
from twistedkv.peering import Reply, Transport
from twistedkv.raft.progress import Progress

PROMOTE_PATH: Final = "/members/promote/"  # of the peer port; the id follows in decimal
HEALTH_INTERVAL_S: Final = 5.0  # how long a connection must have lasted; etcd server.go, HealthInterval
READY_SHARE: Final = 0.9  # of the leader's log that a learner must have; etcd server.go, readyPercent
RETRY_S: Final = 0.1  # between two tries to reach the leader; etcd does not pause

NOT_FOUND_TEXT: Final = "membership: ID not found"  # etcd api/membership/errors.go: texts that gRPC clients do not see
_REMOVED_TEXT: Final = "membership: ID removed"
NOT_LEARNER_TEXT: Final = "membership: can only promote a learner member"

_log = Logger()


class Options(Protocol):
    """What of the configuration counts here."""

    @property
    def strict_reconfig_check(self) -> bool: ...


class ChangingMember(Protocol):
    """What changes of the members need of this one; see :class:`twistedkv.server.Member`."""

    member_id: int
    timeout_s: float

    @property
    def reactor(self) -> IReactorTime: ...

    @property
    def config(self) -> Options: ...

    @property
    def peers(self) -> Transport: ...

    @property
    def leader(self) -> int: ...

    @property
    def membership(self) -> Membership: ...

    @property
    def progress(self) -> Mapping[int, Progress]: ...

    def reconfigure(self, change: ConfChange) -> Deferred[None]: ...

    def when_leader(self, known: Callable[[], None]) -> Callable[[], None]: ...


class Added(NamedTuple):
    """A member that came in, and all members with it."""

    member: MemberInfo
    members: Sequence[MemberInfo]


class Reconfiguration:
    """Adds, removes, moves and promotes members. Each coroutine returns the members as they are then.

    Any of them raises the KVError by which the log refused the change, or RequestTimeoutError if it was not applied
    here in time; what became of it is not known then.

    Args:
        member: the one that is asked.
        wall_s: the time of day in seconds since 1970, which goes into the ids of new members.
    """

    def __init__(self, member: ChangingMember, wall_s: Callable[[], float]) -> None:
        self.promoted = 0  # learners, while this member led
        self.not_promoted: Counter[str] = Counter()  # likewise, by etcd's own words for the reason
        self._member = member
        self._wall_s = wall_s

    async def add(self, urls: Iterable[str], is_learner: bool) -> Added:
        """A new member, which has not started yet.

        Args:
            urls: where others will reach it.

        Raises:
            InvalidMemberURLsError: there is none, or one that is no URL of a member.
            NotEnoughStartedError, UnhealthyError: by the strict check.
        """
        parsed = sorted(parse_peer_urls(urls))
        self._check_add(parsed, is_learner)
        member = MemberInfo(make_member_id(parsed, str(int(self._wall_s()))), tuple(parsed), is_learner=is_learner)
        kind = ConfChangeAddLearnerNode if is_learner else ConfChangeAddNode
        return Added(member, await self._change(kind, member.id, member.to_json()))

    async def remove(self, member_id: int) -> Sequence[MemberInfo]:
        """Take a member out for good.

        Raises:
            NotEnoughStartedError, UnhealthyError: by the strict check.
        """
        self._check_remove(member_id)
        return await self._change(ConfChangeRemoveNode, member_id)

    async def update(self, member_id: int, urls: Iterable[str]) -> Sequence[MemberInfo]:
        """Other URLs for a member.

        etcd takes whatever it is given here, and what is no URL ends the process of each other member. It also leaves
        out whether the member is a learner, by which its members take it for none, and will not promote it.

        Raises:
            InvalidMemberURLsError: as in :meth:`add`.
        """
        known = self._member.membership.members.get(member_id)
        is_learner = known is not None and known.is_learner
        member = MemberInfo(member_id, tuple(parse_peer_urls(urls)), is_learner=is_learner)
        return await self._change(ConfChangeUpdateNode, member_id, member.to_json())

    async def promote(self, member_id: int, wanted: Callable[[], bool]) -> Sequence[MemberInfo]:
        """Make a voter of a learner, here or at the leader.

        Args:
            wanted: whether somebody still waits for the answer.

        Raises:
            LearnerNotReadyError: it lacks too much of the log.
            NotEnoughStartedError: by the strict check.
            NoLeaderError, RequestTimeoutError: nobody led, or answered, in time.
        """
        try:
            return await self.promote_here(member_id)
        except NotLeaderError:
            return await self._promote_there(member_id, wanted)

    async def promote_here(self, member_id: int) -> Sequence[MemberInfo]:
        """As :meth:`promote`, on the leader.

        Raises:
            NotLeaderError: this member does not lead.
        """
        try:
            self._check_promote(member_id)
            members = await self._change(ConfChangeAddNode, member_id, promotion(member_id))
        except NotLeaderError:
            raise
        except KVError as error:
            self.not_promoted[self._reason(error, member_id)] += 1
            raise
        self.promoted += 1
        return members

    async def _change(self, kind: ConfChangeType, member_id: int, context: bytes = b"") -> Sequence[MemberInfo]:
        change = ConfChange(type=kind, node_id=member_id, context=context)
        applied: Deferred[None] = Deferred()  # whoever does not wait any more does not take the change back
        self._member.reconfigure(change).chainDeferred(applied)
        await applied
        return self._member.membership.listed()

    # --- the strict check --------------------------------------------------------------------------

    def _check_add(self, urls: Sequence[str], is_learner: bool) -> None:
        member = self._member
        if not member.config.strict_reconfig_check:
            return
        try:
            if not is_learner:
                member.membership.check_add_voter()
            if self._connected() < len(member.membership.voters()):
                raise UnhealthyError
        except KVError as error:
            _log.warn("not adding the member at {urls}: {error}", urls=urls, error=error)
            raise

    def _check_remove(self, member_id: int) -> None:
        member = self._member
        known = member.membership.members.get(member_id)
        if not member.config.strict_reconfig_check or (known is not None and known.is_learner):
            return
        try:
            voters = member.membership.voters()
            member.membership.check_remove(member_id)
            if member_id != member.member_id and member.peers.active_since(member_id) is None:
                return  # one that is down has no part in the quorum
            if self._connected() - 1 < 1 + (len(voters) - 1) // 2:
                raise UnhealthyError
        except KVError as error:
            _log.warn("not removing member {id:x}: {error}", id=member_id, error=error)
            raise

    def _check_promote(self, member_id: int) -> None:
        member = self._member
        progress = member.progress
        mine, its = progress.get(member.member_id), progress.get(member_id)
        if mine is None:
            raise NotLeaderError
        try:
            if its is not None and its.match < mine.match * READY_SHARE:
                raise LearnerNotReadyError
            if member.config.strict_reconfig_check:
                member.membership.check_promote(member_id)
        except KVError as error:
            _log.warn("not promoting member {id:x}: {error}", id=member_id, error=error)
            raise

    def _connected(self) -> int:
        """How many voters this one has been connected to for long enough, itself included."""
        member = self._member
        since_s = member.reactor.seconds() - HEALTH_INTERVAL_S
        count = 0
        for voter in member.membership.voters():
            active_s = member.peers.active_since(voter.id)
            count += voter.id == member.member_id or (active_s is not None and active_s < since_s)
        return count

    def _reason(self, error: KVError, member_id: int) -> str:
        if isinstance(error, MemberNotFoundError) and member_id in self._member.membership.removed:
            return _REMOVED_TEXT
        return inner_text(error)

    # --- at the leader -----------------------------------------------------------------------------

    async def _promote_there(self, member_id: int, wanted: Callable[[], bool]) -> Sequence[MemberInfo]:
        """Ask whoever leads until it answers, or refuses for good."""
        member, reactor = self._member, self._member.reactor
        end_s = reactor.seconds() + member.timeout_s
        while (left_s := end_s - reactor.seconds()) > 0:
            leader = await self._leader(left_s)
            try:
                if leader == member.member_id:
                    return await self.promote_here(member_id)
                asked = member.peers.ask(leader, "POST", f"{PROMOTE_PATH}{member_id}", timeout_s=left_s)
                members = promoted_by(await asked)
                if members is not None:
                    return members
            except KVError as error:
                if not isinstance(error, NotLeaderError):
                    raise
            except Exception as error:  # of any kind that a connection can fail by
                _log.warn("cannot ask {leader:x} for a promotion: {error!r}", leader=leader, error=error)
            if not wanted():
                raise CancelledError
            await deferLater(reactor, RETRY_S)
        raise RequestTimeoutError

    def _leader(self, limit_s: float) -> Deferred[int]:
        """Whoever leads; fails with NoLeaderError if nobody does in time."""
        member = self._member
        if member.leader:
            return succeed(member.leader)

        def end(_: object = None) -> None:
            forget()
            if timer.active():
                timer.cancel()

        def elected() -> None:
            end()
            known.callback(member.leader)

        def late() -> None:
            end()
            known.errback(NoLeaderError())

        known: Deferred[int] = Deferred(end)
        timer = member.reactor.callLater(limit_s, late)
        forget = member.when_leader(elected)
        return known


def parse_peer_urls(texts: Iterable[str]) -> list[str]:
    """URLs of a member in the form in which the cluster keeps them, in the order given.

    etcd also takes some by which nobody can be reached, among them those with a query or a user.

    Raises:
        InvalidMemberURLsError: there is none, or one that is not ``scheme://host:port``.
    """
    urls = []
    for text in texts:
        try:
            parse_url(text)
        except ValueError:
            raise InvalidMemberURLsError from None
        parts = urlsplit(text.strip())
        urls.append(f"{parts.scheme}://{parts.netloc}")  # the host as it is written: others compare texts
    if not urls:
        raise InvalidMemberURLsError
    return urls


def members_json(members: Iterable[MemberInfo]) -> bytes:
    """Members as they are told over the peer port, line end included."""
    return b"[%b]\n" % b",".join(each.to_json() for each in members)


def inner_text(error: KVError) -> str:
    """etcd's text for a refusal before it becomes a gRPC status: what its members tell each other."""
    if isinstance(error, MemberNotFoundError):
        return NOT_FOUND_TEXT
    if isinstance(error, NotLearnerError):
        return NOT_LEARNER_TEXT
    return error.text


def promoted_by(reply: Reply) -> Sequence[MemberInfo] | None:
    """What the leader made of a promotion: the members then, or None if it is worth another try.

    Raises:
        MemberNotFoundError, NotLearnerError, LearnerNotReadyError: it refused.
    """
    text = reply.body.decode(errors="replace")
    if reply.status == 404:
        raise MemberNotFoundError
    if reply.status == 412 and LearnerNotReadyError.text in text:
        raise LearnerNotReadyError
    if reply.status == 412 and NOT_LEARNER_TEXT in text:
        raise NotLearnerError
    if reply.status == 200:
        try:
            return parse_members(reply.body)
        except ValueError as error:
            _log.warn("the leader answers a promotion by {text!r}: {error}", text=text, error=error)
    else:
        _log.warn("the leader refuses a promotion: {status} {text}", status=reply.status, text=text.strip())
    return None
