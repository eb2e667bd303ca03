"""The plain endpoints."""

from __future__ import annotations

from urllib.parse import parse_qs

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from tests.protocols.httpfakes import View
from twistedkv.errors import RequestTimeoutError
from twistedkv.metrics import Metrics
from twistedkv.protocols.answers import Answer
from twistedkv.protocols.endpoints import Endpoints, MonitoringEndpoints


class EndpointCase(SynchronousTestCase):
    """Endpoints over a member whose facts are set."""

    def setUp(self) -> None:
        self.view = View()
        self.metrics = Metrics()
        self.endpoints = Endpoints(self.view, self.metrics.exposition, self.metrics)

    def get(self, target: str, method: str = "GET") -> Answer:
        """The answer to one request."""
        path, _, query = target.partition("?")
        return self.successResultOf(self.endpoints.answer(method, path, parse_qs(query, keep_blank_values=True)))

    def assert_says(self, target: str, status: int, body: str) -> None:
        """The answer has this status and body."""
        answer = self.get(target)
        self.assertEqual((answer.status, answer.body.decode()), (status, body))


class HealthTests(EndpointCase):
    """/health."""

    def test_a_healthy_member_says_so(self) -> None:
        """The body is etcd 3.5's, without a line end."""
        self.assert_says("/health", 200, '{"health":"true","reason":""}')
        self.assertEqual(self.metrics.health_successes, 1)

    def test_alarms_and_leader_and_read_are_looked_at_in_this_order(self) -> None:
        """The first trouble is the reason."""
        self.view.linearizable = RequestTimeoutError()
        reason = "RANGE ERROR:etcdserver: request timed out"
        self.assert_says("/health", 503, f'{{"health":"false","reason":"{reason}"}}\n')
        self.view.has_leader = False
        self.assert_says("/health", 503, '{"health":"false","reason":"RAFT NO LEADER"}\n')
        self.view.raised = ["CORRUPT"]
        self.assert_says("/health", 503, '{"health":"false","reason":"ALARM CORRUPT"}\n')
        self.view.raised = ["LATER"]
        self.assert_says("/health", 503, '{"health":"false","reason":"ALARM UNKNOWN"}\n')
        self.assertEqual(self.metrics.health_failures, 4)

    def test_alarms_can_be_excluded(self) -> None:
        """An alarm that the operator knows of does not count; others do."""
        self.view.raised = ["NOSPACE"]
        self.assert_says("/health", 503, '{"health":"false","reason":"ALARM NOSPACE"}\n')
        self.assert_says("/health?exclude=NOSPACE", 200, '{"health":"true","reason":""}')
        self.view.raised = ["NOSPACE", "CORRUPT"]
        self.assert_says("/health?exclude=NOSPACE", 503, '{"health":"false","reason":"ALARM CORRUPT"}\n')
        self.assert_says("/health?exclude=NOSPACE&exclude=CORRUPT", 200, '{"health":"true","reason":""}')

    def test_a_serializable_check_needs_no_leader(self) -> None:
        """It asks this member alone."""
        self.view.has_leader = False
        self.view.linearizable = RequestTimeoutError()
        self.assert_says("/health?serializable=true", 200, '{"health":"true","reason":""}')
        self.view.serializable = RequestTimeoutError()
        self.assertEqual(self.get("/health?serializable=true").status, 503)

    def test_the_answer_waits_for_the_read(self) -> None:
        """A read that takes its time is waited for."""
        self.view.linearizable = read = Deferred()
        answer = self.endpoints.answer("GET", "/health", {})
        self.assertNoResult(answer)
        read.callback(None)
        self.assertEqual(self.successResultOf(answer).status, 200)

    def test_only_get_is_allowed(self) -> None:
        """Anything else is told so, and checks nothing."""
        for path in ("/health", "/version", "/livez", "/readyz/non_learner"):
            answer = self.get(path, "POST")
            self.assertEqual((answer.status, answer.body), (405, b"Method Not Allowed\n"))
            self.assertIn((b"Allow", b"GET"), answer.fields.pairs)
        self.assertEqual(self.metrics.health_successes, 0)


