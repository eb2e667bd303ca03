"""Tables of what a client may send wrongly to the v2 API, or in an unusual way, and of the pages beside the keys.

Each table is a sequence: its first requests make the nodes that the others run into. What etcd says to each is not
written down here; the differential test asks it.
"""

from __future__ import annotations

from itertools import product

from tests.functional.v2client import FORM, Request, form

_JSON = (("Content-Type", "application/json"),)
_MIB = 1 << 20
_FORM_LIMIT = 10 * _MIB  # Go's ParseForm reads no more of a body
_FLAGS = (b"recursive", b"sorted", b"wait", b"dir", b"quorum", b"stream", b"noValueOnSuccess", b"prevExist", b"refresh")
_GO_TRUE_FALSE = (b"1", b"t", b"T", b"true", b"TRUE", b"True", b"0", b"f", b"F", b"false", b"FALSE", b"False")
_NO_FLAGS = (b"nope", b"=", b"", b"yes", b"tRUE", b"2", b"+1", b"on", b"%20true")
_NO_NUMBERS = (
    b"abc",
    b"-1",
    b"1.5",
    b"",
    b"%2B1",
    b"0x10",
    b"1e3",
    b"1_0",
    b"%205",
    b"18446744073709551616",
    b"%D9%A1",
)
_HUGE_TTLS = (b"9223372036", b"9223372037", b"4294967296", b"100000000000", b"0005000")


def _get(target: bytes, method: str = "GET") -> Request:
    return Request(method, b"/v2/keys" + target)


def _put(target: bytes, body: bytes, *more: tuple[str, str], method: str = "PUT") -> Request:
    return form(method, b"/v2/keys" + target, body, *more)


def _typed(kind: str, body: bytes, target: bytes = b"/f") -> Request:
    return Request("PUT", b"/v2/keys" + target, body, (("Content-Type", kind),))


def _part(**fields: str) -> bytes:
    parts = [f'--B\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{each}\r\n' for name, each in fields.items()]
    return "".join(parts).encode() + b"--B--\r\n"


_NODES = (_put(b"/file", b"value=v"), _put(b"/dir/a", b"value=1"), _put(b"/dir/b/c", b"value=2"), _put(b"/e", b"dir=1"))

DIRECTORIES = (
    *_NODES,
    *(_put(target, b"value=x", method=method) for target, method in product((b"", b"/"), ("PUT", "DELETE", "POST"))),
    *(_get(target, "DELETE") for target in (b"?recursive=true", b"/?dir=true", b"/?prevIndex=3", b"/?prevValue=x")),
    *(_put(b"/", body) for body in (b"dir=true", b"prevExist=true&value=x", b"prevIndex=3&value=x")),
    *(_put(b"/", body) for body in (b"prevExist=false&value=x", b"refresh=true&ttl=5000", b"prevValue=x&value=x")),
    *(_get(target) for target in (b"", b"/", b"?recursive=true", b"/dir", b"/dir/", b"/dir?recursive=1", b"/e")),
    *(_put(b"/dir", body) for body in (b"value=x", b"dir=true", b"", b"prevExist=true&value=x", b"prevExist=0")),
    *(
        _put(b"/dir", body)
        for body in (b"prevExist=false&dir=true", b"prevValue=a", b"prevIndex=1", b"refresh=1&ttl=9")
    ),
    *(_get(b"/dir" + query, "DELETE") for query in (b"", b"?dir=true", b"?prevIndex=3", b"?prevValue=1&recursive=1")),
    *(_put(b"/file/sub", body) for body in (b"value=x", b"dir=true", b"prevExist=true&value=x", b"prevIndex=1")),
    *(_put(b"/file/sub/x", b"value=x", method=method) for method in ("PUT", "POST", "DELETE", "GET")),
    _put(b"/file", b"value=x", method="POST"),
    *(_get(b"/file?dir=true", "DELETE"), _put(b"/file", b"value=v"), _put(b"/file", b"dir=true")),
    *(
        _get(b"/nope" + query, method)
        for query, method in product((b"", b"/x", b"?dir=1", b"?recursive=1"), ("GET", "DELETE"))
    ),
    *(_put(b"/nope", body) for body in (b"prevExist=true&value=x", b"prevValue=x", b"prevIndex=5", b"refresh=1&ttl=5")),
    _put(b"/nope", b"prevExist=false&prevValue=x&value=created"),
    *(
        _put(b"/nope", body)
        for body in (b"prevExist=false", b"prevValue=x", b"prevIndex=1&prevValue=x", b"prevIndex=0")
    ),
    *(
        _put(b"/nope", b"value=<&>"),
        _put(b"/nope", b"prevValue=%FF%3C&value=x"),
        _put(b"/nope", b"prevValue=%3C%26%3E"),
    ),
    *(_get(b"/dir" + query, "DELETE") for query in (b"/b/c", b"/b?dir=true", b"?recursive=true", b"")),
)

