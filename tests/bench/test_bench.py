"""The benchmark's own arithmetic and its HTTP clients."""

from __future__ import annotations

import json
from random import Random
from urllib.parse import parse_qs

from twisted.trial.unittest import SynchronousTestCase

from tests.bench.__main__ import ROWS, Bench, Figures, table
from tests.bench.connections import HttpLoad, LoadError
from tests.bench.load import Job, Result, requests
from tests.bench.longpolls import PollLoad, SetLoad
from twistedkv.pb import rpc_pb2 as pb

_PLAIN = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 7\r\n\r\n{"a":1}'
_CHUNKED = b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n7\r\n{"a":1}\r\n0\r\n\r\n'


class HttpLoadTests(SynchronousTestCase):
    """One keep-alive connection without a socket."""

    def test_each_whole_answer_brings_the_next_request(self) -> None:
        """However an answer is cut, the next request goes out when it is whole, and not before."""
        for answer in (_PLAIN, _CHUNKED):
            for cut in range(1, len(answer)):
                took: list[float] = []
                load = HttpLoad(iter([b"one", b"two"]), 7, took.append)
                self.assertEqual(load.start(), b"one")
                self.assertEqual((load.receive(answer[:cut]), len(took)), (b"", 0), cut)
                self.assertEqual((load.receive(answer[cut:]), len(took)), (b"two", 1), cut)
                self.assertEqual((load.receive(answer), len(took), load.in_flight), (b"", 2, 0))

    def test_a_refusal_ends_the_run(self) -> None:
        """An answer that is no success, or has no value in it, is not counted as one."""
        for answer, least_bytes in ((_PLAIN.replace(b"200 OK", b"503 Service Unavailable"), 1), (_PLAIN, 256)):
            load = HttpLoad(iter([b"one"]), least_bytes, lambda _: None)
            load.start()
            with self.assertRaises(LoadError):
                load.receive(answer)

    def test_a_new_key_is_a_success(self) -> None:
        """The v2 API says 201 where a set makes the key."""
        took: list[float] = []
        load = HttpLoad(iter([b"one"]), 7, took.append)
        load.start()
        load.receive(_PLAIN.replace(b"200 OK", b"201 Created"))
        self.assertEqual((len(took), load.in_flight), (1, 0))


_WAITS = b"HTTP/1.1 200 OK\r\nX-Etcd-Index: 6\r\nTransfer-Encoding: chunked\r\n\r\n"
_EVENT = (
    b'{"action":"set","node":{"key":"/k","value":"b","modifiedIndex":7,"createdIndex":7},'
    b'"prevNode":{"key":"/k","value":"a","modifiedIndex":6,"createdIndex":6}}\n'
)
_CAME = b"%x\r\n%s\r\n0\r\n\r\n" % (len(_EVENT), _EVENT)


class PollLoadTests(SynchronousTestCase):
    """Long polls of one key without a socket."""

    def test_each_event_brings_a_poll_for_the_next(self) -> None:
        """However head and event are cut, the next poll goes out when the event is whole, for what follows it."""
        answer = _WAITS + _CAME
        for cut in range(1, len(answer)):
            got: list[int] = []
            load = PollLoad("h:1", b"k", 1, got.append)
            self.assertEqual(load.start(), b"GET /v2/keys/k?wait=true HTTP/1.1\r\nHost: h:1\r\n\r\n")
            self.assertEqual((load.receive(answer[:cut]), got), (b"", []), cut)
            self.assertEqual(load.created, int(cut >= len(_WAITS)), cut)
            following = b"GET /v2/keys/k?wait=true&waitIndex=8 HTTP/1.1\r\nHost: h:1\r\n\r\n"
            self.assertEqual((load.receive(answer[cut:]), got), (following, [1]), cut)
            self.assertEqual((load.receive(answer), got), (following, [1, 1]), cut)

    def test_a_poll_that_is_refused_or_ends_without_an_event_ends_the_run(self) -> None:
        """A refusal, an empty answer or too small an event is not counted."""
        refusal = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 19\r\n\r\n"
        for answer, least_bytes in ((refusal, 1), (_WAITS + b"0\r\n\r\n", 0), (_WAITS + _CAME, 256)):
            load = PollLoad("h:1", b"k", least_bytes, lambda _: self.fail("it is no event"))
            load.start()
            with self.assertRaises(LoadError):
                load.receive(answer)


