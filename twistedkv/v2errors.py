"""How the v2 API says no: a number, a text that goes with it, what it was about, and the index of the store.

Source: etcd ``server/etcdserver/api/v2error/error.go``.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from http import HTTPStatus
from typing import Final


class V2Code(IntEnum):
    """The numbers that clients act on."""

    KEY_NOT_FOUND = 100
    TEST_FAILED = 101
    NOT_FILE = 102
    NO_MORE_PEER = 103
    NOT_DIR = 104
    NODE_EXISTS = 105
    KEY_IS_PRESERVED = 106
    ROOT_READ_ONLY = 107
    DIR_NOT_EMPTY = 108
    EXISTING_PEER_ADDRESS = 109
    UNAUTHORIZED = 110
    VALUE_REQUIRED = 200
    PREV_VALUE_REQUIRED = 201
    TTL_NOT_A_NUMBER = 202
    INDEX_NOT_A_NUMBER = 203
    VALUE_OR_TTL_REQUIRED = 204
    TIMEOUT_NOT_A_NUMBER = 205
    NAME_REQUIRED = 206
    INDEX_OR_VALUE_REQUIRED = 207
    INDEX_VALUE_MUTEX = 208
    INVALID_FIELD = 209
    INVALID_FORM = 210
    REFRESH_VALUE = 211
    REFRESH_TTL_REQUIRED = 212
    RAFT_INTERNAL = 300
    LEADER_ELECT = 301
    WATCHER_CLEARED = 400
    EVENT_INDEX_CLEARED = 401
    STANDBY_INTERNAL = 402
    INVALID_ACTIVE_SIZE = 403
    INVALID_REMOVE_DELAY = 404
    CLIENT_INTERNAL = 500


MESSAGES: Final[Mapping[V2Code, str]] = {
    V2Code.KEY_NOT_FOUND: "Key not found",
    V2Code.TEST_FAILED: "Compare failed",
    V2Code.NOT_FILE: "Not a file",
    V2Code.NO_MORE_PEER: "Reached the max number of peers in the cluster",
    V2Code.NOT_DIR: "Not a directory",
    V2Code.NODE_EXISTS: "Key already exists",
    V2Code.KEY_IS_PRESERVED: "The prefix of given key is a keyword in etcd",
    V2Code.ROOT_READ_ONLY: "Root is read only",
    V2Code.DIR_NOT_EMPTY: "Directory not empty",
    V2Code.EXISTING_PEER_ADDRESS: "Peer address has existed",
    V2Code.UNAUTHORIZED: "The request requires user authentication",
    V2Code.VALUE_REQUIRED: "Value is Required in POST form",
    V2Code.PREV_VALUE_REQUIRED: "PrevValue is Required in POST form",
    V2Code.TTL_NOT_A_NUMBER: "The given TTL in POST form is not a number",
    V2Code.INDEX_NOT_A_NUMBER: "The given index in POST form is not a number",
    V2Code.VALUE_OR_TTL_REQUIRED: "Value or TTL is required in POST form",
    V2Code.TIMEOUT_NOT_A_NUMBER: "The given timeout in POST form is not a number",
    V2Code.NAME_REQUIRED: "Name is required in POST form",
    V2Code.INDEX_OR_VALUE_REQUIRED: "Index or value is required",
    V2Code.INDEX_VALUE_MUTEX: "Index and value cannot both be specified",
    V2Code.INVALID_FIELD: "Invalid field",
    V2Code.INVALID_FORM: "Invalid POST form",
    V2Code.REFRESH_VALUE: "Value provided on refresh",
    V2Code.REFRESH_TTL_REQUIRED: "A TTL must be provided on refresh",
    V2Code.RAFT_INTERNAL: "Raft Internal Error",
    V2Code.LEADER_ELECT: "During Leader Election",
    V2Code.WATCHER_CLEARED: "watcher is cleared due to etcd recovery",
    V2Code.EVENT_INDEX_CLEARED: "The event in requested index is outdated and cleared",
    V2Code.STANDBY_INTERNAL: "Standby Internal Error",
    V2Code.INVALID_ACTIVE_SIZE: "Invalid active size",
    V2Code.INVALID_REMOVE_DELAY: "Standby remove delay",
    V2Code.CLIENT_INTERNAL: "Client Internal Error",
}

_STATUS: Final[Mapping[V2Code, HTTPStatus]] = {  # 400 for all others
    V2Code.KEY_NOT_FOUND: HTTPStatus.NOT_FOUND,
    V2Code.NOT_FILE: HTTPStatus.FORBIDDEN,
    V2Code.DIR_NOT_EMPTY: HTTPStatus.FORBIDDEN,
    V2Code.UNAUTHORIZED: HTTPStatus.UNAUTHORIZED,
    V2Code.TEST_FAILED: HTTPStatus.PRECONDITION_FAILED,
    V2Code.NODE_EXISTS: HTTPStatus.PRECONDITION_FAILED,
    V2Code.RAFT_INTERNAL: HTTPStatus.INTERNAL_SERVER_ERROR,
    V2Code.LEADER_ELECT: HTTPStatus.INTERNAL_SERVER_ERROR,
}


class V2Error(Exception):
    """A request of the v2 API was refused, and nothing was changed.

    Args:
        code: why.
        cause: what it was about, mostly a path of the store.
        index: of the store; 0 if the store was not asked.
    """

    def __init__(self, code: V2Code, cause: str = "", index: int = 0) -> None:
        super().__init__(code, cause, index)
        self.code = code
        self.cause = cause
        self.index = index

    def __str__(self) -> str:
        return f"{MESSAGES[self.code]} ({self.cause}) [{self.index}]"

    @property
    def status(self) -> int:
        """Of the HTTP answer."""
        return _STATUS.get(self.code, HTTPStatus.BAD_REQUEST).value
