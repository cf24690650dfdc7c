"""What messages of several kinds share: requests, and the types of their fields."""

from typing import Annotated, ClassVar

from transport.peer.fields import MAX_SEQ, Int, Raw
from transport.peer.wire import Message

U8 = Annotated[int, Int(1)]
U16 = Annotated[int, Int(2)]
U32 = Annotated[int, Int(4)]
U64 = Annotated[int, Int(8)]
Bool = Annotated[int, Int(1, 0, 1)]
Uuid = Annotated[bytes, Raw(16)]
Epoch = Annotated[int, Int(8, 1, MAX_SEQ)]
Seq = Annotated[int, Int(8, 0, MAX_SEQ)]


class Request(Message):
    """A message that is answered."""

    __slots__ = ()

    ANSWER: ClassVar[type[Message]]

    @property
    def room(self) -> int:
        """Bytes of payload that its answer may have."""
        return 0
