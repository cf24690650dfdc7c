"""iSCSI (RFC 7143) as a sans-I/O target: bytes in, events out.

    connection.Connection   framing and digests; login, then full feature phase
    login, text, chap       login stages, negotiation by a table of keys, CHAP
    session                 command window, Data-In, Data-Out, R2T, NOP, task management, logout
    pdu                     every PDU: encode and decode
    node                    what connections share: targets, sessions, reinstatement
    targets                 IQN -> portal groups, access, LUN -> unit

SCSI is `blockd.scsi`. Sockets are elsewhere.
"""
