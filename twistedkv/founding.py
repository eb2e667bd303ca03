"""Who a member is, and what its log begins with: decided from what it is told and what others say.

Three ways into a cluster: to found it with others, to join one that runs, and to go on alone with the data of one that
lost its majority. Sources: etcd ``server/etcdserver/{bootstrap,cluster_util}.go``, ``server/config/config.go``,
``server/etcdserver/api/membership/cluster.go``, ``server/storage/util.go``. Unlike etcd, URLs are compared as they are
written, without asking the name service: a name that does not resolve yet keeps nobody from starting, and one that
resolves to several addresses means the same to everybody.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from twistedkv.errors import KVError
from twistedkv.members import MemberInfo, Membership, bootstrap_changes, cluster_id, member_id, promotion
from twistedkv.optiontypes import InitialCluster, Url
from twistedkv.pb.raft_pb2 import ConfChange, ConfChangeAddNode, ConfChangeRemoveNode
from twistedkv.raft import confchange
from twistedkv.raft.messages import Entry, EntryType, HardState, SnapshotMeta

FIRST_TERM: Final = 1  # of the changes that found a cluster (etcd raft/bootstrap.go)
LEAST_CLUSTER_VERSION: Final = (3, 0)  # etcd api/version/version.go, MinClusterVersion

_VERSION: Final = re.compile(r"([0-9]{1,9})\.([0-9]{1,9})\.[0-9]{1,9}(?:[-+].*)?", re.ASCII)
_TRUE: Final = frozenset({b"1", b"t", b"T", b"true", b"TRUE", b"True"})  # Go's strconv.ParseBool
_FALSE: Final = frozenset({b"0", b"f", b"F", b"false", b"FALSE", b"False"})


class BootstrapError(Exception):
    """The member cannot become one of this cluster; the text is one line that says why."""


class Founding(NamedTuple):
    """How a member begins."""

    member_id: int
    cluster_id: int
    entries: Sequence[Entry]  # of its log, all committed; none if it joins
    hard_state: HardState
    remotes: Mapping[int, tuple[str, ...]]  # the other members' peer URLs, by id


class RunningCluster(NamedTuple):
    """A cluster as one of its members describes it."""

    cluster_id: int
    members: Sequence[MemberInfo]  # never empty


class Survey(NamedTuple):
    """What the other members said, each list by the order in which they are asked."""

    clusters: Sequence[RunningCluster]
    cluster_versions: Sequence[str]  # as ``3.5.0``, or ``not_decided``
    downgrade_enabled: bool


# --- what is told ----------------------------------------------------------------------------------------------------


def other_urls(cluster: InitialCluster, name: str) -> list[Url]:
    """The peer URLs of all members but ``name``, in the order in which they are asked."""
    return sorted((url for other, urls in cluster.items() if other != name for url in urls), key=str)


def check_named(cluster: InitialCluster, name: str) -> None:
    """Refuse a cluster in which this member is not.

    Raises:
        BootstrapError: as it says.
    """
    if name not in cluster:
        raise BootstrapError(f"--initial-cluster is '{cluster}': expected this member's name, {name}, among them")


def check_advertised(cluster: InitialCluster, name: str, advertised: Iterable[Url]) -> None:
    """Refuse to found a cluster in which others look for this member where it is not.

    Raises:
        BootstrapError: as it says.
    """
    wanted = set(advertised)
    if set(cluster[name]) != wanted:
        urls = ",".join(map(str, sorted(wanted)))
        raise BootstrapError(
            f"--initial-cluster is '{cluster}': expected for {name} the URLs of --initial-advertise-peer-urls, {urls}"
        )


# --- a new cluster ---------------------------------------------------------------------------------------------------


def new_cluster(cluster: InitialCluster, name: str, token: str) -> Founding:
    """The founding of a cluster by ``cluster``'s members, the same on each of them but for their own id."""
    members = {
        member: MemberInfo(member_id(map(str, urls), token), tuple(sorted(map(str, urls))), member)
        for member, urls in cluster.items()
    }
    changes = bootstrap_changes(members.values())
    entries = [Entry(FIRST_TERM, index, change, EntryType.CONF_CHANGE) for index, change in enumerate(changes, 1)]
    return Founding(
        members[name].id,
        cluster_id(member.id for member in members.values()),
        entries,
        HardState(FIRST_TERM, 0, len(entries)),
        _remotes(members.values(), members[name].id),
    )


