"""The benchmark: real etcd and twistedkv side by side on one machine, under the same load."""
