"""An own CA and the certificates of a server, a peer and a client: TLS from the first start, without an option given.

What is there is kept; what is missing, does not belong to the CA, or ends within thirty days is made again. A private
key is replaced before its certificate, each by a rename, so that a crash leaves at worst a pair that does not fit
together, which the next call sees and makes again.
"""

from __future__ import annotations

import datetime
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CA_DAYS: Final = 3650
LEAF_DAYS: Final = 365
RENEW_DAYS: Final = 30
BACKDATE: Final = datetime.timedelta(hours=1)  # for clients whose clock is a little behind

SERVER_AUTH: Final = ExtendedKeyUsageOID.SERVER_AUTH
CLIENT_AUTH: Final = ExtendedKeyUsageOID.CLIENT_AUTH


class CertificateFileError(ValueError):
    """A file of the directory cannot be used; the text is one line that names it and says why."""


@dataclass(frozen=True, slots=True)
class Pair:
    """The files of one certificate and its private key."""

    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class Certificates:
    """The files that :func:`ensure_certificates` vouches for."""

    ca: Pair
    server: Pair
    peer: Pair
    client: Pair


@dataclass(frozen=True, slots=True)
class _Issuer:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def _utc_now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def ensure_certificates(
    directory: str | Path, hosts: Sequence[str] = (), now: Callable[[], datetime.datetime] = _utc_now
) -> Certificates:
    """Make sure that ``directory`` holds a CA and the three pairs it signed. Blocks: it reads, computes and syncs
    files.

    Args:
        hosts: names and addresses for the server's and the peer's certificate, next to localhost and this host's
            name. A pair that lacks one of them is made again.

    Raises:
        CertificateFileError: the CA's files are damaged or do not fit together. It is never replaced: certificates
            that others hold were signed by it.
        OSError: the directory cannot be written.
    """
    home = Path(directory)
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    home.chmod(0o700)
    files = Certificates(
        *(Pair(home / f"{name}.crt", home / f"{name}.key") for name in ("ca", "server", "peer", "client"))
    )
    moment = now()
    issuer = _ensure_ca(files.ca, moment)
    names = _subject_names(("localhost", "127.0.0.1", "::1", socket.gethostname(), *hosts))
    _ensure_leaf(files.server, issuer, "twistedkv-server", (SERVER_AUTH,), names, moment)
    _ensure_leaf(files.peer, issuer, "twistedkv-peer", (SERVER_AUTH, CLIENT_AUTH), names, moment)
    _ensure_leaf(files.client, issuer, "twistedkv-client", (CLIENT_AUTH,), [], moment)
    return files


def _ensure_ca(pair: Pair, now: datetime.datetime) -> _Issuer:
    if not pair.certificate.exists():  # the key is written first: alone it signed nothing yet
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "twistedkv CA")])
        builder = _builder(name, name, key, now, CA_DAYS)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_key_usage(signs_certificates=True), critical=True)
        _write_pair(pair, key, builder.sign(key, hashes.SHA256()))
    try:
        issuer = _read_pair(pair)
    except (OSError, ValueError, TypeError) as error:
        raise CertificateFileError(f"the CA in {pair.certificate.parent} cannot be used: {error}") from error
    if issuer.certificate.not_valid_after_utc <= now:
        raise CertificateFileError(f"the CA in {pair.certificate} has expired")
    return issuer


def _ensure_leaf(
    pair: Pair,
    issuer: _Issuer,
    common_name: str,
    usages: Sequence[x509.ObjectIdentifier],
    names: list[x509.GeneralName],
    now: datetime.datetime,
) -> None:
    if _is_good(pair, issuer, names, now):
        return
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    builder = _builder(subject, issuer.certificate.subject, key, now, LEAF_DAYS)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_key_usage(signs_certificates=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage(list(usages)), critical=False)
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key())
    builder = builder.add_extension(authority, critical=False)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    _write_pair(pair, key, builder.sign(issuer.key, hashes.SHA256()))


def _is_good(pair: Pair, issuer: _Issuer, names: list[x509.GeneralName], now: datetime.datetime) -> bool:
    """Whether the pair fits together, is the CA's, carries every name and lasts for a while."""
    try:
        certificate = _read_pair(pair).certificate
        certificate.verify_directly_issued_by(issuer.certificate)
        carried = (
            list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value) if names else []
        )
    except (OSError, ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False
    lasts = certificate.not_valid_after_utc - now >= datetime.timedelta(days=RENEW_DAYS)
    return lasts and all(name in carried for name in names)


def _subject_names(hosts: Sequence[str]) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = []
    for host in dict.fromkeys(hosts):
        try:
            names.append(x509.IPAddress(ip_address(host)))
        except ValueError:
            names.append(x509.DNSName(host))
    return names


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime.datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _key_usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _read_pair(pair: Pair) -> _Issuer:
    certificate = x509.load_pem_x509_certificate(pair.certificate.read_bytes())
    key = serialization.load_pem_private_key(pair.key.read_bytes(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or certificate.public_key() != key.public_key():
        raise ValueError(f"{pair.key.name} is not the key of {pair.certificate.name}")
    return _Issuer(certificate, key)


def _write_pair(pair: Pair, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    _replace(pair.key, secret, 0o600)
    _replace(pair.certificate, certificate.public_bytes(pem), 0o644)


def _replace(path: Path, content: bytes, mode: int) -> None:
    """Put ``content`` in place of ``path``, durably; at every moment the name holds the old bytes or all of the new."""
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)  # left by a crash
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
