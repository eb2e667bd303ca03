"""One HTTP/2 stream: the state its connection keeps, and what the connection tells its owner. RFC 9113 §5.

The states of RFC 9113 §5.1 are not a field. A connection's table holds the streams that are neither idle nor closed:
ids above the last one opened are idle, other ids that are missing are closed. Of those in the table ``remote_closed``
and ``local_closed`` tell open from half-closed.
"""

from __future__ import annotations


class Stream:
    """What a connection knows of a stream. Who speaks on streams derives from it.

    Defaults live on the class, because most streams are one small request and one small answer and never change them:
    such a stream costs no more than the object that it is anyway.
    """

    stream_id: int
    remote_closed: bool = False  # END_STREAM came
    local_closed: bool = False  # END_STREAM went out, or waits in ``tail``
    send_delta: int = 0  # this stream's send window less the peer's INITIAL_WINDOW_SIZE
    unconsumed_bytes: int = 0  # received, and not given back as credit: never above the window we announced
    queue: bytearray | None = None  # bytes for DATA frames that wait for a window or the transport
    tail: bytes | None = None  # the trailers' block that ends the stream once the queue is empty; b"" ends it without
    in_turn: bool = False  # lined up in Outflow.turns
    stuffed: bool = False  # its queue went over the send buffer, and has not been below it since

    def data_received(self, data: bytes) -> None:
        """Take the content of a DATA frame (``remote_closed`` tells whether it is the last one).

        The connection gives the peer no credit for it until ``Connection.credit`` is called.
        """
        raise NotImplementedError

    def trailers_received(self) -> None:
        """The peer ended the stream by a header block."""
        raise NotImplementedError

    def closed(self, code: int) -> None:
        """The stream ended before its time, by the peer's RST_STREAM, by ours, or with its connection; it is gone."""
        raise NotImplementedError

    def room(self) -> None:
        """There is room in the send buffer again, or the transport reads again."""
