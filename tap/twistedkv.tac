"""A member in the foreground, told what to do by the environment alone: ``twistd -noy tap/twistedkv.tac``.

It logs wherever twistd does, at every level. ``twistd twistedkv`` is the way that takes flags and becomes a daemon.
"""

from twisted.application.service import Application

from twistedkv.tap import Options, makeService

application = Application("twistedkv")
options = Options()
options.parseOptions([])
makeService(options).setServiceParent(application)
