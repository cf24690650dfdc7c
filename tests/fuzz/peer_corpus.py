"""The seeds of the peer fuzz target: one message of each kind, sound and with its head cut."""

from transport.peer import messages as m
from transport.peer.wire import Envelope, Message, encode

VOLUME = bytes(range(16))
ID = bytes(range(32))
OTHER = bytes(range(32, 64))
ME, YOU = 0x1111, 0x2222  # incarnations

RECORD = '{"node":"' + "0" * 32 + '"}'

EXAMPLES: dict[str, Message] = {
    "stripes": m.Stripes(),
    "stripe-status": m.StripeStatus(900, "move", 1 << 30, 9, 5, 0, 7, 8, ((ID, 2, 1, 2),), 1),
    "list-shards": m.ListShards(ID),
    "shard-list": m.ShardList(b"d" * 16, ((ID, 2, 1, 2, 99, 4096, b"g" * 16),), 1, (ID,), OTHER),
    "lag": m.Lag(VOLUME),
    "lags": m.Lags(((b"n" * 16, 4097, 1501, 0),)),
    "hello": m.Hello(b"n" * 16, b"c" * 16, 1, 1, 0, 0, "blockd 0.1.0"),
    "welcome": m.Welcome(b"m" * 16, b"c" * 16, 1, 0, 64, 64 << 20, "blockd 0.1.0"),
    "ping": m.Ping(77),
    "pong": m.Pong(77),
    "error": m.Error(m.Code.STALE, 9, "volume vm1: epoch 8 is old"),
    "cancel": m.Cancel(),
    "bye": m.Bye(),
    "status": m.Status(),
    "node-status": m.NodeStatus("serving", "blockd 0.1.0", 61, 3, 1 << 30, 1 << 40, 5),
    "nodes": m.Nodes(bytes(16)),
    "node-list": m.NodeList((RECORD, RECORD), 1),
    "join": m.Join(b"n" * 16, "host2", b"k" * 32, ("192.0.2.2:7300",)),
    "joined": m.Joined(b"c" * 16, RECORD),
    "open": m.Open(VOLUME, 3, 100),
    "ack": m.Ack(3, 120, 100),
    "append": m.Append(VOLUME, 3, 3, 101, 120, 0, (b"records" * 20,)),
    "sync": m.Sync(VOLUME, 3, 120),
    "seal": m.Seal(VOLUME, 4),
    "sealed": m.Sealed(4, 4500, 0, ((1, 50), (3, 120))),
    "read-log": m.ReadLog(VOLUME, 3, 60, 4096),
    "log": m.Log(3, 61, 90, 1, (b"records" * 20,)),
    "log-none": m.Log(3, 80, 0, 0),
    "close": m.Close(VOLUME, 3),
    "look": m.Look(VOLUME),
    "looked": m.Looked(3, 4, 120, 100, 4500, 0),
    "take": m.Take(VOLUME, 3),
    "undo": m.Undo(VOLUME, 4, 3, 119),
    "create": m.Create(VOLUME, 1, "vm1", 1 << 30, 4096, 65536),
    "append-brief": m.AppendBrief(
        *(VOLUME, 3, 3, 119, 120, 1, 4096, ((0, 64, ID), (1, 0, OTHER)), (b"header" * 20, b"x"))
    ),
    "compare": m.Compare(VOLUME, 4, ((65536, 2, ID), (256, 1, OTHER))),
    "compare-none": m.Compare(VOLUME, 4, ()),
    "compared": m.Compared(ID, (0, 1)),
    "stream": m.Stream(VOLUME, 4, 4096, 1, (b"stream" * 20,)),
    "streamed": m.Streamed(4216),
    "adopt": m.Adopt(VOLUME, 4, 50, 0, ((1, 50), (4, 120))),
    "have": m.Have(VOLUME, 4, (ID, OTHER)),
    "want": m.Want((OTHER,)),
    "chunks": m.Chunks(((ID, 1, 0, 8), (OTHER, 2, 1, 90)), (b"8 bytes.", b"stored")),
    "stored": m.Stored(1),
    "get": m.Get(65536, (ID, OTHER)),
    "get-at": m.GetAt(65536, ((VOLUME, 119, 65536, 0, ID), (VOLUME, 120, 0, 1, OTHER))),
    "chunk-list": m.ChunkList(((ID, 1, 0, 8),), (b"8 bytes.",)),
}


def as_input(switches: int, *messages: list[bytes]) -> bytes:
    """Messages as the target takes them."""
    data = bytes((switches,))
    for frames in messages:
        data += bytes((len(frames),))
        data += b"".join(len(frame).to_bytes(2, "little") + frame for frame in frames)
    return data


def frames_of(message: Message, sender: int = ME, to: int = YOU, request: int = 1) -> list[bytes]:
    return [bytes(memoryview(each)) for each in encode(message, Envelope(sender, to, request))]


def inputs() -> dict[str, bytes]:
    """Name -> input."""
    found = {name: as_input(0, frames_of(message)) for name, message in EXAMPLES.items()}
    for name, message in EXAMPLES.items():
        head, *payload = frames_of(message)
        if len(head) > 41:
            found[f"{name}-cut"] = as_input(1, [head[:-1], *payload])
    head = frames_of(m.Have(VOLUME, 4, (ID,)))[0]
    found["have-count-too-high"] = as_input(1, [head[:40] + b"\xff" * 4 + head[44:]])
    found["version-2"] = as_input(1, [head[:4] + b"\2" + head[5:]])
    found["no-frame"] = as_input(0, [])
    return found
