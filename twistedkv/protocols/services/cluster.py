"""The Cluster service. Its headers carry no revision (etcd ``api/v3rpc/member.go``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from twistedkv.errors import KVError
from twistedkv.members import Membership
from twistedkv.pb import rpc_pb2
from twistedkv.pb.rpc_pb2 import MemberListRequest, MemberListResponse
from twistedkv.protocols.rpc import Access, Call, Method, service_methods, unimplemented
from twistedkv.wire import HeaderEncoder


class ClusterMember(Protocol):
    """What this service needs of the member; see :class:`twistedkv.server.Member`."""

    header: HeaderEncoder

    @property
    def term(self) -> int: ...

    @property
    def membership(self) -> Membership: ...

    def when_readable(self, ready: Callable[[], None], fail: Callable[[KVError], None]) -> None: ...


class ClusterService:
    """MemberList; changes of membership answer UNIMPLEMENTED until there can be a second member."""

    def __init__(self, member: ClusterMember) -> None:
        self._member = member

    def methods(self) -> list[Method]:
        """The methods of this service, for the method table."""
        return service_methods(
            rpc_pb2.DESCRIPTOR.services_by_name["Cluster"],
            {
                "MemberAdd": (Access.ADMIN, unimplemented),
                "MemberRemove": (Access.ADMIN, unimplemented),
                "MemberUpdate": (Access.ADMIN, unimplemented),
                "MemberList": (Access.IDENTITY, self.member_list),
                "MemberPromote": (Access.ADMIN, unimplemented),
            },
        )

    def member_list(self, call: Call) -> None:
        """Cluster.MemberList: all members by ascending id."""
        if MemberListRequest.FromString(call.message).linearizable:
            self._member.when_readable(lambda: self._list(call), call.fail)
        else:
            self._list(call)

    def _list(self, call: Call) -> None:
        response = MemberListResponse()
        for member in self._member.membership.listed():
            response.members.add(
                ID=member.id,
                name=member.name,
                peerURLs=member.peer_urls,
                clientURLs=member.client_urls,
                isLearner=member.is_learner,
            )
        call.reply(self._member.header.field(0, self._member.term) + response.SerializeToString())
