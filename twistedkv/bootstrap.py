"""A member's first start: it asks the others, learns who it is, and lays down a log that says so.

What is asked and when is told here, what follows from the answers in :mod:`twistedkv.founding`. All of it happens once
in a member's life: where there is a log, identity and members come from it, and the options of the first start are not
looked at again. ``--force-new-cluster`` alone looks at a log that exists.

Sources: etcd ``server/etcdserver/{bootstrap,cluster_util}.go``. Unlike etcd, all members are asked at the same time.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.logger import Logger
from twisted.python.failure import Failure

from twistedkv.config import ClusterState, Config
from twistedkv.discovery import NameResolver, discover, system_resolver
from twistedkv.founding import (
    BootstrapError,
    Founding,
    RunningCluster,
    Survey,
    check_advertised,
    check_named,
    check_not_started,
    force_new_cluster,
    joined,
    new_cluster,
    other_urls,
    parse_cluster_version,
    parse_downgrade_enabled,
    parse_members,
)
from twistedkv.members import Membership
from twistedkv.optiontypes import Url
from twistedkv.pb.etcdserver_pb2 import Metadata
from twistedkv.protocols.peerclient import Allows, Asker, Dialler, UrlPicker
from twistedkv.protocols.peerheads import MEMBERS_PATH, VERSION_PATH, get_request, parse_id
from twistedkv.protocols.tls import ClientContext
from twistedkv.storage.wal import WAL, Disk, Recovered

__all__ = ["BootstrapError", "Founding", "create_log", "force_alone", "found"]

ANSWER_TIMEOUT_S: Final = 3.0
# That a downgrade is under way is only told with a majority behind it; without one, etcd's members take 7 s to say so.
DOWNGRADE_TIMEOUT_S: Final = 2.0

_DOWNGRADE_PATH: Final = "/downgrade/enabled"
_UNFINISHED: Final = ".new"

_log = Logger()
_T = TypeVar("_T")


async def found(
    config: Config,
    reactor: Any,
    client_tls: ClientContext | None,
    version: str,
    *,
    allows: Allows | None = None,
    resolver: NameResolver | None = None,
) -> Founding:
    """How the member begins that ``config`` describes; to be called if it has no log yet.

    Takes a few seconds at most while others do not answer, and writes nothing.

    Args:
        client_tls: for https URLs of peers; made with ``http/1.1`` as the only protocol.
        version: of this server, as ``3.5.1``.
        allows: a last look at a peer whose certificate was verified.
        resolver: for ``--discovery-srv``; the system's by default.

    Raises:
        BootstrapError: it cannot begin.
    """
    cluster = config.initial_cluster
    if config.discovery_srv:
        cluster = await discover(config, resolver or system_resolver(reactor))
        _log.info("{domain} names the members {cluster}", domain=config.discovery_srv, cluster=str(cluster))
    check_named(cluster, config.name)
    ask = _Inquiry(Dialler(reactor, client_tls, allows), other_urls(cluster, config.name))
    if config.initial_cluster_state is ClusterState.EXISTING:
        survey = await ask.survey()
        founding = joined(cluster, config.name, survey, version)
        told = [each for cluster in survey.clusters for each in cluster.members]
        if any(each.id == founding.member_id and each.client_urls for each in told):
            _log.warn(
                "member {member:x} has been started before: what it acknowledged and has lost counts as kept",
                member=founding.member_id,
            )
        return founding
    if not config.discovery_srv:  # whose own URLs were found by their addresses
        check_advertised(cluster, config.name, config.initial_advertise_peer_urls)
    founding = new_cluster(cluster, config.name, config.initial_cluster_token)
    check_not_started(founding.member_id, await ask.clusters())
    return founding


def create_log(directory: Path, founding: Founding, disk: Disk) -> None:
    """Make the log that ``founding`` says: after a crash it is there as a whole, or not at all. Blocks.

    Raises:
        FileExistsError: there is a log already.
        OSError, WALError: it cannot be written.
    """
    if WAL.exists(directory):
        raise FileExistsError(f"{directory} holds a write-ahead log already")
    unfinished = directory.with_name(directory.name + _UNFINISHED)
    if unfinished.exists():  # left by a crash; nobody was told of it
        shutil.rmtree(unfinished)
    metadata = Metadata(NodeID=founding.member_id, ClusterID=founding.cluster_id)
    wal = WAL.create(unfinished, metadata.SerializeToString(), disk=disk)
    try:
        if founding.entries:
            wal.append(founding.hard_state, founding.entries)
    finally:
        wal.close()
    unfinished.rename(directory)  # which may exist, but empty
    parent = os.open(directory.parent, os.O_RDONLY)
    try:
        disk.sync(parent)
    finally:
        os.close(parent)


def force_alone(
    wal: WAL, recovered: Recovered, membership: Membership, applied: int, me: int, urls: Sequence[str]
) -> Recovered:
    """Make this member the only one of its cluster; what the log holds after that. Blocks.

    Another time it changes nothing. For the arguments see :func:`twistedkv.founding.force_new_cluster`.

    Raises:
        BootstrapError: this member was removed.
        WALError: the log cannot be written; nothing changed, or the log refuses further use.
    """
    old = recovered.entries
    forced = force_new_cluster(old, recovered.hard_state, recovered.snapshot, membership, applied, me, urls)
    if forced.entries or forced.hard_state != recovered.hard_state:
        wal.append(forced.hard_state, forced.entries)
    first = forced.entries[0].index if forced.entries else wal.last_index + 1
    _log.warn(
        "member {member:x} goes on alone, at index {commit}: the others must not be started again on their data",
        member=me,
        commit=forced.hard_state.commit,
    )
    kept = [entry for entry in old if entry.index < first]
    return replace(recovered, hard_state=forced.hard_state, entries=[*kept, *forced.entries])


class _Answers(NamedTuple):
    """What one URL's member says; what it does not say is ``None``."""

    cluster: RunningCluster | None = None
    cluster_version: str | None = None
    downgrade_enabled: bool | None = None


