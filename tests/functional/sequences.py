"""The differential test of streams: the actions of :mod:`tests.functional.coordination` on two servers, compared.

Answers of calls are compared as in :mod:`tests.functional.differential`. Of a watch what is compared is what a client
can rely on: its events in their order, whatever responses carry them; the other responses field by field; and on each
side that no revision is torn apart and headers name the revision they must (reference: etcd's api/v3rpc/watch.go).

At rest, every watch has what the history says it should have: the history is what a watch on everything has shown on
the reference, and it also says how long to wait. Nothing here waits for a time to pass.

Run by hand with ``python -m tests.functional.sequences --help``.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from google.protobuf.message import Message

from tests.functional.clients import Reply
from tests.functional.coordination import (
    Action,
    Ask,
    Begin,
    Close,
    CoordinationSource,
    GrantPicked,
    KeepAlive,
    Observe,
    OpenGateway,
    Send,
)
from tests.functional.differential import equal, follow, masked, masked_json, readable
from tests.functional.fullclient import Client, HarnessError
from tests.functional.operations import Door, Step
from tests.functional.processes import EtcdProcess, TLSFiles, TwistedkvProcess
from tests.functional.streams import GatewayStream, Stream
from tests.functional.watchshape import (
    NEVER,
    Watch,
    answers,
    as_text,
    by_watch,
    canonical,
    complete,
    first_difference,
    misshapen,
)
from twistedkv.pb import rpc_pb2 as pb
from twistedkv.pb import v3election_pb2 as election

REFERENCE_TIMEOUT_S = 15.0
SUBJECT_TIMEOUT_S = 5.0
_REST_EVERY = 25  # actions between comparisons of all streams
_WITNESS = -1
_TTL_SLACK_S = 3  # what remains of a lease is asked at slightly different times
_EVENTS_REVISION = re.compile(rb'"revision":"\d+",(.*"events":)')  # of the header; in a replay it is the moment's
_JSON_TTL = re.compile(rb'"TTL":"\d+"')


@dataclass(frozen=True, slots=True)
class Parting:
    """The first point at which the two servers differ."""

    seed: int
    number: int  # of the action, from 1
    action: Action
    what: str

    def __str__(self) -> str:
        again = f"python -m tests.functional.sequences --seed {self.seed} --steps {self.number}"
        return f"seed {self.seed}, action {self.number}: {self.action}\n{self.what}\n  again: {again}"


class _Differs(Exception):
    """The subject differs; the text says how."""


@dataclass(slots=True)
class _Pending:
    """A call that waits in a queue."""

    action: Begin
    created: int  # revision of its key
    futures: tuple[Future[Reply], Future[Reply]]


@dataclass(slots=True)
class _Taken:
    """What of a stream's messages was compared already, on both sides."""

    reference: int = 0
    subject: int = 0
    watches: dict[int, Watch] = field(default_factory=dict)