def check_not_started(member: int, clusters: Iterable[RunningCluster]) -> None:
    """Refuse to found a cluster in which this member has been before: it would forget what it has voted for.

    Raises:
        BootstrapError: one of the others knows its client URLs.
    """
    for cluster in clusters:
        if any(each.id == member and each.client_urls for each in cluster.members):
            raise BootstrapError(f"member {member:x} has already been bootstrapped")


# --- a cluster that runs ---------------------------------------------------------------------------------------------


def joined(cluster: InitialCluster, name: str, survey: Survey, own_version: str) -> Founding:
    """The entry into a cluster whose members were told of us.

    The answers are looked at in their order, and the first one that fits is taken: a member that lags behind may not
    have heard of us yet.

    Raises:
        BootstrapError: no answer fits what we are told, or the cluster is not of our age.
    """
    if not survey.clusters:
        raise BootstrapError(
            "cannot fetch cluster info from peer urls: could not retrieve cluster information from the given URLs: "
            f"expected in --initial-cluster a member that answers, it is '{cluster}'"
        )
    misfits = []
    for running in survey.clusters:
        misfit = _misfit(cluster, running)
        if not misfit:
            break
        misfits.append(f"--initial-cluster is '{cluster}': {misfit}: the cluster has {_listing(running)}")
    else:
        raise BootstrapError(misfits[0])
    if not is_compatible(survey.cluster_versions, survey.downgrade_enabled, own_version):
        versions = ", ".join(sorted(set(survey.cluster_versions))) or "unknown"
        raise BootstrapError(
            f"incompatible with current running cluster: its version is {versions}, and this member's {own_version}"
        )
    ours = {str(url) for url in cluster[name]}
    me = next(member.id for member in running.members if _url_texts(member) == ours)
    return Founding(me, running.cluster_id, (), HardState(), _remotes(running.members, me))


def is_compatible(cluster_versions: Iterable[str], downgrade_enabled: bool, own_version: str) -> bool:
    """Whether a member of ``own_version`` may join.

    At least one member must tell a version of the cluster, and none of them one that is out of the range: from 3.0 to
    our own, or the one after our own if that cluster is being downgraded.
    """
    own = _major_minor(own_version)
    if own is None:
        raise ValueError(f"{own_version!r} is no version")
    least, most = LEAST_CLUSTER_VERSION, own
    if downgrade_enabled:
        least = most = (own[0], own[1] + 1)
    known = [version for version in map(_major_minor, cluster_versions) if version is not None]
    return bool(known) and all(least <= version <= most for version in known)


def parse_members(body: bytes) -> list[MemberInfo]:
    """The answer to ``GET /members``.

    Raises:
        ValueError: it is not that, or nobody is in it.
    """
    listed = json.loads(body)
    if not isinstance(listed, list) or not listed:
        raise ValueError("no members")
    return [MemberInfo.from_json(json.dumps(each).encode()) for each in listed]


def parse_cluster_version(body: bytes) -> str:
    """The cluster's version in the answer to ``GET /version``.

    Raises:
        ValueError: it has none.
    """
    try:
        return str(json.loads(body)["etcdcluster"])
    except (KeyError, TypeError) as error:
        raise ValueError("no cluster version") from error


def parse_downgrade_enabled(body: bytes) -> bool:
    """The answer to ``GET /downgrade/enabled``.

    Raises:
        ValueError: it is none.
    """
    if body in _TRUE or body in _FALSE:
        return body in _TRUE
    raise ValueError("neither true nor false")


def _misfit(cluster: InitialCluster, running: RunningCluster) -> str:
    """In what a cluster that runs is another one than we are told, in etcd's words; empty if in nothing."""
    if len(cluster) != len(running.members):
        return "member count is unequal"
    told = {frozenset(map(str, urls)) for urls in cluster.values()}
    if told != {frozenset(_url_texts(member)) for member in running.members}:
        return "unmatched member while checking PeerURLs"
    return ""


def _url_texts(member: MemberInfo) -> set[str]:
    return set(member.peer_urls)


def _listing(running: RunningCluster) -> str:
    return ",".join(
        f"{member.name or f'{member.id:x}'}={url}" for member in running.members for url in member.peer_urls
    )


def _remotes(members: Iterable[MemberInfo], me: int) -> dict[int, tuple[str, ...]]:
    return {member.id: member.peer_urls for member in members if member.id != me}