class _Inquiry:
    """Asks members that are no peers yet, each over one connection."""

    def __init__(self, dialler: Dialler, urls: Sequence[Url]) -> None:
        self._dialler = dialler
        self._urls = urls

    async def clusters(self) -> list[RunningCluster]:
        """What those who answer take for their cluster, in the order of the URLs."""
        return [each.cluster for each in await self._ask_all(False) if each.cluster is not None]

    async def survey(self) -> Survey:
        """What there is to know before one joins."""
        answers = await self._ask_all(True)
        told = [each.downgrade_enabled for each in answers if each.downgrade_enabled is not None]
        return Survey(
            [each.cluster for each in answers if each.cluster is not None],
            [each.cluster_version for each in answers if each.cluster_version is not None],
            bool(told) and told[0],
        )

    async def _ask_all(self, everything: bool) -> list[_Answers]:
        asking = [Deferred.fromCoroutine(self._ask_one(url, everything)) for url in self._urls]
        return await _abandonable(gatherResults(asking, consumeErrors=True))

    async def _ask_one(self, url: Url, everything: bool) -> _Answers:
        asker = Asker(self._dialler, UrlPicker([url]))
        try:
            cluster = await self._ask(asker, url, MEMBERS_PATH, _running_cluster)
            if cluster is None or not everything:
                return _Answers(cluster)
            return _Answers(
                cluster,
                await self._ask(asker, url, VERSION_PATH, lambda _, body: parse_cluster_version(body)),
                await self._ask(
                    asker, url, _DOWNGRADE_PATH, lambda _, body: parse_downgrade_enabled(body), DOWNGRADE_TIMEOUT_S
                ),
            )
        finally:
            asker.close()

    async def _ask(
        self,
        asker: Asker,
        url: Url,
        path: str,
        read: Callable[[str, bytes], _T],
        timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> _T | None:
        """What ``read`` makes of the cluster's id and the body of an answer; ``None`` if there is no good one."""
        try:
            reply = await _abandonable(asker.ask(partial(get_request, path), timeout_s))
            if reply.status != 200:
                raise ValueError(f"status {reply.status}")
            return read(reply.fields.get("x-etcd-cluster-id", ""), reply.body)
        except CancelledError:
            raise
        except Exception as error:  # whatever a connection, TLS or a stranger's words may bring
            _log.info("no answer from {url}{path}: {error}", url=str(url), path=path, error=error or type(error))
            return None


def _running_cluster(cluster_id: str, body: bytes) -> RunningCluster:
    known = parse_id(cluster_id)
    if known is None:
        raise ValueError("no cluster id")
    return RunningCluster(known, parse_members(body))


def _abandonable(inner: Deferred[_T]) -> Deferred[_T]:
    """What ``inner`` gives. Whoever gives up on it hears so at once, whatever ``inner`` makes of that."""

    def give_up(waiting: Deferred[_T]) -> None:
        waiting.errback(CancelledError())
        inner.cancel()

    waiting: Deferred[_T] = Deferred(give_up)

    def pass_on(result: _T | Failure) -> None:
        if not waiting.called:
            waiting.callback(result)

    inner.addBoth(pass_on)
    return waiting
