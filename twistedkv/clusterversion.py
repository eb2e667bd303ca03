"""The version that the cluster speaks: the lowest of its members', which the leader finds out by asking them all.

It decides what the members may do with each other and which ones may join. It rises when the last member was replaced
by a newer one, and falls only while a downgrade is on: to its target, once a member of that version is there. When all
members speak the target the downgrade is over, and the leader ends it.

Source: etcd ``server/etcdserver/server.go`` (monitorVersions, monitorDowngrade) and ``cluster_util.go``
(decideClusterVersion, isMatchedVersions). etcd 3.5.1 lets the version fall without a downgrade, too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, Protocol

import orjson
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from twistedkv.apply import Applier
from twistedkv.downgrade import Downgrade
from twistedkv.errors import KVError
from twistedkv.members import Membership
from twistedkv.pb.membership_pb2 import ClusterVersionSetRequest, DowngradeInfoSetRequest
from twistedkv.pb.raft_internal_pb2 import InternalRaftRequest
from twistedkv.peering import Reply, Transport

INTERVAL_S: Final = 5.0  # etcd server.go, monitorVersionInterval; embed/config.go, DefaultDowngradeCheckTime
LOWEST: Final = "3.0.0"  # etcd api/version/version.go, MinClusterVersion
VERSION_PATH: Final = "/version"

_SEMVER: Final = re.compile(r"([0-9]{1,9})\.([0-9]{1,9})\.[0-9]{1,9}(?:[-+].*)?", re.ASCII)

_log = Logger()


class Versions(NamedTuple):
    """What one member says of itself at :data:`VERSION_PATH`."""

    server: str  # "3.5.1"
    cluster: str  # "3.5.0", or "not_decided"


class VersionedMember(Protocol):
    """What is needed of the member; see :class:`twistedkv.server.Member`."""

    applier: Applier
    member_id: int
    leader_changes: list[Callable[[], None]]

    @property
    def reactor(self) -> IReactorTime: ...

    @property
    def peers(self) -> Transport: ...

    @property
    def term(self) -> int: ...

    @property
    def is_leader(self) -> bool: ...

    @property
    def membership(self) -> Membership: ...

    def when_readable(self, ready: Callable[[], None], fail: Callable[[KVError], None]) -> None: ...

    def propose_request(self, request: InternalRaftRequest) -> Deferred[bytes]: ...


class ClusterVersion:
    """Keeps the cluster's version right while this member leads.

    Args:
        server_version: our own.
    """

    def __init__(self, member: VersionedMember, server_version: str) -> None:
        self._member = member
        self._server_version = server_version
        self._looking: Deferred[None] | None = None
        self._warned: dict[int, str] = {}  # of which version of which member
        self._stopped = False
        self._loop = LoopingCall(self.look)
        self._loop.clock = member.reactor

    def start(self) -> None:
        """Look now and then, and whenever this member begins to lead."""
        self._member.leader_changes.append(self._leader_changed)
        self._loop.start(INTERVAL_S, now=False).addErrback(
            lambda failure: _log.failure("deciding the cluster's version", failure)
        )
        self._leader_changed()

    def stop(self) -> None:
        """Look no more."""
        self._stopped = True
        if self._leader_changed in self._member.leader_changes:
            self._member.leader_changes.remove(self._leader_changed)
        if self._loop.running:
            self._loop.stop()
        if self._looking is not None:
            self._looking.cancel()

    def look(self) -> None:
        """Ask all members, and change the version if it is not theirs; not while that is under way already."""
        if self._stopped or self._looking is not None or not self._member.is_leader:
            return
        looking = self._looking = Deferred.fromCoroutine(self._look())
        looking.addBoth(self._looked)

    def _looked(self, result: Any) -> None:
        self._looking = None
        if isinstance(result, Failure) and not self._stopped:
            _log.warn("cannot decide the cluster's version: {error!r}", error=result.value)

    def _leader_changed(self) -> None:
        """Once a new leader has what its predecessors committed, it knows whether there is anything to decide."""
        if self._member.is_leader:
            self._member.when_readable(self.look, _ignore)

    async def _look(self) -> None:
        member, term = self._member, self._member.term
        versions = await self._ask_all()
        if not member.is_leader or member.term != term:
            return  # somebody else decides by now
        self._warn_of_newer(versions)
        current, downgrade = member.applier.cluster_version, member.applier.downgrade
        wanted = decide(current, versions, downgrade)
        if wanted:
            _log.info("the cluster's version is {wanted}; it was {current}", wanted=wanted, current=current or "none")
            change = InternalRaftRequest(cluster_version_set=ClusterVersionSetRequest(ver=wanted))
            await member.propose_request(change)
        elif is_over(downgrade, versions):
            _log.info("the cluster was downgraded to {target}", target=downgrade.target)
            await member.propose_request(InternalRaftRequest(downgrade_info_set=DowngradeInfoSetRequest(enabled=False)))

    def _ask_all(self) -> Deferred[dict[int, Versions | None]]:
        members = sorted(self._member.membership.members)
        asked = [Deferred.fromCoroutine(self._ask(each)) for each in members]
        answers = gatherResults(asked, consumeErrors=True)
        return answers.addCallback(lambda versions: dict(zip(members, versions, strict=True)))

    async def _ask(self, member_id: int) -> Versions | None:
        member = self._member
        if member_id == member.member_id:
            return Versions(self._server_version, member.applier.cluster_version or "not_decided")
        try:
            return _decode(await member.peers.ask(member_id, "GET", VERSION_PATH))
        except CancelledError:
            raise
        except Exception as error:  # whatever a network can do; the next look asks again
            _log.warn("{peer:x} does not tell its version: {error}", peer=member_id, error=error)
            return None

    def _warn_of_newer(self, versions: Mapping[int, Versions | None]) -> None:
        ours = _parse(self._server_version)
        for member_id, told in versions.items():
            theirs = told and _parse(told.server)
            if theirs and ours and theirs > ours and told and self._warned.get(member_id) != told.server:
                self._warned[member_id] = told.server
                _log.warn(
                    "{peer:x} runs version {version}, which is newer than this leader's",
                    peer=member_id,
                    version=told.server,
                )


def decide(current: str, versions: Mapping[int, Versions | None], downgrade: Downgrade) -> str:
    """The version that the cluster should have, empty if it has it.

    Args:
        current: the one that it has, empty if none was decided.
        versions: what every member says; None if it says nothing.
        downgrade: as last recorded.
    """
    told = [each and _parse(each.server) for each in versions.values()]
    known = [each for each in told if each]
    if not known or len(known) < len(told):
        return "" if current else LOWEST  # all members there are can do with it
    lowest = min(known)
    wanted = f"{lowest[0]}.{lowest[1]}.0"
    if not current:
        return wanted
    now = _parse(current)
    if now is None:
        return ""
    rises = lowest[0] == now[0] and lowest > now
    falls = lowest == (now[0], now[1] - 1) and downgrade == Downgrade(wanted, True)
    return wanted if rises or falls else ""


def is_over(downgrade: Downgrade, versions: Mapping[int, Versions | None]) -> bool:
    """Whether a downgrade is on and every member speaks its target."""
    return downgrade.enabled and all(
        each is not None and each.cluster == downgrade.target for each in versions.values()
    )


def _parse(version: str) -> tuple[int, int] | None:
    found = _SEMVER.fullmatch(version)
    return None if found is None else (int(found[1]), int(found[2]))


def _decode(reply: Reply) -> Versions:
    """What a member answered.

    Raises:
        ValueError: it says nothing of versions.
    """
    if reply.status != 200:
        raise ValueError(f"status {reply.status} {reply.body[:200].decode('latin-1').strip()}")
    try:
        fields = orjson.loads(reply.body)
        versions = Versions(fields["etcdserver"], fields["etcdcluster"])
    except (KeyError, TypeError) as error:
        raise ValueError("it answers something else") from error
    if _parse(str(versions.server)) is None:
        raise ValueError(f"it says that it runs {versions.server}")
    return versions


def _ignore(_: KVError) -> None:
    """Another member leads, or nobody does; the next look comes anyway."""