class Run:
    """One sequence on two servers, which must be new and empty.

    Args:
        reference: what is right.
        subject: what is examined.
        seed: of the dice.
    """

    def __init__(self, reference: Client, subject: Client, seed: int) -> None:
        self._reference = reference
        self._subject = subject
        self._seed = seed
        self._source = CoordinationSource(Random(seed))
        self._taken: dict[int, _Taken] = {}
        self._pending: list[_Pending] = []
        self._observed: dict[int, bytes] = {}
        self.events = 0  # compared
        witness = pb.WatchCreateRequest(key=b"\0", range_end=b"\0", prev_kv=True)
        self._send(Send(_WITNESS, pb.WatchRequest(create_request=witness)))

    def run(self, steps: int) -> Parting | None:
        """Do so many actions; where the servers part, if they do."""
        for number in range(1, steps + 1):
            action = self._source.next_action()
            try:
                if action.at_rest:
                    self.rest()
                self._do(action)
                self._follow_queues()
                self._follow_observers()
                if number % _REST_EVERY == 0 or number == steps:
                    self.rest()
                    self._compare(Step(Door.GRPC, pb.HashKVRequest()))
            except _Differs as difference:
                return Parting(self._seed, number, action, str(difference))
        return None

    # --- actions ------------------------------------------------------------------------------------

    def _do(self, action: Action) -> None:
        match action:
            case Ask():
                if isinstance(action.step.request, pb.CompactionRequest):
                    self._drop_unsettled()
                reply = self._compare(action.step)
                follow(self._source, action.step, reply)
            case Begin():
                self._begin(action)
            case Send():
                self._send(action)
            case OpenGateway():
                self._open_gateway(action)
            case Close():
                self._close(action.stream)
            case KeepAlive():
                self._keep_alive(action)
            case GrantPicked():
                self._grant_picked(action)
            case Observe():
                request = election.LeaderRequest(name=action.name)
                for client in self._clients:
                    client.observe(action.number, action.door, request)
                self._observed[action.number] = action.name
                self._source.observing += 1

    def _compare(self, step: Step) -> Reply:
        expected, found = self._reference.send(step), self._subject.send(step)
        self._same_reply(step, expected, found)
        return expected

    def _same_reply(self, step: Step, expected: Reply, found: Reply) -> None:
        left, right = _settled(expected, found), _settled(found, expected)
        if not equal(step, left, right):
            raise _Differs(f"  expected {readable(expected)}\n  found    {readable(found)}")

    def _begin(self, action: Begin) -> None:
        futures = (self._reference.begin(action.step), self._subject.begin(action.step))
        created = [
            self._queued(client, action, future, timeout_s)
            for client, future, timeout_s in zip(self._clients, futures, _TIMEOUTS, strict=True)
        ]
        if created[0] is not None and created[1] is not None:
            self._pending.append(_Pending(action, created[0], futures))
            self._source.waiting.add(action.key)
        else:
            self._finish(action, futures)

    def _queued(self, client: Client, action: Begin, future: Future[Reply], timeout_s: float) -> int | None:
        """Wait until the call is answered (``None``) or its key has others before it: the revision that made it."""
        deadline = time.monotonic() + timeout_s
        while not future.done():
            kvs = client.keys(action.prefix)
            if kvs and kvs[0].key != action.key:
                for kv in kvs:
                    if kv.key == action.key:
                        return int(kv.create_revision)
            if time.monotonic() > deadline:
                self._late(client, f"{action} neither returns nor queues up among {[kv.key for kv in kvs]}")
        return None

    def _finish(self, action: Begin, futures: tuple[Future[Reply], Future[Reply]]) -> None:
        replies = []
        for client, future, timeout_s in zip(self._clients, futures, _TIMEOUTS, strict=True):
            try:
                replies.append(future.result(timeout_s))
            except TimeoutError:
                self._late(client, f"{action} does not return")
        self._same_reply(action.step, *replies)
        follow(self._source, action.step, replies[0])
        if isinstance(replies[0].message, election.CampaignResponse):
            self._source.leaders[replies[0].message.leader.name] = replies[0].message.leader

    def _follow_queues(self) -> None:
        """Every call that has nobody left before it returns, on both sides."""
        for waiter in list(self._pending):
            older = [kv for kv in self._reference.keys(waiter.action.prefix) if kv.create_revision < waiter.created]
            if not older:
                self._pending.remove(waiter)
                self._source.waiting.discard(waiter.action.key)
                self._finish(waiter.action, waiter.futures)

    def _follow_observers(self) -> None:
        """Every observer has seen the leader there is, and both have seen the same."""
        for number, name in self._observed.items():
            leaders = self._reference.keys(name + b"/")
            if not leaders:
                continue
            newest = leaders[0]
            seen = self._reference.observers[number]
            if not seen.wait_for(lambda got, kv=newest: bool(got) and got[-1].kv == kv, REFERENCE_TIMEOUT_S):
                self._late(self._reference, f"observer {number} does not see {newest}: {seen.messages} {seen.end}")
            expected = [masked(message) for message in seen.messages]
            other = self._subject.observers[number]
            count = len(expected)
            if not other.wait_for(lambda got, n=count: len(got) >= n, SUBJECT_TIMEOUT_S):
                raise _Differs(f"  observer {number} expected {expected[-1]}\n  found {other.messages} {other.end}")
            found = [masked(message) for message in other.messages]
            if expected != found:
                raise _Differs(f"  observer {number} expected {as_text(expected)}\n  found    {as_text(found)}")

    def _keep_alive(self, action: KeepAlive) -> None:
        streams = [client.keep_alive(action.door, action.leases) for client in self._clients]
        for client, stream, timeout_s in zip(self._clients, streams, _TIMEOUTS, strict=True):
            if stream.wait_for_end(timeout_s) is None:
                self._late(client, f"{action} does not end")
        self._same_end(streams)
        expected, found = ([masked(message) for message in stream.messages] for stream in streams)
        lines = [[masked_json(line) for line in stream.lines] for stream in streams]
        if expected != found or lines[0] != lines[1]:
            raise _Differs(f"  expected {as_text(expected)} {lines[0]}\n  found    {as_text(found)} {lines[1]}")

    def _grant_picked(self, action: GrantPicked) -> None:
        grant = Step(action.door, pb.LeaseGrantRequest(TTL=action.ttl_s))
        ids = []
        replies = []
        for client in self._clients:
            reply = client.send(grant)
            message = reply.message
            if isinstance(message, pb.LeaseGrantResponse) and message.ID > 0:
                ids.append(message.ID)
                message.ID = 1
            replies.append(reply)
        self._same_reply(grant, *replies)
        for make in (pb.LeaseTimeToLiveRequest, pb.LeaseRevokeRequest):
            steps = [Step(action.door, make(ID=lease)) for lease in ids]
            replies = [client.send(step) for client, step in zip(self._clients, steps, strict=True)]
            for reply in replies:
                if isinstance(reply.message, pb.LeaseTimeToLiveResponse):
                    reply.message.ID = 1
            self._same_reply(steps[0], *replies)

    # --- watch streams ------------------------------------------------------------------------------

    def _send(self, action: Send) -> None:
        request = action.request
        taken = self._taken.setdefault(action.stream, _Taken())
        if request.HasField("progress_request") and any(
            watch.start > self._source.revision + 1 for watch in taken.watches.values()
        ):
            # 3.5.1 answers at once with the store's revision, from which a client would resume a watch that starts
            # later; the next patch releases wait until every watch of the stream is there, and so do we.
            return
        streams = [client.watch(action.stream) for client in self._clients]
        before = [len(stream.messages) for stream in streams]
        for stream in streams:
            stream.send(request)
        kind = request.WhichOneof("request_union")
        watch_id = request.cancel_request.watch_id
        if kind == "cancel_request" and watch_id not in taken.watches:
            # No answer comes. A request that is refused at once, after it on the same stream, shows that it was read.
            for stream in streams:
                stream.send(pb.WatchRequest(create_request=pb.WatchCreateRequest(key=b"b", range_end=b"a")))
            kind = "barrier"
        for client, stream, start, timeout_s in zip(self._clients, streams, before, _TIMEOUTS, strict=True):
            if not stream.wait_for(
                lambda got, at=start: any(answers(kind, each, watch_id) for each in got[at:]), timeout_s
            ):
                self._late(client, f"{action} is not answered: {as_text(stream.messages[start:])} {stream.end}")
        if kind == "create_request":
            self._note_watch(action.stream, request.create_request, streams[0].messages[before[0] :])
        elif kind == "cancel_request":
            self._take(action.stream)
            taken.watches.pop(watch_id, None)
            self._source.watches[action.stream].discard(watch_id)

    def _open_gateway(self, action: OpenGateway) -> None:
        streams = [client.open_gateway(action.stream, action.requests) for client in self._clients]
        self._taken[action.stream] = _Taken()
        wanted = len(action.requests)
        for client, stream, timeout_s in zip(self._clients, streams, _TIMEOUTS, strict=True):
            if not stream.wait_for(lambda got: sum(each.created for each in got) == wanted, timeout_s):
                self._late(client, f"{action} is not answered: {as_text(stream.messages)} {stream.end}")
        created = [each for each in streams[0].messages if each.created]
        for request, response in zip(action.requests, created, strict=True):
            self._note_watch(action.stream, request.create_request, [response])

    def _note_watch(self, stream: int, request: pb.WatchCreateRequest, responses: Sequence[Message]) -> None:
        """Remember a watch by its request and the reference's answer."""
        created = next(each for each in responses if each.created)
        if created.canceled:
            return
        current = created.header.revision
        start = request.start_revision
        doomed = start != 0 and start < (self._source.compacted or -1)
        now = start == 0 or start > current
        self._taken[stream].watches[created.watch_id] = Watch(
            key=request.key or b"\0",
            range_end=request.range_end,
            start=start or current + 1,
            compacted=self._source.compacted,
            unwanted=frozenset(1 if each == 1 else 0 if each == 0 else -1 for each in request.filters),
            live_after=current if now else NEVER,
            doomed=doomed,
        )
        self._source.watches.setdefault(stream, set()).add(created.watch_id)
        self._source.revision = max(self._source.revision, current)

    def _drop_unsettled(self) -> None:
        """Leave what may still be catching up, watches and observers: a compaction would meet them there, or not."""
        for number in list(self._observed):
            del self._observed[number]
            for client in self._clients:
                client.observers.pop(number).close()
        self._source.observing = 0
        for number in list(self._taken):
            unsettled = [each for each, watch in self._taken[number].watches.items() if watch.live_after == NEVER]
            if unsettled and isinstance(self._reference.streams[number], GatewayStream):
                self._close(number)
            else:
                for watch_id in unsettled:
                    cancel = pb.WatchCancelRequest(watch_id=watch_id)
                    self._send(Send(number, pb.WatchRequest(cancel_request=cancel)))

    def _close(self, number: int) -> None:
        if number in self._taken:
            for client in self._clients:
                client.streams.pop(number).close()
            del self._taken[number]
            self._source.watches.pop(number, None)

    def rest(self) -> None:
        """Wait until every stream has all it should have, and compare what is new on it."""
        current = self._reference.grpc.call(pb.RangeRequest(key=b"a", count_only=True)).message
        if not isinstance(current, pb.RangeResponse):
            raise HarnessError("the reference does not answer")
        revision = self._source.revision = current.header.revision
        witness = self._reference.streams[_WITNESS]

        def is_there(got: Sequence[Message]) -> bool:
            return revision == 1 or any(
                each.events and each.events[-1].kv.mod_revision == revision for each in got[-9:]
            )

        if not witness.wait_for(is_there, REFERENCE_TIMEOUT_S):
            raise HarnessError(f"a watch on everything does not reach revision {revision}")
        history = [event for message in witness.messages for event in message.events]
        for number in list(self._taken):
            for watch in self._taken[number].watches.values():
                watch.look(history)
            self._take(number)
            for watch_id, watch in list(self._taken[number].watches.items()):
                if watch.expected or watch.live_after != NEVER:  # else it may not have caught up yet
                    watch.live_after = revision
                watch.expected = 0
                if watch.doomed:
                    del self._taken[number].watches[watch_id]
                    self._source.watches[number].discard(watch_id)

    def _take(self, number: int) -> None:
        """Compare what is new on one stream."""
        taken = self._taken[number]
        news = []
        for client, start, timeout_s in zip(self._clients, (taken.reference, taken.subject), _TIMEOUTS, strict=True):
            stream = client.streams[number]
            if not stream.wait_for(lambda got, at=start: complete(got[at:], taken.watches), timeout_s):
                wanted = {
                    watch_id: watch for watch_id, watch in taken.watches.items() if watch.expected or watch.doomed
                }
                self._late(
                    client,
                    f"watch stream {number} lacks events; expected of each watch {wanted}, found "
                    f"{as_text(stream.messages[start:])} {stream.end}",
                )
            news.append(stream.messages[start:])
        taken.reference += len(news[0])
        taken.subject += len(news[1])
        expected, found = (by_watch(messages) for messages in news)
        self.events += sum(len(each.events) for each in news[0])
        for watch_id in expected.keys() | found.keys():
            compacted = taken.watches[watch_id].compacted if watch_id in taken.watches else 0
            left, right = (canonical(each.get(watch_id, []), compacted) for each in (expected, found))
            if left != right:
                raise _Differs(f"  watch stream {number}, watch {watch_id}, {first_difference(left, right)}")
            for client, messages in zip(self._clients, (expected, found), strict=True):
                if wrong := misshapen(messages.get(watch_id, []), taken.watches.get(watch_id), self._source.revision):
                    self._late(client, f"watch stream {number}, watch {watch_id}: {wrong}")
        self._same_lines(number, news)

    def _same_lines(self, number: int, news: Sequence[Sequence[Message]]) -> None:
        """Over the gateway the texts are the same, where the responses are."""
        streams = [client.streams[number] for client in self._clients]
        taken = self._taken[number]
        texts = []
        for stream, messages, end in zip(streams, news, (taken.reference, taken.subject), strict=True):
            lines = stream.lines[end - len(messages) : end]
            if any(b'"DELETE"' in line for line in lines) and any(
                watch.start <= watch.compacted for watch in taken.watches.values()
            ):
                return  # see canonical
            texts.append(sorted(_EVENTS_REVISION.sub(rb"\1", masked_json(line)) for line in lines))
        if len(texts[0]) == len(texts[1]) and texts[0] != texts[1]:
            raise _Differs(f"  watch stream {number}\n  expected {texts[0]}\n  found    {texts[1]}")
        self._same_end(streams)

    # --- both sides ---------------------------------------------------------------------------------

    @property
    def _clients(self) -> tuple[Client, Client]:
        return self._reference, self._subject

    def _same_end(self, streams: Sequence[Stream]) -> None:
        ends = [(each.end.code, each.end.text, each.end.body) if each.end else None for each in streams]
        if ends[0] != ends[1]:
            raise _Differs(f"  a stream ends differently: expected {ends[0]}, found {ends[1]}")

    def _late(self, client: Client, what: str) -> None:
        if client is self._reference:
            raise HarnessError(what)
        raise _Differs(f"  {what}")


