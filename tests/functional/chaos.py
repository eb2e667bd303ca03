"""Chaos: a cluster of three under load whose members are killed, stopped, cut off and robbed of their leadership.

One fault after the other, by seeded dice, each healed before the next. Meanwhile writers write through all members, and
witnesses (:mod:`tests.functional.observers`) read, watch, and keep leases alive. Now and then the load holds still for
an audit: every acknowledged write is in the history with its revision, no revision was given out twice, the watcher saw
all of it, and every member's HashKV is the one that this history must have.

Left out: disks that lie, and clocks that jump.
"""

from __future__ import annotations

import re
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from random import Random
from typing import NamedTuple

from tests.functional.clients import GrpcClient
from tests.functional.cluster import ClusterOfProcesses, start_together, until
from tests.functional.crash import Auditor, Dice, Violation
from tests.functional.observers import Reader, WatchedHistory, Watcher
from tests.functional.processes import ServerFailed, ServerProcess
from tests.functional.tcpproxy import Fate, Network
from tests.functional.witnesses import Client, Gate, LeaseKeeper, Writer
from twistedkv.pb import rpc_pb2 as pb

OPTIONS = ("--snapshot-count", "500", "--snapshot-catchup-entries", "100")
"""Small enough that a member which is away for a moment needs a snapshot."""

ELECTION_TIMEOUT_S = 1.0  # the default
WRITERS = 6
LEASES = (0x1EA5E, 0x2EA5E)
LEASE_TTL_S = 6
_WRITE_PAUSE_S = 0.02
_READ_PAUSE_S = 0.02
_IDLE_PAUSE_S = 0.05  # of the writers that measure how long nobody could write
_IDLE_TIMEOUT_S = 0.3
_RECOVERY_S = 20.0  # from the end of a fault to the next acknowledged writes
_CATCH_UP_S = 20.0
_COMPACTED = 11  # OUT_OF_RANGE
_TROUBLE = re.compile(r"^.*(?:Traceback \(most recent call last\)|#critical|Unhandled).*$", re.MULTILINE)


class Downtime(NamedTuple):
    """How long nobody could write after the leader was killed."""

    seconds: float  # from the kill to the next acknowledged write
    elections: int  # that it took: more than one if a vote was split (Raft §5.2)


