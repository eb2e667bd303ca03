"""The kinds of value that an option takes: text in, a checked value out, and words for what would be right.

Flags, environment and configuration file all hand over text, so that one set of rules reads them all. Durations are
Go's (``time.ParseDuration``), booleans are Go's (``strconv.ParseBool``), URLs and clusters are etcd's
(``client/pkg/types``), because the values come from people and scripts that run etcd. Nothing in here knows which
options exist.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Generic, NamedTuple, TypeVar
from urllib.parse import urlsplit

T = TypeVar("T")

_DURATION_PART = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
_DURATION_UNIT_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_SIZE = re.compile(r"(\d+)\s*(B|KiB|MiB|GiB|TiB)?")
_SIZE_UNIT = {None: 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9_-]{1,63}(?<!-))*\.?")  # RFC 1123 §2.1
_TRUE = frozenset({"1", "t", "T", "true", "TRUE", "True"})
_FALSE = frozenset({"0", "f", "F", "false", "FALSE", "False"})


@dataclass(frozen=True, slots=True)
class Kind(Generic[T]):
    """One kind of value."""

    metavar: str  # the placeholder in --help
    expected: str  # ends the sentence "expected ..."
    parse: Callable[[str], T]  # raises ValueError; its text, if any, goes before ``expected``


class Url(NamedTuple):
    """An address of a member: scheme, host and port, nothing else."""

    scheme: str  # http or https
    host: str  # without the brackets of an IPv6 address
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    @property
    def secure(self) -> bool:
        """Whether TLS is spoken here."""
        return self.scheme == "https"


class InitialCluster(dict[str, tuple[Url, ...]]):
    """Member names and their peer URLs, in the order given. Nobody changes it once it is parsed."""

    def __str__(self) -> str:
        return ",".join(f"{name}={url}" for name, urls in self.items() for url in urls)


def parse_bool(text: str) -> bool:
    """A boolean as Go's ``strconv.ParseBool`` reads it."""
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise ValueError


def parse_duration_s(text: str) -> float:
    """Seconds in a duration as Go's ``time.ParseDuration`` reads it, sign excluded: ``1h30m``, ``1.5s``, ``0``."""
    if text == "0":
        return 0.0
    seconds, end = 0.0, 0
    for part in _DURATION_PART.finditer(text):
        if part.start() != end:
            raise ValueError
        seconds += float(part[1]) * _DURATION_UNIT_S[part[2]]
        end = part.end()
    if not end or end != len(text):
        raise ValueError
    return seconds


def parse_size(text: str) -> int:
    """Bytes: a bare number, or one with B, KiB, MiB, GiB or TiB."""
    match = _SIZE.fullmatch(text)
    if match is None or not text.isascii():
        raise ValueError
    return int(match[1]) * _SIZE_UNIT[match[2]]


def parse_whole(text: str) -> int:
    """A decimal integer, with nothing around it."""
    if not re.fullmatch(r"-?[0-9]{1,20}", text):
        raise ValueError
    return int(text)


def parse_url(text: str) -> Url:
    """One URL of a member.

    Source: etcd ``client/pkg/types/urls.go``, NewURLs.

    Raises:
        ValueError: it is not ``scheme://host:port``; the text says what is wrong.
    """
    parts = urlsplit(text.strip())
    if parts.scheme not in ("http", "https"):
        raise ValueError("its scheme is neither https nor http")
    try:
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError("its port is not a number up to 65535") from error
    if not host or not _is_host(host):
        raise ValueError("its host is neither a name nor an IP address")
    if port is None:
        raise ValueError("it has no port")
    if parts.path or parts.query or parts.fragment or parts.username is not None or parts.password is not None:
        raise ValueError("it has more than scheme, host and port")
    return Url(parts.scheme, host, port)


def parse_urls(text: str) -> tuple[Url, ...]:
    """URLs parted by commas, in the order given; no text is none at all."""
    urls = tuple(parse_url(part) for part in text.split(",")) if text else ()
    _refuse_doubles(urls)
    return urls


def parse_listen_urls(text: str) -> tuple[Url, ...]:
    """URLs to listen on: the host is an IP address or ``localhost``, since a name may mean any machine.

    Source: etcd ``server/embed/config.go``, checkBindURLs.
    """
    urls = parse_urls(text)
    for url in urls:
        if url.host != "localhost" and not _is_address(url.host):
            raise ValueError(f"{url.host} is a name, and a name may be another machine's")
    return urls


