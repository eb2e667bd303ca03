"""Changes of the members, leadership and learners: what real etcd 3.5.1 says to them is what twistedkv says."""

from __future__ import annotations

import http.client
import json
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from google.protobuf.message import Message
from twisted.trial.unittest import SynchronousTestCase

from tests.functional.clients import GrpcClient
from tests.functional.cluster import ClusterOfProcesses, Make
from tests.functional.processes import MISSING_ETCD, EtcdProcess, ServerFailed, ServerProcess, TwistedkvProcess
from tests.functional.test_etcdctl import Command, Outcome, run
from twistedkv.pb import rpc_pb2 as pb
from twistedkv.protocols.gateway import PATHS

TWISTEDKV_TOO = True
"""Whether twistedkv is examined as well; etcd itself always is, so that what is expected here is what it does."""

KINDS: tuple[type[ServerProcess], ...] = (EtcdProcess, TwistedkvProcess) if TWISTEDKV_TOO else (EtcdProcess,)
CLUSTERS: tuple[tuple[Make, Make, Make], ...] = (
    (EtcdProcess, EtcdProcess, EtcdProcess),
    *(
        (
            (TwistedkvProcess, TwistedkvProcess, TwistedkvProcess),
            (EtcdProcess, TwistedkvProcess, TwistedkvProcess),
            (TwistedkvProcess, EtcdProcess, EtcdProcess),
        )
        if TWISTEDKV_TOO
        else ()
    ),
)
"""Two voters and a learner."""

TIMEOUT_S = 10.0
PATIENCE_S = 20.0
INTERVAL_S = 0.1
CLUSTER, MAINTENANCE = "/etcdserverpb.Cluster/", "/etcdserverpb.Maintenance/"

NOT_STARTED = "etcdserver: re-configuration failed due to not enough started members"
NOT_FOUND = "etcdserver: member not found"
URL_EXISTS = "etcdserver: Peer URLs already exists"
BAD_URLS = "etcdserver: given member URLs are invalid"
NOT_LEARNER = "etcdserver: can only promote a learner member"
NOT_READY = "etcdserver: can only promote a learner member which is in sync with leader"
TOO_MANY = "etcdserver: too many learner members in cluster"
UNHEALTHY = "etcdserver: unhealthy cluster"
FOR_LEARNER = "etcdserver: rpc not supported for learner"
NO_LEADER = "etcdserver: no leader"
BAD_TRANSFEREE = "etcdserver: bad leader transferee"
NOT_LEADER = "etcdserver: not leader"


class Step(NamedTuple):
    """One run of etcdctl, and what it prints; ``{me}``, ``{new}`` and ``{peer}`` stand for two ids and a URL."""

    line: str
    stdout: str = ""
    error: str = ""

    def outcome(self) -> Outcome:
        return Outcome(1 if self.error else 0, self.stdout, f"Error: {self.error}\n" if self.error else "")


ADDED = """Member ID added to cluster ID

ETCD_NAME="x"
ETCD_INITIAL_CLUSTER="m1=http://ADDRESS,x=http://ADDRESS,x=http://ADDRESS"
ETCD_INITIAL_ADVERTISE_PEER_URLS="http://ADDRESS,http://ADDRESS"
ETCD_INITIAL_CLUSTER_STATE="existing"
"""
ME_LISTED = "ID, started, m1, http://ADDRESS, http://ADDRESS, false\n"
NEW_LISTED = "ID, unstarted, , http://ADDRESS,http://ADDRESS, , true\n"

ALONE = (
    Step("member list", ME_LISTED),
    Step("member add x --peer-urls={peer}", error=URL_EXISTS),
    Step("member add x --learner --peer-urls={peer}", error=URL_EXISTS),
    Step("member remove {me}", error=NOT_STARTED),
    Step("member remove 77", error=NOT_FOUND),
    Step("member update 77 --peer-urls=http://127.0.0.1:1", error=NOT_FOUND),
    Step("member promote 77", error=NOT_FOUND),
    Step("member promote {me}", error=NOT_LEARNER),
    Step("member add x --learner --peer-urls=http://127.0.0.1:1,http://127.0.0.1:2", ADDED),
)
WITH_LEARNER = (
    Step("member add y --learner --peer-urls=http://127.0.0.1:3", error=TOO_MANY),
    Step("member promote {new}", error=NOT_READY),
    Step("member update {new} --peer-urls={peer}", error=URL_EXISTS),
    Step("member update {me} --peer-urls=http://127.0.0.1:1", error=URL_EXISTS),
    Step("member update {new} --peer-urls=http://127.0.0.1:4", "Member ID updated in cluster ID\n"),
    Step("member remove {me}", error=NOT_STARTED),
    Step("member remove {new}", "Member ID removed from cluster ID\n"),
    Step("member remove {new}", error=NOT_FOUND),
    Step("member promote {new}", error=NOT_FOUND),
    Step("member update {new} --peer-urls=http://127.0.0.1:4", error=NOT_FOUND),
    Step("member update {me} --peer-urls={peer}", "Member ID updated in cluster ID\n"),
    Step("member list", ME_LISTED),
)