_TIMEOUTS = (REFERENCE_TIMEOUT_S, SUBJECT_TIMEOUT_S)


def _settled(reply: Reply, other: Reply) -> Reply:
    """Without what differs by a moment: the remaining seconds of a lease, and the order of its keys, which is open."""
    message, twin = reply.message, other.message
    if not isinstance(message, pb.LeaseTimeToLiveResponse) or not isinstance(twin, pb.LeaseTimeToLiveResponse):
        return reply
    settled = pb.LeaseTimeToLiveResponse()
    settled.CopyFrom(message)
    if message.TTL > 0 and twin.TTL > 0 and abs(message.TTL - twin.TTL) <= _TTL_SLACK_S:
        settled.TTL = 1
    settled.keys[:] = sorted(message.keys)
    body = reply.body if len(message.keys) < 2 else b""
    return Reply(reply.code, reply.text, settled, reply.http_status, reply.headers, _JSON_TTL.sub(b'"TTL":"1"', body))


def main(arguments: list[str]) -> int:
    """Run one sequence against real etcd and twistedkv, and write where they part; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.functional.sequences", description=main.__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--plaintext", action="store_true", help="without TLS")
    parser.add_argument("--subject", choices=["twistedkv", "etcd"], default="twistedkv")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        tls = None if chosen.plaintext else TLSFiles.make(Path(scratch) / "tls")
        subject_type = TwistedkvProcess if chosen.subject == "twistedkv" else EtcdProcess
        servers = [EtcdProcess(Path(scratch) / "reference", tls), subject_type(Path(scratch) / "subject", tls)]
        clients = []
        try:
            for server in servers:
                server.spawn()
            for server in servers:
                server.wait_until_ready()
            clients = [Client(server) for server in servers]
            run = Run(clients[0], clients[1], chosen.seed)
            parting = run.run(chosen.steps)
        finally:
            for client in clients:
                client.close()
            for server in servers:
                server.stop()
    sys.stdout.write(f"{parting or 'no difference'}\n{run.events} watch events compared\n")
    return 1 if parting else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
