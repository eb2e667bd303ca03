"""What a request for keys asks for: its parameters, checked one after the other as etcd checks them.

Every parameter is checked whatever the method is, so that a bad ``ttl`` spoils a GET, too. One that is given but empty
is wrong where a truth value or an index is wanted, and none at all as a time to live.

Source: etcd 3.5 ``server/etcdserver/api/v2http/client.go``, parseKeyRequest.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from twistedkv.protocols.goform import Form, parse_bool, parse_uint
from twistedkv.v2errors import V2Code, V2Error

NAMES: Final = (
    *("prevIndex", "waitIndex", "recursive", "sorted", "wait", "dir", "quorum", "stream", "prevValue"),
    *("noValueOnSuccess", "ttl", "prevExist", "refresh", "value"),
)

_NS: Final = 1_000_000_000  # in a second


class KeyRequest(NamedTuple):
    """What is asked for."""

    method: str
    path: str  # in the store
    value: str = ""
    is_dir: bool = False
    previous_value: str = ""  # empty: any
    previous_index: int = 0  # 0: any
    previous_exists: bool | None = None
    ttl_s: int | None = None
    refresh: bool | None = None
    wait: bool = False
    since: int = 0  # 0: from now on
    recursive: bool = False
    sort: bool = False
    quorum: bool = False
    stream: bool = False
    no_value: bool = False  # in the answer to a write


def parse_key_request(method: str, path: str, form: Form) -> KeyRequest:
    """The request that is meant.

    Args:
        path: in the store.
        form: the values of :data:`NAMES`, as far as they are given.

    Raises:
        V2Error: a parameter is wrong.
    """
    value = form.get("value", "")
    if len(form) == ("value" in form):  # nothing else is said, as in most requests
        return KeyRequest(method, path, value)
    previous_index = _index(form, "prevIndex")
    since = _index(form, "waitIndex")
    recursive = _flag(form, "recursive")
    sort = _flag(form, "sorted")
    wait = _flag(form, "wait")
    is_dir = _flag(form, "dir")
    quorum = _flag(form, "quorum")
    stream = _flag(form, "stream")
    if wait and method != "GET":
        raise V2Error(V2Code.INVALID_FIELD, '"wait" can only be used with GET requests')
    previous_value = form.get("prevValue")
    if previous_value == "":
        raise V2Error(V2Code.PREV_VALUE_REQUIRED, '"prevValue" cannot be empty')
    no_value = _flag(form, "noValueOnSuccess")
    ttl_s = _ttl_s(form)
    previous_exists = _choice(form, "prevExist")
    refresh = _choice(form, "refresh")
    if refresh:
        if value:
            raise V2Error(V2Code.REFRESH_VALUE, "A value was provided on a refresh")
        if ttl_s is None:
            raise V2Error(V2Code.REFRESH_TTL_REQUIRED, "No TTL value set")
    return KeyRequest(
        *(method, path, value, is_dir, previous_value or "", previous_index, previous_exists, ttl_s, refresh),
        *(wait, since, recursive, sort, quorum, stream, no_value),
    )


def expiration_ns(ttl_s: int, now_ns: int) -> int:
    """When a node ends that lives for ``ttl_s`` from now on, since 1970, in the 64 bits that Go has for it."""
    return _wrapped(now_ns + _wrapped(ttl_s * _NS))


def _wrapped(value: int) -> int:
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


def _index(form: Form, name: str) -> int:
    text = form.get(name)
    if text is None:
        return 0
    try:
        return parse_uint(text)
    except ValueError:
        raise V2Error(V2Code.INDEX_NOT_A_NUMBER, f'invalid value for "{name}"') from None


def _flag(form: Form, name: str) -> bool:
    text = form.get(name)
    if text is None:
        return False
    try:
        return parse_bool(text)
    except ValueError:
        raise V2Error(V2Code.INVALID_FIELD, f'invalid value for "{name}"') from None


def _choice(form: Form, name: str) -> bool | None:
    text = form.get(name)
    if text is None:
        return None
    try:
        return parse_bool(text)
    except ValueError:
        raise V2Error(V2Code.INVALID_FIELD, f"invalid value for {name}") from None


def _ttl_s(form: Form) -> int | None:
    text = form.get("ttl")
    if not text:
        return None
    try:
        return parse_uint(text)
    except ValueError:
        raise V2Error(V2Code.TTL_NOT_A_NUMBER, 'invalid value for "ttl"') from None
