"""The URLs of a member as etcd reads them, and Go's words for what is wrong with one.

Sources: etcd ``client/pkg/types/urls.go`` (NewURLs); Go 1.16 ``net/url/url.go`` (Parse) and ``net/ipsock.go``
(SplitHostPort). Left out: the zones of IPv6 addresses.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from twistedkv.protocols.gojson import quote

NO_URLS: Final = "no valid URLs given"

_SCHEMES: Final = frozenset({"http", "https", "unix", "unixs"})
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)?:")
_PORT: Final = re.compile(r"(?::[0-9]*)?")
_BAD_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2}).{0,2}", re.DOTALL)
_BAD_HOST_ESCAPE: Final = re.compile(r"%(?:(?![0-9A-Fa-f]{2}).{0,2}|(?!25)[0-7].)", re.DOTALL)
_NOT_IN_HOST: Final = re.compile(r"[ #/?@\\^`{|}]")
_USER: Final = re.compile(r"[A-Za-z0-9._:~!$&'()*+,;=%@-]*")


class URLsError(ValueError):
    """The text is etcd's."""


def check_urls(texts: Sequence[str]) -> None:
    """Accept what etcd takes for the URLs of a member.

    Raises:
        URLsError: one is none, or there is none.
    """
    if not texts:
        raise URLsError(NO_URLS)
    for text in texts:
        _check(text.strip())


def _check(text: str) -> None:
    scheme, host, path = _parse(text)
    if scheme not in _SCHEMES:
        raise URLsError(f"URL scheme must be http, https, unix, or unixs: {text}")
    if not _has_port(host):
        raise URLsError(f'URL address does not have the form "host:port": {text}')
    if path:
        raise URLsError(f"URL must not contain a path: {text}")


def _parse(text: str) -> tuple[str, str, str]:
    """Scheme, host with its port, and path.

    Raises:
        URLsError: Go cannot parse it.
    """
    shown, _, fragment = text.partition("#")
    try:
        parts = _split(shown)
        shown = text  # what is wrong with a fragment is told of the whole text
        _refuse_escape(_BAD_ESCAPE, fragment)
    except ValueError as error:
        raise URLsError(f"parse {_quoted(shown)}: {error}") from None
    return parts


def _split(text: str) -> tuple[str, str, str]:
    if _CONTROL.search(text):
        raise ValueError("net/url: invalid control character in URL")
    scheme, rest = "", text
    if match := _SCHEME.match(text):
        if match[1] is None:
            raise ValueError("missing protocol scheme")
        scheme, rest = match[1].lower(), text[match.end() :]
    rest = rest.partition("?")[0]
    if not rest.startswith("/"):
        if scheme:
            return scheme, "", ""  # opaque
        if ":" in rest.partition("/")[0]:
            raise ValueError("first path segment in URL cannot contain colon")
    host = ""
    if rest.startswith("//") and (scheme or not rest.startswith("///")):
        authority, slash, path = rest[2:].partition("/")
        rest = slash + path
        user, at, host = authority.rpartition("@")
        _check_host(host)
        if at and not _USER.fullmatch(user):
            raise ValueError("net/url: invalid userinfo")
        _refuse_escape(_BAD_ESCAPE, user)
    _refuse_escape(_BAD_ESCAPE, rest)
    return scheme, host, rest


def _check_host(host: str) -> None:
    start = host.rfind(":")
    if host.startswith("["):
        start = host.rfind("]") + 1
        if not start:
            raise ValueError("missing ']' in host")
    port = host[start:] if start >= 0 else ""
    if not _PORT.fullmatch(port):
        raise ValueError(f"invalid port {_quoted(port)} after host")
    _refuse_escape(_BAD_HOST_ESCAPE, host)
    if bad := _NOT_IN_HOST.search(host):
        raise ValueError(f"invalid character {_quoted(bad[0])} in host name")


def _refuse_escape(pattern: re.Pattern[str], text: str) -> None:
    if bad := pattern.search(text):
        raise ValueError(f"invalid URL escape {_quoted(bad[0])}")


def _quoted(text: str) -> str:
    return quote(text.encode("utf-8"))


def _has_port(host: str) -> bool:
    """Whether it is ``name:port`` or ``[address]:port``; either part may be empty."""
    if host.startswith("["):
        name, bracket, port = host[1:].partition("]")
        return bool(bracket) and port.startswith(":") and not set(name + port[1:]) & set("[]")
    return host.count(":") == 1 and not set(host) & set("[]")
