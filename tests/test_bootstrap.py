"""A member's first start: what it asks of the others, what it writes, and what keeps it from starting."""

from __future__ import annotations

import errno
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.logger import ILogObserver, LogLevel, globalLogPublisher
from twisted.names import dns
from twisted.names.error import DomainError
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import provider

from tests.protocols.peernet import Network, answer_later
from tests.storage.test_wal import FaultyDisk
from tests.test_founding import THREE, Replay, log, remove, urls
from twistedkv.bootstrap import ANSWER_TIMEOUT_S, create_log, force_alone, found
from twistedkv.certs import ensure_certificates
from twistedkv.config import Config
from twistedkv.configload import load_config
from twistedkv.founding import BootstrapError, Founding, new_cluster
from twistedkv.members import MemberInfo, cluster_id, member_id
from twistedkv.optiontypes import parse_cluster
from twistedkv.pb.etcdserver_pb2 import Metadata
from twistedkv.protocols.answers import TEXT, Answer
from twistedkv.protocols.tls import ClientContext, ServerContext, TLSConfig
from twistedkv.raft.messages import HardState
from twistedkv.storage.wal import WAL, Disk, DiskFullError, WALFailedError

RUNNING = 0xCAFE  # the id of a cluster that runs
DOWNGRADE = "/downgrade/enabled"


class Records:
    """A name server that knows two members on this machine."""

    def lookupService(self, name: str, timeout: Any = None) -> Any:
        secure = name.startswith("_etcd-server-ssl")
        targets = () if secure else (dns.Record_SRV(0, 0, 1, "localhost"), dns.Record_SRV(0, 0, 2, "localhost"))
        return succeed(([dns.RRHeader(name, dns.SRV, payload=target) for target in targets], [], []))

    def lookupAddress(self, name: str, timeout: Any = None) -> Any:
        return succeed(([dns.RRHeader(payload=dns.Record_A("127.0.0.1"))], [], []))

    def lookupIPV6Address(self, name: str, timeout: Any = None) -> Any:
        return fail(DomainError(name))


class _Case(SynchronousTestCase):
    def setUp(self) -> None:
        self.network = Network()

    def config(self, *members: int, me: int = 1, **options: str) -> Config:
        """What the member at port ``me`` is told of a cluster at these ports."""
        flags = {
            "name": f"m{me}",
            "initial-advertise-peer-urls": self.network.url(me),
            "initial-cluster": ",".join(f"m{each}={self.network.url(each)}" for each in members),
            "allow-plaintext": "true",
            **{name.replace("_", "-"): text for name, text in options.items()},
        }
        return load_config(flags, {})

    def found(self, config: Config, **arguments: Any) -> Deferred[Founding]:
        return Deferred.fromCoroutine(found(config, self.network.reactor, self.network.tls[1], "3.5.1", **arguments))

    def serve(
        self,
        port: int,
        members: Sequence[MemberInfo],
        cluster: int = RUNNING,
        version: str = "3.5.0",
        downgrade: Answer | None = None,
    ) -> None:
        """A member that says so at that port."""

        def extra(method: str, path: str, fields: Any, body: bytes) -> Deferred[Answer]:
            self.assertEqual((method, path), ("GET", DOWNGRADE))
            return succeed(downgrade or Answer(200, TEXT, b"false"))

        self.network.add(port, cluster, extra)
        listed = b"[%s]\n" % b",".join(each.to_json() for each in members)
        told = json.dumps({"etcdserver": "3.5.1", "etcdcluster": version}).encode()
        self.network.receivers[port].members_json = lambda: listed  # type: ignore[method-assign]
        self.network.receivers[port].version_json = lambda: told  # type: ignore[method-assign]

    def members(self, *ports: int, started: Sequence[int] = ()) -> list[MemberInfo]:
        """Members as those that found a cluster have them; some have clients' URLs."""
        return [
            MemberInfo(
                member_id([self.network.url(port)], "etcd-cluster"),
                (self.network.url(port),),
                f"m{port}",
                (f"http://127.0.0.1:{1000 + port}",) if port in started else (),
            )
            for port in ports
        ]

    def refusal(self, waiting: Deferred[Founding]) -> str:
        self.network.settle()
        text = str(self.failureResultOf(waiting, BootstrapError).value)
        self.assertNotIn("\n", text)
        return text

    def assert_quiet(self) -> None:
        """No connection and no timer of the member that asked is left."""
        for peers in self.network.peers.values():
            stopped = peers.stop()
            self.network.settle()
            self.successResultOf(stopped)
        self.assertEqual(self.network.reactor.getDelayedCalls(), [])
        for wire in self.network.wires:
            self.assertFalse(wire.client.connected)


