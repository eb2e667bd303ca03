"""The members of a new cluster from the domain name system: what ``--discovery-srv`` finds in SRV records.

A record of ``_etcd-server-ssl._tcp.<domain>`` is a member reached over https, one of ``_etcd-server._tcp.<domain>`` a
member reached over http. A record says no name: this member knows its own by what the target's address is, and the
others are numbered. Ids come from URLs alone, so that all members reckon the same ones.

Sources: etcd ``client/pkg/srv/srv.go``, ``server/embed/config.go`` (GetDNSClusterNames). Unlike there, a target whose
address is not known counts as a member all the same, or members would disagree about who they are; records are taken
in one order everywhere; and all addresses of a name are looked at. Left out: search domains.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from twisted.internet.defer import Deferred, TimeoutError
from twisted.logger import Logger
from twisted.names import dns, hosts
from twisted.names.client import Resolver
from twisted.names.error import AuthoritativeDomainError, DNSNameError, DomainError, ResolverError
from twisted.names.resolve import ResolverChain

from twistedkv.config import Config
from twistedkv.founding import BootstrapError
from twistedkv.optiontypes import InitialCluster, Url, parse_url

RESOLVER_FILE: Final = "/etc/resolv.conf"
TIMEOUTS_S: Final = (1, 3, 6)  # of one question, asked so often
LOCAL_NAME_SERVER: Final = "127.0.0.1"  # resolv.conf(5): where there is none in the file

_SERVICES: Final = (("https", "etcd-server-ssl"), ("http", "etcd-server"))
_NOTHING: Final = (AuthoritativeDomainError, DNSNameError)  # an answer, namely that there is no such name
_FAILURES: Final = (AuthoritativeDomainError, DomainError, ResolverError, TimeoutError, OSError)

_log = Logger()

# Answers, authorities, additional information: each a dns.RRHeader, whose payload has no static type.
_Records = Deferred[tuple[Sequence[Any], Sequence[Any], Sequence[Any]]]


class NameResolver(Protocol):
    """What is asked; :class:`twisted.internet.interfaces.IResolver` has it. Names come as text or bytes."""

    def lookupService(self, name: str, timeout: Sequence[int] | None = None) -> _Records:
        """SRV records."""

    def lookupAddress(self, name: str, timeout: Sequence[int] | None = None) -> _Records:
        """A records."""

    def lookupIPV6Address(self, name: str, timeout: Sequence[int] | None = None) -> _Records:
        """AAAA records."""


class _Target(NamedTuple):
    """Where one record leads."""

    url: Url
    service: str


def system_resolver(reactor: Any, file: str = RESOLVER_FILE) -> NameResolver:
    """What the system's files say: ``/etc/hosts`` first, then the name servers of ``file``. Blocks: it reads them."""
    try:
        lines = Path(file).read_text(errors="replace").splitlines()
    except OSError as error:
        _log.warn("cannot read {file}: {error}", file=file, error=error)
        lines = []
    words = [line.split() for line in lines]
    listed = [word[1] for word in words if len(word) > 1 and word[0] == "nameserver"]
    servers = [(each, dns.PORT) for each in listed] or [(LOCAL_NAME_SERVER, dns.PORT)]
    resolver: NameResolver = ResolverChain([hosts.Resolver(), Resolver(servers=servers, reactor=reactor)])
    return resolver