def _major_minor(text: str) -> tuple[int, int] | None:
    found = _VERSION.fullmatch(text)
    return None if found is None else (int(found[1]), int(found[2]))


# --- on alone --------------------------------------------------------------------------------------------------------


class Forced(NamedTuple):
    """What goes into the log so that this member is the only one."""

    entries: Sequence[Entry]  # consecutive, up to the end; the first may replace the log's from its index on
    hard_state: HardState


def force_new_cluster(
    entries: Sequence[Entry],
    hard_state: HardState,
    snapshot: SnapshotMeta,
    membership: Membership,
    applied: int,
    me: int,
    urls: Sequence[str],
) -> Forced:
    """The end of the log after which this member is the sole voter of its cluster, with everything that it has.

    All of the log counts as committed. etcd drops what its log does not know to be committed; but the log learns of
    a commit index only with the next batch, and an entry may have been acknowledged before that. An entry that was
    not committed may be carried out here, as after any change of leaders. One alone is not: a removal of this member
    that nobody knows to be committed becomes an empty entry.

    Args:
        entries: of the log, after ``snapshot``.
        hard_state: what the log knows to be committed.
        membership: as of ``applied``; it stays as it is.
        applied: the index up to which the database has applied the log.
        urls: the peer URLs of this member, for a log that does not have it.

    Raises:
        BootstrapError: this member was removed, or the log changes members as no etcd does.
    """
    members = Membership(membership.members, membership.removed)
    known = max(hard_state.commit, applied)
    replaced: dict[int, Entry] = {}
    for entry in entries:
        change = _change_in(entry) if entry.index > applied else None
        if change is None:
            continue
        if change.type == ConfChangeRemoveNode and change.node_id == me and entry.index > known:
            replaced[entry.index] = Entry(entry.term, entry.index, b"")
        else:
            _carry_out(members, change)
    if me in members.removed:
        raise BootstrapError(f"member {me:x} has been permanently removed from the cluster, and cannot go on alone")
    last, last_term = (entries[-1].index, entries[-1].term) if entries else (snapshot.index, snapshot.term)
    term = max(hard_state.term, last_term, FIRST_TERM)
    added = [
        Entry(term, index, change.SerializeToString(), EntryType.CONF_CHANGE)
        for index, change in enumerate(_to_be_alone(members, me, urls), last + 1)
    ]
    first = min(replaced, default=last + 1)
    rewritten = [replaced.get(entry.index, entry) for entry in entries if entry.index >= first]
    vote = hard_state.vote if term == hard_state.term else 0
    return Forced([*rewritten, *added], HardState(term, vote, last + len(added)))


def _change_in(entry: Entry) -> ConfChange | None:
    if entry.type is EntryType.NORMAL:
        return None
    try:
        change = confchange.decode(entry)
    except ValueError as error:
        raise BootstrapError(f"the log cannot be followed: {error}") from error
    if not isinstance(change, ConfChange):
        raise BootstrapError(f"the log cannot be followed: entry {entry.index} changes several members at once")
    return change


def _carry_out(members: Membership, change: ConfChange) -> bool:
    """Apply a change as :meth:`twistedkv.apply.Applier.apply_conf_change` does; whether it fits."""
    try:
        members.check(change)
    except (KVError, ValueError):
        return False  # applied as a change that concerns nobody
    members.apply(change)
    return True


def _to_be_alone(members: Membership, me: int, urls: Sequence[str]) -> Iterator[ConfChange]:
    """Changes that each fit where they come, and never leave Raft without a voter."""
    voters = [member.id for member in members.voters() if member.id != me]
    learners = [member.id for member in members.listed() if member.is_learner and member.id != me]
    changes = [ConfChange(type=ConfChangeRemoveNode, node_id=each) for each in (*learners, *voters)]
    ours = members.members.get(me)
    if ours is None or ours.is_learner:
        context = MemberInfo(me, tuple(urls)).to_json() if ours is None else promotion(me)
        become = ConfChange(type=ConfChangeAddNode, node_id=me, context=context)
        changes.insert(max(len(changes) - 1, 0), become)  # before the last voter goes
    for change in changes:
        if not _carry_out(members, change):
            raise BootstrapError(f"member {me:x} cannot go on alone: another member has its URLs, {','.join(urls)}")
        yield change