class NewClusterTests(_Case):
    def test_alone(self) -> None:
        """A member without others asks nobody."""
        founding = self.successResultOf(self.found(self.config(1)))
        self.assertEqual(founding.member_id, self.members(1)[0].id)
        self.assertEqual(founding.hard_state, HardState(1, 0, 1))
        self.assertEqual(self.network.reactor.tcpClients, [])

    def test_nobody_is_there_yet(self) -> None:
        """Three members that start at the same time all begin, whoever listens already."""
        waiting = self.found(self.config(1, 2, 3))
        self.network.settle()
        founding = self.successResultOf(waiting)
        self.assertEqual(len(founding.entries), 3)
        self.assertEqual(set(founding.remotes), {each.id for each in self.members(2, 3)})
        self.assertEqual(self.network.dials, [2, 3])
        self.assert_quiet()

    def test_silent_members_are_not_waited_for_long(self) -> None:
        """Members that take connections and say nothing are asked at the same time, for a few seconds."""
        for port in (2, 3):
            self.network.add(port)
        waiting = self.found(self.config(1, 2, 3))
        self.network.reactor.advance(0)  # they are dialled, and nothing comes back
        self.network.reactor.advance(ANSWER_TIMEOUT_S - 0.1)
        self.assertNoResult(waiting)
        self.network.reactor.advance(0.2)
        self.assertEqual(len(self.successResultOf(waiting).entries), 3)

    def test_others_have_not_seen_us(self) -> None:
        """Others that have begun know us, but not our clients' URLs."""
        self.serve(2, self.members(1, 2, 3, started=[2]), cluster_id(each.id for each in self.members(1, 2, 3)))
        waiting = self.found(self.config(1, 2, 3))
        self.network.settle()
        self.assertEqual(self.successResultOf(waiting).member_id, self.members(1)[0].id)
        self.assert_quiet()

    def test_started_before(self) -> None:
        """A member that has lost its log may not begin anew under its old id, whoever remembers it."""
        self.serve(2, self.members(1, 2, 3))
        self.serve(3, self.members(1, 2, 3, started=[1, 2, 3]))
        me = self.members(1)[0].id
        self.assertEqual(self.refusal(self.found(self.config(1, 2, 3))), f"member {me:x} has already been bootstrapped")
        self.assert_quiet()

    def test_strange_answers(self) -> None:
        """What is no member list of a cluster counts as no answer."""
        for port, body in ((2, b"[]"), (3, b"<html>"), (4, b'[{"id":1}]')):
            self.serve(port, ())
            self.network.receivers[port].members_json = lambda body=body: body  # type: ignore[misc]
        waiting = self.found(self.config(1, 2, 3, 4))
        self.network.settle()
        self.assertEqual(len(self.successResultOf(waiting).entries), 4)

    def test_wrong_options(self) -> None:
        """What the options of the first start contradict is told before anybody is asked."""
        text = self.refusal(self.found(self.config(2, 3)))
        self.assertIn("expected this member's name, m1, among them", text)
        text = self.refusal(self.found(self.config(1, 2, initial_advertise_peer_urls="http://127.0.0.1:9")))
        self.assertIn("--initial-advertise-peer-urls, http://127.0.0.1:9", text)
        self.assertEqual(self.network.dials, [])

    def test_members_by_discovery(self) -> None:
        """Members that SRV records name found the cluster, and ours is known by its address, not by its text."""
        config = self.config(1, initial_cluster="", discovery_srv="example.com", name="a")
        waiting = self.found(config, resolver=Records())
        self.network.run(ANSWER_TIMEOUT_S + 0.1)  # the other one does not answer
        founding = self.successResultOf(waiting)
        urls = {"a": "http://localhost:1", "0": "http://localhost:2"}
        wanted = new_cluster(
            parse_cluster(",".join(f"{name}={url}" for name, url in urls.items())), "a", "etcd-cluster"
        )
        self.assertEqual(founding, wanted)

    def test_given_up(self) -> None:
        """A member that is told to stop while it asks does not go on."""
        waiting = self.found(self.config(1, 2))
        self.network.reactor.advance(0)
        self.assertEqual(len(self.network.reactor.tcpClients), 1)
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        self.assertEqual(self.network.reactor.getDelayedCalls(), [])


