"""What Twisted's ``ServiceMaker`` looks for: ``Options`` and ``makeService``."""

from __future__ import annotations

from twisted.application.service import IService

from twistedkv.options import MemberOptions as Options
from twistedkv.service import make_service

__all__ = ["Options", "makeService"]


def makeService(options: Options) -> IService:
    """The member that twistd runs. Here, and not before, twistd's choice of a reactor is made."""
    from twisted.internet import reactor  # noqa: TID251 - the one place that takes the global reactor

    return make_service(options.config, reactor, options.parent)