PARAMETERS = (
    *_NODES,
    *(_get(b"/file?" + name + b"=" + value) for name, value in product(_FLAGS, _NO_FLAGS)),
    *(_get(b"/file?" + name) for name in _FLAGS),
    *(_get(b"/file?quorum=" + value) for value in _GO_TRUE_FALSE),
    *(
        _get(b"/file?" + name + b"=" + value)
        for name, value in product((b"prevIndex", b"waitIndex", b"ttl"), _NO_NUMBERS)
    ),
    *(_put(b"/file", b"value=x&ttl=" + value) for value in (*_NO_NUMBERS, *_HUGE_TTLS)),
    *(_put(b"/file?" + name + b"=nope", b"value=x") for name in (*_FLAGS, b"prevIndex", b"waitIndex", b"ttl")),
    *(_put(b"/file", b"value=x&prevIndex=" + index) for index in (b"18446744073709551615", b"0", b"007")),
    *(Request(method, b"/v2/keys/file?wait=true") for method in ("PUT", "POST", "DELETE", "HEAD")),
    *(_get(b"/file?prevValue=", method) for method in ("GET", "PUT", "DELETE", "HEAD")),
    *(_put(b"/file", b"refresh=true" + rest) for rest in (b"", b"&value=x&ttl=5000", b"&value=&ttl=5000", b"&ttl=")),
    *(_put(b"/file", b"refresh=" + rest) for rest in (b"false&ttl=", b"false&value=x&ttl=5000", b"1&ttl=5000", b"x")),
    *(
        _put(b"/file", b"refresh=true&ttl=5000" + rest)
        for rest in (b"&prevExist=true", b"&prevValue=x", b"&prevIndex=1")
    ),
    *(_put(b"/none", b"refresh=true&ttl=5000" + rest) for rest in (b"&prevExist=true", b"", b"&prevExist=false")),
    *(_get(b"/file?refresh=true&ttl=5000", method) for method in ("GET", "HEAD", "POST")),
    # Of several faults the first in etcd's order is reported.
    *(
        _get(b"/file?" + b"&".join((*(b"%s=x" % name for name in reversed(rest)), b"prevValue=")))
        for rest in (_FLAGS, _FLAGS[1:], _FLAGS[2:], _FLAGS[3:], _FLAGS[4:], _FLAGS[5:], _FLAGS[6:], _FLAGS[7:])
    ),
    _get(b"/file?refresh=x&prevExist=x&ttl=x&noValueOnSuccess=x&prevIndex=x&waitIndex=x&recursive=x"),
    *(_get(b"/file?" + rest) for rest in (b"ttl=x&prevExist=x", b"ttl=x&refresh=x", b"ttl=x&noValueOnSuccess=x")),
    _get(b"/file?wait=true&prevValue=&ttl=x", "PUT"),
    *(
        _put(b"/n?noValueOnSuccess=true", body)
        for body in (b"value=1", b"prevExist=true&value=2", b"prevValue=2&value=3")
    ),
    *(_put(b"/n?noValueOnSuccess=true", b"value=1", method=method) for method in ("DELETE", "POST", "GET")),
)

