"""A member as a process: directory, certificates and log, and what is said when a start fails."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography.x509 import IPAddress, SubjectAlternativeName, load_pem_x509_certificate
from twisted.application.service import Application, IService
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IReactorFromThreads
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import ILogObserver, LogLevel
from twisted.python.components import Componentized
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from twistedkv.certs import CertificateFileError, ensure_certificates, issue_certificates
from twistedkv.config import Config
from twistedkv.configload import load_config
from twistedkv.datadir import DataDirectory, DataDirectoryError
from twistedkv.founding import BootstrapError
from twistedkv.launch import Launch
from twistedkv.logs import Log, log_of_twistd
from twistedkv.service import MemberService, OnFailure, client_lines, with_own_certificates


class _Member:
    """A member whose start and stop end when the test says so."""

    def __init__(self, config: Config, reactor: Any, on_failure: OnFailure) -> None:
        self.config = config
        self.on_failure = on_failure
        self.starting: Deferred[None] = Deferred()
        self.stopped = False

    async def start(self) -> None:
        await self.starting

    async def stop(self) -> None:
        self.stopped = True


class _Launch(Launch):
    """Keeps what would have been said, and lets the process live."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[tuple[str, str]] = []

    def started(self) -> None:
        self.said.append(("started", ""))

    def failed(self, line: str) -> None:
        self.said.append(("failed", line))

    def halted(self, line: str) -> None:
        self.said.append(("halted", line))


class MemberServiceTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()
        self.launch = _Launch()
        self.members: list[_Member] = []
        self.config = load_config({"data-dir": self.mktemp()}, {})
        self.service = self.make_service()

    def make_service(self) -> MemberService:
        def build(config: Config, reactor: Any, on_failure: OnFailure) -> _Member:
            self.members.append(_Member(config, reactor, on_failure))
            return self.members[-1]

        return MemberService(self.config, self.reactor, self.launch, None, build)

    def start(self) -> _Member:
        self.service.startService()
        return self.members[-1]

    def test_started_once_clients_can_connect(self) -> None:
        """Whoever waits for the start goes on when the member listens, and not before."""
        member = self.start()
        self.assertEqual(self.launch.said, [])
        member.starting.callback(None)
        self.assertEqual(self.launch.said, [("started", "")])
        self.successResultOf(self.service.stopService())
        self.assertTrue(member.stopped)

    def test_member_gets_certificates(self) -> None:
        """Without any certificate option the member finds those that were made for it."""
        config = self.start().config
        for path in (config.cert_file, config.key_file, config.trusted_ca_file, config.peer_cert_file):
            self.assertTrue(Path(path).is_file(), path)
        self.assertFalse(config.makes_client_certificates)
        self.assertFalse(config.client_cert_auth)  # a certificate of ours names no user

    def test_port_taken(self) -> None:
        """An error that the operator can mend is told in its own words, and the reactor is stopped."""
        self.start().starting.errback(CannotListenError("127.0.0.1", 2379, OSError(98, "Address already in use")))
        ((what, line),) = self.launch.said
        self.assertEqual(what, "failed")
        self.assertIn("127.0.0.1:2379", line)
        self.assertNotIn("\n", line)
        self.assertTrue(self.reactor.hasStopped or self.reactor.whenRunningHooks)

    def test_unexpected_error(self) -> None:
        """Any other error leaves its traceback in the log, and its name on the line."""
        self.start().starting.errback(ZeroDivisionError("no\nway"))
        self.assertEqual(self.launch.said, [("failed", "ZeroDivisionError: no way; the log has the traceback")])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_refused_bootstrap(self) -> None:
        """A member that cannot become one of its cluster says why, without a traceback."""
        self.start().starting.errback(BootstrapError("member 1 has already been bootstrapped"))
        self.assertEqual(self.launch.said, [("failed", "member 1 has already been bootstrapped")])
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_directory_in_use(self) -> None:
        """A second member on a directory is refused, and the first goes on."""
        self.start().starting.callback(None)
        second = self.make_service()
        second.startService()
        self.assertEqual(len(self.members), 1)
        self.assertIn("another member is using it", self.launch.said[-1][1])
        self.successResultOf(second.stopService())
        self.successResultOf(self.service.stopService())

    def test_stop_while_starting(self) -> None:
        """A member that is told to stop while it starts says nothing about a failure."""
        self.start()
        self.successResultOf(self.service.stopService())
        self.assertEqual(self.launch.said, [])
        directory = DataDirectory(self.config.data_dir)
        directory.claim()  # it was let go
        directory.release()

    def test_member_that_stops_itself(self) -> None:
        """A member that cannot go on ends the process with a line of its own."""
        member = self.start()
        member.starting.callback(None)
        member.on_failure(OSError("the disk is gone"))
        self.assertEqual(self.launch.said[-1], ("halted", "the disk is gone"))


