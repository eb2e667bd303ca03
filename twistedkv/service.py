"""The service tree of a member: data directory, certificates, member and log, started and stopped in order.

Wiring only. :func:`make_service` is what twistd's plugin and ``tap/twistedkv.tac`` come to; :func:`build_member` is
where the member itself comes from.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from twisted.application.service import IService, Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import CannotListenError
from twisted.logger import ILogObserver, Logger
from twisted.python.components import Componentized
from twisted.python.failure import Failure

from twistedkv.certs import (
    CertificateFileError,
    ensure_certificates,
    given_certificates,
    has_authority,
    keeps_key_elsewhere,
)
from twistedkv.config import Config
from twistedkv.configsources import one_line
from twistedkv.datadir import DataDirectory, DataDirectoryError
from twistedkv.errors import InconsistentDataError, RemovedError
from twistedkv.founding import BootstrapError
from twistedkv.launch import Launch
from twistedkv.logs import Log, log_of_twistd
from twistedkv.protocols.tls import CertificateError
from twistedkv.storage.backend import BackendError
from twistedkv.storage.wal import WALError

# What an operator can mend; the text says it all, and a traceback would only hide it.
_EXPECTED = (
    BackendError,
    BootstrapError,
    CannotListenError,
    CertificateError,
    CertificateFileError,
    DataDirectoryError,
    InconsistentDataError,
    OSError,
    RemovedError,
    WALError,
)

_log = Logger()


class StartableMember(Protocol):
    """What the service starts and stops."""

    async def start(self) -> None:
        """Recover what is on disk and listen. Returns once clients can connect, whether or not there is a leader.

        Raises:
            Exception: it cannot; whatever it had opened is closed again.
        """

    async def stop(self) -> None:
        """Stop serving and close everything; what was acknowledged is on disk."""


OnFailure = Callable[[BaseException], None]
BuildMember = Callable[[Config, Any, OnFailure], StartableMember]


def build_member(config: Config, reactor: Any, on_failure: OnFailure) -> StartableMember:
    """The member that ``config`` describes, not started yet.

    Args:
        reactor: clock, sockets and threads.
        on_failure: to be called if the member must stop itself after it has started.
    """
    from twistedkv.assembly import AssembledMember  # the whole server: not for whoever only reads the options

    return AssembledMember(config, reactor, on_failure)


class MemberService(Service):
    """One member as a process: it starts, or ends the process with one line and status 2.

    Args:
        config: the options.
        reactor: stopped when the member cannot start or go on.
        launch: who hears how the start went.
        log: where the log goes; None leaves it to twistd.
        build: makes the member.
    """

    name = "twistedkv"

    def __init__(
        self, config: Config, reactor: Any, launch: Launch, log: Log | None, build: BuildMember = build_member
    ) -> None:
        self._config = config
        self._reactor = reactor
        self._launch = launch
        self._sink = log
        self._build = build
        self._directory = DataDirectory(config.data_dir)
        self._member: StartableMember | None = None
        self._starting: Deferred[None] | None = None

    def setServiceParent(self, parent: Any) -> None:
        """Also give the log to the application, where twistd looks for it before anything is started."""
        super().setServiceParent(parent)
        if self._sink is not None and isinstance(parent, Componentized):
            parent.setComponent(ILogObserver, self._sink.observer())

    def startService(self) -> None:
        """Begin the start; it never raises, since twistd would answer that with a traceback and status 1."""
        super().startService()
        self._reactor.callWhenRunning(self._launch.end_on_sigterm, self._reactor)
        if self._sink is not None:
            self._sink.watch(self._reactor)
        self._starting = Deferred.fromCoroutine(self._start())
        self._starting.addErrback(self._refuse)

    def stopService(self) -> Deferred[None]:
        """Stop what was started; fires when nothing is left."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _start(self) -> None:
        self._directory.claim()
        config = with_own_certificates(self._config)
        member = self._build(config, self._reactor, self._halt)
        await member.start()
        self._member = member
        if self._config.makes_client_certificates and any(url.secure for url in config.listen_client_urls):
            _log.info("this member made its own certificates; talk to it by\n{lines}", lines=client_lines(config))
        if any(not url.secure for url in config.listen_client_urls):
            _log.warn("serving client traffic insecurely; this is strongly discouraged!")  # etcd's words
        self._launch.started()

    async def _stop(self) -> None:
        if self._starting is not None:
            self._starting.cancel()  # of no effect once it has fired
            await self._starting
        if self._member is not None:
            member, self._member = self._member, None
            await member.stop()
        self._directory.release()
        if self._sink is not None:
            self._sink.unwatch()

    def _refuse(self, failure: Failure) -> None:
        if failure.check(CancelledError) and not self.running:
            return  # told to stop while it was starting
        _record("the member could not start: {reason}", failure)
        self._launch.failed(_explain(failure))
        self._end()

    def _halt(self, error: BaseException) -> None:
        failure = Failure(error)
        _record("the member stopped itself: {reason}", failure)
        self._launch.halted(_explain(failure))
        self._end()

    def _end(self) -> None:
        self._reactor.callWhenRunning(self._reactor.stop)  # twistd starts services before it runs the reactor


