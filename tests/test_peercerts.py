"""Which verified peers may be peers, by the names in their certificates."""

from __future__ import annotations

import datetime
from ipaddress import ip_address

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.protocols.peernet import Network
from twistedkv.certs import ensure_certificates
from twistedkv.configload import load_config
from twistedkv.peercerts import allowed_peers, is_good_for
from twistedkv.protocols.tls import ClientContext, ServerContext, TLSConfig
from twistedkv.protocols.transport import DirectTransport
from twistedkv.raft.messages import Message, MessageType

VOTE = MessageType.VOTE
START = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


def certificate(*names: str, common_name: str = "peer") -> x509.Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(START)
        .not_valid_after(START + datetime.timedelta(days=1))
    )
    alternatives = [
        x509.IPAddress(ip_address(name)) if name[0].isdigit() or ":" in name else x509.DNSName(name) for name in names
    ]
    if alternatives:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    return builder.sign(key, hashes.SHA256())


class HostNameTests(SynchronousTestCase):
    def test_as_go_verifies_names(self) -> None:
        """Case does not matter, a star is one whole first label, and an address is no name."""
        made = certificate("a.example.com", "*.peers.example.com", "10.0.0.1", "fd00::1")
        for host in ("a.example.com", "A.Example.COM", "m1.peers.example.com", "10.0.0.1", "fd00::1", "[fd00:0::1]"):
            self.assertTrue(is_good_for(made, host), host)
        for host in (
            "b.example.com",
            "peers.example.com",
            "x.y.peers.example.com",
            ".peers.example.com",
            "10.0.0.2",
            "",
        ):
            self.assertFalse(is_good_for(made, host), host)

    def test_star_alone(self) -> None:
        """A star that stands for everything stands for nothing."""
        self.assertFalse(is_good_for(certificate("*"), "localhost"))

    def test_common_name_does_not_count(self) -> None:
        """Without alternative names a certificate is good for no host."""
        self.assertFalse(is_good_for(certificate(common_name="a.example.com"), "a.example.com"))


class AllowedPeersTests(SynchronousTestCase):
    def talks(self, **options: str) -> bool:
        """Whether two members get through to each other of which one has these options."""
        flags = {name.replace("_", "-"): text for name, text in options.items()}
        allows = allowed_peers(load_config(flags, {}))
        made = ensure_certificates(self.mktemp())
        network = Network()
        config = TLSConfig(str(made.peer.certificate), str(made.peer.key), str(made.ca.certificate), True)
        network.tls = (
            ServerContext(config, network.reactor, ("http/1.1",)),
            ClientContext(config, network.reactor, ("http/1.1",)),
        )
        network.add(1, allows=allows)
        network.add(2)
        network.introduce()
        network.peers[1].send([Message(VOTE, 2, 1, 9)])
        network.peers[2].send([Message(VOTE, 1, 2, 9)])
        network.run(1)
        heard = [[message.type for message in network.receivers[each].messages] for each in (1, 2)]
        self.assertIn(heard, ([[VOTE], [VOTE]], [[], []]))
        return heard == [[VOTE], [VOTE]]

    def test_over_real_tls(self) -> None:
        """The right name gets through in both directions, a wrong one in none."""
        self.assertTrue(self.talks())
        self.assertTrue(self.talks(peer_cert_allowed_cn="twistedkv-peer"))
        self.assertFalse(self.talks(peer_cert_allowed_cn="twistedkv"))
        self.assertTrue(self.talks(peer_cert_allowed_hostname="localhost"))
        self.assertFalse(self.talks(peer_cert_allowed_hostname="db.example"))

    def test_without_tls(self) -> None:
        """Who shows no certificate is nobody."""
        transport = DirectTransport(Protocol(), Clock())
        transport.getPeer = lambda: "192.0.2.1"  # type: ignore[method-assign]
        for options in ({"peer-cert-allowed-cn": "x"}, {"peer-cert-allowed-hostname": "x"}):
            allows = allowed_peers(load_config(options, {}))
            assert allows is not None
            self.assertFalse(allows(transport))
