"""The v2 API as one: which endpoint answers which path, and Go's 404 where there is none.

Source: etcd 3.5 ``server/etcdserver/api/v2http/{client,client_auth}.go`` (handleV2, handleAuth).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from twistedkv.protocols import goform
from twistedkv.protocols.answers import PAGE_NOT_FOUND, Answer, Outlet
from twistedkv.protocols.rpc import Peer
from twistedkv.protocols.v2keys import KeysEndpoint, KeysMember
from twistedkv.protocols.v2words import OpenAccess, V2Access, V2Asked, V2Endpoint, V2Request

MAX_BODY_BYTES: Final = goform.MAX_BODY_BYTES + (256 << 10)  # of a request that is answered for what it asks

_PATH: Final = re.compile(
    r"/v2/(?:(?P<members>members)(?:/.*)?|(?P<machines>machines)|(?P<stats>stats)/(?:leader|self|store)"
    r"|(?P<auth>auth)/(?:enable|(?:roles|users)(?:/.*)?))",
    re.DOTALL,
)


class Found(NamedTuple):
    """What a request asks for."""

    asked: V2Asked
    takes_body: bool  # false: what is in its body does not matter


class _Asked(NamedTuple):
    """A request for something else than keys."""

    endpoint: V2Endpoint
    method: str
    path: str
    query: str
    fields: tuple[tuple[str, str], ...]

    def serve(self, body: bytes, peer: Peer, outlet: Outlet) -> Callable[[], None] | None:
        """See :class:`~twistedkv.protocols.v2words.V2Asked`."""
        return self.endpoint.serve(V2Request(self.method, self.path, self.query, self.fields, body, peer), outlet)


class V2Site:
    """Everything below ``/v2/``.

    Args:
        member: answers for the keys.
        access: says who may do what with keys.
        others: ``members``, ``machines``, ``stats`` and ``auth``, as far as there are such endpoints.
    """

    def __init__(
        self,
        member: KeysMember,
        access: V2Access | None = None,
        others: Mapping[str, V2Endpoint] = MappingProxyType({}),
    ) -> None:
        self.keys = KeysEndpoint(member, access or OpenAccess())
        self._others = others
        self.too_long: Answer = self.keys.too_long  # to a body of more than MAX_BODY_BYTES

    def find(self, method: str, path: str, query: str, fields: tuple[tuple[str, str], ...]) -> Found:
        """What a request with this head asks for, and all others with the same head."""
        if path.startswith("/v2/keys/") or path == "/v2/keys":
            asked = self.keys.asked(method, path, query, fields)
            return Found(asked, asked.takes_body)
        match = _PATH.fullmatch(path)
        name = match.lastgroup if match else None
        return Found(_Asked(self._others.get(name or "", _NOWHERE), method, path, query, fields), True)

    def serve(self, request: V2Request, outlet: Outlet) -> Callable[[], None] | None:
        """Answer one request; see :class:`V2Endpoint`."""
        found = self.find(request.method, request.path, request.query, request.fields)
        return found.asked.serve(request.body, request.peer, outlet)


class _Nowhere:
    """Where nothing is."""

    def serve(self, request: V2Request, outlet: Outlet) -> None:
        """Go's 404."""
        outlet.respond(PAGE_NOT_FOUND)


_NOWHERE: Final = _Nowhere()