class CheckTests(EndpointCase):
    """/livez and /readyz."""

    def test_passed_checks_are_listed_only_when_asked_for(self) -> None:
        """ok is enough, verbose names them."""
        self.assert_says("/livez", 200, "ok\n")
        self.assert_says("/livez?verbose", 200, "[+]serializable_read ok\nok\n")
        names = ("data_corruption", "serializable_read", "linearizable_read", "non_learner")
        self.assert_says("/readyz?verbose", 200, "".join(f"[+]{name} ok\n" for name in names) + "ok\n")

    def test_a_failed_check_is_named_with_its_reason(self) -> None:
        """The body says which, and the status is 503."""
        self.view.linearizable = RequestTimeoutError()
        self.view.raised = ["CORRUPT"]
        self.view.is_learner = True
        answer = self.get("/readyz")
        self.assertEqual(answer.status, 503)
        self.assertEqual(
            answer.body.decode().splitlines(),
            [
                "[-]data_corruption failed: alarm activated: CORRUPT",
                "[+]serializable_read ok",
                "[-]linearizable_read failed: etcdserver: request timed out",
                "[-]non_learner failed: not a voter: the member is a learner",
                "",
            ],
        )
        self.assert_says("/livez", 200, "ok\n")

    def test_checks_can_be_excluded_or_asked_for_alone(self) -> None:
        """By parameter, or by a path of their own."""
        self.view.raised = ["CORRUPT"]
        self.assert_says("/readyz?exclude=data_corruption", 200, "ok\n")
        self.assert_says("/readyz/linearizable_read", 200, "ok\n")
        self.assert_says("/readyz/data_corruption", 503, "[-]data_corruption failed: alarm activated: CORRUPT\n\n")

    def test_checks_are_counted(self) -> None:
        """Each check has its count, and its last result."""
        self.get("/livez")
        self.view.serializable = RequestTimeoutError()
        self.get("/livez")
        text = self.get("/metrics").body.decode()
        self.assertIn('etcd_server_healthcheck{name="serializable_read",type="livez"} 0\n', text)
        for status in ("success", "error"):
            labels = f'name="serializable_read",status="{status}",type="livez"'
            self.assertIn(f"etcd_server_healthchecks_total{{{labels}}} 1\n", text)


class OtherTests(EndpointCase):
    """/version, /metrics, and what is not there."""

    def test_versions_are_the_servers_and_the_clusters(self) -> None:
        """The cluster's is undecided at first."""
        self.assert_says("/version", 200, '{"etcdserver":"3.5.1","etcdcluster":"3.5.0"}')
        self.view.cluster_version = ""
        self.assert_says("/version", 200, '{"etcdserver":"3.5.1","etcdcluster":"not_decided"}')

    def test_metrics_are_text_for_prometheus(self) -> None:
        """Whatever the method, as in etcd."""
        for method in ("GET", "POST"):
            answer = self.get("/metrics", method)
            self.assertIn(b"# TYPE etcd_server_health_success counter\n", answer.body)
            self.assertIn((b"Content-Type", b"text/plain; version=0.0.4; charset=utf-8"), answer.fields.pairs)

    def test_unknown_paths_are_not_found(self) -> None:
        """Also those that only look like known ones."""
        for path in ("/", "/nope", "/health/", "/livez/", "/livez/non_learner", "/readyz/x", "/version/x", "*"):
            self.assert_says(path, 404, "404 page not found\n")

    def test_a_port_for_monitoring_has_no_version(self) -> None:
        """As etcd's, it has all the others."""
        self.endpoints = MonitoringEndpoints(self.view, self.metrics.exposition, self.metrics)
        self.assert_says("/version", 404, "404 page not found\n")
        self.assertEqual(
            {path: self.get(path).status for path in ("/health", "/livez", "/readyz", "/metrics")},
            {
                "/health": 200,
                "/livez": 200,
                "/readyz": 200,
                "/metrics": 200,
            },
        )
