"""TLS for every listener and every outgoing connection: certificates that may rotate, and the transport that encrypts.

The standard library's ``ssl`` does the cryptography over two memory buffers, which costs less than half of what
pyOpenSSL costs a request. The rules are etcd's (``client/pkg/transport/listener.go``): a certificate and its key
alone serve TLS; a trusted CA alone already requires client certificates; a file that changed counts for the
connections that come after. TLS 1.2 is the least.

Left out: revocation lists, and rules on the names in a client's certificate.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.x509.oid import NameOID
from twisted.internet.interfaces import IAddress, IDelayedCall, INegotiated, IProtocol, IReactorTime
from twisted.internet.protocol import Factory, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from twistedkv.protocols.poller import Poller
from twistedkv.protocols.transport import DirectTransport

HANDSHAKE_TIMEOUT_S: Final = 10.0  # a peer that does not get through by then is dropped (CVE-2026-73500)
PENDING_HANDSHAKES: Final = 1024
RELOAD_INTERVAL_S: Final = 1.0
RECORD_BYTES: Final = 16384  # RFC 8446 §5.1: the plaintext of one record
CHUNK_BYTES: Final = 65536  # encrypted at once; keeps one large answer from existing twice as a whole

_log = Logger()

Wrap = Callable[[ssl.MemoryBIO, ssl.MemoryBIO], ssl.SSLObject]


class CertificateError(ValueError):
    """The certificate files cannot be used; the text is one line that names them and says why."""


@dataclass(frozen=True, slots=True)
class TLSConfig:
    """etcd's file options of one side of one listener or client. An empty name is an option that was not given."""

    cert_file: str = ""
    key_file: str = ""
    trusted_ca_file: str = ""
    client_cert_auth: bool = False

    @property
    def requires_client_certificate(self) -> bool:
        """Whether a server asks for a certificate: the CA alone is enough (etcd ``TLSInfo.ServerConfig``)."""
        return self.client_cert_auth or bool(self.trusted_ca_file)


class _ReloadingContext:
    """An ``SSLContext`` that follows its files. A rotation that is broken, or half done, leaves the old one in
    force."""

    def __init__(self, config: TLSConfig, clock: IReactorTime) -> None:
        self._config = config
        self._clock = clock
        self._files = [name for name in (config.cert_file, config.key_file, config.trusted_ca_file) if name]
        self._context: ssl.SSLContext | None = None
        self._loaded: list[object] = []
        self._complained: list[object] = []
        self._checked_s = 0.0

    def current(self) -> ssl.SSLContext:
        """The context for a connection that begins now. Reads files, at most once a second.

        Raises:
            CertificateError: the files were never usable so far.
        """
        now_s = self._clock.seconds()
        if self._context is None:
            self._loaded = self._stamps()
            self._context = self._build()
        elif now_s - self._checked_s >= RELOAD_INTERVAL_S:
            self._reload(self._context)
        else:
            return self._context
        self._checked_s = now_s
        return self._context

    def _reload(self, old: ssl.SSLContext) -> None:
        stamps = self._stamps()  # taken first: a file that changes during the load is seen by the next check
        if stamps == self._loaded:
            return
        try:
            self._context = self._build()
        except CertificateError as error:
            self._context = old
            if stamps != self._complained:
                _log.warn("keeping the former certificates: {error}", error=error)
                self._complained = stamps
        else:
            self._loaded = stamps
            _log.info("read the certificates again: {files}", files=", ".join(self._files))

    def _stamps(self) -> list[object]:
        return [_stamp(name) for name in self._files]

    def _build(self) -> ssl.SSLContext:
        raise NotImplementedError


