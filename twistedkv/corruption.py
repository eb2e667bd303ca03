"""Whether all members hold the same: they compare what HashKV gives for one revision.

A member that was asked to looks before it serves anybody, and does not start if others differ. The leader can be asked
to look now and then, and raises the CORRUPT alarm for whoever differs from itself, which stops writing everywhere. A
member that does not answer proves nothing, in either direction: that is logged, and it is asked again the next time.

Source: etcd ``server/etcdserver/corrupt.go``. Its 3.5.1 counts a member that does not answer as one that agrees
(etcd-io/etcd#13766), and raises the alarm for member 0, since the answer does not say whose it is.
"""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple, Protocol

import orjson
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from twistedkv.apply import Alarms
from twistedkv.errors import CompactedError, FutureRevisionError, InconsistentDataError, KVError
from twistedkv.members import Membership
from twistedkv.metrics import Metrics
from twistedkv.pb.raft_internal_pb2 import InternalRaftRequest
from twistedkv.pb.rpc_pb2 import CORRUPT, AlarmRequest
from twistedkv.peering import Reply, Transport
from twistedkv.protocols.answers import JSON, Answer, Fields, error_text
from twistedkv.protocols.gojson import JSONError, scan_whole
from twistedkv.storage.backend import BackendError
from twistedkv.storage.mvcc import Store, hash_kv

HASHKV_PATH: Final = "/members/hashkv"
MAX_BODY_BYTES: Final = 64 * 1024  # a question has about twenty
HASH_TIMEOUT_S: Final = 60.0  # for another member to hash all it has; etcd gives it as long as any request

_MOST_INT64: Final = 2**63 - 1
_INTEGER: Final = re.compile(rb"-?[0-9]+")
_PREFIX: Final = "etcdserver: "  # of a KVError's text, which members do not use among themselves
_COMPACTED: Final = CompactedError.text.removeprefix(_PREFIX)
_FUTURE: Final = FutureRevisionError.text.removeprefix(_PREFIX)
_TOO_LONG: Final = error_text(413, "http: request body too large")
_NO_MESSAGE: Final = error_text(400, "error unmarshalling request")

_log = Logger()


class Hash(NamedTuple):
    """What a member holds. Two are comparable if both are of one revision, and equally compacted."""

    revision: int  # the newest one that the member had
    hash: int  # CRC-32C as of the revision that was asked for
    compact_revision: int  # -1 if there was never a compaction


class HashingMember(Protocol):
    """What :func:`hash_at` needs of the member; see :class:`twistedkv.server.Member`."""

    store: Store
    metrics: Metrics

    @property
    def reactor(self) -> IReactorTime: ...

    def read_backend(self, function: Any, *arguments: Any) -> Deferred[Any]: ...


class CheckedMember(HashingMember, Protocol):
    """What :class:`CorruptionCheck` needs of the member."""

    member_id: int

    @property
    def peers(self) -> Transport: ...

    @property
    def is_leader(self) -> bool: ...

    @property
    def membership(self) -> Membership: ...

    @property
    def alarms(self) -> Alarms: ...

    def when_readable(self, ready: Any, fail: Any) -> None: ...

    def propose_request(self, request: InternalRaftRequest) -> Deferred[bytes]: ...


async def hash_at(member: HashingMember, revision: int) -> Hash:
    """What a member holds as of a revision, its newest one for 0.

    Raises:
        CompactedError: the revision is compacted, maybe meanwhile.
        FutureRevisionError: this member does not have it yet.
        BackendError: the database cannot be read.
    """
    store = member.store
    while True:
        current, compacted = store.revision, store.compacted
        if 0 < revision <= compacted:
            raise CompactedError
        if revision > current:
            raise FutureRevisionError
        began_s = member.reactor.seconds()
        # Below zero etcd hashes nothing, and says so by a hash.
        try:
            value = await member.read_backend(hash_kv, revision or current, compacted)
        except CompactedError:
            if store.compacted == compacted:
                raise
            continue  # by a compaction that was applied, and written, before the storage thread was at it
        member.metrics.hash_rev.observe(member.reactor.seconds() - began_s)
        if store.compacted == compacted:  # else a compaction was applied while the storage thread was at it
            return Hash(current, value, compacted)


class Request(Protocol):
    """What is needed of a question; see :class:`twistedkv.peersite.PeerRequest`."""

    @property
    def body(self) -> bytes: ...


