"""Members that compare what they hold."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.askedpeers import Asked, AskedPeers
from twistedkv.apply import Alarms, Applier
from twistedkv.corruption import (
    HASHKV_PATH,
    MAX_BODY_BYTES,
    CorruptionCheck,
    Hash,
    HashSite,
    InconsistentDataError,
    hash_at,
)
from twistedkv.errors import CompactedError, FutureRevisionError, KVError, NoLeaderError
from twistedkv.lease import Lessor
from twistedkv.members import MemberInfo, Membership
from twistedkv.metrics import Metrics
from twistedkv.pb.raft_internal_pb2 import InternalRaftRequest
from twistedkv.pb.rpc_pb2 import CORRUPT, CompactionRequest, PutRequest
from twistedkv.protocols.answers import Answer
from twistedkv.storage.backend import BackendError
from twistedkv.storage.keyindex import KeyIndex
from twistedkv.storage.memory import MemoryBackend
from twistedkv.storage.mvcc import Store, hash_kv

ME, B, C = 0xA, 0xB, 0xC


class HoldingMember:
    """A member that leads B and C, and holds what it is told to."""

    def __init__(self) -> None:
        self.reactor = Clock()
        self.member_id = ME
        self.is_leader = True
        self.peers = AskedPeers()
        self.metrics = Metrics()
        self.store = Store(KeyIndex(1 << 20))
        members = {each: MemberInfo(each, (f"http://192.0.2.{each}:2380",)) for each in (ME, B, C)}
        self.membership = Membership(members)
        self.applier = Applier(self.store, Lessor(2), Alarms(), self.membership)
        self.backend = MemoryBackend()
        self.proposed: list[InternalRaftRequest] = []
        self.refusal: KVError | None = None
        self.broken: BackendError | None = None
        self.before_hashing: Callable[[], None] = lambda: None
        self.while_hashing: Callable[[], None] = lambda: None

    @property
    def alarms(self) -> Alarms:
        return self.applier.alarms

    def put(self, value: bytes = b"v") -> None:
        self.applier.apply(InternalRaftRequest(put=PutRequest(key=b"k", value=value)))

    def compact(self, revision: int) -> None:
        self.applier.apply(InternalRaftRequest(compaction=CompactionRequest(revision=revision)))

    def read_backend(self, function: Any, *arguments: Any) -> Deferred[Any]:
        if self.broken is not None:
            return fail(self.broken)
        before, self.before_hashing = self.before_hashing, lambda: None
        before()
        self.backend.write(self.store.take_batch())
        done = maybeDeferred(function, self.backend, *arguments)
        during, self.while_hashing = self.while_hashing, lambda: None
        during()
        return done

    def when_readable(self, ready: Callable[[], None], refuse: Callable[[KVError], None]) -> None:
        if self.refusal is None:
            ready()
        else:
            refuse(self.refusal)

    def propose_request(self, request: InternalRaftRequest) -> Deferred[bytes]:
        self.proposed.append(request)
        self.applier.apply(request)
        return succeed(b"")


class HoldingTestCase(SynchronousTestCase):
    """The member, at revision 4."""

    def setUp(self) -> None:
        self.member = HoldingMember()
        for value in (b"1", b"2", b"3"):
            self.member.put(value)

    def hash(self, revision: int = 0) -> Hash:
        return self.successResultOf(Deferred.fromCoroutine(hash_at(self.member, revision)))

    def body(self, found: Hash) -> bytes:
        """What a member with this hash answers."""
        fields = f'"header":{{"revision":{found.revision}}},"hash":{found.hash}'
        return f'{{{fields},"compact_revision":{found.compact_revision}}}'.encode()


class HashAtTests(HoldingTestCase):
    """The hash of a revision."""

    def test_of_now_and_of_the_past(self) -> None:
        """Equal content has an equal hash, whatever came later."""
        early = self.hash(3)
        other = HoldingMember()
        for value in (b"1", b"2"):
            other.put(value)
        self.assertEqual(self.successResultOf(Deferred.fromCoroutine(hash_at(other, 0))), Hash(3, early.hash, -1))
        self.assertEqual((early.revision, early.compact_revision), (4, -1))
        self.assertNotEqual(self.hash().hash, early.hash)
        self.assertIn(b"etcd_mvcc_hash_rev_duration_seconds_count 2\n", self.member.metrics.exposition())

    def test_what_is_not_there(self) -> None:
        """Compacted and future revisions are refused."""
        self.member.compact(3)
        for revision, error in ((3, CompactedError), (5, FutureRevisionError)):
            self.failureResultOf(Deferred.fromCoroutine(hash_at(self.member, revision)), error)
        self.assertEqual(self.hash().compact_revision, 3)

    def test_a_compaction_meanwhile(self) -> None:
        """What was hashed by the old one is hashed again, or refused."""
        self.member.while_hashing = lambda: self.member.compact(2)
        self.assertEqual(self.hash(4), Hash(4, hash_kv(self.member.backend, 4, 2), 2))
        self.member.while_hashing = lambda: self.member.compact(3)
        self.failureResultOf(Deferred.fromCoroutine(hash_at(self.member, 3)), CompactedError)

    def test_a_compaction_that_is_written_before(self) -> None:
        """The database is of a later state than was asked about: it is asked about that, or the question is refused."""
        self.member.before_hashing = lambda: self.member.compact(4)
        self.assertEqual(self.hash(), Hash(4, hash_kv(self.member.backend, 4, 4), 4))
        self.member.put(b"4")
        self.member.before_hashing = lambda: self.member.compact(5)
        self.failureResultOf(Deferred.fromCoroutine(hash_at(self.member, 5)), CompactedError)


class HashSiteTests(HoldingTestCase):
    """Statuses, texts and JSON are those of a real etcd 3.5.1, which was asked."""

    def ask(self, body: bytes) -> Answer:
        return self.successResultOf(HashSite(self.member, 0xC1).hash(SimpleNamespace(body=body)))

    def test_an_answer(self) -> None:
        """Plain JSON, and the cluster's id in the header."""
        answer = self.ask(b'{"revision":3}')
        self.assertEqual(answer.status, 200)
        self.assertEqual(answer.body, self.body(self.hash(3)))
        self.assertIn((b"X-Etcd-Cluster-Id", b"c1"), answer.fields.pairs)
        self.assertIn((b"Content-Type", b"application/json"), answer.fields.pairs)

    def test_how_the_revision_is_read(self) -> None:
        """As Go reads it: names without regard to case, nothing for 0, integers only."""
        now, early = self.body(self.hash()), self.body(self.hash(3))
        for body in (b"{}", b"null", b'{"revision":0}', b'{"revision":null}', b' {"other":[1]} '):
            self.assertEqual(self.ask(body).body, now, body)
        self.assertEqual(self.ask(b'{"Revision":3,"other":3}').body, early)
        for body in (
            b"",
            b"x",
            b"[]",
            b'{"revision":"3"}',
            b'{"revision":1.5}',
            b'{"revision":1e1}',
            b'{"revision":[3]}',
            b'{"revision":3}x',
            b'{"revision":99999999999999999999}',
        ):
            answer = self.ask(body)
            self.assertEqual((answer.status, answer.body), (400, b"error unmarshalling request\n"), body)
        self.assertEqual(self.ask(b" " * (MAX_BODY_BYTES + 1)).status, 413)

    def test_refusals(self) -> None:
        """In the words of etcd's store."""
        self.member.compact(3)
        for revision, text in ((3, b"has been compacted"), (9, b"is a future revision")):
            answer = self.ask(b'{"revision":%d}' % revision)
            self.assertEqual((answer.status, answer.body), (400, b"mvcc: required revision %b\n" % text))
        self.member.broken = BackendError("disk on fire")
        answer = self.ask(b"{}")
        self.assertEqual((answer.status, answer.body), (400, b"disk on fire\n"))


