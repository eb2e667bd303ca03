"""twistedkv: a distributed, consistent key-value store on Twisted that speaks etcd's protocols."""

__version__ = "0.1.0"
