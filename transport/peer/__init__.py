"""The peer protocol: bytes in, events out; no sockets, no clock of its own, no volumes.

    fields.py      kinds of fields: bytes <-> values, each with its bounds
    wire.py        a message as frames: header, fields, payload
    messages.py    the messages, one frozen dataclass each
    policy.py      bounds of a session: times, counts, bytes
    caller.py      one peer that we ask: hello, requests, retries, keep-alive
    answerer.py    one peer that asks us

docs/peer-protocol.md has the tables.
"""
