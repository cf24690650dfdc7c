"""The history checker: decides from what was recorded whether a volume kept its promises.

Every sector that a recording client writes says who wrote it (`stamps`). The client notes when each
operation began and ended, in one append-only file (`events`). `judge` reads it once, in order:

    I1  a read returns the last acked write or a concurrent one, and never goes back (registers)
    I2  an acked flush survives any crash (states)
    I3  what is there after a crash is the state at one point, with whole writes only (states)
    I5  no torn 512-byte sector, no torn aligned 4 KiB block (stamps, blocks)
    I8  never somebody else's bytes (stamps, judge)

Time is the line of the file: a line that says "begun" is written before the request is sent, one
that says "ended" after its reply has come. So an order of two lines is never an order that did not
happen, and no clock is compared with another. Only what must be wrong is called wrong: operations
whose times overlap may have happened in either order.

    python -m tests.check history FILE                      judge a recorded history
    python -m tests.check scan DEVICE --history FILE        is this disk a legal end of it?
"""