class Chaos:
    """One run.

    Args:
        cluster: three members behind ``network``, not started yet, with all timeouts at their defaults.
        network: between them.
        random: the dice.
        thorough: audit after each fault, and let stops and cuts take as long as they may.
    """

    def __init__(self, cluster: ClusterOfProcesses, network: Network, random: Random, *, thorough: bool) -> None:
        self.cluster = cluster
        self.auditor = Auditor(patient=True)
        self.faults: Counter[str] = Counter()
        self.downtimes: list[Downtime] = []  # of losses of the leader while little was going on
        self._network = network
        self._random = random
        self._thorough = thorough
        self._longest_s = 8.0 if thorough else 3.0
        self._bell = threading.Event()  # which nobody rings: how long a fault lasts
        self._gate = Gate()
        members = cluster.members
        self.watcher = Watcher("watcher", members)
        self.reader = Reader("reader", members, 1, self.auditor, _READ_PAUSE_S)
        self.keeper = LeaseKeeper("keeper", members, 2, LEASES, LEASE_TTL_S)
        self._writers = [
            Writer(
                f"writer {number}",
                members,
                number,
                self.auditor,
                Dice(f"writer {number}", Random(random.random())),
                self._gate,
                _WRITE_PAUSE_S,
            )
            for number in range(WRITERS)
        ]
        self._deck: list[Callable[[], None]] = []

    @property
    def clients(self) -> Sequence[Client]:
        """Everybody who runs along."""
        return (self.watcher, self.reader, self.keeper, *self._writers)

    # --- the run -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the cluster and the load."""
        self.cluster.start()
        for client in self.clients:
            client.start()
        if not self.keeper.granted.wait(_RECOVERY_S):
            raise Violation("no lease is granted")

    def run(self, seconds: float) -> None:
        """Let faults befall the cluster for about as long.

        Raises:
            Violation: a promise was broken.
        """
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            if not self._deck:
                self._deck = self._shuffled()
            fault = self._deck.pop()
            fault()
            self.faults[fault.__name__.replace("_", " ")] += 1
            self._recover()
            if self._thorough:
                self.audit()

    def lose_leaders(self, times: int) -> None:
        """Kill the leader so often, with little going on, and measure how long nobody can write.

        Raises:
            Violation: a promise was broken.
        """
        for number in range(times):
            with self._gate.closed():
                self.downtimes.append(self._lose_leader(number))

    def finish(self) -> None:
        """End the load and hold everything that was seen against everything that was promised.

        Raises:
            Violation: a promise was broken.
        """
        self.audit()
        for client in self.clients:
            client.finish()
        for member in self.cluster.members:
            self._check_leases(member)
            trouble = _TROUBLE.search(member.log_since())
            if trouble is not None:
                raise Violation(f"{member.name} was in trouble:\n{member.log_since()[trouble.start() :][:4000]}")

    def stop(self) -> None:
        """End everybody, whatever happened."""
        self._network.heal()
        for client in self.clients:
            client.over.set()
        self.cluster.kill_all()
        for client in self.clients:
            if client.ident is not None:
                client.join(_RECOVERY_S)

    def summary(self) -> str:
        """What came of it, in a line."""
        auditor, keeper = self.auditor, self.keeper
        faults = ", ".join(f"{name} {count}" for name, count in sorted(self.faults.items()))
        snapshots = sum(member.log_since().count("installed the snapshot") for member in self.cluster.members)
        downtimes = [each.seconds for each in self.downtimes] or [0.0]
        split = sum(each.elections > 1 for each in self.downtimes)
        return (
            f"chaos: {self.faults.total()} faults ({faults}); {auditor.acknowledged} writes acknowledged, "
            f"{auditor.doubtful} in doubt of which {auditor.adopted} happened; {self.reader.reads} linearizable reads; "
            f"{self.watcher.revision} revisions watched, {self.watcher.moves} resumptions; {snapshots} snapshots "
            f"installed; {keeper.renewals} renewals of leases, {keeper.longest_gap_s:.1f} s apart at most; "
            f"{len(self.downtimes)} leaders lost, then no writes for {statistics.median(downtimes):.2f} s (median), "
            f"{max(downtimes):.2f} s (most), {split} of them with a split vote"
        )

    # --- checks ------------------------------------------------------------------------------------

    def audit(self) -> None:
        """Hold still and look at everything.

        Raises:
            Violation: a promise was broken.
        """
        for client in self.clients:
            client.check()
        with self._gate.closed():
            self._audit()

    def _audit(self) -> None:
        auditor, model = self.auditor, self.auditor.model
        with closing(GrpcClient(self._random.choice(self.cluster.members))) as client:
            auditor.audit(WatchedHistory(client, self.watcher, _CATCH_UP_S))
        for member in self.cluster.members:
            hashed = self._hash_of(member, model.revision)
            if (hashed.compact_revision, hashed.hash) != (model.compacted, model.hash_kv()):
                raise Violation(
                    f"{member.name} has at revision {model.revision} the hash {hashed.hash} (compacted "
                    f"{hashed.compact_revision}), its history {model.hash_kv()} (compacted {model.compacted})"
                )
        self.reader.compare(self.watcher)
        self.watcher.forget()

    def _hash_of(self, member: ServerProcess, revision: int) -> pb.HashKVResponse:
        """HashKV of a member, once it has that revision and all compactions."""
        found = pb.HashKVResponse()

        def has_it() -> bool:
            with closing(GrpcClient(member)) as client:
                reply = client.call(pb.HashKVRequest(revision=revision))
            if isinstance(reply.message, pb.HashKVResponse):
                found.CopyFrom(reply.message)
                return found.compact_revision == self.auditor.model.compacted
            if reply.code != _COMPACTED or "future" not in reply.text:
                raise Violation(f"{member.name}: HashKV at {revision}: {reply.code} {reply.text}")
            return False

        until(f"{member.name} has revision {revision}", has_it, _CATCH_UP_S)
        return found

    def _check_leases(self, member: ServerProcess) -> None:
        with closing(GrpcClient(member)) as client:
            for lease in LEASES:
                reply = client.call(pb.LeaseTimeToLiveRequest(ID=lease))
                assert isinstance(reply.message, pb.LeaseTimeToLiveResponse), f"{reply.code} {reply.text}"
                if reply.message.TTL <= 0:
                    raise Violation(f"{member.name}: lease {lease:x} has ended: {reply.message}")

    def _recover(self) -> None:
        """All members run and nothing is cut: writes are acknowledged again."""
        for client in self.clients:
            client.check()
        self.auditor.wait_for(self.auditor.acknowledged + 2 * WRITERS, _RECOVERY_S)

    # --- faults ------------------------------------------------------------------------------------

    def _shuffled(self) -> list[Callable[[], None]]:
        deck = [
            self.kill_leader,
            self.kill_follower,
            self.kill_two,
            self.kill_all,
            self.restart_leader,
            self.pause_leader,
            self.pause_follower,
            self.cut_leader_off,
            self.cut_follower_off,
            self.silence_leader,
            self.silence_follower,
            self.part_leader_and_follower,
            self.refuse_dials_to_leader,
            self.move_leader,
            self.compact,
        ]
        self._random.shuffle(deck)
        return deck

    def kill_leader(self) -> None:
        """kill -9."""
        self._kill([self._leader()])

    def kill_follower(self) -> None:
        """kill -9."""
        self._kill([self._follower()])

    def kill_two(self) -> None:
        """kill -9 of a majority."""
        self._kill(self._random.sample(self.cluster.members, 2))

    def kill_all(self) -> None:
        """kill -9 of everybody."""
        self._kill(self.cluster.members)

    def restart_leader(self) -> None:
        """SIGTERM, and a new start."""
        leader = self._leader()
        if leader.stop():
            raise Violation(f"{leader.name} did not stop well")
        leader.start()

    def pause_leader(self) -> None:
        """SIGSTOP."""
        self._pause(self._leader())

    def pause_follower(self) -> None:
        """SIGSTOP."""
        self._pause(self._follower())

    def cut_leader_off(self) -> None:
        """All connections to and from it are reset."""
        self._cut_off(Fate.CUT, self._leader())

    def cut_follower_off(self) -> None:
        """All connections to and from it are reset."""
        self._cut_off(Fate.CUT, self._follower())

    def silence_leader(self) -> None:
        """Nothing gets through to or from it, and nobody is told."""
        self._cut_off(Fate.SILENT, self._leader())

    def silence_follower(self) -> None:
        """Nothing gets through to or from it, and nobody is told."""
        self._cut_off(Fate.SILENT, self._follower())

    def part_leader_and_follower(self) -> None:
        """These two do not reach each other, and the third reaches both."""
        fate = self._random.choice(list(Fate))
        leader, follower = self._leader(), self._follower()
        self._break(fate, [(leader, follower), (follower, leader)])

    def refuse_dials_to_leader(self) -> None:
        """Nobody reaches the leader, which reaches everybody."""
        leader = self._leader()
        self._break(Fate.CUT, [(other, leader) for other in self._others(leader)])

    def move_leader(self) -> None:
        """By etcdctl, to a follower."""
        target = self._follower()

        def moved() -> bool:
            leader = self._leader()
            if leader is not target:
                self.cluster.ctl("move-leader", f"{self.cluster.id_of(target):x}", members=[leader])
            return leader is target

        until(f"{target.name} leads", moved)

    def compact(self) -> None:
        """Up to somewhere in what was audited."""
        with self._gate.closed():
            self._audit()
            model = self.auditor.model
            if model.revision <= model.compacted + 1:
                return
            revision = self._random.randint(model.compacted + 1, model.revision)
            request = pb.CompactionRequest(revision=max(revision, 1), physical=self._random.random() < 0.5)

            def compacted() -> bool:
                with closing(GrpcClient(self._random.choice(self.cluster.members))) as client:
                    return client.call(request).code in (0, _COMPACTED)

            until("a compaction is acknowledged", compacted)
            model.compact(request.revision)

    def _kill(self, members: Sequence[ServerProcess]) -> None:
        for member in members:
            member.kill9()
        self._bell.wait(self._random.uniform(0.0, 0.4 * self._longest_s))
        start_together(members)

    def _pause(self, member: ServerProcess) -> None:
        member.pause()
        self._bell.wait(self._random.uniform(0.5, self._longest_s))
        member.resume()

    def _cut_off(self, fate: Fate, member: ServerProcess) -> None:
        others = self._others(member)
        self._break(fate, [(member, other) for other in others] + [(other, member) for other in others])

    def _break(self, fate: Fate, directions: Sequence[tuple[ServerProcess, ServerProcess]]) -> None:
        self._network.break_directions(fate, directions)
        self._bell.wait(self._random.uniform(0.5, self._longest_s))
        self._network.heal()

    def _lose_leader(self, number: int) -> Downtime:
        """Kill the leader and start it again."""
        leader = self._leader()
        term = _status(leader).raftTerm
        writers = [
            Writer(
                f"idle {number} {survivor.name}",
                [survivor],
                0,
                self.auditor,
                Dice(f"idle {number} {survivor.name}", Random(self._random.random())),
                Gate(),
                _IDLE_PAUSE_S,
                _IDLE_TIMEOUT_S,
            )
            for survivor in self._others(leader)
        ]
        for writer in writers:
            writer.start()
        try:
            until("all of them write", lambda: all(writer.acknowledged for writer in writers))
            self._bell.wait(self._random.uniform(0.0, 0.2))  # not always at the same moment between two heartbeats
            killed_s = time.monotonic()
            leader.kill9()
            until("somebody writes", lambda: any(writer.first_after(killed_s) for writer in writers), _RECOVERY_S)
        finally:
            for writer in writers:
                writer.finish()
        elections = max(_status(survivor).raftTerm for survivor in self._others(leader)) - term
        leader.start()
        first_s = min(found_s for writer in writers if (found_s := writer.first_after(killed_s)))
        return Downtime(first_s - killed_s, elections)

    # --- who is who --------------------------------------------------------------------------------

    def _leader(self) -> ServerProcess:
        """The one that leads now."""
        found: list[ServerProcess] = []

        def known() -> bool:
            found[:] = [member for member in self.cluster.members if _leads(member)]
            return len(found) == 1

        until("one member leads", known)
        return found[0]

    def _follower(self) -> ServerProcess:
        return self._random.choice(self._others(self._leader()))

    def _others(self, member: ServerProcess) -> list[ServerProcess]:
        return [each for each in self.cluster.members if each is not member]


def _status(member: ServerProcess) -> pb.StatusResponse:
    with closing(GrpcClient(member)) as client:
        reply = client.call(pb.StatusRequest())
    if not isinstance(reply.message, pb.StatusResponse):
        raise ServerFailed(f"{member.name}: {reply.code} {reply.text}")
    return reply.message


def _leads(member: ServerProcess) -> bool:
    """Whether it says so itself."""
    status = _status(member)
    return bool(status.leader == status.header.member_id)
