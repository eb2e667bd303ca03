"""Requests to the v2 API, as those who answer them see them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from twisted.internet.defer import Deferred

from twistedkv.protocols.answers import Outlet
from twistedkv.protocols.rpc import Peer


class V2Request(NamedTuple):
    """One request whose path begins with ``/v2/``."""

    method: str
    path: str  # percent-decoded, bytes that are no UTF-8 as surrogates; clean: no empty, "." or ".." segments
    query: str  # what comes after "?", as it was sent
    fields: tuple[tuple[str, str], ...]  # header fields, names in lower case
    body: bytes
    peer: Peer

    def field(self, name: str) -> str:
        """The first header field of this lower-case name; empty if there is none."""
        return next((value for each, value in self.fields if each == name), "")


class V2Asked(Protocol):
    """A request apart from its body and its peer. It serves all requests that have the same head."""

    @property
    def method(self) -> str:
        """By which it came."""

    def serve(self, body: bytes, peer: Peer, outlet: Outlet) -> Callable[[], None] | None:
        """Answer one of them; else as :meth:`V2Endpoint.serve`."""


class V2Endpoint(Protocol):
    """Who answers the requests below one path."""

    def serve(self, request: V2Request, outlet: Outlet) -> Callable[[], None] | None:
        """Answer by ``outlet``, now or later.

        Returns:
            What is to be called when the client goes away before it was answered; None if that is no matter.
        """


class V2Access(Protocol):
    """Who says what a client may do; see :class:`twistedkv.protocols.v2access.V2Gate`.

    The answer is at hand unless a password has to be looked at, which takes a thread some 50 ms. A Deferred fires with
    the answer; it may be cancelled, and what it would have said is then lost. It fails with nothing else.
    """

    def open_to_all(self) -> bool:
        """Whether everybody may use all keys at the moment. To be asked once a request."""

    def may_use_key(self, request: V2Request, key: str, recursive: bool) -> bool | Deferred[bool]:
        """Whether the client may read ``key`` (by GET or HEAD) or write it (by any other method), if not all may.

        Args:
            request: who asks, and by which method.
            key: the path behind ``/v2/keys`` as it came: "" and "/" are the root, and a slash at the end stays.
            recursive: all below it as well.
        """

    def may_administer(self, request: V2Request) -> bool | Deferred[bool]:
        """Whether the client may change what is not a key, such as the members. Reads (GET, HEAD) are anybody's."""


class OpenAccess:
    """A :class:`V2Access` where everybody may do everything, as it is while nobody has turned v2 auth on."""

    def open_to_all(self) -> bool:
        """Yes."""
        return True

    def may_use_key(self, request: V2Request, key: str, recursive: bool) -> bool:
        """Yes."""
        return True

    def may_administer(self, request: V2Request) -> bool:
        """Yes."""
        return True