_MALFORMED = (
    *(b"value=%zz", b"%zz=1", b"value=%", b"value=%4", b"value=a;b", b";", b"a;b=c&value=1", b"value=1;ttl=5000"),
    *(
        b"value",
        b"=",
        b"=x",
        b"&",
        b"&&value=1&&",
        b"value=a=b",
        b"value=a+b",
        b"value=a%2Bb",
        b"value=%00",
        b"value=%ff",
    ),
    *(b"val%75e=esc", b"value=\xff\xfe", b"VALUE=x", b"value=%zz&value=1", b"value=1&x=%zz&ttl=x", b"value=1?x=2"),
    *(b"value=%C3%A9", b"value=\xc3\xa9", b"value=%ED%A0%80", b"value=%u1234", b"+value=1", b"ttl=%35000", b"dir=%"),
)
FORMS = (
    *(_put(b"/f", body) for body in (*_MALFORMED, b"value=a b\r\n&x", b"value=\x00")),
    *(_get(b"/f?" + query, "PUT") for query in _MALFORMED),
    *(_get(b"/f" + query) for query in (b"?a;b", b"?x=%zz", b"?", b"??", b"?%", b"?&;=", b"?recursive=true?")),
    *(_put(b"/f?x=%zz", b"value=%yy"), _put(b"/f?;", b"value=%yy"), _put(b"/f?%zz", b"value=1&ttl=x")),
    # In the query and in the body: what counts is the body's.
    *(_put(b"/f?value=query", body) for body in (b"value=body", b"", b"value=", b"value=b1&value=b2")),
    *(_put(b"/f?ttl=x", b"ttl=5000"), _put(b"/f?ttl=5000", b"ttl="), _put(b"/f?dir=x&value=q", b"dir=false")),
    *(_put(b"/f?value=q1&value=q2", b""), _get(b"/f?value=query", "PUT"), _get(b"/f", "PUT")),
    *(_put(b"/f?prevExist=false", b"prevExist=true&value=x"), _put(b"/f", b"value=x")._replace(chunked=True)),
    # Bodies that are no forms, or whose type is no type.
    Request("PUT", b"/v2/keys/f", b"value=untyped"),
    *(_typed(kind, b"value=typed") for kind in ("text/plain", "", FORM.upper(), f"{FORM}; charset=utf-8", f"{FORM};")),
    *(
        _typed(kind, b"value=typed")
        for kind in (f"{FORM}; charset", ";;", "a/b/c", "/", "a b", f" {FORM} ", f"{FORM}x")
    ),
    *(_typed("application/json", b'{"value":"x"}', target) for target in (b"/f", b"/f?value=q", b"/f?x=%zz")),
    *(_typed("multipart/form-data; boundary=B", body) for body in (_part(value="m"), _part(ttl="x"), b"garbage")),
    _typed("multipart/form-data", _part(value="m")),
    _put(b"/f", b"value=first", ("Content-Type", "text/plain")),
    # Methods whose bodies are not read.
    *(_put(b"/f", b"recursive=x&wait=x&ttl=x", method=method) for method in ("GET", "DELETE", "HEAD")),
    *(_put(b"/f", b"value=v"), _put(b"/f?prevValue=w", b"prevValue=v", method="DELETE")),
    *(
        _put(b"/f", b"value=e", ("Expect", "100-continue"), method=method)
        for method in ("PUT", "POST", "GET", "DELETE")
    ),
)

_WRITTEN = (
    *(b"a%2Fb", b"sp%20ace", b"%C3%A9", b"\xc3\xa9", b"%ff", b"\xff", b"tr/", b"...", b".dot", b"a.b", b"a..b", b"a_b"),
    *(b"_hid", b"x/_hid/y", b"L" * 300, b"a%00b", b"a+b", b"a;b", b"a,b:c@d!$'()*", b"a%3Fb", b"%25", b"a%0Ab"),
    *(b"%3Chtml%3E%26", b'"quote"', b"back\\slash", b"%7Btilde~%7D", b"UPPER", b"0", b"1", b"%e2%80%a8", b"m#frag"),
    *(b"%5Fhid2", b"x/%5fh/y", b"%c3", b"a=b&c", b"d/" * 30 + b"deep", b"%zz", b"%", b"%4", b"tab\tx", b"\x7f"),
)
_MOVED = (
    *(b"/v2/keys/tr//", b"/v2/keys//dbl", b"/v2/keys/d//dbl", b"/v2/keys/./dot", b"/v2/keys/d/../dot", b"/v2/keys/.."),
    *(b"/v2/keys/.", b"/v2/keys/../keys/x", b"/v2/keys/%2e%2e/dot", b"/v2/keys/%2E/dot", b"/v2/keys/a%2F%2Fb"),
    *(b"/v2/keys/%2F", b"/v2/keys/a%2F..%2Fb/?x", b"//v2/keys/x", b"/v2/keys//dbl?a=b&c=%zz", b"/v2/keys//\xc3\xa9"),
    *(b"/v2/keys//a%2Fb", b"/v2/keys/../machines", b"/v2/keys//<b>&\"'", b"/v2/keys//sp%20x", b"/v2/keys//%ff"),
    *(b"/v2/keys/../..", b"/v2/keys/../../../etc", b"/v2/keys//x#f", b"/v2/keys//a+b;c,d$:@!*()", b"/v2/keys/x/../"),
    *(b"/v2/keys//?", b"/v2/keys//a?b?c", b"/v2/keys//%7E~%2d", b"/v2/keys//%3F%25"),
)
_METHODS = ("GET", "HEAD", "PUT", "POST", "DELETE", "PATCH", "OPTIONS")
PATHS = (
    *(_put(b"/" + path, b"value=x") for path in _WRITTEN),
    *(_get(b"/" + path) for path in _WRITTEN),
    *(
        _get(target)
        for target in (b"?recursive=true&sorted=true", b"/x?recursive=true", b"/x/_hid", b"/_hid", b"/%5fhid")
    ),
    *(Request(method, target) for target in _MOVED for method in (_METHODS if target == _MOVED[0] else ("GET", "PUT"))),
    *(Request(method, target) for target in (b"/v2/keysfoo", b"/v2", b"/v2/") for method in _METHODS),
    *(Request("GET", target) for target in (b"/V2/keys/x", b"/v2/nope", b"/v2/keys%2Fx", b"/v2%2Fkeys", b"/v2/keys;x")),
    *(Request("PUT", b"http://127.0.0.1/v2/keys/abs" + rest) for rest in (b"?value=1", b"//x", b"")),
    *(_get(b"/0", method) for method in ("PATCH", "TRACE", "FOO", "put", "get", "PROPFIND", "OPTIONS")),
    *(
        _get(b"/0?ttl=%zz", "PATCH"),
        _put(b"/0", b"value=%zz", method="PATCH"),
        _get(b"", "PATCH"),
        _get(b"", "OPTIONS"),
    ),
    *(_get(target, "HEAD") for target in (b"/0", b"/none", b"?recursive=true", b"/0?ttl=x", b"/0?quorum=1", b"")),
    *(_get(target)._replace(headers=(("Origin", "http://a.example"),)) for target in (b"/0", b"/none")),
)