class ServerContext(_ReloadingContext):
    """The TLS side of a listener.

    Args:
        alpn: protocols in our order of preference. With http/1.1 first, browsers and curl get HTTP/1.1 and gRPC
            clients, which offer h2 alone, get HTTP/2.
    """

    def __init__(self, config: TLSConfig, clock: IReactorTime, alpn: tuple[str, ...] = ("http/1.1", "h2")) -> None:
        super().__init__(config, clock)
        self._alpn = alpn

    def wrap(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> ssl.SSLObject:
        """The server's end of one new connection."""
        return self.current().wrap_bio(incoming, outgoing, server_side=True)

    def _build(self) -> ssl.SSLContext:
        config = self._config
        if not config.cert_file or not config.key_file:
            raise CertificateError("a TLS server needs both a certificate file and a key file")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        _harden(context)
        # No tickets: a resumed session would carry a client's identity past the CA that no longer vouches for it.
        context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET
        context.num_tickets = 0
        context.set_alpn_protocols(list(self._alpn))
        _load_pair(context, config)
        if config.requires_client_certificate:
            context.verify_mode = ssl.CERT_REQUIRED
            _load_trust(context, config, ssl.Purpose.CLIENT_AUTH)
        return context


class ClientContext(_ReloadingContext):
    """The TLS side of outgoing connections: the server's name is always verified, by the given CA or the system's."""

    def __init__(self, config: TLSConfig, clock: IReactorTime, alpn: tuple[str, ...] = ("h2",)) -> None:
        super().__init__(config, clock)
        self._alpn = alpn

    def wrap_for(self, hostname: str) -> Wrap:
        """What makes the client's end of a connection to ``hostname``, a DNS name or an address."""

        def wrap(incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> ssl.SSLObject:
            return self.current().wrap_bio(incoming, outgoing, server_side=False, server_hostname=hostname)

        return wrap

    def _build(self) -> ssl.SSLContext:
        config = self._config
        if bool(config.cert_file) != bool(config.key_file):
            raise CertificateError("a client certificate needs both a certificate file and a key file")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        _harden(context)
        context.set_alpn_protocols(list(self._alpn))
        if config.cert_file:
            _load_pair(context, config)
        _load_trust(context, config, ssl.Purpose.SERVER_AUTH)
        return context


class HandshakeGate:
    """Bounds the handshakes under way. The oldest gives way to a newcomer, so that a crowd of silent connections cannot
    keep out a client whose handshake takes milliseconds.
    """

    def __init__(self, limit: int = PENDING_HANDSHAKES) -> None:
        self._limit = limit
        self._pending: dict[TLSTransport, None] = {}  # oldest first

    def __len__(self) -> int:
        return len(self._pending)

    def enter(self, transport: TLSTransport) -> None:
        """``transport`` begins its handshake."""
        self._pending[transport] = None
        if len(self._pending) > self._limit:
            oldest = next(iter(self._pending))
            del self._pending[oldest]
            oldest.abortConnection()

    def leave(self, transport: TLSTransport) -> None:
        """``transport`` is through, or gone."""
        self._pending.pop(transport, None)


@implementer(INegotiated)
class TLSTransport(DirectTransport):
    """TLS over TCP for the protocol ``inner``, which is connected when the handshake is done and never if it fails.

    A connection that TCP ends without TLS's close_notify looks like any other end: what is spoken here frames its own
    messages, so a cut cannot pass for a whole one.

    Args:
        wrap: makes our end of the connection over two buffers.
        gate: counts this handshake.
        on_refused: called once instead of ``inner.makeConnection`` when the handshake fails.
    """

    secure = True

    def __init__(
        self,
        inner: IProtocol,
        clock: IReactorTime,
        wrap: Wrap,
        gate: HandshakeGate,
        on_closed: Callable[[DirectTransport], None] | None = None,
        on_refused: Callable[[Failure], None] | None = None,
        handshake_timeout_s: float = HANDSHAKE_TIMEOUT_S,
        poller: Poller | None = None,
    ) -> None:
        super().__init__(inner, clock, on_closed, poller)
        self._wrap = wrap
        self._gate = gate
        self._on_refused = on_refused
        self._handshake_timeout_s = handshake_timeout_s
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls: ssl.SSLObject | None = None
        self._broken: ssl.SSLError | None = None  # an alert of the peer's, or bytes that are no TLS
        self._shaking: IDelayedCall | None = None  # None once the handshake is over, one way or the other
        self._read_record: Callable[[int], bytes]
        self._encrypt: Callable[[Any], int]

    # --- handshake ---------------------------------------------------------------------------------------------------

    def connectionMade(self) -> None:
        self._start()
        try:
            tls = self._wrap(self._incoming, self._outgoing)
        except (ValueError, OSError) as error:  # CertificateError; or no name to verify
            _log.error("no TLS for {peer}: {error}", peer=self.getPeer(), error=error)
            self._refuse(error)
            self.abortConnection()
            return
        self._tls = tls
        self._read_record, self._encrypt = tls.read, tls.write
        self._gate.enter(self)
        self._shaking = self._clock.callLater(self._handshake_timeout_s, self._too_slow)
        self._handshake(tls)

    def dataReceived(self, data: bytes) -> None:
        if self.disconnecting:
            return
        self._incoming.write(data)
        if self._shaking is None:
            self._read()
        elif self._tls is not None:
            self._handshake(self._tls)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._handshake_over()
        self._refuse(reason.value)
        super().connectionLost(reason if self._broken is None else Failure(self._broken))

    def _handshake(self, tls: ssl.SSLObject) -> None:
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
        except ssl.SSLError as error:
            _log.info("refused {peer}: {error}", peer=self.getPeer(), error=error)
            self._handshake_over()
            self._refuse(error)
            self._flush()  # the alert that tells the peer why
            self.disconnecting = True
            self._finish()
        else:
            self._handshake_over()
            self._flush()
            self._on_refused = None
            self._established(tls)

    def _established(self, tls: ssl.SSLObject) -> None:
        alpn = tls.selected_alpn_protocol()
        self.negotiatedProtocol = None if alpn is None else alpn.encode()
        certificate = tls.getpeercert(binary_form=True)  # None unless it was asked for and verified
        self.common_name = None if certificate is None else common_name(certificate)
        self._connect_inner()
        if self._incoming.pending and not self.disconnecting:  # which inner may have asked for
            self._read()

    def _too_slow(self) -> None:
        _log.info("{peer} did not finish its handshake in time", peer=self.getPeer())
        self._shaking = None
        self.abortConnection()

    def _handshake_over(self) -> None:
        self._gate.leave(self)
        if self._shaking is not None:
            self._shaking.cancel()
            self._shaking = None

    def _refuse(self, error: BaseException | None) -> None:
        refused, self._on_refused = self._on_refused, None
        if refused is not None:
            refused(Failure(error or ConnectionError("no TLS")))

    # --- bytes in ----------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        """Decrypt all whole records that are here and hand them on as one piece."""
        data = b""
        end: ssl.SSLError | None = None
        try:
            data = self._read_record(RECORD_BYTES)
            if self._incoming.pending or not data:  # else there is one record, as usual, and OpenSSL need not be asked
                data, end = self._read_on(data)
        except ssl.SSLError as error:
            end = error
        if self._outgoing.pending:
            self._flush()  # the answer to a key update, or an alert
        if data:
            try:
                self._inner.dataReceived(data)
            except Exception:
                self._failed()
        if end is not None and not isinstance(end, ssl.SSLWantReadError):
            self._ended(end)

    def _read_on(self, first: bytes) -> tuple[bytes, ssl.SSLError | None]:
        """The other records that are here, the first before them, and the error that they end with, if they do."""
        pieces = [first]
        try:
            while pieces[-1] and self._incoming.pending:
                pieces.append(self._read_record(RECORD_BYTES))
        except ssl.SSLError as error:
            return b"".join(pieces), error
        return b"".join(pieces), None if pieces[-1] else ssl.SSLZeroReturnError()

    def _ended(self, end: ssl.SSLError) -> None:
        """The peer has said that it sends nothing more, or what it sends is no TLS."""
        if not isinstance(end, ssl.SSLZeroReturnError):
            _log.info("{peer} broke TLS: {error}", peer=self.getPeer(), error=end)
            self._broken = end
        self.disconnecting = True
        if self._producer is None or self._broken is not None:
            self._finish()

    # --- bytes out ---------------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        if not self._open or not data:
            return
        try:
            if len(data) <= CHUNK_BYTES:
                self._encrypt(data)
                encrypted = self._outgoing.read()
                if self._queued or self._write_some is None:
                    self._send(encrypted)
                elif (sent := self._write_some(encrypted)) != len(encrypted):
                    self._queue(encrypted, sent)
                return
            view = memoryview(data)
            for start in range(0, len(data), CHUNK_BYTES):
                self._encrypt(view[start : start + CHUNK_BYTES])
                self._send(self._outgoing.read())
        except ssl.SSLError:
            _log.failure("cannot encrypt for {peer}", peer=self.getPeer())
            self.abortConnection()

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._send(self._outgoing.read())

    def _finish(self) -> None:
        if self._open and self._tls is not None:
            with suppress(ssl.SSLError):  # it wants the peer's close_notify; RFC 8446 §6.1: no need to wait for it
                self._tls.unwrap()
            self._flush()
        super()._finish()

    def getPeerCertificate(self) -> x509.Certificate | None:
        """The peer's verified certificate."""
        der = None if self._tls is None else self._tls.getpeercert(binary_form=True)
        return None if der is None else x509.load_der_x509_certificate(der)


class TLSFactory(Factory):
    """Puts TLS under the protocols of another factory; for a listener whose connections nobody counts."""

    def __init__(self, inner: Factory, context: ServerContext, clock: IReactorTime) -> None:
        self._inner = inner
        self._context = context
        self._clock = clock
        self._gate = HandshakeGate()

    def buildProtocol(self, addr: IAddress | None) -> TLSTransport | None:
        inner = self._inner.buildProtocol(addr)
        return None if inner is None else TLSTransport(inner, self._clock, self._context.wrap, self._gate)


def common_name(certificate: bytes) -> str | None:
    """The subject's common name in a DER certificate; of several the last, as Go's ``crypto/x509/pkix`` takes it."""
    try:
        names = x509.load_der_x509_certificate(certificate).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        return str(names[-1].value) if names else None
    except ValueError as error:
        _log.warn("a verified certificate without a readable subject: {error}", error=error)
        return None


def _harden(context: ssl.SSLContext) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION
    # As in Go, any certificate in the CA file is an anchor, also an intermediate one.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN


def _load_pair(context: ssl.SSLContext, config: TLSConfig) -> None:
    try:
        context.load_cert_chain(config.cert_file, config.key_file, password=_no_password)
    except (OSError, ValueError) as error:
        raise CertificateError(f"certificate {config.cert_file} with key {config.key_file}: {error}") from error


def _load_trust(context: ssl.SSLContext, config: TLSConfig, purpose: ssl.Purpose) -> None:
    if not config.trusted_ca_file:
        context.load_default_certs(purpose)
        return
    try:
        context.load_verify_locations(config.trusted_ca_file)
    except (OSError, ValueError) as error:
        raise CertificateError(f"trusted CA {config.trusted_ca_file}: {error}") from error


def _no_password() -> str:
    """Without this OpenSSL would ask on the terminal and block the server."""
    raise ValueError("the key is encrypted")


def _stamp(name: str) -> object:
    try:
        found = os.stat(Path(name))
    except OSError as error:
        return error.errno
    return found.st_mtime_ns, found.st_size, found.st_ino
