"""The members of a new cluster from SRV records: a real name server on a loopback port answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.internet import reactor as trial_reactor  # noqa: TID251  the one that trial runs
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.names import dns
from twisted.names.authority import FileAuthority
from twisted.names.client import Resolver
from twisted.names.common import ResolverBase
from twisted.names.server import DNSServerFactory
from twisted.trial.unittest import SynchronousTestCase, TestCase

from twistedkv.configload import load_config
from twistedkv.discovery import discover, system_resolver
from twistedkv.founding import BootstrapError, new_cluster
from twistedkv.optiontypes import InitialCluster

DOMAIN = "example.com"
SECURE, PLAIN = "_etcd-server-ssl._tcp.example.com", "_etcd-server._tcp.example.com"


class Zone(FileAuthority):
    """What a zone file would hold."""

    def __init__(self, records: dict[bytes, list[Any]]) -> None:
        ResolverBase.__init__(self)
        self.soa = (b"example.com", dns.Record_SOA())
        self.records = records


def srv(target: str, port: int = 2380, priority: int = 0) -> dns.Record_SRV:
    return dns.Record_SRV(priority, 10, port, target)


class DiscoveryTests(TestCase):
    timeout = 30

    def setUp(self) -> None:
        self.records: dict[bytes, list[Any]] = {
            b"a.example.com": [dns.Record_A("10.0.0.1")],
            b"b.example.com": [dns.Record_A("10.0.0.2"), dns.Record_AAAA("fd00::2")],
            b"c.example.com": [dns.Record_A("10.0.0.3")],
        }
        authority = Zone(self.records)
        port = trial_reactor.listenUDP(  # type: ignore[attr-defined]
            0, dns.DNSDatagramProtocol(DNSServerFactory([authority])), interface="127.0.0.1"
        )
        self.addCleanup(port.stopListening)
        self.resolver = Resolver(servers=[("127.0.0.1", port.getHost().port)], reactor=trial_reactor)

    def publish(self, name: str, *records: dns.Record_SRV) -> None:
        self.records[name.encode()] = list(records)

    def discover(self, own: str = "https://10.0.0.1:2380", **options: str) -> Deferred[InitialCluster]:
        flags = {"name": "m", "discovery-srv": DOMAIN, "initial-advertise-peer-urls": own}
        config = load_config(flags | {name.replace("_", "-"): text for name, text in options.items()}, {})
        return Deferred.fromCoroutine(discover(config, self.resolver))

    @inlineCallbacks
    def refusal(self, waiting: Deferred[InitialCluster]) -> Any:
        error = yield self.assertFailure(waiting, BootstrapError)
        self.assertNotIn("\n", str(error))
        return str(error)

    @inlineCallbacks
    def test_members(self) -> Any:
        """The record that leads to one of our addresses is ours, and the others are numbered."""
        self.publish(SECURE, srv("c.example.com"), srv("a.example.com"), srv("b.example.com"))
        cluster = yield self.discover()
        self.assertEqual(
            str(cluster), "m=https://a.example.com:2380,0=https://b.example.com:2380,1=https://c.example.com:2380"
        )

    @inlineCallbacks
    def test_all_members_reckon_the_same_cluster(self) -> Any:
        """Each finds itself, by whatever name it advertises, and all get the same ids."""
        self.publish(SECURE, srv("b.example.com"), srv("c.example.com"), srv("a.example.com"))
        foundings = []
        for own in ("https://10.0.0.1:2380", "https://[fd00::2]:2380", "https://c.example.com:2380"):
            cluster = yield self.discover(own)
            foundings.append(new_cluster(cluster, "m", "t"))
        self.assertEqual(len({founding.member_id for founding in foundings}), 3)
        self.assertEqual(len({founding.cluster_id for founding in foundings}), 1)

    @inlineCallbacks
    def test_port_tells_members_of_one_host_apart(self) -> Any:
        """The port counts as much as the address."""
        self.publish(SECURE, srv("a.example.com", 1), srv("a.example.com", 2380))
        cluster = yield self.discover()
        self.assertEqual(str(cluster), "0=https://a.example.com:1,m=https://a.example.com:2380")

    @inlineCallbacks
    def test_service_name(self) -> Any:
        """--discovery-srv-name asks for other records."""
        self.publish("_etcd-server-ssl-two._tcp.example.com", srv("a.example.com"))
        cluster = yield self.discover(discovery_srv_name="two")
        self.assertEqual(str(cluster), "m=https://a.example.com:2380")

    @inlineCallbacks
    def test_plaintext(self) -> Any:
        """Records for http count only where plaintext is allowed, and then beside those for https."""
        self.publish(PLAIN, srv("a.example.com"))
        text = yield self.refusal(self.discover())
        self.assertIn("--discovery-srv is 'example.com', which names http://a.example.com:2380", text)
        self.assertIn("--allow-plaintext", text)
        cluster = yield self.discover("http://10.0.0.1:2380", allow_plaintext="true")
        self.assertEqual(str(cluster), "m=http://a.example.com:2380")
        self.publish(SECURE, srv("b.example.com"))
        cluster = yield self.discover("http://10.0.0.1:2380", allow_plaintext="true")
        self.assertEqual(str(cluster), "0=https://b.example.com:2380,m=http://a.example.com:2380")

    @inlineCallbacks
    def test_scheme_mismatch(self) -> Any:
        """A record that leads to us by the other scheme is named."""
        self.publish(PLAIN, srv("a.example.com"), srv("b.example.com"))
        text = yield self.refusal(self.discover(allow_plaintext="true"))
        self.assertIn("bootstrap at http://a.example.com:2380 from DNS for _etcd-server has scheme mismatch", text)
        self.assertIn("expected peer https://10.0.0.1:2380", text)

    @inlineCallbacks
    def test_not_among_them(self) -> Any:
        """A member that no record leads to is told which addresses were looked for."""
        self.publish(SECURE, srv("b.example.com"), srv("c.example.com"))
        text = yield self.refusal(self.discover())
        self.assertIn('cannot find local etcd member "m" in SRV records', text)
        self.assertIn("https://10.0.0.1:2380", text)

    @inlineCallbacks
    def test_no_records(self) -> Any:
        """Without any record both names that were asked for are told."""
        text = yield self.refusal(self.discover())
        self.assertIn("error querying DNS SRV records of --discovery-srv example.com", text)
        self.assertIn(f"{SECURE}: no such name; {PLAIN}: no such name", text)

    @inlineCallbacks
    def test_target_without_an_address(self) -> Any:
        """A member whose address is not known yet is a member all the same."""
        self.publish(SECURE, srv("a.example.com"), srv("later.example.com"))
        cluster = yield self.discover()
        self.assertEqual(str(cluster), "m=https://a.example.com:2380,0=https://later.example.com:2380")

    @inlineCallbacks
    def test_numbers_are_nobodys_name(self) -> Any:
        """A member that is called by a number does not share it."""
        self.publish(SECURE, srv("a.example.com"), srv("b.example.com"), srv("c.example.com"))
        cluster = yield self.discover(name="1")
        self.assertEqual(list(cluster), ["1", "0", "2"])

    @inlineCallbacks
    def test_record_that_leads_nowhere(self) -> Any:
        """A target that is no host is refused."""
        self.publish(SECURE, srv(""))
        text = yield self.refusal(self.discover())
        self.assertIn(f"the SRV records of {SECURE} lead to ':2380'", text)


class SystemResolverTests(SynchronousTestCase):
    def test_name_servers_of_the_file(self) -> None:
        """The name servers are those of resolv.conf, or else this machine's."""
        path = Path(self.mktemp())
        path.write_text("# none\nsearch x\nnameserver 192.0.2.1\nnameserver\nnameserver 2001:db8::1 # two\n")
        resolver: Any = system_resolver(object(), str(path))
        self.assertEqual(resolver.resolvers[-1].servers, [("192.0.2.1", 53), ("2001:db8::1", 53)])
        resolver = system_resolver(object(), str(path) + "-missing")
        self.assertEqual(resolver.resolvers[-1].servers, [("127.0.0.1", 53)])

    def test_hosts_file(self) -> None:
        """A name in the hosts file needs no name server."""
        resolver = system_resolver(object(), "/nonexistent")
        answers, _, _ = self.successResultOf(resolver.lookupAddress("localhost"))
        self.assertEqual(answers[0].payload.dottedQuad(), "127.0.0.1")