def make_service(config: Config, reactor: Any, twistd: Mapping[str, Any] | None = None) -> IService:
    """The service of the member that ``config`` describes.

    Args:
        reactor: the process's.
        twistd: twistd's own options, by which it knows where to log and whether it becomes a daemon; None in the
            foreground, logging wherever twistd does.
    """
    launch = Launch()
    log = None
    if twistd is not None:
        log = log_of_twistd(twistd, config.log_level)
        if not twistd["nodaemon"] and not twistd["debug"]:
            launch.daemonise()
    return MemberService(config, reactor, launch, log)


def with_own_certificates(config: Config) -> Config:
    """``config`` with the files that the member made for itself, on each side for which none were given.

    Where the directory has a CA's certificate without its key, the certificates in it are taken as they are.

    Raises:
        CertificateFileError: those files are damaged, or other members could not verify what would be made.
        OSError: they cannot be written.
    """
    if not config.makes_client_certificates and not config.makes_peer_certificates:
        return config
    directory = config.own_certificates_directory.absolute()
    if config.has_others and config.makes_peer_certificates and not has_authority(directory):
        raise CertificateFileError(
            f"other members could not verify a certificate that this one makes for itself: expected in {directory} "
            "what `twistedkvctl certs` makes for all of them, or --peer-cert-file, --peer-key-file and "
            "--peer-trusted-ca-file"
        )
    advertised = {url.host for url in config.advertise_client_urls + config.initial_advertise_peer_urls}
    listened = config.listen_client_urls + config.listen_peer_urls + config.listen_metrics_urls
    if keeps_key_elsewhere(directory):
        files = given_certificates(directory, sorted(advertised))
    else:
        files = ensure_certificates(directory, sorted(advertised | {url.host for url in listened}))
    # A trusted authority alone keeps out clients without a certificate. client-cert-auth would do more: it would make
    # the certificate's name a user's name, and these certificates name nobody.
    if config.makes_client_certificates:
        config = replace(
            config,
            cert_file=str(files.server.certificate),
            key_file=str(files.server.key),
            trusted_ca_file=str(files.ca.certificate),
        )
    if config.makes_peer_certificates:
        config = replace(
            config,
            peer_cert_file=str(files.peer.certificate),
            peer_key_file=str(files.peer.key),
            peer_trusted_ca_file=str(files.ca.certificate),
        )
    return config


def client_lines(config: Config) -> str:
    """Shell lines that talk to a member which uses its own certificates."""
    files = config.own_certificates_directory.absolute()
    ca, certificate, key = (shlex.quote(str(files / name)) for name in ("ca.crt", "client.crt", "client.key"))
    url = next(url for url in config.advertise_client_urls + config.listen_client_urls if url.secure)
    ctl = f"{shlex.quote(etcdctl())} --endpoints={url} --cacert={ca} --cert={certificate} --key={key}"
    curl = f"curl --cacert {ca} --cert {certificate} --key {key}"
    return f"{ctl} put greeting hello\n{ctl} get greeting\n{curl} {url}/health"


def _explain(failure: Failure) -> str:
    text = one_line(failure.value)
    if failure.check(*_EXPECTED):
        return text
    return f"{type(failure.value).__name__}: {text}; the log has the traceback"


def _record(what: str, failure: Failure) -> None:
    if failure.check(*_EXPECTED):
        _log.critical(what, reason=_explain(failure))
    else:
        _log.failure(what, failure=failure, reason=_explain(failure))


def etcdctl() -> str:
    """The shell's etcdctl, or else the one in the interpreter's environment."""
    beside = Path(sys.executable).parent / "etcdctl"
    if shutil.which("etcdctl") is None and os.access(beside, os.X_OK):
        return str(beside)
    return "etcdctl"
