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
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from google.protobuf import text_format
from google.protobuf.message import Message

from tests.functional.clients import KEEP_ALIVE, OBSERVE, WATCH, GatewayClient, GrpcClient, Reply
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
from tests.functional.operations import Door, Step
from tests.functional.processes import EtcdProcess, ServerProcess, TLSFiles, TwistedkvProcess
from tests.functional.streams import GatewayStream, GrpcStream, Stream
from twistedkv.pb import kv_pb2
from twistedkv.pb import rpc_pb2 as pb
from twistedkv.pb import v3election_pb2 as election

REFERENCE_TIMEOUT_S = 15.0
SUBJECT_TIMEOUT_S = 5.0
_REST_EVERY = 25  # actions between comparisons of all streams
_PENDING_TIMEOUT_S = 300.0
_WITNESS = -1
_NEVER = 2**63
_TTL_SLACK_S = 3  # what remains of a lease is asked at slightly different times
_EVENTS_REVISION = re.compile(rb'"revision":"\d+",(.*"events":)')  # of the header; in a replay it is the moment's
_JSON_TTL = re.compile(rb'"TTL":"\d+"')


class HarnessError(Exception):
    """The reference did not do what this module expects of etcd: the test is wrong, not the subject."""


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


Falsify = Callable[[Message], None]


class Client:
    """All connections to one server: unary calls over both doors, watch streams, observers, calls that wait.

    Args:
        server: a running one.
        falsify: changes what comes, to examine the comparison.
    """

    def __init__(self, server: ServerProcess, falsify: Falsify | None = None) -> None:
        self.server = server
        self.grpc = GrpcClient(server)
        self._gateway = GatewayClient(server)
        self._falsify = falsify
        self._pool = ThreadPoolExecutor(16)
        self._waiting: list[GatewayClient] = []
        self.streams: dict[int, Stream] = {}
        self.observers: dict[int, Stream] = {}

    def send(self, step: Step) -> Reply:
        """One unary call."""
        reply = (self.grpc if step.door is Door.GRPC else self._gateway).call(step.request)
        self._change(reply.message)
        return reply

    def begin(self, step: Step) -> Future[Reply]:
        """A unary call that may take as long as it likes."""
        if step.door is Door.GRPC:
            return self._pool.submit(self.grpc.call, step.request, _PENDING_TIMEOUT_S)
        client = GatewayClient(self.server, _PENDING_TIMEOUT_S)
        self._waiting.append(client)
        return self._pool.submit(client.call, step.request)

    def watch(self, number: int) -> Stream:
        """The gRPC watch stream with this number, opened if it is not there."""
        stream = self.streams.get(number)
        if stream is None:
            stream = self.streams[number] = GrpcStream(self.grpc, WATCH, falsify=self._falsify)
        return stream

    def open_gateway(self, number: int, requests: Sequence[Message]) -> Stream:
        """A watch stream over the gateway."""
        stream = self.streams[number] = GatewayStream(self.server, WATCH, requests, self._falsify)
        return stream

    def observe(self, number: int, door: Door, request: Message) -> Stream:
        """An observer of an election."""
        stream = self.observers[number] = self._open(door, OBSERVE, request)
        return stream

    def keep_alive(self, door: Door, leases: Sequence[int]) -> Stream:
        """A stream that keeps these leases alive once and ends."""
        requests = [pb.LeaseKeepAliveRequest(ID=lease) for lease in leases]
        if door is Door.GRPC:
            return GrpcStream(self.grpc, KEEP_ALIVE, requests, ends=True, falsify=self._falsify)
        return GatewayStream(self.server, KEEP_ALIVE, requests, self._falsify)

    def keys(self, prefix: bytes) -> list[kv_pb2.KeyValue]:
        """The keys under a prefix that ends in "/", oldest first."""
        request = pb.RangeRequest(key=prefix, range_end=prefix[:-1] + b"0", sort_target=pb.RangeRequest.CREATE)
        request.sort_order = pb.RangeRequest.ASCEND
        answer = self.grpc.call(request).message
        if not isinstance(answer, pb.RangeResponse):
            raise HarnessError(f"{self.server.label} does not read its keys")
        return list(answer.kvs)

    def close(self) -> None:
        """Leave every stream and every call, and close the connections."""
        for stream in (*self.streams.values(), *self.observers.values()):
            stream.close()
        self.grpc.close()
        for client in self._waiting:
            client.abort()
        self._pool.shutdown()
        self._gateway.close()

    def _open(self, door: Door, rpc, request: Message) -> Stream:  # type: ignore[no-untyped-def]
        if door is Door.GRPC:
            return GrpcStream(self.grpc, rpc, [request], ends=True, falsify=self._falsify)
        return GatewayStream(self.server, rpc, [request], self._falsify)

    def _change(self, message: Message | None) -> None:
        if message is not None and self._falsify is not None:
            self._falsify(message)