class CheckTestCase(HoldingTestCase):
    """The member compares."""

    def setUp(self) -> None:
        super().setUp()
        self.check = CorruptionCheck(self.member, 60)
        self.addCleanup(self.check.stop)

    def asked(self) -> list[Asked]:
        """B and C were asked for the same revision."""
        asked = self.member.peers.take()
        questions = [(each.member_id, each.method, each.path) for each in asked]
        self.assertEqual(questions, [(B, "GET", HASHKV_PATH), (C, "GET", HASHKV_PATH)])
        return asked

    def alarms(self) -> list[int]:
        return [each.memberID for each in self.member.alarms.listed(CORRUPT)]


class InitialCheckTests(CheckTestCase):
    """``--experimental-initial-corrupt-check``."""

    def setUp(self) -> None:
        super().setUp()
        self.ours = self.hash()
        self.checked = Deferred.fromCoroutine(self.check.check_initially())
        self.b, self.c = self.asked()

    def test_all_agree(self) -> None:
        """Also a member that has more by now."""
        self.assertEqual(self.b.body, b'{"revision":4}')
        self.b.answer(200, self.body(self.ours))
        self.assertNoResult(self.checked)
        self.c.answer(200, self.body(self.ours._replace(revision=99)))
        self.successResultOf(self.checked)

    def test_one_differs(self) -> None:
        """The start fails, in one line that names it."""
        self.b.answer(200, self.body(self.ours))
        self.c.answer(200, self.body(self.ours._replace(hash=1)))
        error = self.failureResultOf(self.checked, InconsistentDataError).value
        self.assertEqual(
            str(error), "a found data inconsistency with peers: at revision 4 it holds something else than c"
        )

    def test_who_cannot_be_compared(self) -> None:
        """Other compactions, revisions that are gone or not there yet, and silence prove nothing."""
        for status, body in (
            (200, self.body(Hash(4, 1, 3))),
            (400, b"mvcc: required revision has been compacted\n"),
            (400, b"mvcc: required revision is a future revision\n"),
            (500, b""),
            (200, b"[]"),
            (200, b'{"header":{"revision":"4"}}'),
            (200, b"x"),
            (0, b"no answer"),
        ):
            if status:
                self.b.answer(status, body)
            else:
                self.b.reply.errback(TimeoutError(body))
            self.c.answer(200, self.body(self.ours))
            self.successResultOf(self.checked)
            self.checked = Deferred.fromCoroutine(self.check.check_initially())
            self.b, self.c = self.asked()

    def test_our_own_database_is_broken(self) -> None:
        """Then there is nothing to serve."""
        self.member.broken = BackendError("disk on fire")
        self.failureResultOf(Deferred.fromCoroutine(self.check.check_initially()), BackendError)


