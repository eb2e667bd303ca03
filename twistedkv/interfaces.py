"""The interfaces that plugins provide. They are looked up by Twisted's plugin system or by an entry point."""

from __future__ import annotations

from zope.interface import Attribute, Interface

from twistedkv.storage.backend import Backend


class IStoragePlugin(Interface):
    """A kind of database, chosen by the scheme of ``--storage URL``.

    Either an object in a module of some ``twistedkv/plugins`` directory on the Python path provides it, together with
    :class:`twisted.plugin.IPlugin`, or an object that an entry point of the group ``twistedkv.storage`` names: one
    entry point a scheme. The backend is to pass :class:`twistedkv.storage.contract.BackendContract`.
    """

    schemes = Attribute("The URL schemes that it answers to: a tuple of str, lower case.")
    example = Attribute("A URL as it would be right, without a password: for error messages.")

    def make(url: str) -> Backend:  # noqa: N805  zope's interfaces have no self
        """A backend for ``url``, not opened yet: this neither blocks nor connects.

        Raises:
            ValueError: what is wrong with the URL, in one line without any password.
        """
