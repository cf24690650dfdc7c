"""What a run of the `blockd` command in this process gave."""

import json
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> Any:
        return json.loads(self.err)["error"]


class Blockd(Protocol):
    """What the fixture `blockd` gives: runs one command line."""

    def __call__(self, *arguments: str) -> Result: ...
