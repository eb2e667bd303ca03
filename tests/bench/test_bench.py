"""The benchmark's own arithmetic and its HTTP client."""

from __future__ import annotations

import json
from random import Random

from twisted.trial.unittest import SynchronousTestCase

from tests.bench.__main__ import ROWS, Bench, Figures, table
from tests.bench.connections import HttpLoad, LoadError
from tests.bench.load import Job, Result, requests
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


class RequestsTests(SynchronousTestCase):
    """What is sent."""

    def _job(self, **changes: object) -> Job:
        fields = {"host": "h", "port": 1, "server_pids": [1], "tls": None, "method": "put", "gateway": False}
        fields |= {"connections": 1, "streams": 1, "keys": 10, "value_bytes": 256, "seconds": 1.0}
        return Job(**(fields | changes))

    def test_filling_puts_every_key_once(self) -> None:
        """A job without a time puts each key once, with values of the right size."""
        made = [pb.PutRequest.FromString(each) for each in requests(self._job(seconds=0), Random(1))]
        self.assertEqual(len({each.key for each in made}), 10)
        self.assertEqual({len(each.value) for each in made}, {256})

    def test_the_gateway_gets_the_same_in_json(self) -> None:
        """Requests for the gateway are whole HTTP requests with a JSON body."""
        for request in requests(self._job(gateway=True, seconds=0), Random(1)):
            head, _, body = request.partition(b"\r\n\r\n")
            self.assertIn(b"Content-Length: %d" % len(body), head)
            self.assertEqual(set(json.loads(body)), {"key", "value"})


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
