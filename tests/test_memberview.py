"""The checks of health endpoints on a member."""

from __future__ import annotations

from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.protocols.services.test_maintenance import MaintenanceMember
from twistedkv.errors import NoLeaderError, StoppedError
from twistedkv.memberview import MemberFacts
from twistedkv.pb.rpc_pb2 import CORRUPT, NOSPACE


class MemberFactsTests(SynchronousTestCase):
    """What the endpoints hear."""

    def setUp(self) -> None:
        self.member = MaintenanceMember(Path(self.mktemp()))
        self.facts = MemberFacts(self.member)  # type: ignore[arg-type]

    def test_a_member_that_serves(self) -> None:
        """Both reads go through."""
        self.successResultOf(self.facts.linearizable_check())
        self.successResultOf(self.facts.serializable_check())
        self.assertTrue(self.facts.has_leader)

    def test_without_a_leader(self) -> None:
        """What this member has can still be read."""
        self.member.leader = 0
        self.failureResultOf(self.facts.linearizable_check(), NoLeaderError)
        self.successResultOf(self.facts.serializable_check())
        self.assertFalse(self.facts.has_leader)

    def test_a_member_that_has_stopped(self) -> None:
        """It answers no read."""
        self.member.stopped = True
        self.failureResultOf(self.facts.linearizable_check(), StoppedError)
        self.failureResultOf(self.facts.serializable_check(), StoppedError)

    def test_alarms_by_name(self) -> None:
        """Each once, however many members raised it, and always in the same order."""
        for member in (1, 2):
            for kind in (CORRUPT, NOSPACE):
                self.member.alarms.activate(member, kind)
        self.assertEqual(list(self.facts.alarms()), ["NOSPACE", "CORRUPT"])
