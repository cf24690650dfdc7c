"""The peer protocol: bytes in, events out; no sockets, no clock of its own, no volumes.

    fields.py      kinds of fields: bytes <-> values, each with its bounds
    wire.py        a message as frames: header, fields, payload
    messages.py    all the messages, one frozen dataclass each, by their types; they stand in
                   sessionmessages.py, groupmessages.py, chunkmessages.py, shardmessages.py
    requests.py    what requests are, and types of fields that many messages have
    policy.py      bounds of a session: times, counts, bytes
    caller.py      one peer that we ask: hello, requests, retries, keep-alive
    answerer.py    one peer that asks us

docs/peer-protocol.md has the tables.
"""