class DataDirectoryTests(SynchronousTestCase):
    def test_is_private(self) -> None:
        """The directory is made for its owner alone."""
        path = Path(self.mktemp()) / "deep"
        directory = DataDirectory(path)
        directory.claim()
        self.assertEqual(path.stat().st_mode & 0o777, 0o700)
        directory.release()
        directory.release()  # again is of no harm

    def test_cannot_be_made(self) -> None:
        """A path that cannot be a directory is named, with the system's reason."""
        error = self.assertRaises(DataDirectoryError, DataDirectory(Path("/dev/null/data")).claim)
        self.assertEqual(str(error), "cannot use the data directory /dev/null/data: Not a directory")

    def test_released_directory_can_be_claimed(self) -> None:
        """One holder at a time, any number in turn."""
        path = Path(self.mktemp())
        first, second = DataDirectory(path), DataDirectory(path)
        first.claim()
        self.assertRaises(DataDirectoryError, second.claim)
        first.release()
        second.claim()
        second.release()


class ClientLinesTests(SynchronousTestCase):
    def test_lines_can_be_pasted(self) -> None:
        """Paths with spaces are quoted, and all files named exist."""
        config = load_config({"data-dir": self.mktemp() + " with space"}, {})
        with_own_certificates(config)
        put, _, curl = client_lines(config).splitlines()
        directory = config.own_certificates_directory.absolute()
        self.assertIn(f"--cacert='{directory}/ca.crt'", put)
        self.assertIn("--endpoints=https://127.0.0.1:2379", put)
        self.assertTrue(curl.endswith(f"--key '{directory}/client.key' https://127.0.0.1:2379/health"))
        for name in ("ca.crt", "client.crt", "client.key"):
            self.assertTrue((directory / name).is_file())

    def test_monitoring_has_a_certificate_too(self) -> None:
        """The member's own certificate names the addresses on which it serves metrics, and clients need no https."""
        urls = {"listen-client-urls": "http://127.0.0.1:2379", "listen-metrics-urls": "https://127.0.0.9:2381"}
        config = load_config({"data-dir": self.mktemp(), "allow-plaintext": "true", **urls}, {})
        certificate = Path(with_own_certificates(config).cert_file).read_bytes()
        names = load_pem_x509_certificate(certificate).extensions.get_extension_for_class(SubjectAlternativeName)
        self.assertIn(ip_address("127.0.0.9"), names.value.get_values_for_type(IPAddress))


class SeveralMembersTests(SynchronousTestCase):
    """Certificates of a member that is one of several."""

    def setUp(self) -> None:
        self.root = Path(self.mktemp())

    def load(self, **options: str) -> Config:
        flags = {
            "data-dir": str(self.root / "data"),
            "initial-cluster": "default=https://127.0.0.1:2380,b=https://10.0.0.2:2380",
        }
        return load_config(flags | {name.replace("_", "-"): text for name, text in options.items()}, {})

    def test_no_authority_of_its_own(self) -> None:
        """A member does not make an authority that the others know nothing of, and says what to do."""
        text = str(self.assertRaises(CertificateFileError, with_own_certificates, self.load()))
        self.assertIn(f"expected in {(self.root / 'data' / 'pki').absolute()} what `twistedkvctl certs` makes", text)
        self.assertIn("--peer-cert-file, --peer-key-file and --peer-trusted-ca-file", text)
        self.assertFalse((self.root / "data" / "pki").exists())

    def test_authority_that_was_put_there(self) -> None:
        """With one authority put into each member's directory, the member makes its own certificates by it."""
        made = ensure_certificates(self.root / "ca")
        pki = self.root / "data" / "pki"
        pki.mkdir(parents=True)
        for file in (made.ca.certificate, made.ca.key):
            (pki / file.name).write_bytes(file.read_bytes())
        config = with_own_certificates(self.load())
        peer = load_pem_x509_certificate(Path(config.peer_cert_file).read_bytes())
        peer.verify_directly_issued_by(load_pem_x509_certificate(made.ca.certificate.read_bytes()))

    def test_certificates_that_were_put_there(self) -> None:
        """Where only the authority's certificate is, what is beside it is used and nothing is made."""
        pki = self.root / "data" / "pki"
        issue_certificates(pki, self.root / "ca", ("10.0.0.1",))
        before = {path.name: path.read_bytes() for path in pki.iterdir()}
        own = {"initial_advertise_peer_urls": "https://10.0.0.1:2380", "listen_peer_urls": "https://0.0.0.0:2380"}
        config = with_own_certificates(self.load(**own))
        self.assertEqual({path.name: path.read_bytes() for path in pki.iterdir()}, before)
        self.assertEqual(Path(config.peer_trusted_ca_file), pki.absolute() / "ca.crt")
        elsewhere = self.load(initial_advertise_peer_urls="https://10.0.0.9:2380")
        text = str(self.assertRaises(CertificateFileError, with_own_certificates, elsewhere))
        self.assertIn("it lacks 10.0.0.9", text)

    def test_certificates_by_option(self) -> None:
        """With certificates for peers given, those for clients are still the member's own affair."""
        given = {f"peer_{name}": name for name in ("cert_file", "key_file", "trusted_ca_file")}
        config = with_own_certificates(self.load(**given))
        self.assertTrue(Path(config.cert_file).is_file())
        self.assertEqual(config.peer_cert_file, "cert_file")