class ExistingClusterTests(_Case):
    def existing(self, *members: int, me: int = 1, **options: str) -> Config:
        return self.config(*members, me=me, initial_cluster_state="existing", **options)

    def added(self, *ports: int) -> list[MemberInfo]:
        """Members of a cluster that runs; the first was added and has not started."""
        return [MemberInfo(50 + port, (self.network.url(port),), f"m{port}" if port > 1 else "") for port in ports]

    def test_joins(self) -> None:
        """The ids come from the others, one of which is down, and nothing is in the log yet."""
        self.serve(2, self.added(1, 2, 3))
        waiting = self.found(self.existing(1, 2, 3))
        self.network.settle()
        founding = self.successResultOf(waiting)
        self.assertEqual((founding.member_id, founding.cluster_id), (51, RUNNING))
        self.assertEqual(founding.entries, ())
        self.assertEqual(founding.remotes, {52: (self.network.url(2),), 53: (self.network.url(3),)})
        self.assert_quiet()

    def test_started_before(self) -> None:
        """A member that comes back without what it had is let in, as by etcd, and that is logged."""
        self.serve(2, [replace(each, client_urls=("http://c",)) for each in self.added(1, 2)])
        events: list[dict[str, Any]] = []

        @provider(ILogObserver)
        def observer(event: dict[str, Any]) -> None:
            events.append(event)

        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        waiting = self.found(self.existing(1, 2))
        self.network.settle()
        self.assertEqual(self.successResultOf(waiting).member_id, 51)
        self.assertEqual([event["member"] for event in events if event["log_level"] is LogLevel.warn], [51])

    def test_advertised_urls_do_not_matter(self) -> None:
        """The cluster knows already where to find us."""
        self.serve(2, self.added(1, 2))
        waiting = self.found(self.existing(1, 2, initial_advertise_peer_urls="http://127.0.0.1:9"))
        self.network.settle()
        self.assertEqual(self.successResultOf(waiting).member_id, 51)

    def test_nobody_to_ask(self) -> None:
        """Without others in the options, or without an answer of theirs, the refusal is etcd's."""
        for config in (self.existing(1), self.existing(1, 2)):
            self.assertIn("could not retrieve cluster information", self.refusal(self.found(config)))

    def test_not_added(self) -> None:
        """A member that nobody added is refused."""
        self.serve(2, self.added(2, 3))
        self.assertIn("member count is unequal", self.refusal(self.found(self.existing(1, 2, 3))))
        self.assert_quiet()

    def test_version(self) -> None:
        """A cluster of a later version is refused, unless it comes down to ours."""
        self.serve(2, self.added(1, 2), version="3.6.0")
        self.assertIn("its version is 3.6.0", self.refusal(self.found(self.existing(1, 2))))
        self.serve(3, self.added(1, 3), version="3.6.0", downgrade=Answer(200, TEXT, b"true"))
        waiting = self.found(self.existing(1, 3))
        self.network.settle()
        self.assertEqual(self.successResultOf(waiting).member_id, 51)

    def test_downgrade_is_not_known(self) -> None:
        """A member without a majority, or of 3.4, does not tell of downgrades: then there is none."""
        self.serve(2, self.added(1, 2), downgrade=Answer(404, TEXT, b"404 page not found\n"))
        answers: list[Any] = []
        self.network.add(3, RUNNING, answer_later(answers))
        self.network.receivers[3].members_json = self.network.receivers[2].members_json  # type: ignore[method-assign]
        waiting = self.found(self.existing(1, 2))
        self.network.settle()
        self.assertEqual(self.successResultOf(waiting).member_id, 51)
        self.network.receivers[3].members_json = lambda: (  # type: ignore[method-assign]
            b"[%s]" % b",".join(each.to_json() for each in self.added(1, 3))
        )
        self.network.receivers[3].version_json = lambda: b'{"etcdcluster":"3.5.0"}'  # type: ignore[method-assign]
        waiting = self.found(self.existing(1, 3))
        self.network.settle()
        self.assertEqual(len(answers), 1)
        self.assertNoResult(waiting)
        self.network.run(2.1)
        self.assertEqual(self.successResultOf(waiting).member_id, 51)

    def test_given_up_between_two_questions(self) -> None:
        """Nothing more is asked once the member is told to stop."""
        self.serve(2, self.added(1, 2))
        answers: list[Any] = []
        self.network.peers[2].extra = answer_later(answers)
        waiting = self.found(self.existing(1, 2))
        self.network.settle()
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        self.network.settle()
        self.assertEqual(self.network.dials, [2])
        self.assert_quiet()

    def test_tls(self) -> None:
        """Over TLS the same, and a member that the option of names keeps out is not believed."""
        made = ensure_certificates(self.mktemp())
        config = TLSConfig(str(made.peer.certificate), str(made.peer.key), str(made.ca.certificate), True)
        reactor = self.network.reactor
        self.network.tls = (
            ServerContext(config, reactor, ("http/1.1",)),
            ClientContext(config, reactor, ("http/1.1",)),
        )
        self.serve(2, self.added(1, 2))
        waiting = self.found(self.existing(1, 2))
        self.network.settle()
        self.assertEqual(self.successResultOf(waiting).member_id, 51)
        waiting = self.found(self.existing(1, 2), allows=lambda transport: transport.common_name == "somebody")
        self.assertIn("could not retrieve cluster information", self.refusal(waiting))


class CreateLogTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = Path(self.mktemp()) / "data" / "wal"
        self.founding = new_cluster(parse_cluster("a=https://10.0.0.1:1,b=https://10.0.0.2:1"), "a", "t")

    def open(self) -> tuple[Metadata, HardState, Any]:
        wal, recovered = WAL.open(self.directory)
        wal.close()
        return Metadata.FromString(recovered.metadata), recovered.hard_state, recovered.entries

    def test_new_cluster(self) -> None:
        """The log holds the ids and the first entries, committed."""
        create_log(self.directory, self.founding, Disk())
        metadata, hard_state, entries = self.open()
        self.assertEqual((metadata.NodeID, metadata.ClusterID), self.founding[:2])
        self.assertEqual((hard_state, entries), (self.founding.hard_state, list(self.founding.entries)))
        self.assertEqual([path.name for path in self.directory.parent.iterdir()], ["wal"])
        self.assertRaises(FileExistsError, create_log, self.directory, self.founding, Disk())

    def test_joining(self) -> None:
        """A member that joins has a log with its ids and nothing else."""
        create_log(self.directory, Founding(5, 6, (), HardState(), {}), Disk())
        metadata, hard_state, entries = self.open()
        self.assertEqual((metadata.NodeID, metadata.ClusterID, hard_state, entries), (5, 6, HardState(), []))

    def test_all_or_nothing(self) -> None:
        """Whenever it breaks off there is no log afterwards, and the next start makes it."""
        for call, error in (("allocate", errno.ENOSPC), ("write", errno.ENOSPC), ("sync_data", errno.EIO)):
            disk = FaultyDisk()
            disk.fail(call, error)
            self.assertRaises((DiskFullError, WALFailedError), create_log, self.directory, self.founding, disk)  # type: ignore[arg-type]
            self.assertFalse(WAL.exists(self.directory), call)
        create_log(self.directory, self.founding, Disk())
        self.assertEqual(len(self.open()[2]), 2)

    def test_empty_directory(self) -> None:
        """A directory that was made beforehand is of no harm."""
        self.directory.mkdir(parents=True)
        create_log(self.directory, self.founding, Disk())
        self.assertEqual(len(self.open()[2]), 2)


class ForceAloneTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.history = log(*THREE, b"one", b"two")
        wal = WAL.create(self.directory, b"meta")
        wal.append(HardState(2, 3, 4), self.history)
        wal.close()

    def force(self) -> Any:
        wal, recovered = WAL.open(self.directory)
        membership = Replay().apply(self.history[:3]).members
        try:
            return force_alone(wal, recovered, membership, 3, 1, urls(1))
        finally:
            wal.close()

    def test_is_durable(self) -> None:
        """What it returns is what the next start finds, and another time nothing is added."""
        forced = self.force()
        self.assertEqual(forced.hard_state, HardState(2, 3, 7))
        self.assertEqual(forced.entries[:5], self.history)
        self.assertEqual(list(Replay().apply(forced.entries).members.members), [1])
        wal, recovered = WAL.open(self.directory)
        wal.close()
        self.assertEqual((recovered.hard_state, recovered.entries), (forced.hard_state, forced.entries))
        self.assertEqual(self.force(), recovered)

    def test_replaced_entry(self) -> None:
        """An entry that is taken out is gone from the log as well."""
        wal, _ = WAL.open(self.directory)
        self.history += log(remove(1), b"three", first=6)
        wal.append(None, self.history[5:])
        wal.close()
        forced = self.force()
        self.assertEqual([entry.data for entry in forced.entries[3:7]], [b"one", b"two", b"", b"three"])
        wal, recovered = WAL.open(self.directory)
        wal.close()
        self.assertEqual(recovered.entries, forced.entries)
