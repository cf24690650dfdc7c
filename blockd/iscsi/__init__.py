"""iSCSI (RFC 7143) as a sans-I/O target: bytes in, events out.

    connection.Connection   login, then full feature phase
    framing                 where PDUs begin and end: lengths, padding, digests
    login, text, chap       login stages, negotiation by a table of keys, CHAP
    session, command        SCSI commands from their PDU to their answer
    data_out, room          data-out and R2Ts; how many bytes the commands of a session may hold
    replies, sending        Data-In, responses, residuals; numbers, command window, digests
    requests, management    NOP, text, logout; task management
    pdu                     every PDU: encode and decode
    node                    what connections share: targets, sessions, reinstatement
    names                   iSCSI names: what can be one, how they are compared
    targets                 IQN -> portal groups, access, LUN -> unit

SCSI is `blockd.scsi`. Sockets are elsewhere.
"""
