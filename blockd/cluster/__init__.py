"""This node among the others of its cluster; only a daemon with `[cluster] etcd` imports it.

node.py         a node: identity, sessions, what it answers, what it tells people
identity.py     which node a data directory is; without ZeroMQ
membership.py   who is in the cluster, as etcd has it
"""
