"""The v2 API put together: keys, members, machines, statistics, and users.

Wiring only; what each part does is told in its own module.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool

from twistedkv.protocols.v2access import V2Gate
from twistedkv.protocols.v2auth import V2Auth
from twistedkv.protocols.v2authstore import AuthStore
from twistedkv.protocols.v2members import V2Machines, V2Members
from twistedkv.protocols.v2passwords import Passwords
from twistedkv.protocols.v2site import V2Site
from twistedkv.protocols.v2stats import V2Stats
from twistedkv.protocols.v2words import V2Endpoint
from twistedkv.reconfiguration import Reconfiguration
from twistedkv.server import Member

_T = TypeVar("_T")


def v2_site(member: Member, reconfiguration: Reconfiguration, statistics: V2Stats, reactor: Any) -> V2Site:
    """What answers below ``/v2`` on the clients' port.

    Args:
        member: whose keys they are.
        reconfiguration: changes the members.
        statistics: begun when the member was.
        reactor: has threads, in which passwords are looked at.
    """

    def in_thread(function: Callable[[], _T], /) -> Deferred[_T]:
        return deferToThreadPool(reactor, reactor.getThreadPool(), function)

    passwords = Passwords(in_thread)
    gate = V2Gate(member, passwords, member.config.client_cert_auth)
    others: dict[str, V2Endpoint] = {
        "members": V2Members(member, reconfiguration, gate),
        "machines": V2Machines(member),
        "stats": statistics,
        "auth": V2Auth(member, gate, AuthStore(member, passwords)),
    }
    return V2Site(member, gate, others)
