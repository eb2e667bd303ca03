"""The certificates that a server makes for itself."""

from __future__ import annotations

import datetime
import socket
import ssl
import stat
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from twisted.logger import ILogObserver, LogLevel, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import provider

from twistedkv.certs import (
    CertificateFileError,
    Certificates,
    Pair,
    ensure_certificates,
    given_certificates,
    has_authority,
    issue_certificates,
    keeps_key_elsewhere,
)

START = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


def load(pair: Pair) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pair.certificate.read_bytes())


class EnsureCertificatesTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.home = Path(self.mktemp())
        self.now = START

    def ensure(self, *hosts: str) -> Certificates:
        return ensure_certificates(self.home, hosts, lambda: self.now)

    def content(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.home.iterdir()}

    def later(self, days: float) -> None:
        self.now = START + datetime.timedelta(days=days)

    def test_files_have_the_promised_names(self) -> None:
        """The directory holds a certificate and a key for each of the four, and nothing else."""
        self.ensure()
        names = {f"{name}.{kind}" for name in ("ca", "server", "peer", "client") for kind in ("crt", "key")}
        self.assertEqual(set(self.content()), names)

    def test_keys_are_private(self) -> None:
        """Only the owner can enter the directory and read the keys, even if the directory was open before."""
        self.home.mkdir(mode=0o755)
        self.ensure()
        self.assertEqual(stat.S_IMODE(self.home.stat().st_mode), 0o700)
        for path in self.home.glob("*.key"):
            self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o600, path)

    def test_each_pair_is_what_it_is_for(self) -> None:
        """The server's pair serves, the client's calls, the peer's does both, and the client has a name of its own."""
        made = self.ensure()
        usages = {
            name: set(load(pair).extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
            for name, pair in (("server", made.server), ("peer", made.peer), ("client", made.client))
        }
        server, client = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH
        self.assertEqual(usages, {"server": {server}, "peer": {server, client}, "client": {client}})
        name = load(made.client).subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
        self.assertEqual(name, "twistedkv-client")

    def test_leaves_are_signed_by_the_ca_and_openssl_takes_them(self) -> None:
        """The CA vouches for each pair, and TLS can be configured with it."""
        made = self.ensure()
        for pair in (made.server, made.peer, made.client):
            load(pair).verify_directly_issued_by(load(made.ca))
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(pair.certificate, pair.key)
            context.load_verify_locations(made.ca.certificate)

    def test_server_answers_to_its_names(self) -> None:
        """The server's certificate is valid for this machine and for the hosts asked for."""
        made = self.ensure("kv.example.org", "192.0.2.9")
        names = load(made.server).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        dns = names.get_values_for_type(x509.DNSName)
        addresses = [str(address) for address in names.get_values_for_type(x509.IPAddress)]
        self.assertTrue({"localhost", socket.gethostname(), "kv.example.org"} <= set(dns))
        self.assertTrue({"127.0.0.1", "::1", "192.0.2.9"} <= set(addresses))

    def test_second_start_changes_nothing(self) -> None:
        """What is there and good stays as it is."""
        self.ensure()
        before = self.content()
        self.later(300)
        self.ensure()
        self.assertEqual(self.content(), before)

    def test_leaves_are_renewed_in_time(self) -> None:
        """A pair with less than thirty days left is made again by the same CA."""
        self.ensure()
        before = self.content()
        self.later(336)
        made = self.ensure()
        after = self.content()
        changed = {name for name, content in after.items() if content != before[name]}
        self.assertEqual(changed, {f"{n}.{k}" for n in ("server", "peer", "client") for k in ("crt", "key")})
        self.assertGreater(load(made.server).not_valid_after_utc, self.now + datetime.timedelta(days=360))

    def test_new_host_renews_the_serving_pairs_only(self) -> None:
        """A host that the certificate lacks gets a new one; the client keeps its own."""
        self.ensure()
        before = self.content()
        self.ensure("kv.example.org")
        after = self.content()
        self.assertNotEqual(after["server.crt"], before["server.crt"])
        self.assertEqual(after["client.crt"], before["client.crt"])

    def test_pair_that_does_not_fit_is_made_again(self) -> None:
        """A crash between the key and its certificate, or a damaged file, heals at the next start."""
        made = self.ensure()
        made.server.key.write_bytes(made.client.key.read_bytes())
        made.peer.certificate.write_bytes(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
        made.client.key.unlink()
        made = self.ensure()
        for pair in (made.server, made.peer, made.client):
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(pair.certificate, pair.key)

    def test_pair_of_another_ca_is_made_again(self) -> None:
        """A certificate that this CA did not sign does not stay."""
        other = ensure_certificates(self.mktemp(), (), lambda: self.now)
        made = self.ensure()
        made.client.certificate.write_bytes(other.client.certificate.read_bytes())
        made.client.key.write_bytes(other.client.key.read_bytes())
        load(self.ensure().client).verify_directly_issued_by(load(made.ca))

    def test_crash_before_the_ca_was_whole_heals(self) -> None:
        """A CA key without a certificate signed nothing yet: the CA is made again. Temporary files do not disturb."""
        made = self.ensure()
        made.ca.certificate.unlink()
        (self.home / "ca.key.new").write_bytes(b"half")
        made = self.ensure()
        load(made.server).verify_directly_issued_by(load(made.ca))
        self.assertFalse((self.home / "ca.key.new").exists())

    def test_damaged_ca_is_never_replaced(self) -> None:
        """A CA that cannot be used stops with one line that says so, and its files stay."""
        made = self.ensure()
        made.ca.key.write_bytes(made.client.key.read_bytes())
        before = self.content()
        error = self.assertRaises(CertificateFileError, self.ensure)
        self.assertIn("ca.key is not the key of ca.crt", str(error))
        self.assertEqual(self.content(), before)

    def test_expired_ca_is_named(self) -> None:
        """A CA past its end stops with one line that names it."""
        self.ensure()
        self.later(3651)
        error = self.assertRaises(CertificateFileError, self.ensure)
        self.assertIn("ca.crt has expired", str(error))


class OneAuthorityTests(SynchronousTestCase):
    """Certificates of several members, whose CA's key is in one place."""

    def setUp(self) -> None:
        self.root = Path(self.mktemp())
        self.now = START
        self.warnings: list[dict[str, object]] = []

        @provider(ILogObserver)
        def observe(event: dict[str, object]) -> None:
            if event["log_level"] is LogLevel.warn:
                self.warnings.append(event)

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)

    def issue(self, name: str, *hosts: str) -> Certificates:
        return issue_certificates(self.root / name, self.root / "ca", hosts, lambda: self.now)

    def given(self, name: str, *hosts: str) -> Certificates:
        return given_certificates(self.root / name, hosts, lambda: self.now)

    def later(self, days: float) -> None:
        self.now = START + datetime.timedelta(days=days)

    def test_members_verify_each_other(self) -> None:
        """Each member's peer pair is the same CA's, good for its own hosts, and nobody but the CA has its key."""
        made = [self.issue(name, host) for name, host in (("a", "10.0.0.1"), ("b", "b.example"))]
        for files in made:
            load(files.peer).verify_directly_issued_by(load(made[0].ca))
            self.assertEqual(files.ca.certificate.read_bytes(), made[0].ca.certificate.read_bytes())
            self.assertFalse((files.peer.certificate.parent / "ca.key").exists())
            self.assertEqual(files.ca.key, self.root / "ca" / "ca.key")
        self.given("a", "10.0.0.1")
        self.given("b", "b.example", "127.0.0.1")
        self.assertEqual(self.warnings, [])

    def test_kept_and_renewed_where_the_key_is(self) -> None:
        """Another time what is good is kept; what ends soon, or lacks a host, is made again."""
        self.issue("a", "10.0.0.1")
        before = (self.root / "a" / "peer.crt").read_bytes()
        self.issue("a", "10.0.0.1")
        self.assertEqual((self.root / "a" / "peer.crt").read_bytes(), before)
        self.issue("a", "10.0.0.1", "10.0.0.9")
        self.assertNotEqual((self.root / "a" / "peer.crt").read_bytes(), before)
        self.later(340)
        self.given("a", "10.0.0.9")
        self.assertEqual([event["days"] for event in self.warnings], [25, 25])  # server and peer
        self.issue("a", "10.0.0.9")
        self.warnings.clear()
        self.given("a", "10.0.0.9")
        self.assertEqual(self.warnings, [])

    def test_two_authorities(self) -> None:
        """A directory that has a CA does not get another one."""
        ensure_certificates(self.root / "a", (), lambda: self.now)
        self.assertIn("has a CA of its own", str(self.assertRaises(CertificateFileError, self.issue, "a")))
        self.issue("b")
        with self.assertRaises(CertificateFileError):
            issue_certificates(self.root / "b", self.root / "other", (), lambda: self.now)
        with self.assertRaises(CertificateFileError):
            issue_certificates(self.root / "ca", self.root / "ca", (), lambda: self.now)

    def test_whether_the_key_is_elsewhere(self) -> None:
        """Only a directory with the CA's certificate and without its key is one that was filled elsewhere."""
        self.assertEqual((has_authority(self.root / "a"), keeps_key_elsewhere(self.root / "a")), (False, False))
        self.issue("a")
        self.assertEqual((has_authority(self.root / "a"), keeps_key_elsewhere(self.root / "a")), (True, True))
        self.assertEqual((has_authority(self.root / "ca"), keeps_key_elsewhere(self.root / "ca")), (True, False))

    def test_what_will_not_do(self) -> None:
        """A certificate that the member cannot use is named, with what is wrong and how to make another."""
        self.issue("a", "10.0.0.1")
        text = str(self.assertRaises(CertificateFileError, self.given, "a", "10.0.0.2"))
        self.assertIn("server.crt cannot be used: it lacks 10.0.0.2", text)
        self.assertIn("`twistedkvctl certs --ca <directory of the CA> --host 10.0.0.2`", text)
        self.later(366)
        self.assertIn("it has expired", str(self.assertRaises(CertificateFileError, self.given, "a", "10.0.0.1")))
        self.later(0)
        (self.root / "a" / "peer.key").unlink()
        self.assertIn("peer.key", str(self.assertRaises(CertificateFileError, self.given, "a")))
        other = ensure_certificates(self.root / "other", (), lambda: self.now)
        for file in (other.peer.certificate, other.peer.key):
            (self.root / "a" / file.name).write_bytes(file.read_bytes())
        self.assertIn("not signed it", str(self.assertRaises(CertificateFileError, self.given, "a")))
        (self.root / "a" / "ca.crt").write_text("none")
        self.assertIn("ca.crt cannot be used", str(self.assertRaises(CertificateFileError, self.given, "a")))
