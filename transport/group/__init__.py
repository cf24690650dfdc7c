"""A journal group: the members of a volume, what each of them has, and who may go on with it.

Plain state machines: no sockets, no files, no clock. docs/cluster.md has the whole.

    chain.py      what a member has, as (epoch, seq) ranges; where two of them part
    acks.py       what may be acknowledged
    takeover.py   what the volume is after its primary is gone, and what each member has to do
"""