class HashSite:
    """Answers :data:`HASHKV_PATH` of the peer port, to GET alone.

    Args:
        member: whose hash is asked for.
        cluster_id: goes into the answers.
    """

    def __init__(self, member: HashingMember, cluster_id: int) -> None:
        self._member = member
        self._fields = Fields([(b"X-Etcd-Cluster-Id", b"%x" % cluster_id), *JSON.pairs])

    def hash(self, request: Request) -> Deferred[Answer]:
        """The hash as of the revision that the JSON in the question names."""
        return Deferred.fromCoroutine(self._answer(request.body))

    async def _answer(self, body: bytes) -> Answer:
        if len(body) > MAX_BODY_BYTES:
            return _TOO_LONG
        try:
            revision = _asked_revision(body)
        except JSONError:
            return _NO_MESSAGE
        try:
            found = await hash_at(self._member, revision)
        except (KVError, BackendError) as error:
            _log.warn("cannot hash revision {revision} for a member: {error}", revision=revision, error=error)
            return error_text(400, str(error).removeprefix(_PREFIX))
        return Answer(200, self._fields, _encode(found))


class PeerHash(NamedTuple):
    """What became of asking another member."""

    member_id: int
    hash: Hash | None
    problem: str  # why there is none


class CorruptionCheck:
    """Compares this member with the others.

    Args:
        interval_s: how often, while it leads; 0: never.
    """

    def __init__(self, member: CheckedMember, interval_s: float) -> None:
        self._member = member
        self._interval_s = interval_s
        self._looking: Deferred[None] | None = None
        self._loop = LoopingCall(self._look)
        self._loop.clock = member.reactor

    def start(self) -> None:
        """Begin to compare now and then."""
        if self._interval_s > 0:
            _log.info("comparing the members' data every {interval} s", interval=self._interval_s)
            self._loop.start(self._interval_s, now=False).addErrback(
                lambda failure: _log.failure("comparing the members' data", failure)
            )

    def stop(self) -> None:
        """Compare no more."""
        if self._loop.running:
            self._loop.stop()
        if self._looking is not None:
            self._looking.cancel()

    async def check_initially(self) -> None:
        """Compare once, before anybody is served.

        Raises:
            InconsistentDataError: others hold something else.
            BackendError: our own database cannot be read.
        """
        me = self._member.member_id
        ours = await hash_at(self._member, 0)
        differing: list[str] = []
        agreeing = 0
        for peer in await self._ask_all(ours.revision):
            if peer.hash is None:
                _log_problem(peer, ours.revision)
            elif peer.hash.compact_revision != ours.compact_revision:
                _log.warn(
                    "cannot compare this member's data with {peer:x}'s: it is compacted up to {theirs}, ours to {ours}",
                    peer=peer.member_id,
                    theirs=peer.hash.compact_revision,
                    ours=ours.compact_revision,
                )
            elif peer.hash.hash != ours.hash:
                differing.append(f"{peer.member_id:x}")
            else:
                agreeing += 1
        if differing:
            raise InconsistentDataError(
                f"{me:x} found data inconsistency with peers: at revision {ours.revision} it holds something else than "
                f"{', '.join(differing)}"
            )
        _log.info(
            "{peers} members hold what this one does at revision {revision}", peers=agreeing, revision=ours.revision
        )

    async def check(self) -> None:
        """Compare once, and raise the alarm for who differs.

        Raises:
            KVError, BackendError: this member itself cannot say what it holds, or that it leads.
        """
        member = self._member
        ours = await hash_at(member, 0)
        peers = await self._ask_all(ours.revision)
        await self._still_leads()
        now = await hash_at(member, 0)
        if now.hash != ours.hash and (now.revision, now.compact_revision) == (ours.revision, ours.compact_revision):
            _log.error("this member's data changed at revision {revision}", revision=now.revision)
            await self._raise_alarm(member.member_id)
        checked = 0
        for peer in peers:
            if peer.hash is None:
                _log_problem(peer, ours.revision)
                continue
            checked += 1
            problem = _difference(peer.hash, ours, now)
            if problem:
                _log.error("{peer:x} differs from the leader: {problem}", peer=peer.member_id, problem=problem)
                await self._raise_alarm(peer.member_id)
        _log.info("compared the data of {checked} of {peers} members", checked=checked, peers=len(peers))

    def _look(self) -> Deferred[None] | None:
        if not self._member.is_leader:
            return None

        def over(result: Any) -> None:
            self._looking = None
            if isinstance(result, Failure) and self._loop.running:
                _log.warn("cannot compare the members' data: {error!r}", error=result.value)

        self._looking = Deferred.fromCoroutine(self.check())
        return self._looking.addBoth(over)

    def _still_leads(self) -> Deferred[None]:
        """Fires once this member has all that was acknowledged to anybody: no member may be ahead of it."""
        done: Deferred[None] = Deferred()

        def ready() -> None:
            if not done.called:
                done.callback(None)

        def fail(error: KVError) -> None:
            if not done.called:
                done.errback(error)

        self._member.when_readable(ready, fail)
        return done

    async def _raise_alarm(self, member_id: int) -> None:
        if any(alarm.memberID == member_id for alarm in self._member.alarms.listed(CORRUPT)):
            return
        alarm = AlarmRequest(action=AlarmRequest.ACTIVATE, memberID=member_id, alarm=CORRUPT)
        await self._member.propose_request(InternalRaftRequest(alarm=alarm))

    def _ask_all(self, revision: int) -> Deferred[list[PeerHash]]:
        member = self._member
        others = sorted(each for each in member.membership.members if each != member.member_id)
        asked = [Deferred.fromCoroutine(self._ask(each, revision)) for each in others]
        return gatherResults(asked, consumeErrors=True)

    async def _ask(self, member_id: int, revision: int) -> PeerHash:
        body = orjson.dumps({"revision": revision})
        try:
            reply = await self._member.peers.ask(
                member_id, "GET", HASHKV_PATH, body, "application/json", HASH_TIMEOUT_S
            )
            return PeerHash(member_id, _decode(reply), "")
        except CancelledError:
            raise
        except Exception as error:  # whatever a network can do; it is told to whoever asked
            return PeerHash(member_id, None, str(error) or repr(error))


