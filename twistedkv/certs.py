"""An own CA and the certificates of a server, a peer and a client: TLS from the first start, without an option given.

What is there is kept; what is missing, does not belong to the CA, or ends within thirty days is made again. A private
key is replaced before its certificate, each by a rename, so that a crash leaves at worst a pair that does not fit
together, which the next call sees and makes again.

Members that talk to each other need one CA. Its key can stay in one place: :func:`issue_certificates` makes there what
the others get, and :func:`given_certificates` looks on their side whether it will do.
"""

from __future__ import annotations

import datetime
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from twisted.logger import Logger

CA_DAYS: Final = 3650
LEAF_DAYS: Final = 365
RENEW_DAYS: Final = 30
BACKDATE: Final = datetime.timedelta(hours=1)  # for clients whose clock is a little behind

SERVER_AUTH: Final = ExtendedKeyUsageOID.SERVER_AUTH
CLIENT_AUTH: Final = ExtendedKeyUsageOID.CLIENT_AUTH

_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")

_log = Logger()


class CertificateFileError(ValueError):
    """A file of the directory cannot be used; the text is one line that names it and says why."""


@dataclass(frozen=True, slots=True)
class Pair:
    """The files of one certificate and its private key."""

    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class Certificates:
    """The files of one directory. A CA's key may be elsewhere."""

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
    home = _make_home(directory)
    moment = now()
    files = _files(home)
    issuer = _ensure_ca(files.ca, moment)
    _ensure_leaves(files, issuer, _subject_names((*_LOOPBACK, socket.gethostname(), *hosts)), moment)
    return files


def issue_certificates(
    directory: str | Path,
    authority: str | Path,
    hosts: Sequence[str] = (),
    now: Callable[[], datetime.datetime] = _utc_now,
) -> Certificates:
    """Make sure that ``directory`` holds the three pairs, signed by the CA in the directory ``authority``, and that
    CA's certificate without its key. Blocks like :func:`ensure_certificates`.

    Args:
        authority: gets a CA if it has none.
        hosts: names and addresses for the server's and the peer's certificate, next to localhost.

    Raises:
        CertificateFileError: the CA cannot be used, or ``directory`` belongs to another one.
        OSError: a directory cannot be written.
    """
    moment = now()
    files, source = _files(_make_home(directory)), _files(_make_home(authority)).ca
    issuer = _ensure_ca(source, moment)
    certificate = source.certificate.read_bytes()
    if files.ca.key.exists() or (files.ca.certificate.exists() and files.ca.certificate.read_bytes() != certificate):
        raise CertificateFileError(f"{directory} has a CA of its own and cannot take the one in {authority}")
    _replace(files.ca.certificate, certificate, 0o644)
    _ensure_leaves(files, issuer, _subject_names((*_LOOPBACK, *hosts)), moment)
    return replace(files, ca=Pair(files.ca.certificate, source.key))


def has_authority(directory: str | Path) -> bool:
    """Whether a CA's certificate is in ``directory``."""
    return _files(Path(directory)).ca.certificate.exists()


def keeps_key_elsewhere(directory: str | Path) -> bool:
    """Whether ``directory`` is one that :func:`issue_certificates` has filled."""
    return has_authority(directory) and not _files(Path(directory)).ca.key.exists()


def given_certificates(
    directory: str | Path, hosts: Sequence[str], now: Callable[[], datetime.datetime] = _utc_now
) -> Certificates:
    """The files of ``directory``, whose CA's key is elsewhere. Blocks: it reads them. Warns of what ends soon.

    Args:
        hosts: names and addresses that the server's and the peer's certificate must carry.

    Raises:
        CertificateFileError: a certificate is missing, damaged, expired, not the CA's, or lacks a host.
    """
    files = _files(Path(directory))
    moment = now()
    try:
        authority = x509.load_pem_x509_certificate(files.ca.certificate.read_bytes())
    except (OSError, ValueError) as error:
        raise CertificateFileError(f"the CA's certificate {files.ca.certificate} cannot be used: {error}") from error
    for pair in (files.server, files.peer):
        fault = _fault(pair, authority, _subject_names(hosts))
        left = datetime.timedelta() if fault else _left(pair, moment)
        if not fault and left <= datetime.timedelta():
            fault = "it has expired"
        if fault:
            options = " ".join(("--ca <directory of the CA>", *(f"--host {host}" for host in hosts)))
            raise CertificateFileError(
                f"{pair.certificate} cannot be used: {fault}: expected one made by `twistedkvctl certs {options}`, or "
                "the CA's key beside it"
            )
        if left < datetime.timedelta(days=RENEW_DAYS):
            _log.warn(
                "the certificate {path} ends in {days} days; its CA's key is elsewhere, so it must be renewed there",
                path=str(pair.certificate),
                days=left.days,
            )
    return files


def _make_home(directory: str | Path) -> Path:
    home = Path(directory)
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    home.chmod(0o700)
    return home


def _files(home: Path) -> Certificates:
    return Certificates(
        *(Pair(home / f"{name}.crt", home / f"{name}.key") for name in ("ca", "server", "peer", "client"))
    )


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


def _ensure_leaves(files: Certificates, issuer: _Issuer, names: list[x509.GeneralName], now: datetime.datetime) -> None:
    _ensure_leaf(files.server, issuer, "twistedkv-server", (SERVER_AUTH,), names, now)
    _ensure_leaf(files.peer, issuer, "twistedkv-peer", (SERVER_AUTH, CLIENT_AUTH), names, now)
    _ensure_leaf(files.client, issuer, "twistedkv-client", (CLIENT_AUTH,), [], now)


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
    if _fault(pair, issuer.certificate, names):
        return False
    return _left(pair, now) >= datetime.timedelta(days=RENEW_DAYS)


def _fault(pair: Pair, authority: x509.Certificate, names: list[x509.GeneralName]) -> str:
    """Why the pair cannot be used, its age aside; empty if it can."""
    try:
        certificate = _read_pair(pair).certificate
        certificate.verify_directly_issued_by(authority)
        carried = (
            list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value) if names else []
        )
    except InvalidSignature:
        return "the CA has not signed it"
    except (OSError, ValueError, TypeError, x509.ExtensionNotFound) as error:
        return str(error)
    missing = [str(name.value) for name in names if name not in carried]
    return f"it lacks {', '.join(missing)}" if missing else ""


def _left(pair: Pair, now: datetime.datetime) -> datetime.timedelta:
    """How long the certificate is still good."""
    return x509.load_pem_x509_certificate(pair.certificate.read_bytes()).not_valid_after_utc - now


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