@implementer(IReactorFromThreads)
class _SignalReactor(MemoryReactorClock):
    """Runs what a signal handler hands over in the next turn."""

    def callFromThread(self, callable: Callable[..., object], *args: object, **kwargs: object) -> None:
        self.callLater(0, callable, *args, **kwargs)


class LogTests(SynchronousTestCase):
    def setUp(self) -> None:
        directory = Path(self.mktemp())
        directory.mkdir()
        self.path = directory / "member.log"
        self.reactor = _SignalReactor()

    def open(self, level: Any = LogLevel.info) -> tuple[Log, Any]:
        log = Log(level, str(self.path))
        observer = log.observer()
        return log, lambda text, level=LogLevel.info: observer(
            {"log_level": level, "log_format": text, "log_time": 0.0, "log_namespace": "test"}
        )

    def test_level(self) -> None:
        """What is below the level is not written."""
        _, write = self.open(LogLevel.warn)
        write("quiet")
        write("loud", LogLevel.error)
        self.assertNotIn("quiet", self.path.read_text())
        self.assertIn("loud", self.path.read_text())

    def test_hangup_rotates(self) -> None:
        """On SIGHUP the file is renamed and a new one begun, and an earlier handler still hears it."""
        heard = []
        before = signal.signal(signal.SIGHUP, lambda number, frame: heard.append(number))
        self.addCleanup(signal.signal, signal.SIGHUP, before)
        log, write = self.open()
        log.watch(self.reactor)
        write("first")
        os.kill(os.getpid(), signal.SIGHUP)
        self.reactor.advance(0)
        write("second")
        self.assertIn("first", self.path.with_name("member.log.1").read_text())
        self.assertEqual(heard, [signal.SIGHUP])
        self.assertIn("second", self.path.read_text())
        log.unwatch()
        os.kill(os.getpid(), signal.SIGHUP)
        self.reactor.advance(0)
        self.assertFalse(self.path.with_name("member.log.2").exists())
        self.assertEqual(len(heard), 2)

    def test_file_that_was_moved_away(self) -> None:
        """After somebody else moved the file, a new one is begun in its place and nothing is renamed."""
        log, write = self.open()
        write("first")
        moved = self.path.with_name("moved")
        self.path.rename(moved)
        log.rotate()
        write("second")
        self.assertIn("second", self.path.read_text())
        self.assertNotIn("second", moved.read_text())
        self.assertFalse(self.path.with_name("member.log.1").exists())

    def test_terminal_keeps_its_hangup(self) -> None:
        """Without a log file SIGHUP keeps its meaning: the terminal is gone."""
        log = Log(LogLevel.info, lambda: self.fail("not opened"))
        before = signal.getsignal(signal.SIGHUP)
        log.watch(self.reactor)
        self.assertIs(signal.getsignal(signal.SIGHUP), before)

    def test_where_twistd_says(self) -> None:
        """twistd's options decide where the log goes."""
        options = {"logger": None, "syslog": False, "logfile": None, "nodaemon": True, "prefix": "x"}
        out = io.StringIO()
        self.patch(sys, "stdout", out)
        log = log_of_twistd(options, LogLevel.info)
        assert log is not None
        log.observer()({"log_level": LogLevel.info, "log_format": "hello", "log_namespace": "test", "log_time": 0.0})
        self.assertIn("hello", out.getvalue())
        self.assertIsNone(log_of_twistd({**options, "logger": object()}, LogLevel.info))

    def test_application_gets_the_observer(self) -> None:
        """twistd finds the log as a component of the application."""
        log = Log(LogLevel.info, str(self.path))
        config = load_config({"data-dir": self.mktemp()}, {})
        application = Application("test")
        service = MemberService(config, self.reactor, Launch(), log)
        service.setServiceParent(application)
        assert isinstance(application, Componentized)
        self.assertIsNotNone(application.getComponent(ILogObserver))
        self.assertEqual(list(IService(application)), [service])  # type: ignore[call-overload]
