"""A member tells the cluster its name and its client URLs, and only then serves.

Until all others know how clients reach it, a member counts as not started (:mod:`twistedkv.members`). So this goes
through the log again and again until it is in the state; without a quorum that takes as long as the quorum is away.

Source: etcd ``server/etcdserver/server.go``, publish.
"""

from __future__ import annotations

from typing import Final

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from twistedkv.errors import KVError
from twistedkv.pb.membership_pb2 import Attributes, ClusterMemberAttrSetRequest
from twistedkv.pb.raft_internal_pb2 import InternalRaftRequest
from twistedkv.server import Member

RETRY_S: Final = 0.5

_log = Logger()


class Publication:
    """The attributes of one member on their way to the others."""

    def __init__(self, member: Member) -> None:
        self._member = member
        self._published: Deferred[None] = Deferred()
        self._complaint = ""

    def begin(self) -> Deferred[None]:
        """Fires once this member has all of the log, is a member by it, and has told its attributes.

        Fails if the member is found stopped at an attempt. Cancelling it ends the attempts.
        """
        self._look()
        return self._published

    def _look(self) -> None:
        """The next attempt, once the state is as new as the cluster's."""
        if not self._published.called:
            self._member.when_readable(self._compare, self._again)

    def _compare(self) -> None:
        if self._published.called:
            return
        member = self._member
        urls = tuple(map(str, member.config.advertise_client_urls))
        me = member.membership.members.get(member.member_id)
        if me is None:
            self._again(LookupError("the log does not have it as a member yet"))
        elif (me.name, me.client_urls) == (member.config.name, urls):
            _log.info("published local member to cluster through raft")  # etcd's words, which tools look for
            self._published.callback(None)
        else:
            attributes = Attributes(name=member.config.name, client_urls=urls)
            update = ClusterMemberAttrSetRequest(member_ID=member.member_id, member_attributes=attributes)
            proposed = member.propose_request(InternalRaftRequest(cluster_member_attr_set=update))
            proposed.addCallbacks(lambda _: self._look(), lambda failure: self._again(failure.value))
            proposed.addErrback(lambda failure: _log.failure("telling the cluster of this member", failure))

    def _again(self, reason: BaseException | KVError) -> None:
        if self._published.called:
            return
        if self._member.stopped:
            self._published.errback(Failure(reason))
            return
        if str(reason) != self._complaint:
            self._complaint = str(reason)
            _log.warn("cannot tell the cluster of this member yet: {reason}", reason=reason)
        self._member.later(RETRY_S, self._look)
