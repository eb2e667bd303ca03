"""The URLs of members, and Go's words for what is wrong with them."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from twistedkv.protocols.gourls import URLsError, check_urls

_SCHEME = "URL scheme must be http, https, unix, or unixs: "
_PORT = 'URL address does not have the form "host:port": '
_PATH = "URL must not contain a path: "
REFUSED = {  # what etcd 3.5.1 said to POST /v2/members
    "": _SCHEME,
    "x": f"{_SCHEME}x",
    "ftp://a:1": f"{_SCHEME}ftp://a:1",
    "http://a": f"{_PORT}http://a",
    "http://[::1]": f"{_PORT}http://[::1]",
    "http:a:1": f"{_PORT}http:a:1",
    "http://a:1/x": f"{_PATH}http://a:1/x",
    "http://a:1/": f"{_PATH}http://a:1/",
    "http://a:b": 'parse "http://a:b": invalid port ":b" after host',
    "http://a:1x": 'parse "http://a:1x": invalid port ":1x" after host',
    "http://[::1]1": 'parse "http://[::1]1": invalid port "1" after host',
    "http://[::1:1": "parse \"http://[::1:1\": missing ']' in host",
    "http://a b:1": 'parse "http://a b:1": invalid character " " in host name',
    "http://a{:1": 'parse "http://a{:1": invalid character "{" in host name',
    "http://%41:1": 'parse "http://%41:1": invalid URL escape "%41"',
    "http://u r@a:1": 'parse "http://u r@a:1": net/url: invalid userinfo',
    "http://a:1/%zz": 'parse "http://a:1/%zz": invalid URL escape "%zz"',
    "%zz": 'parse "%zz": invalid URL escape "%zz"',
    "%z": 'parse "%z": invalid URL escape "%z"',
    ":": 'parse ":": missing protocol scheme',
    "1a:b": 'parse "1a:b": first path segment in URL cannot contain colon',
    "http://\x01:1": 'parse "http://\\x01:1": net/url: invalid control character in URL',
    "http://a:1#%zz": 'parse "http://a:1#%zz": invalid URL escape "%zz"',
    "http://é:x#y": 'parse "http://é:x": invalid port ":x" after host',
}
TAKEN = (
    "http://a:1",
    " https://[::1]:2380\t",
    "HTTP://a_b:99999",
    "http://:1",
    "http://a:",
    "http://a:1?x=1",
    "unix://a:1",
)


class URLTests(SynchronousTestCase):
    def test_words_are_gos(self) -> None:
        """A mistake is named as etcd names it."""
        for url, text in REFUSED.items():
            said = self.assertRaises(URLsError, check_urls, ["http://a:1", url, "http://b"])
            self.assertEqual(str(said), text)

    def test_what_etcd_takes(self) -> None:
        """Blanks around a URL do not count, and whether its host exists is not asked."""
        for url in TAKEN:
            check_urls([url])

    def test_there_must_be_one(self) -> None:
        """No URL is no list of URLs."""
        said = self.assertRaises(URLsError, check_urls, [])
        self.assertEqual(str(said), "no valid URLs given")
