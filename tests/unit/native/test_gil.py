"""Simulated files are called with the GIL while the core's locks are held: nobody may wait for such
a lock with the GIL in hand. A failure is a process that hangs, so each case runs in one of its own.
"""

import subprocess
import sys
import textwrap

import pytest

PRELUDE = """
import threading
from native import *

class File:
    def __init__(self):
        self.image = bytearray(1 << 16)
        self.inside = threading.Event()
        self.go_on = threading.Event()
        self.stall = False
    def pread(self, length, offset):
        return bytes(self.image[offset : offset + length])
    def pwrite(self, data, offset):
        self.image[offset : offset + len(data)] = data
        if self.stall:
            self.inside.set()
            assert self.go_on.wait(60)
        return len(data)
    def sync(self):
        pass

file = File()
journal = Journal(bytes(16), 1 << 16, 1)
journal.add_ready(0, file)
table = PlaceTable(1 << 20)
volume = VolumeCore(journal, table, 1, 1, 4096, 1 << 20, 0, 0)

def append():
    volume.submit([Request(OP_WRITE, 0, 512, bytes(512))], 1)

append()
file.stall = True
writer = threading.Thread(target=append)
writer.start()
assert file.inside.wait(60)
file.go_on.set()
"""

CALLS = [
    "journal.state()",
    "journal.cut()",
    "journal.release(1)",
    "journal.sync()",
    "journal.freeze([volume])",
    "journal.append_mark(2)",
    "journal.set_limits(1 << 30, 0)",
    "append()",
    "volume.submit([Request(OP_FLUSH)], 1)",
]


@pytest.mark.parametrize("call", CALLS)
def test_a_call_waits_for_the_journal_without_the_gil(call: str) -> None:
    code = textwrap.dedent(PRELUDE) + call + "\nwriter.join()\nprint('finished')\n"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.stdout, done.returncode) == ("finished\n", 0), done.stderr