@dataclass(slots=True)
class _Watch:
    """One watch as the reference made it, and what is still to come on it."""

    key: bytes
    range_end: bytes
    start: int  # the first revision it covers
    compacted: int  # when it was made
    unwanted: frozenset[int]  # event types that are filtered out
    live_after: int  # an event of a higher revision is sent as it happens
    doomed: bool  # starts at what is compacted
    at: int = 0  # how much of the history was looked at
    expected: int = 0  # events since the last rest

    def look(self, history: Sequence[kv_pb2.Event]) -> None:
        """Count what is new."""
        for event in history[self.at :]:
            if not self.doomed and self._wants(event):
                self.expected += 1
        self.at = len(history)

    def _wants(self, event: kv_pb2.Event) -> bool:
        revision, key = event.kv.mod_revision, event.kv.key
        if revision < self.start or event.type in self.unwanted:
            return False
        if event.type == kv_pb2.Event.DELETE and revision <= self.compacted:
            return False  # 3.5.1 drops a tombstone exactly at the compacted revision
        if not self.range_end:
            return key == self.key
        return key >= self.key and (self.range_end == b"\0" or key < self.range_end)


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
    watches: dict[int, _Watch] = field(default_factory=dict)


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
                raise _Differs(f"  observer {number} expected {_text(expected)}\n  found    {_text(found)}")

    def _keep_alive(self, action: KeepAlive) -> None:
        streams = [client.keep_alive(action.door, action.leases) for client in self._clients]
        for client, stream, timeout_s in zip(self._clients, streams, _TIMEOUTS, strict=True):
            if stream.wait_for_end(timeout_s) is None:
                self._late(client, f"{action} does not end")
        self._same_end(streams)
        expected, found = ([masked(message) for message in stream.messages] for stream in streams)
        lines = [[masked_json(line) for line in stream.lines] for stream in streams]
        if expected != found or lines[0] != lines[1]:
            raise _Differs(f"  expected {_text(expected)} {lines[0]}\n  found    {_text(found)} {lines[1]}")

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
                lambda got, at=start: any(_answers(kind, each, watch_id) for each in got[at:]), timeout_s
            ):
                self._late(client, f"{action} is not answered: {_text(stream.messages[start:])} {stream.end}")
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
                self._late(client, f"{action} is not answered: {_text(stream.messages)} {stream.end}")
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
        self._taken[stream].watches[created.watch_id] = _Watch(
            key=request.key or b"\0",
            range_end=request.range_end,
            start=start or current + 1,
            compacted=self._source.compacted,
            unwanted=frozenset(1 if each == 1 else 0 if each == 0 else -1 for each in request.filters),
            live_after=current if now else _NEVER,
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
            unsettled = [each for each, watch in self._taken[number].watches.items() if watch.live_after == _NEVER]
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
                if watch.expected or watch.live_after != _NEVER:  # else it may not have caught up yet
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
            if not stream.wait_for(lambda got, at=start: _complete(got[at:], taken.watches), timeout_s):
                wanted = {
                    watch_id: watch for watch_id, watch in taken.watches.items() if watch.expected or watch.doomed
                }
                self._late(
                    client,
                    f"watch stream {number} lacks events; expected of each watch {wanted}, found "
                    f"{_text(stream.messages[start:])} {stream.end}",
                )
            news.append(stream.messages[start:])
        taken.reference += len(news[0])
        taken.subject += len(news[1])
        expected, found = (_by_watch(messages) for messages in news)
        self.events += sum(len(each.events) for each in news[0])
        for watch_id in expected.keys() | found.keys():
            compacted = taken.watches[watch_id].compacted if watch_id in taken.watches else 0
            left, right = (_canonical(each.get(watch_id, []), compacted) for each in (expected, found))
            if left != right:
                raise _Differs(f"  watch stream {number}, watch {watch_id}, {_first_difference(left, right)}")
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
                return  # see _canonical
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


def _answers(kind: str | None, response: Message, watch_id: int) -> bool:
    match kind:
        case "create_request" | "barrier":
            return bool(response.created)
        case "cancel_request":
            return bool(response.canceled) and response.watch_id == watch_id
    return response.watch_id == -1 and not response.created and not response.events


def _complete(messages: Sequence[Message], watches: dict[int, _Watch]) -> bool:
    """Whether every watch has its events, and those that start too early are cancelled."""
    counts = dict.fromkeys(watches, 0)
    for message in messages:
        if message.watch_id in counts:
            counts[message.watch_id] += len(message.events)
    cancelled = {message.watch_id for message in messages if message.canceled}
    return all(
        counts[watch_id] >= watch.expected and (not watch.doomed or watch_id in cancelled)
        for watch_id, watch in watches.items()
    )


def _by_watch(messages: Sequence[Message]) -> dict[int, list[Message]]:
    found: dict[int, list[Message]] = {}
    for message in messages:
        found.setdefault(message.watch_id, []).append(message)
    return found


def _canonical(messages: Sequence[Message], compacted: int) -> list[str]:
    """What came on one watch, however it was cut into responses.

    A watch may start at the compacted revision itself. If that is a tombstone, 3.5.1 has lost it, patch releases since
    3.5.16 show it, and so do we as long as it is in memory: it is left out.
    """
    items = []
    for message in messages:
        for event in message.events:
            if event.type != kv_pb2.Event.DELETE or event.kv.mod_revision > compacted:
                items.append(text_format.MessageToString(event, as_one_line=True))
        if not message.events:
            items.append(text_format.MessageToString(masked(message), as_one_line=True))
    return items


def _first_difference(expected: Sequence[str], found: Sequence[str]) -> str:
    at = next(
        (n for n, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b), min(len(expected), len(found))
    )
    ahead = f"after {expected[at - 1]}" if at else "first"
    return f"{ahead}\n  expected {expected[at : at + 2]}\n  found    {found[at : at + 2]}"


def misshapen(messages: Sequence[Message], watch: _Watch | None, current: int) -> str:
    """What is wrong with the responses that carry one watch's events, each by itself and in their order."""
    last, torn = 0, False
    for message in messages:
        if not message.events:
            continue
        revisions = [event.kv.mod_revision for event in message.events]
        if message.created or message.canceled or message.compact_revision:
            return f"events in a response that is about the watch itself: {_text([message])}"
        if sorted(revisions) != revisions or revisions[0] < last or (revisions[0] == last and not torn):
            return f"revision {revisions[0]} after {last}"
        last, torn = revisions[-1], message.fragment
        header = message.header.revision
        live = watch is not None and revisions[0] > watch.live_after
        if header < last or header > max(current, last) or (live and header != last):
            return f"header of revision {header} over {'live ' if live else ''}events up to {last}, store at {current}"
        if not (message.header.cluster_id and message.header.member_id and message.header.raft_term):
            return f"incomplete header: {_text([message])}"
    return "a fragment is the last response" if torn else ""


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


def _text(messages: Sequence[Message]) -> str:
    return " | ".join(text_format.MessageToString(masked(each), as_one_line=True) for each in messages)


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
