"""Nodes with a device each, asked without sockets: every message is encoded and decoded."""

from tests.stripe_rig import SubDisk
from transport.peer import messages as m
from transport.peer.wire import Envelope, Message, decode, encode
from transport.remoteshards import NoAnswer, RemoteDevice, refusal
from transport.shardserver import ShardServer


def over_the_wire(message: Message) -> Message:
    frames = [bytes(frame) for frame in encode(message, Envelope(1, 2, 3))]
    return decode(frames, m.KINDS)[1]


def device_id(number: int) -> str:
    return f"{number:032x}"


class ShardNodes:
    """Node i has device i; its id is the device's."""

    def __init__(self, devices: list[SubDisk]) -> None:
        self.servers = [
            ShardServer(device, bytes.fromhex(device_id(number)), 0)
            for number, device in enumerate(devices)
        ]
        self.away: set[int] = set()
        self.asked: list[m.Request] = []
        self.refused = 0
        """Requests to nodes that are away."""

    def ask(self, node: bytes, message: m.Request, timeout_s: float) -> Message:
        number = int.from_bytes(node, "big")
        if number in self.away:
            self.refused += 1
            raise NoAnswer(f"node {number} is not connected")
        self.asked.append(message)
        request = over_the_wire(message)
        assert isinstance(request, m.PutShard | m.FinishShard | m.DropShard | m.GetShard)
        answer = over_the_wire(self.servers[number].answer(request))
        if isinstance(answer, m.Error):
            raise refusal(answer)
        return answer

    def disk(self, device: str) -> RemoteDevice:
        """As another node sees it."""
        identity = bytes.fromhex(device)
        return RemoteDevice(self.ask, identity, identity, 1.0)

    def disks(self) -> list[RemoteDevice]:
        return [self.disk(device_id(number)) for number in range(len(self.servers))]