class PeriodicCheckTests(CheckTestCase):
    """``--experimental-corrupt-check-time``."""

    def setUp(self) -> None:
        super().setUp()
        self.ours = self.hash()
        self.check.start()
        self.member.reactor.advance(60)

    def test_all_agree(self) -> None:
        """No alarm; the next look is as far away as the first one was."""
        for each in self.asked():
            each.answer(200, self.body(self.ours))
        self.member.reactor.advance(59)
        self.assertEqual(self.member.peers.take(), [])
        self.member.reactor.advance(1)
        self.assertEqual(len(self.asked()), 2)
        self.assertEqual(self.member.proposed, [])

    def test_who_differs_is_named(self) -> None:
        """The alarm has the member's own id, and is raised once."""
        for _ in range(2):
            b, c = self.asked()
            b.answer(200, self.body(self.ours))
            c.answer(200, self.body(self.ours._replace(hash=1)))
            self.member.reactor.advance(60)
        self.assertEqual((self.alarms(), len(self.member.proposed)), ([C], 1))

    def test_more_than_the_leader_has(self) -> None:
        """A revision or a compaction that the leader does not know of cannot be right."""
        b, c = self.asked()
        b.answer(200, self.body(self.ours._replace(revision=5)))
        c.answer(200, self.body(Hash(4, 1, 3)))
        self.assertEqual(self.alarms(), [B, C])

    def test_what_came_meanwhile(self) -> None:
        """A member may have what the leader has by now, and be compacted as it is by now."""
        b, c = self.asked()
        self.member.put(b"4")
        b.answer(200, self.body(self.ours._replace(revision=5)))
        self.member.compact(3)
        c.answer(200, self.body(Hash(5, 1, 3)))
        self.assertEqual(self.alarms(), [])

    def test_no_answer_is_no_pass(self) -> None:
        """It is no alarm either; the next look asks again."""
        b, c = self.asked()
        b.reply.errback(ConnectionError("refused"))
        c.answer(200, self.body(self.ours))
        self.assertEqual(self.alarms(), [])
        self.member.reactor.advance(60)
        b, c = self.asked()
        b.answer(200, self.body(self.ours._replace(hash=1)))
        c.answer(200, self.body(self.ours))
        self.assertEqual(self.alarms(), [B])

    def test_the_leader_itself(self) -> None:
        """If one revision gives two hashes, it is the leader's own data that changed."""
        other = HoldingMember()
        for value in (b"1", b"2", b"rotten"):
            other.put(value)
        self.successResultOf(Deferred.fromCoroutine(hash_at(other, 0)))
        self.member.backend = other.backend
        for each in self.asked():
            each.answer(200, self.body(self.ours))
        self.assertEqual(self.alarms(), [ME])

    def test_who_does_not_lead(self) -> None:
        """Asks nobody; and who finds out only after asking raises no alarm."""
        b, c = self.asked()
        self.member.refusal = NoLeaderError()
        b.answer(200, self.body(self.ours._replace(hash=1)))
        c.answer(200, self.body(self.ours))
        self.assertEqual(self.alarms(), [])
        self.member.is_leader = False
        self.member.reactor.advance(60)
        self.assertEqual(self.member.peers.take(), [])

    def test_stopping(self) -> None:
        """Gives up what is under way."""
        asked = self.asked()
        self.check.stop()
        self.assertEqual([each.cancelled for each in asked], [True, True])
        self.assertEqual(self.member.reactor.getDelayedCalls(), [])
        self.assertEqual(self.alarms(), [])

    def test_never(self) -> None:
        """An interval of 0 is off."""
        self.check.stop()
        check = CorruptionCheck(self.member, 0)
        check.start()
        self.assertEqual(self.member.reactor.getDelayedCalls(), [])
        check.stop()
