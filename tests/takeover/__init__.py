"""Nodes of one volume in a world of time, messages and accidents, for tests of who is its primary.

Real: `Watch`, `Takeover`, `Lease`, `Quiet`, `Acks`, `choose`, the records and their transactions. A
model: members (a log in memory and what of it is synced), the primary that brings the others to its
state, the network, the MetaStore's way of answering. Each node has a clock of its own that drifts.

    world.py     time, network, MetaStore, accidents, and the judge
    node.py      a process with a disk: member and candidate
    leader.py    a primary and its clients

Everything happens through `World.at`: what belongs to a node is put off while the node is paused,
and never happens when it was killed before. Whatever is random comes from one generator.
"""