async def discover(config: Config, resolver: NameResolver) -> InitialCluster:
    """The members that the records of ``config.discovery_srv`` name, this one by its name.

    Raises:
        BootstrapError: there are none, this member is not among them, or one is reached over http although that is
            not allowed.
    """
    suffix = f"-{config.discovery_srv_name}" if config.discovery_srv_name else ""
    targets: list[_Target] = []
    reasons = []
    for scheme, service in _SERVICES:
        name = f"_{service}{suffix}._tcp.{config.discovery_srv}"
        try:
            targets += await _targets(resolver, name, scheme)
        except _FAILURES as error:
            reason = "no such name" if isinstance(error, _NOTHING) else str(error) or type(error).__name__
            reasons.append(f"{name}: {reason}")
            _log.info("no SRV records of {name}: {reason}", name=name, reason=reason)
    if not targets:
        text = "; ".join(reasons) or "they name nobody"
        raise BootstrapError(f"error querying DNS SRV records of --discovery-srv {config.discovery_srv}: {text}")
    for url, _ in targets:
        if not url.secure and not config.allow_plaintext:
            raise BootstrapError(
                f"--discovery-srv is '{config.discovery_srv}', which names {url}: expected SRV records of "
                f"_{_SERVICES[0][1]}{suffix}._tcp, or --allow-plaintext for traffic that anyone can read"
            )
    ours = await _own_addresses(resolver, config.initial_advertise_peer_urls)
    return await _named(config.name, targets, ours, resolver)


async def _named(
    name: str, targets: Iterable[_Target], ours: dict[tuple[str, int], Url], resolver: NameResolver
) -> InitialCluster:
    members: dict[str, tuple[Url, ...]] = {}
    mismatch = ""
    for url, service in targets:
        addresses = await _addresses(resolver, url.host)
        own = next((ours[address, url.port] for address in addresses if (address, url.port) in ours), None)
        if own is not None and own.scheme != url.scheme:
            mismatch = (
                f"bootstrap at {url} from DNS for {service} has scheme mismatch with expected peer {own}: "
                "expected the same in --initial-advertise-peer-urls"
            )
            continue
        key = name if own is not None else _next_number(members, name)
        members[key] = (*members.get(key, ()), url)
    if name not in members:
        urls = ",".join(map(str, dict.fromkeys(ours.values())))
        raise BootstrapError(
            mismatch
            or f'cannot find local etcd member "{name}" in SRV records: expected one that leads to an address of '
            f"--initial-advertise-peer-urls, {urls}"
        )
    return InitialCluster(members)


def _next_number(members: dict[str, tuple[Url, ...]], name: str) -> str:
    """A name for another member, which is nobody's yet and not ours."""
    return next(text for text in map(str, range(len(members) + 2)) if text not in members and text != name)


async def _targets(resolver: NameResolver, name: str, scheme: str) -> list[_Target]:
    """Where the SRV records of a name lead, each once, in an order of their own.

    Raises:
        BootstrapError: a record leads nowhere.
    """
    answers, _, _ = await resolver.lookupService(name, TIMEOUTS_S)
    records = {
        (record.priority, record.weight, str(record.target).rstrip("."), record.port)
        for record in (answer.payload for answer in answers)
        if isinstance(record, dns.Record_SRV)
    }
    targets: dict[_Target, None] = {}
    for _, _, host, port in sorted(records):
        try:
            url = parse_url(f"{scheme}://{host}:{port}")
        except ValueError as error:
            raise BootstrapError(f"the SRV records of {name} lead to '{host}:{port}', but {error}") from error
        targets[_Target(url, name.partition(".")[0])] = None
    return list(targets)


async def _own_addresses(resolver: NameResolver, urls: Iterable[Url]) -> dict[tuple[str, int], Url]:
    """By address and port, the URL of this member that leads there."""
    return {(address, url.port): url for url in urls for address in await _addresses(resolver, url.host)}


async def _addresses(resolver: NameResolver, host: str) -> list[str]:
    """The name and the addresses of a host, in the form in which two can be compared."""
    with suppress(ValueError):
        return [str(ip_address(host))]
    found = [host.lower()]  # the same name leads to the same place, wherever that is
    for lookup in (resolver.lookupAddress, resolver.lookupIPV6Address):
        try:
            answers, _, _ = await lookup(host, TIMEOUTS_S)
        except _FAILURES as error:
            _log.debug("no address of {host}: {error}", host=host, error=str(error) or type(error).__name__)
            continue
        for record in (answer.payload for answer in answers):
            if isinstance(record, dns.Record_A | dns.Record_AAAA) and record.address:
                found.append(str(ip_address(record.address)))
    return found