AT_ONCE = tuple(_put(b"/at-once", b"value=x&ttl=" + ttl) for ttl in (b"0", b"18446744073709551615"))
"""Keys that have ended when they are made; the second by a moment that is beyond 64 bits of nanoseconds."""

SIZES = (
    _put(b"/big", b"value=" + b"x" * (8 * _MIB // 5)),  # beyond what a request may have in v3
    _put(b"/big", b"value=small"),
    _put(b"/big", b"value=" + b"x" * (_FORM_LIMIT - 6)),
    _get(b"/big?recursive=true", "DELETE"),
    _put(b"/big", b"value=" + b"x" * (_FORM_LIMIT - 5)),
    _put(b"/big", b"value=" + b"x" * (_FORM_LIMIT + _MIB)),
    _typed("text/plain", b"x" * (_FORM_LIMIT + 1), b"/big"),
    _put(b"/big", b"x" * _MIB, method="DELETE"),
    _get(b"/big"),
)

# Only one of them is a change of the members that goes through Raft: a second one that comes too soon after another is
# dropped by etcd's, and answered with 500 after seven seconds.
PAGES = (
    *(Request("GET", b"/v2/" + page) for page in (b"machines", b"machines/", b"stats/leader", b"stats/", b"stats")),
    *(Request("GET", b"/v2/stats/" + page) for page in (b"self", b"store", b"nope", b"self/")),
    *(
        Request("GET", b"/v2/members" + page)
        for page in (b"", b"/", b"/leader", b"/leader/", b"/nope", b"/nope/x", b"x")
    ),
    *(
        Request("GET", b"/v2/auth/" + page)
        for page in (b"enable", b"users", b"roles", b"users/", b"roles/", b"enable/")
    ),
    *(Request("GET", b"/v2/auth/" + page) for page in (b"users/root", b"roles/root", b"users/no", b"roles/no", b"")),
    *(
        Request(method, b"/v2/" + page)
        for page in (
            b"machines",
            b"stats/self",
            b"stats/leader",
            b"stats/store",
            b"members",
            b"auth/enable",
            b"auth/users",
        )
        for method in ("HEAD", "PATCH", "OPTIONS")
    ),
    *(
        Request("POST", b"/v2/" + page)
        for page in (b"machines", b"stats/self", b"members", b"auth/enable", b"auth/users")
    ),
    *(
        Request("POST", b"/v2/members", body, _JSON)
        for body in (b"{}", b"{", b"", b'{"peerURLs":[]}', b'{"peerURLs":["nope"]}', b'{"peerURLs":["http://a"]}')
    ),
    *(
        Request("POST", b"/v2/members", b'{"peerURLs":%s' % rest, _JSON)
        for rest in (b'"x"}', b'["ftp://a:1"]}', b'["http://a:1/path"]}', b'["http://a:1"]} trailing')
    ),
    *(Request("POST", b"/v2/members", b"{}", headers) for headers in ((), (("Content-Type", "text/plain"),))),
    *(Request("PUT", b"/v2/members" + rest, b"{}", _JSON) for rest in (b"/nope", b"/1234", b"/", b"")),
    *(Request("DELETE", b"/v2/members" + rest) for rest in (b"/1234", b"/zz", b"", b"/")),
)
