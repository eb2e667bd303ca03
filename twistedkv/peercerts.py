"""Which of the peers that have a certificate of our authority may be peers: by the names in it.

One authority often vouches for more than the members of one cluster. Sources: etcd ``client/pkg/transport/listener.go``
(AllowedCN, AllowedHostname), which asks this of connections in either direction, and Go's ``crypto/x509/verify.go``
(VerifyHostname).
"""

from __future__ import annotations

from ipaddress import ip_address

from cryptography import x509
from twisted.logger import Logger

from twistedkv.config import Config
from twistedkv.protocols.peerclient import Allows
from twistedkv.protocols.tls import TLSTransport
from twistedkv.protocols.transport import DirectTransport

_log = Logger()


def allowed_peers(config: Config) -> Allows | None:
    """The last look at a verified peer that the options ask for; ``None`` if they ask for none."""
    name, host = config.peer_cert_allowed_cn, config.peer_cert_allowed_hostname
    if name:
        return lambda transport: transport.common_name == name or _refused(transport, f"is not {name}'s")
    if host:
        return lambda transport: _good_for(transport, host) or _refused(transport, f"is not good for {host}")
    return None


def is_good_for(certificate: x509.Certificate, host: str) -> bool:
    """Whether the certificate carries ``host``, a name or an address, among its alternative names.

    A ``*`` stands for one whole label, the first. The common name does not count.
    """
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return False
    try:
        return ip_address(host.strip("[]")) in names.get_values_for_type(x509.IPAddress)
    except ValueError:
        return any(_matches(pattern, host) for pattern in names.get_values_for_type(x509.DNSName))


def _good_for(transport: DirectTransport, host: str) -> bool:
    certificate = transport.getPeerCertificate() if isinstance(transport, TLSTransport) else None
    return certificate is not None and is_good_for(certificate, host)


def _matches(pattern: str, host: str) -> bool:
    wanted, given = (text.lower().rstrip(".").split(".") for text in (pattern, host))
    if len(wanted) != len(given) or not all(given):
        return False
    return wanted[1:] == given[1:] and (wanted[0] == given[0] or (wanted[0] == "*" and len(wanted) > 1))


def _refused(transport: DirectTransport, why: str) -> bool:
    _log.warn("no peer of ours: the certificate of {peer} {why}", peer=transport.getPeer(), why=why)
    return False