def _difference(theirs: Hash, ours: Hash, now: Hash) -> str:
    """Why a member cannot hold what the leader does; empty if it may.

    Args:
        theirs: as of ``ours.revision``.
        ours: the leader's before that.
        now: the leader's after it, when it had all that was acknowledged.
    """
    if theirs.revision > now.revision:
        return f"it has revision {theirs.revision}, the leader only {now.revision}"
    if theirs.compact_revision > now.compact_revision:
        return f"it is compacted up to {theirs.compact_revision}, the leader only to {now.compact_revision}"
    if theirs.compact_revision == ours.compact_revision and theirs.hash != ours.hash:
        return f"at revision {ours.revision} its hash is {theirs.hash}, the leader's {ours.hash}"
    return ""


def _log_problem(peer: PeerHash, revision: int) -> None:
    _log.warn(
        "{peer:x} was not compared at revision {revision}: {problem}",
        peer=peer.member_id,
        revision=revision,
        problem=peer.problem,
    )


def _asked_revision(body: bytes) -> int:
    """The revision in a question, 0 if it names none; names are matched as Go does it, without regard to case.

    Raises:
        JSONError: it is none.
    """
    node = scan_whole(body)
    if node == b"null":
        return 0
    if not isinstance(node, dict):
        raise JSONError("not an object")
    revision = 0
    for name, value in node.items():
        if name.lower() == "revision" and value != b"null":
            if not isinstance(value, bytes) or _INTEGER.fullmatch(value) is None or abs(int(value)) > _MOST_INT64:
                raise JSONError("not a revision")
            revision = int(value)
    return revision


def _encode(found: Hash) -> bytes:
    """A HashKVResponse as Go's ``encoding/json`` writes it: what is zero is left out."""
    fields: dict[str, Any] = {"header": {"revision": found.revision}}
    if found.hash:
        fields["hash"] = found.hash
    if found.compact_revision:
        fields["compact_revision"] = found.compact_revision
    return orjson.dumps(fields)


def _decode(reply: Reply) -> Hash:
    """What a member answered.

    Raises:
        CompactedError, FutureRevisionError: it does not have that revision any more, or not yet.
        ValueError: it says nothing of that.
    """
    if reply.status != 200:
        text = reply.body[:200].decode("latin-1").strip()
        if reply.status == 400 and _COMPACTED in text:
            raise CompactedError
        if reply.status == 400 and _FUTURE in text:
            raise FutureRevisionError
        raise ValueError(f"status {reply.status} {text}")
    fields = orjson.loads(reply.body)
    try:
        found = Hash(fields["header"]["revision"], fields.get("hash", 0), fields.get("compact_revision", 0))
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError("it answers something else") from error
    if not all(isinstance(each, int) for each in found):
        raise ValueError("it answers something else")
    return found
