"""Seeded random steps for what coordinates clients: watches, leases, locks, elections, and maintenance beside them.

As :mod:`tests.functional.operations`, whose requests are mixed in: they make the events. Steps that depend on time are
not among these (every TTL outlives the sequence), nor is what would race against the server's own background work:
compactions wait for their end (``physical``), and whoever runs the steps lets the streams come to rest where a step
says so (``at_rest``).
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from google.protobuf import text_format
from google.protobuf.message import Message

from tests.functional.operations import Door, OperationSource, Step, harmless
from twistedkv.pb import rpc_pb2 as pb
from twistedkv.pb import v3election_pb2 as election
from twistedkv.pb import v3lock_pb2 as lock

LEASES = (1, 2, 7, 77, 0xABCDEF, -5, 2**63 - 1)
NO_LEASE = 4242  # never granted
_TTLS = (300, 3000, 30_000, 300_000, 9_000_000_000)  # far apart: the order by remaining time stays as granted
_BAD_TTLS = (9_000_000_001, 2**63 - 1)
LOCKS = (b"m1", b"m2")
ELECTIONS = (b"e1", b"e2")
GRPC_STREAMS = 3
_GATEWAY_BYTES = 100  # Go stops reading a body once it has begun to answer, so all of it must come with the head
_MOST_PENDING = 5
_MOST_OBSERVERS = 2


@dataclass(frozen=True, slots=True)
class Ask:
    """A request that is answered at once."""

    step: Step
    at_rest: bool = False

    def __str__(self) -> str:
        return str(self.step)


@dataclass(frozen=True, slots=True)
class Begin:
    """A request that may wait for others: Lock or Campaign."""

    step: Step
    at_rest: bool = False

    def __str__(self) -> str:
        return str(self.step)

    @property
    def prefix(self) -> bytes:
        """Where its kind and name queue up."""
        name: bytes = self.step.request.name  # type: ignore[attr-defined]
        return name + b"/"

    @property
    def key(self) -> bytes:
        """The key it makes: etcd ``client/v3/concurrency/mutex.go`` and ``election.go``, ``"%s%x"``."""
        lease: int = self.step.request.lease  # type: ignore[attr-defined]
        return self.prefix + b"%x" % lease


@dataclass(frozen=True, slots=True)
class Send:
    """One request on a watch stream, which is opened by its first one."""

    stream: int
    request: pb.WatchRequest
    at_rest: bool = False

    def __str__(self) -> str:
        return f"watch stream {self.stream} {{{text_format.MessageToString(self.request, as_one_line=True)}}}"


@dataclass(frozen=True, slots=True)
class OpenGateway:
    """A watch stream over the gateway with all its requests."""

    stream: int
    requests: tuple[pb.WatchRequest, ...]
    at_rest: bool = False

    def __str__(self) -> str:
        shown = " ".join(f"{{{text_format.MessageToString(each, as_one_line=True)}}}" for each in self.requests)
        return f"gateway watch stream {self.stream} {shown}"


@dataclass(frozen=True, slots=True)
class Close:
    """The client leaves a watch stream."""

    stream: int
    at_rest: bool = True

    def __str__(self) -> str:
        return f"close watch stream {self.stream}"


@dataclass(frozen=True, slots=True)
class KeepAlive:
    """Some leases kept alive by one exchange over one stream."""

    door: Door
    leases: tuple[int, ...]
    at_rest: bool = False

    def __str__(self) -> str:
        return f"{self.door.value} keep alive {self.leases}"


@dataclass(frozen=True, slots=True)
class GrantPicked:
    """A lease whose id the server picks: granted, asked for, and revoked."""

    door: Door
    ttl_s: int
    at_rest: bool = False

    def __str__(self) -> str:
        return f"{self.door.value} grant of {self.ttl_s} s without an id, time to live, revoke"


@dataclass(frozen=True, slots=True)
class Observe:
    """An observer of an election."""

    number: int
    door: Door
    name: bytes
    at_rest: bool = False

    def __str__(self) -> str:
        return f"{self.door.value} observer {self.number} of {self.name!r}"


Action = Ask | Begin | Send | OpenGateway | Close | KeepAlive | GrantPicked | Observe


class CoordinationSource(OperationSource):
    """Makes one action after another.

    Args:
        random: the seeded dice.
    """

    def __init__(self, random: Random) -> None:
        super().__init__(random)
        self.watches: dict[int, set[int]] = {}  # ids on each stream that is open, gRPC's and the gateway's alike
        self.waiting: set[bytes] = set()  # keys of Begin actions without an answer
        self.leaders: dict[bytes, election.LeaderKey] = {}  # by name, the last that won
        self._streams = GRPC_STREAMS
        self.observing = 0
        self._observers = 0  # ever

    def next_action(self) -> Action:
        """The next action."""
        random = self._random
        makers = (
            (20, self._ask_put),
            (4, lambda: self._ask(self._delete())),
            (6, self._ask_txn),
            (3, lambda: self._ask(self._range())),
            (1, self._compact),
            (1, lambda: self._ask(self._hash_kv())),
            (12, self._create_watch),
            (4, self._cancel_watch),
            (3, self._progress),
            (1, self._open_gateway),
            (1, self._close),
            (6, lambda: self._ask(self._grant())),
            (1, lambda: GrantPicked(self._door(), random.choice(_TTLS))),
            (4, lambda: self._ask(pb.LeaseRevokeRequest(ID=self._lease()))),
            (5, self._time_to_live),
            (2, lambda: self._ask(pb.LeaseLeasesRequest())),
            (3, self._keep_alive),
            (5, self._lock),
            (4, self._unlock),
            (5, self._campaign),
            (3, self._proclaim),
            (3, lambda: self._ask(election.LeaderRequest(name=self._name(ELECTIONS)))),
            (3, self._resign),
            (1, self._observe),
            (1, lambda: self._ask(pb.MoveLeaderRequest(targetID=random.choice([0, 1, 99])))),
            (1, self._downgrade),
            (1, lambda: self._ask(pb.StatusRequest())),
            (1, lambda: self._ask(self._alarm_get())),
        )
        weights = [weight for weight, _ in makers]
        return random.choices([make for _, make in makers], weights)[0]()

    def _door(self) -> Door:
        return self._random.choice([Door.GRPC, Door.GATEWAY])

    def _ask(self, request: Message, at_rest: bool = False) -> Ask:
        return Ask(Step(Door.GRPC if isinstance(request, pb.HashKVRequest) else self._door(), request), at_rest)

    def _lease(self) -> int:
        return NO_LEASE if self._chance(0.08) else self._random.choice(LEASES)

    def _name(self, names: tuple[bytes, ...]) -> bytes:
        return b"nobody" if self._chance(0.05) else self._random.choice(names)

    def _ask_put(self) -> Ask:
        request = self._put()
        if not request.ignore_lease and self._chance(0.4):
            request.lease = self._lease()
        return self._ask(request)

    def _ask_txn(self) -> Ask:
        return self._ask(harmless(self._txn()))

    def _compact(self) -> Action:
        if self.waiting:  # on a watch of the server's own, which a compaction meets while it catches up, or does not
            return self._unlock()
        return self._ask(self._compaction(), at_rest=True)

    def _compaction(self) -> pb.CompactionRequest:
        request = super()._compaction()
        request.physical = True
        if request.revision == 0:
            # 3.5.1 takes it, once; a watch from a negative revision is then cancelled by a response that lacks
            # ``canceled``, because "compacted" is told by a compact revision that is not 0 (api/v3rpc/watch.go).
            request.revision = -1
        return request

    def _grant(self) -> pb.LeaseGrantRequest:
        ttl_s = self._random.choice(_BAD_TTLS if self._chance(0.08) else _TTLS)
        return pb.LeaseGrantRequest(ID=self._random.choice(LEASES), TTL=ttl_s)

    def _time_to_live(self) -> Ask:
        return self._ask(pb.LeaseTimeToLiveRequest(ID=self._lease(), keys=self._chance(0.7)))

    def _keep_alive(self) -> KeepAlive:
        return KeepAlive(self._door(), tuple(self._lease() for _ in range(self._random.choice([1, 1, 2, 4]))))

    def _watch_request(self, ids: set[int]) -> pb.WatchRequest:
        random = self._random
        key, range_end = self._key_range(single_odds=0.25)
        if self._chance(0.1):
            key, range_end = random.choice([*LOCKS, *ELECTIONS]) + b"/", b"f"
        request = pb.WatchCreateRequest(key=key, range_end=range_end, prev_kv=self._chance(0.5))
        if self._chance(0.5):
            request.start_revision = self._some_revision()
            if request.start_revision < 0 and not self.compacted:
                # Before a first compaction 3.5.1 takes -1 for the largest revision, and then every watch that catches
                # up in the same round misses its past (mvcc/watchable_store.go, syncWatchers).
                request.start_revision = 1
        if self._chance(0.3):
            request.watch_id = random.choice([1, 2, 3, 9, -7, 2**63 - 1, *ids])
        for name in ("progress_notify", "fragment"):
            if self._chance(0.2):
                setattr(request, name, True)
        if self._chance(0.3):
            request.filters.extend(random.choice([[0], [1], [0, 1], [1, 1], [5]]))
        return pb.WatchRequest(create_request=request)

    def _create_watch(self) -> Send:
        stream = self._random.randrange(GRPC_STREAMS)
        return Send(stream, self._watch_request(self.watches.get(stream, set())))

    def _cancel_watch(self) -> Send:
        stream = self._random.randrange(GRPC_STREAMS)
        known = sorted(self.watches.get(stream, set()))
        watch_id = self._random.choice(known) if known and self._chance(0.85) else self._random.choice([55, -1, -9])
        return Send(stream, pb.WatchRequest(cancel_request=pb.WatchCancelRequest(watch_id=watch_id)), at_rest=True)

    def _progress(self) -> Send:
        stream = self._random.randrange(GRPC_STREAMS)
        return Send(stream, pb.WatchRequest(progress_request=pb.WatchProgressRequest()), at_rest=True)

    def _open_gateway(self) -> OpenGateway:
        self._streams += 1
        requests = [self._watch_request(set()) for _ in range(self._random.choice([1, 1, 2, 3]))]
        while len(requests) > 1 and sum(each.ByteSize() for each in requests) > _GATEWAY_BYTES:
            requests.pop()
        return OpenGateway(self._streams - 1, tuple(requests))

    def _close(self) -> Close:
        return Close(self._random.choice([each for each in sorted(self.watches) if each >= 0] or [0]))

    def _lock(self) -> Action:
        return self._begin(lock.LockRequest(name=self._name(LOCKS), lease=self._lease()))

    def _campaign(self) -> Action:
        value = self._random.choice([b"", b"me", b"you"])
        return self._begin(election.CampaignRequest(name=self._name(ELECTIONS), lease=self._lease(), value=value))

    def _begin(self, request: Message) -> Action:
        begin = Begin(Step(self._door(), request))
        if begin.key in self.waiting or len(self.waiting) >= _MOST_PENDING:
            return self._unlock() if isinstance(request, lock.LockRequest) else self._resign()
        return begin

    def _unlock(self) -> Ask:
        key = b"%s/%x" % (self._name(LOCKS), self._lease())
        return self._ask(lock.UnlockRequest(key=key))

    def _leader_key(self) -> election.LeaderKey:
        known = self.leaders.get(self._name(ELECTIONS))
        made = election.LeaderKey()
        if known is None or self._chance(0.1):
            name = self._name(ELECTIONS)
            lease = self._lease()
            made = election.LeaderKey(name=name, key=b"%s/%x" % (name, lease), rev=self._some_revision(), lease=lease)
        else:
            made.CopyFrom(known)
        return made

    def _proclaim(self) -> Ask:
        request = election.ProclaimRequest(value=self._random.choice([b"", b"new", b"newer"]))
        if self._chance(0.95):
            request.leader.CopyFrom(self._leader_key())
        return self._ask(request)

    def _resign(self) -> Ask:
        request = election.ResignRequest()
        if self._chance(0.95):
            request.leader.CopyFrom(self._leader_key())
        return self._ask(request)

    def _observe(self) -> Action:
        if self.observing >= _MOST_OBSERVERS:
            return self._ask(election.LeaderRequest(name=self._name(ELECTIONS)))
        self._observers += 1
        return Observe(self._observers, self._door(), self._random.choice(ELECTIONS))

    def _downgrade(self) -> Ask:
        """Only VALIDATE: of the other two, 3.5.1 carries out the request and lets the call time out."""
        version = self._random.choice(["3.4.0", "3.4.9", "3.5.0", "3.3.0", "4.0.0", "three", "", "3.4"])
        return self._ask(pb.DowngradeRequest(action=pb.DowngradeRequest.VALIDATE, version=version))
