"""How a member tells the others its name and URLs, and when it may serve."""

from __future__ import annotations

from twisted.internet.defer import CancelledError
from twisted.logger import globalLogPublisher

from tests.station import Station
from tests.wires import WiredCase, founder
from twistedkv.errors import KVError, StoppedError
from twistedkv.members import MemberInfo
from twistedkv.pb.raft_pb2 import ConfChange, ConfChangeAddNode
from twistedkv.publication import RETRY_S, Publication

URLS = ("https://127.0.0.1:2379",)  # the default


class PublicationTests(WiredCase):
    """Members of a cluster, alone or of three."""

    def known(self, of: int, by: Station) -> tuple[str, tuple[str, ...]]:
        """Name and client URLs of a member, as another one has them."""
        member = by.member.membership.members[of]
        return member.name, member.client_urls

    def test_a_member_alone(self) -> None:
        """A member alone has told itself at once; another time there is nothing to tell."""
        (station,) = self.cluster(1)
        published = Publication(station.member).begin()
        self.run_for(0.0)
        self.successResultOf(published)
        self.assertEqual(self.known(1, station), ("m1", URLS))
        applied = station.member.applied
        self.successResultOf(Publication(station.member).begin())
        self.assertEqual(station.member.applied, applied)

    def test_members_of_three(self) -> None:
        """Each of three comes to be known by all, also those that do not lead."""
        stations = self.cluster()
        published = [Publication(each.member).begin() for each in stations]
        self.until(lambda: all(each.called for each in published))
        for each in published:
            self.successResultOf(each)
        self.run_for(0.2)
        for each in stations:
            for other in stations:
                self.assertEqual(self.known(other.member_id, each), (f"m{other.member_id}", URLS))

    def test_without_a_quorum_it_takes_as_long_as_that(self) -> None:
        """A member that finds no quorum tries on for as long as it takes, and tells the operator once why."""
        alone, *others = [self.station(each, [founder(each) for each in (1, 2, 3)]) for each in (1, 2, 3)]
        self.start(alone)
        complaints: list[str] = []

        def observe(event: dict[str, object]) -> None:
            if event.get("log_namespace") == "twistedkv.publication" and "reason" in event:
                complaints.append(str(event["reason"]))

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)
        published = Publication(alone.member).begin()
        self.run_for(60.0)
        self.assertNoResult(published)
        self.assertEqual(complaints, ["etcdserver: request timed out"])
        for each in others:
            self.start(each)
        self.until(lambda: published.called)
        self.successResultOf(published)

    def test_a_member_that_is_none_yet(self) -> None:
        """A member whose coming in is not in its state yet waits for that."""
        self.cluster()
        leader = self.leader()
        joining = self.station(4)
        self.start(joining)
        published = Publication(joining.member).begin()
        self.run_for(3.0)
        self.assertNoResult(published)
        change = ConfChange(type=ConfChangeAddNode, node_id=4, context=MemberInfo(4, ("http://192.0.2.4:1",)).to_json())
        changed = leader.member.reconfigure(change)
        self.until(lambda: published.called)
        self.successResultOf(changed)
        self.successResultOf(published)
        self.assertEqual(self.known(4, leader), ("m4", URLS))

    def test_the_log_has_it_and_the_state_does_not(self) -> None:
        """A state in which the member is none, for whatever reason, is looked at again until it is one."""
        (station,) = self.cluster(1)
        self.run_for(0.0)
        members = station.member.membership.members
        me = members.pop(1)
        published = Publication(station.member).begin()
        self.run_for(RETRY_S / 2)
        self.assertNoResult(published)
        members[1] = me
        self.run_for(RETRY_S)
        self.successResultOf(published)

    def test_the_end(self) -> None:
        """When the member stops while it waits the attempt fails, and nothing is left of it."""
        station = self.station(1, [founder(each) for each in (1, 2, 3)])
        self.start(station)
        published = Publication(station.member).begin()
        self.run_for(0.5)
        self.stop(station)
        self.failureResultOf(published, StoppedError)

    def test_a_member_that_is_stopped(self) -> None:
        """A member that serves no more cannot tell anybody anything."""
        (station,) = self.cluster(1)
        self.stop(station)
        self.failureResultOf(Publication(station.member).begin(), KVError)

    def test_giving_up(self) -> None:
        """Whoever cancels it ends the attempts, wherever they are: none follows, and nothing is proposed."""
        station = self.station(1, [founder(each) for each in (1, 2, 3)])
        self.start(station)
        publications = [Publication(station.member).begin()]
        self.run_for(7.3)  # the first attempt is over, the next one comes in a moment
        publications.append(Publication(station.member).begin())  # its read is under way
        for each in publications:
            each.cancel()
            self.failureResultOf(each, CancelledError)
        others = [self.station(each, [founder(each) for each in (1, 2, 3)]) for each in (2, 3)]
        for each in others:
            self.start(each)
        self.leader()
        self.run_for(10.0)
        self.assertEqual(self.known(1, others[0]), ("m1", ()))

    def test_giving_up_before_an_answer(self) -> None:
        """What becomes of a read or a proposal that was under way then means nothing any more."""
        station = self.station(1, [founder(each) for each in (1, 2, 3)])
        self.start(station)
        reading = Publication(station.member).begin()
        reading.cancel()
        self.failureResultOf(reading, CancelledError)
        self.run_for(10.0)  # the read has timed out
        self.stop(station)