def parse_cluster(text: str) -> InitialCluster:
    """``name=url,name=url``; a name that comes again adds a URL to its member.

    Source: etcd ``client/pkg/types/urlsmap.go``, NewURLsMap.
    """
    members: dict[str, tuple[Url, ...]] = {}
    for part in text.split(",") if text else ():
        name, equals, url = part.strip().partition("=")
        if not name or not equals:
            raise ValueError(f"{part!r} is not name=url")
        members[name] = (*members.get(name, ()), parse_url(url))
    _refuse_doubles([member_url for urls in members.values() for member_url in urls])
    return InitialCluster(members)


def parse_retention(text: str) -> str:
    """The text itself: what it says depends on another option, see :func:`retention`."""
    if not text:
        raise ValueError
    return text


def retention(text: str, *, periodic: bool) -> float:
    """How much history auto-compaction keeps: seconds, or revisions; 0 is all.

    Source: etcd ``server/embed/etcd.go``, parseCompactionRetention: a bare number of a periodic mode is hours.
    """
    if not periodic or re.fullmatch(r"[0-9]+", text):
        value = parse_whole(text)
        if value < 0:
            raise ValueError
        return value * 3600.0 if periodic else value
    return parse_duration_s(text)


def expected_retention(*, periodic: bool) -> str:
    """The words for what would have been right."""
    return "a duration such as 30m or 1h30m, or a number of hours" if periodic else "a number of revisions"


def parse_domain(text: str) -> str:
    """A name of the domain name system, or none at all."""
    if text and (len(text) > 253 or not _HOST_NAME.fullmatch(text)):
        raise ValueError
    return text.rstrip(".")


def parse_srv_name(text: str) -> str:
    """What can end the name of a service in the domain name system, or none at all."""
    if not re.fullmatch(r"[A-Za-z0-9_-]{0,32}", text):
        raise ValueError
    return text


def parse_name(text: str) -> str:
    """A member's name: any text that can stand in ``--initial-cluster``."""
    if not text or re.search(r"[=,\s]", text):
        raise ValueError
    return text


def whole(metavar: str, unit: str, least: int, most: int) -> Kind[int]:
    """A whole number of something, with both limits inclusive."""

    def parse(text: str) -> int:
        value = parse_whole(text)
        if not least <= value <= most:
            raise ValueError
        return value

    return Kind(metavar, f"a whole number of {unit} from {least} to {most}", parse)


def choice(values: Mapping[str, T]) -> Kind[T]:
    """One of a few words."""

    def parse(text: str) -> T:
        if text not in values:
            raise ValueError
        return values[text]

    return Kind("|".join(values), "one of " + ", ".join(values), parse)


def _refuse_doubles(urls: Sequence[Url]) -> None:
    for url in urls:
        if urls.count(url) > 1:
            raise ValueError(f"{url} is in it twice")


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _is_host(host: str) -> bool:
    return _is_address(host) or (len(host) <= 253 and _HOST_NAME.fullmatch(host) is not None)


_URL_EXPECTED = "URLs such as https://127.0.0.1:2379, parted by commas"

TEXT = Kind("TEXT", "any text", str)
NAME = Kind("NAME", "a name without spaces, commas and equals signs", parse_name)
DOMAIN = Kind("DOMAIN", "a domain such as example.com", parse_domain)
SRV_NAME = Kind("NAME", "letters, digits and dashes", parse_srv_name)
PATH = Kind("PATH", "a path", str)
STORAGE_URL = Kind("URL", "a database URL such as sqlite:///path/to/file.db", str)
BOOL = Kind("true|false", "true or false", parse_bool)
DURATION = Kind("DURATION", "a duration such as 300ms, 5s or 1h30m", parse_duration_s)
SIZE = Kind("BYTES", "a number of bytes such as 1572864 or 512MiB", parse_size)
RETENTION = Kind("DURATION|N", "a duration, a number of hours or a number of revisions", parse_retention)
URLS = Kind("URLS", _URL_EXPECTED, parse_urls)
LISTEN_URLS = Kind("URLS", _URL_EXPECTED + ", with an IP address or localhost as the host", parse_listen_urls)
CLUSTER = Kind("NAME=URL,...", "members such as a=https://10.0.0.1:2380,b=https://10.0.0.2:2380", parse_cluster)
