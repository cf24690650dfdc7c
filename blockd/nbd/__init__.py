"""NBD as a sans-I/O engine: bytes in, events and bytes out. `Connection` is the way in.

    wire          constants and structs of the protocol text, in its order; no logic
    limits        every bound of a connection, with its reason
    errors        errno and VolumeError -> what may cross the wire
    access        who may open which export: TLS modes, per-export policy
    lookups       questions about versions, which wait for disks
    receive       the receive buffer: where bytes land, how payloads stay in place
    options       the payloads of options, decoded strictly
    contexts      metadata contexts: names, queries, extents -> descriptors
    export_info   what a client is told of an export; the terms of transmission
    handshake     fixed newstyle negotiation
    replies       simple, structured and extended replies
    requests      the rules for one request: flags, ranges, alignment, read-only
    transmission  the request loop over a receive buffer
    stats         counters for operators
    events        what the listener is asked to do
    connection    ties them together; the events the listener handles

"The protocol text" means doc/proto.md of NetworkBlockDevice/nbd, with its extension-ext-header
branch for extended headers.
"""
