"""The peer port's further paths, as etcd 3.5.1 answers them."""

from __future__ import annotations

from functools import partial

from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import SynchronousTestCase

from tests.changingmember import ME, ChangingMember, learner, started
from twistedkv.downgrade import Downgrade
from twistedkv.errors import RequestTimeoutError
from twistedkv.members import MemberInfo
from twistedkv.peersite import PeerRequest, PeerSite
from twistedkv.protocols.answers import ERROR_TEXT, PAGE_NOT_FOUND, Answer
from twistedkv.reconfiguration import Reconfiguration

LEARNER = 9
CLUSTER = (b"X-Etcd-Cluster-Id", b"c1")


class PeerSiteCase(SynchronousTestCase):
    """A leader with a learner."""

    def setUp(self) -> None:
        self.member = ChangingMember([started(ME), learner(LEARNER)])
        self.site = PeerSite(self.member, Reconfiguration(self.member, lambda: 0.0))

    def ask(self, method: str, path: str, body: bytes = b"") -> Answer:
        return self.successResultOf(self.site.answer(method, path, {"a": "b"}, body))

    def check(self, answer: Answer, status: int, body: bytes, fields: tuple[tuple[bytes, bytes], ...]) -> None:
        self.assertEqual((answer.status, answer.body, answer.fields.pairs), (status, body, fields))

    def refused(self, answer: Answer, status: int, text: bytes) -> None:
        """A text as Go writes an error, from a handler that names the cluster."""
        self.check(answer, status, text + b"\n", (*ERROR_TEXT.pairs, CLUSTER))


class PathTests(PeerSiteCase):
    """Which path is whose."""

    def test_paths_that_nobody_has(self) -> None:
        """They are not found, whatever the method."""
        for path in ("/", "/nothing", "/members/", "/members/x", "/downgrade", "/downgrade/enabled/", "", "/leases"):
            for method in ("GET", "POST"):
                self.assertIs(self.ask(method, path), PAGE_NOT_FOUND, path)

    def test_other_methods(self) -> None:
        """The one that would be right is named."""
        for method, path, right in (("GET", "/members/promote/1", b"POST"), ("POST", "/downgrade/enabled", b"GET")):
            answer = self.ask(method, path)
            self.check(answer, 405, b"Method Not Allowed\n", ((b"Allow", right), *ERROR_TEXT.pairs))

    def test_paths_of_others(self) -> None:
        """Who adds a path gets what is asked there; one that ends with a slash is all below it, the longest first."""
        seen: list[tuple[str, PeerRequest]] = []

        def take(name: str, request: PeerRequest) -> Deferred[Answer]:
            seen.append((name, request))
            return succeed(PAGE_NOT_FOUND)

        for name, path in (("x", "/x/"), ("y", "/x/y/"), ("z", "/x/z")):
            self.site.add(path, "POST", partial(take, name))
        for path in ("/x/", "/x/y", "/x/y/a%20b", "/x/z", "/x/z/"):
            self.ask("POST", path, b"body")
        self.assertEqual([name for name, _ in seen], ["x", "x", "y", "z", "x"])
        self.assertEqual(seen[2][1], ("/x/y/a b", {"a": "b"}, b"body"))
        with self.assertRaisesRegex(ValueError, "/x/z is registered twice"):
            self.site.add("/x/z", "GET", lambda request: succeed(PAGE_NOT_FOUND))

    def test_a_handler_that_breaks(self) -> None:
        """What it raises is the connection's to answer and to log."""

        def broken(request: PeerRequest) -> Deferred[Answer]:
            raise LookupError("broken")

        self.site.add("/broken", "GET", broken)
        self.failureResultOf(self.site.answer("GET", "/broken", {}, b""), LookupError)


class PromoteTests(PeerSiteCase):
    """/members/promote/."""

    def test_a_learner_that_is_ready(self) -> None:
        """The answer is all members, as /members has them."""
        answer = self.ask("POST", f"/members/promote/{LEARNER}")
        body = (
            b'[{"id":1,"peerURLs":["http://m1:2380"],"name":"m1","clientURLs":["http://m1:2379"]},'
            b'{"id":9,"peerURLs":["http://m9:2380"],"name":"m9"}]\n'
        )
        self.check(answer, 200, body, ((b"Content-Type", b"application/json"), CLUSTER))

    def test_what_is_no_id(self) -> None:
        """It is quoted as it came, decoded."""
        for text in ("", "zz", "1/2", "+9", "18446744073709551616", "-1", "9 "):
            answer = self.ask("POST", f"/members/promote/{text}")
            self.refused(answer, 404, f"member {text} not found in cluster".encode())
        self.refused(self.ask("POST", "/members/promote/a%20b"), 404, b"member a b not found in cluster")
        self.refused(
            self.ask("POST", "/members/promote/" + "9" * 5000), 404, b"member %b not found in cluster" % (b"9" * 5000)
        )

    def test_ids(self) -> None:
        """They are decimal, with as many zeros before them as one likes."""
        for text in ("77", "%37%37", "0" * 30 + "77"):
            self.refused(self.ask("POST", f"/members/promote/{text}"), 404, b"membership: ID not found")

    def test_refusals(self) -> None:
        """Two statuses say why, and the text which of the reasons it is; etcd's members look for both."""
        self.refused(self.ask("POST", f"/members/promote/{ME}"), 412, b"membership: can only promote a learner member")
        self.member.matches[LEARNER] = 0
        text = b"etcdserver: can only promote a learner member which is in sync with leader"
        self.refused(self.ask("POST", f"/members/promote/{LEARNER}"), 412, text)

    def test_others(self) -> None:
        """Anything else is worth another try: no leader here, and a cluster that is not ready for it."""
        internal = (500, b'{"message":"Internal Server Error"}', ((b"Content-Type", b"application/json"), CLUSTER))
        for member in (2, 3):
            self.member.membership.members[member] = MemberInfo(member, (f"http://m{member}:2380",))
        self.check(self.ask("POST", f"/members/promote/{LEARNER}"), *internal)
        self.member.leader = 2
        self.check(self.ask("POST", f"/members/promote/{LEARNER}"), *internal)
        self.assertEqual((self.member.changes, self.member.peers.asked), ([], []))

    def test_failures(self) -> None:
        """A time-out has a status of its own; what should not happen is logged."""
        for error, status in ((RequestTimeoutError(), 408), (LookupError("broken"), 500)):
            outcome: Deferred[None] = Deferred()
            self.patch(self.member, "reconfigure", lambda change, outcome=outcome: outcome)
            answer = self.site.answer("POST", f"/members/promote/{LEARNER}", {}, b"")
            self.assertNoResult(answer)
            outcome.errback(error)
            self.assertEqual(self.successResultOf(answer).status, status)
        self.assertEqual(len(self.flushLoggedErrors(LookupError)), 1)


class DowngradeTests(PeerSiteCase):
    """/downgrade/enabled."""

    def test_what_the_cluster_has_decided(self) -> None:
        """A bare word, without a line end."""
        plain = ((b"Content-Type", b"text/plain"), CLUSTER)
        self.check(self.ask("GET", "/downgrade/enabled"), 200, b"false", plain)
        self.member.applier.downgrade = Downgrade("3.4.0", True)
        self.check(self.ask("GET", "/downgrade/enabled"), 200, b"true", plain)

    def test_without_a_quorum(self) -> None:
        """What the cluster has decided is not known."""
        self.member.readable = False
        text = b"failed linearized read: etcdserver: no leader"
        self.refused(self.ask("GET", "/downgrade/enabled"), 500, text)