class SetLoadTests(SynchronousTestCase):
    """Sets of one key without a socket."""

    def test_one_set_is_on_its_way_at_a_time(self) -> None:
        """A set that is asked for before the last one is answered goes out with its answer."""
        load = SetLoad(b"set")
        self.assertEqual([load.start(), load.put(), load.put()], [b"", b"set", b""])
        for cut in range(1, len(_PLAIN)):
            self.assertEqual(load.receive(_PLAIN[:cut]), b"", cut)
            self.assertEqual(load.receive(_PLAIN[cut:]), b"set", cut)
            self.assertEqual(load.put(), b"", cut)
        self.assertEqual([load.receive(_PLAIN), load.receive(_PLAIN), load.in_flight], [b"set", b"", 0])

    def test_a_refusal_ends_the_run(self) -> None:
        """An answer that is no success is not counted as one."""
        load = SetLoad(b"set")
        load.put()
        with self.assertRaises(LoadError):
            load.receive(_PLAIN.replace(b"200 OK", b"500 Internal Server Error"))


class RequestsTests(SynchronousTestCase):
    """What is sent."""

    def _job(self, **changes: object) -> Job:
        fields = {"host": "h", "port": 1, "server_pids": [1], "tls": None, "api": "grpc", "method": "put"}
        fields |= {"connections": 1, "streams": 1, "keys": 10, "value_bytes": 256, "seconds": 1.0}
        return Job(**(fields | changes))

    def test_filling_puts_every_key_once(self) -> None:
        """A job without a time puts each key once, with values of the right size."""
        made = [pb.PutRequest.FromString(each) for each in requests(self._job(seconds=0), Random(1))]
        self.assertEqual(len({each.key for each in made}), 10)
        self.assertEqual({len(each.value) for each in made}, {256})

    def test_the_gateway_gets_the_same_in_json(self) -> None:
        """Requests for the gateway are whole HTTP requests with a JSON body."""
        for request in requests(self._job(api="gateway", seconds=0), Random(1)):
            head, _, body = request.partition(b"\r\n\r\n")
            self.assertIn(b"Content-Length: %d" % len(body), head)
            self.assertEqual(set(json.loads(body)), {"key", "value"})

    def test_v2_gets_the_same_as_a_form(self) -> None:
        """A set is a whole HTTP request with a form, each key once; a get names the key and has no body."""
        made = requests(self._job(api="v2", method="set", seconds=0), Random(1))
        for number, request in enumerate(made):
            head, _, form = request.partition(b"\r\n\r\n")
            self.assertTrue(head.startswith(b"PUT /v2/keys/bench/%08d HTTP/1.1\r\n" % number), head)
            self.assertIn(b"Content-Length: %d" % len(form), head)
            self.assertEqual(len(parse_qs(form, strict_parsing=True)[b"value"][0]), 256)
        self.assertEqual(len(made), 10)
        (request, *_) = requests(self._job(api="v2", method="get", keys=1), Random(1))
        self.assertEqual(request, b"GET /v2/keys/bench/00000000 HTTP/1.1\r\nHost: h:1\r\n\r\n")


class FiguresTests(SynchronousTestCase):
    """From results to the table."""

    def test_passes_add_up(self) -> None:
        """Rates and CPU time are over all passes, percentiles over all answers."""
        figures = Figures()
        figures.add(
            Result(seconds=1.0, server_cpu_s=0.01, client_cpu_s=0.0, latencies_us=list(range(1000, 61000, 1000)))
        )
        figures.add(
            Result(seconds=1.0, server_cpu_s=0.03, client_cpu_s=0.0, latencies_us=list(range(61000, 101000, 1000)))
        )
        self.assertEqual((figures.rate, figures.cpu_us), (50.0, 400.0))
        self.assertEqual((figures.percentile(50), figures.percentile(99)), (51.0, 100.0))

    def test_the_table_gives_the_second_as_a_multiple_of_the_first(self) -> None:
        """A ratio is the second server's figure divided by the first's."""
        bench = Bench(ROWS[:1], ["etcd", "twistedkv"], 1.0, 1, 10, plaintext=True)
        bench.figures["etcd", "put-50x1"].add(Result(1.0, 0.02, 0.0, [2000] * 100))
        bench.figures["twistedkv", "put-50x1"].add(Result(1.0, 0.03, 0.0, [1000] * 300))
        line = table(bench, ROWS[:1], ["etcd", "twistedkv"]).splitlines()[2]
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        self.assertEqual(cells[1:4], ["100", "300", "3.00"])
        self.assertEqual(cells[4:7], ["200.0", "100.0", "0.50"])
