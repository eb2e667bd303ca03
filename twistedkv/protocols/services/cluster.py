"""The Cluster service. Its headers carry no revision (etcd ``api/v3rpc/member.go``)."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Protocol, TypeVar

from google.protobuf.message import Message
from twisted.internet.defer import Deferred

from twistedkv.errors import KVError
from twistedkv.members import MemberInfo, Membership
from twistedkv.pb import rpc_pb2
from twistedkv.pb.rpc_pb2 import (
    MemberAddRequest,
    MemberAddResponse,
    MemberListRequest,
    MemberListResponse,
    MemberPromoteRequest,
    MemberPromoteResponse,
    MemberRemoveRequest,
    MemberRemoveResponse,
    MemberUpdateRequest,
    MemberUpdateResponse,
)
from twistedkv.protocols.rpc import Access, Call, Method, service_methods
from twistedkv.protocols.services.answers import answer_when
from twistedkv.reconfiguration import Added, Reconfiguration
from twistedkv.wire import HeaderEncoder

T = TypeVar("T")


class ClusterMember(Protocol):
    """What this service needs of the member; see :class:`twistedkv.server.Member`."""

    header: HeaderEncoder

    @property
    def term(self) -> int: ...

    @property
    def membership(self) -> Membership: ...

    def when_readable(self, ready: Callable[[], None], fail: Callable[[KVError], None]) -> None: ...


class ClusterService:
    """All methods of the service.

    Args:
        member: who answers.
        reconfiguration: carries changes out.
    """

    def __init__(self, member: ClusterMember, reconfiguration: Reconfiguration) -> None:
        self._member = member
        self._reconfiguration = reconfiguration

    def methods(self) -> list[Method]:
        """The methods of this service, for the method table."""
        return service_methods(
            rpc_pb2.DESCRIPTOR.services_by_name["Cluster"],
            {
                "MemberAdd": (Access.ADMIN, self.member_add),
                "MemberRemove": (Access.ADMIN, self.member_remove),
                "MemberUpdate": (Access.ADMIN, self.member_update),
                "MemberList": (Access.IDENTITY, self.member_list),
                "MemberPromote": (Access.ADMIN, self.member_promote),
            },
        )

    def member_add(self, call: Call) -> None:
        """Cluster.MemberAdd."""
        request = MemberAddRequest.FromString(call.message)

        def answer(added: Added) -> None:
            member = _described([added.member])[0]
            self._reply(call, MemberAddResponse(member=member, members=_described(added.members)))

        self._carry_out(call, self._reconfiguration.add(request.peerURLs, request.isLearner), answer)

    def member_remove(self, call: Call) -> None:
        """Cluster.MemberRemove."""
        request = MemberRemoveRequest.FromString(call.message)

        def answer(members: Iterable[MemberInfo]) -> None:
            self._reply(call, MemberRemoveResponse(members=_described(members)))

        self._carry_out(call, self._reconfiguration.remove(request.ID), answer)

    def member_update(self, call: Call) -> None:
        """Cluster.MemberUpdate."""
        request = MemberUpdateRequest.FromString(call.message)

        def answer(members: Iterable[MemberInfo]) -> None:
            self._reply(call, MemberUpdateResponse(members=_described(members)))

        self._carry_out(call, self._reconfiguration.update(request.ID, request.peerURLs), answer)

    def member_promote(self, call: Call) -> None:
        """Cluster.MemberPromote."""
        request = MemberPromoteRequest.FromString(call.message)

        def answer(members: Iterable[MemberInfo]) -> None:
            self._reply(call, MemberPromoteResponse(members=_described(members)))

        self._carry_out(call, self._reconfiguration.promote(request.ID, lambda: not call.done), answer)

    def member_list(self, call: Call) -> None:
        """Cluster.MemberList: all members by ascending id."""

        def answer() -> None:
            self._reply(call, MemberListResponse(members=_described(self._member.membership.listed())))

        if MemberListRequest.FromString(call.message).linearizable:
            self._member.when_readable(answer, call.fail)
        else:
            answer()

    def _carry_out(self, call: Call, steps: Coroutine[Any, Any, T], answer: Callable[[T], None]) -> None:
        outcome = Deferred.fromCoroutine(steps)
        call.on_cancel = outcome.cancel
        answer_when(outcome, call, answer)

    def _reply(self, call: Call, response: Message) -> None:
        call.reply(self._member.header.field(0, self._member.term) + response.SerializeToString())


def _described(members: Iterable[MemberInfo]) -> list[rpc_pb2.Member]:
    return [
        rpc_pb2.Member(
            ID=member.id,
            name=member.name,
            peerURLs=member.peer_urls,
            clientURLs=member.client_urls,
            isLearner=member.is_learner,
        )
        for member in members
    ]