class MembershipCase(SynchronousTestCase):
    """Means to ask."""

    skip = MISSING_ETCD

    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = Path(directory.name)
        self.bell = threading.Event()

    def until(self, what: str, condition: Callable[[], bool]) -> None:
        """Ask again until it is so: other processes tell nobody."""
        deadline = time.monotonic() + PATIENCE_S
        problem: object = "it is not so"
        while time.monotonic() < deadline:
            try:
                if condition():
                    return
            except (ServerFailed, OSError) as error:
                problem = error
            self.bell.wait(INTERVAL_S)  # which nobody rings: a pause between two questions
        self.fail(f"{what}: {problem}")

    def client(self, server: ServerProcess) -> GrpcClient:
        client = GrpcClient(server)
        self.addCleanup(client.close)
        return client

    def ask(self, client: GrpcClient, path: str, request: Message, response: type[Any] | None = None) -> Any:
        """The answer to a unary call, or code and text of its refusal."""
        code, text, answer = client.call_raw(path, request.SerializeToString(), TIMEOUT_S)
        if answer is None:
            return code, text
        return None if response is None else response.FromString(answer)

    def members(self, client: GrpcClient) -> Sequence[pb.Member]:
        answer = self.ask(
            client, f"{CLUSTER}MemberList", pb.MemberListRequest(linearizable=True), pb.MemberListResponse
        )
        return list(answer.members)


class LoneMemberTests(MembershipCase):
    """One started member, and others that never start."""

    def each_kind(self) -> Iterator[ServerProcess]:
        """A new server of each kind."""
        for kind in KINDS:
            server = kind(self.directory / kind.label.split()[0])
            self.addCleanup(server.kill9)  # without a quorum there is nothing to end in order
            server.start()
            yield server

    def test_etcdctl(self) -> None:
        """etcdctl prints the same, whatever becomes of a change."""
        for server in self.each_kind():
            client = self.client(server)
            (me,) = self.members(client)
            names = {"me": f"{me.ID:x}", "peer": server.peer_url}
            self.walk(server, ALONE, names)
            names["new"] = next(f"{each.ID:x}" for each in self.members(client) if each.ID != me.ID)
            listed = run(server, Command(("member", "list"))).stdout.splitlines(keepends=True)
            self.assertEqual(sorted(listed), sorted([ME_LISTED, NEW_LISTED]), server.label)
            self.walk(server, WITH_LEARNER, names)

    def walk(self, server: ServerProcess, steps: Sequence[Step], names: dict[str, str]) -> None:
        for step in steps:
            outcome = run(server, Command(tuple(step.line.format(**names).split())))
            stdout = re.sub(
                r'(?<=CLUSTER=")[^"]*', _sorted, outcome.stdout
            )  # in it members come by ids, which are chance
            self.assertEqual(outcome._replace(stdout=stdout), step.outcome(), f"{server.label}: {step.line}")

    def test_what_etcdctl_does_not_let_through(self) -> None:
        """Requests that are wrong in themselves have the server's own words."""
        for server in self.each_kind():
            client = self.client(server)
            (me,) = self.members(client)
            for urls in (
                [],
                [""],
                ["x"],
                ["http://a"],
                ["http://a:1/"],
                ["ftp://a:1"],
                ["http://a:b"],
                ["http://a b:1"],
            ):
                for learner in (False, True):
                    refused = self.ask(
                        client, f"{CLUSTER}MemberAdd", pb.MemberAddRequest(peerURLs=urls, isLearner=learner)
                    )
                    self.assertEqual(refused, (3, BAD_URLS), f"{server.label}: {urls}")
            request = pb.MemberAddRequest(peerURLs=[" HTTP://b:2", "http://a:1 "], isLearner=True)
            added = self.ask(client, f"{CLUSTER}MemberAdd", request, pb.MemberAddResponse)
            self.assertEqual(list(added.member.peerURLs), ["http://a:1", "http://b:2"], server.label)
            self.assertEqual((added.header.revision, added.header.member_id), (0, me.ID), server.label)
            self.assertEqual([each.ID for each in added.members], sorted([me.ID, added.member.ID]), server.label)
            for target, refusal in ((added.member.ID, BAD_TRANSFEREE), (77, BAD_TRANSFEREE), (me.ID, None)):
                moved = self.ask(client, f"{MAINTENANCE}MoveLeader", pb.MoveLeaderRequest(targetID=target))
                self.assertEqual(moved, refusal and (9, refusal), server.label)

    def test_without_a_quorum(self) -> None:
        """A second voter that does not start leaves no quorum, and what would make it worse is refused at once."""
        for server in self.each_kind():
            client = self.client(server)
            (me,) = self.members(client)
            request = pb.MemberAddRequest(peerURLs=["http://127.0.0.1:1"])
            added = self.ask(client, f"{CLUSTER}MemberAdd", request, pb.MemberAddResponse)
            self.assertEqual(added.member.peerURLs, ["http://127.0.0.1:1"], server.label)
            for path, refused, expected in (
                ("MemberAdd", pb.MemberAddRequest(peerURLs=["http://127.0.0.1:2"]), (2, NOT_STARTED)),
                ("MemberAdd", pb.MemberAddRequest(peerURLs=["http://127.0.0.1:2"], isLearner=True), (14, UNHEALTHY)),
                ("MemberRemove", pb.MemberRemoveRequest(ID=me.ID), (2, NOT_STARTED)),
            ):
                self.assertEqual(self.ask(client, f"{CLUSTER}{path}", refused), expected, server.label)

    def test_peer_port(self) -> None:
        """Other members are answered alike, down to the fields of the header."""
        text = {"content-type": "text/plain; charset=utf-8", "x-content-type-options": "nosniff"}
        for server in self.each_kind():
            (me,) = self.members(self.client(server))
            promote = "/members/promote/"
            cluster = {"x-etcd-cluster-id": self.peer(server, "GET", "/members")[1]["x-etcd-cluster-id"]}
            for method, path, status, fields, body in (
                ("GET", "/nothing", 404, text, b"404 page not found\n"),
                ("GET", "/members/", 404, text, b"404 page not found\n"),
                ("GET", f"{promote}77", 405, text | {"allow": "POST"}, b"Method Not Allowed\n"),
                ("POST", promote, 404, text | cluster, b"member  not found in cluster\n"),
                ("POST", f"{promote}zz", 404, text | cluster, b"member zz not found in cluster\n"),
                ("POST", f"{promote}1/2", 404, text | cluster, b"member 1/2 not found in cluster\n"),
                ("POST", f"{promote}+77", 404, text | cluster, b"member +77 not found in cluster\n"),
                ("POST", f"{promote}{1 << 64}", 404, text | cluster, b"member %d not found in cluster\n" % (1 << 64)),
                ("POST", f"{promote}077", 404, text | cluster, b"membership: ID not found\n"),
                ("POST", f"{promote}{me.ID}", 412, text | cluster, b"membership: can only promote a learner member\n"),
                ("POST", "/downgrade/enabled", 405, text | {"allow": "GET"}, b"Method Not Allowed\n"),
                ("GET", "/downgrade/enabled", 200, {"content-type": "text/plain"} | cluster, b"false"),
                ("GET", "/downgrade/enabled/", 404, text, b"404 page not found\n"),
            ):
                answer = self.peer(server, method, path)
                if answer[0] == 500:  # etcd 3.5.1 loses a change that is proposed while the one before is not applied
                    self.bell.wait(INTERVAL_S)
                    answer = self.peer(server, method, path)
                self.assertEqual(answer, (status, fields, body), f"{server.label}: {path}")

    def peer(self, server: ServerProcess, method: str, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, header and body of what the peer port answers."""
        connection = http.client.HTTPConnection("127.0.0.1", server.peer_port, timeout=TIMEOUT_S)
        try:
            connection.request(method, path)
            response = connection.getresponse()
            fields = {name.lower(): value for name, value in response.getheaders()}
            for everywhere in ("date", "content-length"):
                del fields[everywhere]
            return response.status, fields, response.read()
        finally:
            connection.close()


def _sorted(found: re.Match[str]) -> str:
    return ",".join(sorted(found[0].split(",")))


UNARY: tuple[tuple[str, Message, str | None], ...] = (
    ("etcdserverpb.KV/Put", pb.PutRequest(key=b"k"), FOR_LEARNER),
    ("etcdserverpb.KV/Range", pb.RangeRequest(key=b"k"), FOR_LEARNER),
    ("etcdserverpb.KV/Range", pb.RangeRequest(key=b"k", serializable=True), None),
    ("etcdserverpb.Cluster/MemberList", pb.MemberListRequest(), FOR_LEARNER),
    ("etcdserverpb.Maintenance/Status", pb.StatusRequest(), None),
    ("etcdserverpb.Maintenance/Alarm", pb.AlarmRequest(), FOR_LEARNER),
    ("etcdserverpb.Lease/LeaseLeases", pb.LeaseLeasesRequest(), FOR_LEARNER),
    ("v3lockpb.Lock/Lock", pb.RangeRequest(), FOR_LEARNER),  # no field of it is set
)
STREAMS: tuple[tuple[str, Message, str | None], ...] = (
    ("etcdserverpb.Watch/Watch", pb.WatchRequest(create_request=pb.WatchCreateRequest(key=b"k")), FOR_LEARNER),
    ("etcdserverpb.Lease/LeaseKeepAlive", pb.LeaseKeepAliveRequest(ID=1), FOR_LEARNER),
    ("v3electionpb.Election/Observe", pb.RangeRequest(), FOR_LEARNER),
    ("etcdserverpb.Maintenance/Snapshot", pb.SnapshotRequest(), None),
)
JSON_PATHS = {method: path for path, method in PATHS.items()}
REQUIRE_LEADER = (("hasleader", "true"),)


class ClusterTests(MembershipCase):
    """Two voters and a learner, which becomes the third."""

    timeout = 240

    def test_learner_promotion_leader(self) -> None:
        """What the learner answers, its promotion by a follower, leadership moved, and lost."""
        for kinds in CLUSTERS:
            self.walk_through(kinds, self.directory / "-".join(kind.__name__ for kind in kinds))

    def walk_through(self, kinds: tuple[Make, Make, Make], directory: Path) -> None:
        options = ["--strict-reconfig-check=false"]  # else every change has to wait for five seconds
        self.cluster = ClusterOfProcesses(directory, kinds[:2], options, secure=False)
        self.addCleanup(self.cluster.kill_all)
        self.cluster.start()
        learner = self.cluster.add(kinds[2], learner=True)
        learner.start()
        self.until("the learner is known to be one", lambda: self.cluster.status(learner).get("isLearner") is True)
        self.learner_answers(learner)
        self.promoted_by_a_follower(learner)
        self.leadership_moves()
        self.leadership_is_lost()
        self.cluster.kill_all()

    def learner_answers(self, learner: ServerProcess) -> None:
        client = self.client(learner)
        for name, request, refusal in UNARY:
            expected = refusal and (14, refusal)
            self.assertEqual(self.ask(client, f"/{name}", request), expected, f"{learner.label}: {name}")
        for name, request, refusal in STREAMS:
            self.assertEqual(self.first(client, name, request), refusal and (14, refusal), f"{learner.label}: {name}")
        for name, *_ in (*UNARY[:1], *STREAMS[:1]):
            status, answer = self.gateway(learner, name)
            found = answer["error"]["message"] if isinstance(answer["error"], dict) else answer["message"]
            self.assertEqual((status, found), (503, FOR_LEARNER), f"{learner.label}: {name}")
        self.assertEqual(self.gateway(learner, "etcdserverpb.Maintenance/Status")[0], 200)

    def first(self, client: GrpcClient, name: str, request: Message) -> tuple[int, str] | None:
        """None if a stream gives a message, else what it is refused by."""
        stream = client.open(f"/{name}", iter([request.SerializeToString()]))
        try:
            next(stream)
        except grpc.RpcError as error:
            return error.code().value[0], error.details() or ""
        finally:
            stream.cancel()
        return None

    def gateway(self, server: ServerProcess, name: str, *headers: tuple[str, str]) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=TIMEOUT_S)
        try:
            connection.request("POST", f"/v3/{JSON_PATHS[name]}", b"{}", dict(headers))
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def promoted_by_a_follower(self, learner: ServerProcess) -> None:
        """Its own answer is that of the leader, whom it asks over the peer port."""
        leader = self.cluster.leader()
        follower = next(each for each in self.cluster.members if each not in (leader, learner))
        client = self.client(follower)
        for target, refusal in ((77, (5, NOT_FOUND)), (self.id_of(leader), (9, NOT_LEARNER))):
            refused = self.ask(client, f"{CLUSTER}MemberPromote", pb.MemberPromoteRequest(ID=target))
            self.assertEqual(refused, refusal, f"{follower.label} at {leader.label}")
        request = pb.MemberPromoteRequest(ID=self.id_of(learner))
        promoted = self.ask(client, f"{CLUSTER}MemberPromote", request, pb.MemberPromoteResponse)
        self.assertEqual([each.isLearner for each in promoted.members], [False] * 3, follower.label)
        self.assertEqual(promoted.header.member_id, self.id_of(follower))
        self.until("it is a voter", lambda: not self.cluster.status(learner).get("isLearner"))
        self.until(
            "it answers", lambda: self.ask(self.client(learner), f"{CLUSTER}MemberList", pb.MemberListRequest()) is None
        )

    def leadership_moves(self) -> None:
        """From each member to the next; only the leader is the one to ask."""
        for _ in self.cluster.members:
            leader = self.cluster.leader()
            at = self.cluster.members.index(leader)
            target = self.cluster.members[(at + 1) % 3]
            client = self.client(target)
            request = pb.MoveLeaderRequest(targetID=self.id_of(target))
            refused = self.ask(client, f"{MAINTENANCE}MoveLeader", request)
            self.assertEqual(refused, (9, NOT_LEADER), target.label)
            said = self.cluster.ctl("move-leader", f"{self.id_of(target):x}")
            moved = f"Leadership transferred from {self.id_of(leader):x} to {self.id_of(target):x}\n"
            self.assertEqual(said, moved, f"{leader.label} to {target.label}")
            self.until("it is known to lead", lambda target=target: self.cluster.leader() is target)  # type: ignore[misc]

    def leadership_is_lost(self) -> None:
        """Callers who require a leader are refused once there is none, and their streams end."""
        left = self.cluster.members[0]
        options = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
        channel = grpc.insecure_channel(left.address, options)
        self.addCleanup(channel.close)
        self.assertIsNone(self.required(channel.unary_unary, *UNARY[2][:2]))
        stop = threading.Event()
        self.addCleanup(stop.set)

        def requests() -> Iterator[bytes]:
            yield STREAMS[0][1].SerializeToString()
            stop.wait(PATIENCE_S)

        opened = channel.stream_stream(f"/{STREAMS[0][0]}")
        watch = opened(requests(), metadata=REQUIRE_LEADER, timeout=PATIENCE_S)
        next(watch)
        for each in self.cluster.members[1:]:
            each.kill9()
        with self.assertRaises(grpc.RpcError) as caught:
            next(watch)
        stop.set()
        self.assertEqual((caught.exception.code().value[0], caught.exception.details()), (14, NO_LEADER), left.label)
        for name, request, _ in UNARY:
            refused = self.required(channel.unary_unary, name, request)
            self.assertEqual(refused, (14, NO_LEADER), f"{left.label}: {name}")
        self.assertEqual(self.required(channel.unary_stream, *STREAMS[3][:2]), (14, NO_LEADER), left.label)
        status, answer = self.gateway(left, UNARY[4][0], ("Grpc-Metadata-hasleader", "true"))
        self.assertEqual((status, answer["message"]), (503, NO_LEADER), left.label)
        self.assertIsNone(self.ask(self.client(left), f"/{UNARY[2][0]}", UNARY[2][1]), left.label)

    def required(self, opener: Callable[[str], Any], name: str, request: Message) -> tuple[int, str] | None:
        """None if a call that requires a leader is answered, else what it is refused by."""
        try:
            answer = opener(f"/{name}")(request.SerializeToString(), metadata=REQUIRE_LEADER, timeout=TIMEOUT_S)
            if not isinstance(answer, bytes):
                next(answer)
        except grpc.RpcError as error:
            return error.code().value[0], error.details() or ""
        return None

    def id_of(self, member: ServerProcess) -> int:
        found: int = self.cluster.status(member)["header"]["member_id"]
        return found
