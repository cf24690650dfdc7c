"""One machine of the world: a disk, and the daemon's parts as `blockd.daemon` puts them together.

The store, its threads, the NBD and iSCSI listeners and the loop are the product's. `kill` ends the
process and `cut` the power at any moment; `boot` starts the daemon again on what is left.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable
from typing import Any, TypeVar

from blockd.access.book import Everybody
from blockd.iscsi_listener import IscsiListener
from blockd.limits import RateLimits
from blockd.listener import NbdListener
from blockd.log_limiter import LogLimiter
from blockd.nbd.limits import Limits
from blockd.registry.targets import TargetRegistry
from blockd.scheduler import LoopScheduler
from blockd.wiring import ConfiguredPolicies
from tests.sim.crash import survivors
from tests.sim.image import Image
from tests.sim.simdisk import DEFAULT_CAPACITY
from tests.sim.world.disk import Tap, WorldClock, WorldDisk, WorldKeyValue
from tests.sim.world.loop import SimLoop
from tests.sim.world.net import Network
from tests.sim.world.primitives import Event, Lock
from tests.sim.world.threads import Group, Killed, Threads
from volume.layout import META_KEY_SEALED
from volume.options import StoreOptions
from volume.store import Store

T = TypeVar("T")

NBD_PORT, ISCSI_PORT = 10809, 3260
DRAIN_S = 1.0


class ServerGone(Exception):
    """The process ended before it answered."""


class _Journal:
    """The journal for those who sync it: one at a time, as the core's own lock would have it."""

    def __init__(self, journal: Any, lock: Lock) -> None:
        self._journal, self._lock = journal, lock

    def sync(self) -> int:
        with self._lock:
            return int(self._journal.sync())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._journal, name)


def _close(loop: asyncio.AbstractEventLoop) -> None:
    """Let nothing of a loop be left to the garbage collector, which comes when it likes."""
    by_number = sorted(asyncio.all_tasks(loop), key=lambda task: int(task.get_name()[5:]))
    for task in by_number:  # "Task-12"; a set has no order of its own
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        with contextlib.suppress(RuntimeError, Killed):
            task.get_coro().close()
    loop.close()


class Machine:
    def __init__(
        self,
        run: Threads,
        network: Network,
        seed: str,
        options: StoreOptions,
        tap: Tap,
        capacity: int = 0,
    ) -> None:
        self.run = run
        self.network = network
        self.options = options
        self.store: Store | None = None
        self.disk: WorldDisk
        self.rate_limits: RateLimits
        self.failure: BaseException | None = None
        """Why the daemon did not start, or ended."""
        self._tap = tap
        self._random = random.Random(f"machine:{seed}")
        self.clock = WorldClock(run, seed)
        self._image: Image | None = None
        self._meta_items: dict[bytes, bytes] = {}
        self._index_items: dict[bytes, bytes] = {}
        self.capacity = capacity or DEFAULT_CAPACITY
        self.struck = False
        """A fail point has ended the process; nobody has seen to it yet."""
        self.fail_point: tuple[str, int, bool] | None = None
        """Name, how often it is still passed, and whether the power goes with the process."""
        self.unsealed = 0
        self._struck: tuple[Image, dict[bytes, bytes], dict[bytes, bytes]] | None = None
        self._boots = 0
        self._restarts = 0
        self._group: Group | None = None
        self.on_strike: Callable[[], None] = lambda: None
        self.struck_power = False
        self.lost_power = False
        """The last crash was a power cut."""

    # -- life

    def boot(self) -> bool:
        """Start the daemon; whether it serves. `failure` says why not."""
        self._restarts += 1
        self._group = Group(f"daemon-{self._restarts}")
        self.disk = WorldDisk(self.run, self._image, self._landed, capacity=self.capacity)
        self.meta = WorldKeyValue(self.run, self._meta_items, synced=True)
        self.index = WorldKeyValue(self.run, self._index_items, synced=False)
        self._up, self._ended = Event(), Event()
        self.failure = None
        self.run.spawn("loop", self._process, self._group)
        self._up.wait()
        return self.failure is None

    def _landed(self, path: str, offset: int, data: bytes) -> None:
        if self._group is not None and not self._group.killed:
            self._tap(path, offset, data)

    def _process(self) -> None:
        self._loop = loop = SimLoop(self.run)
        loop.set_exception_handler(self._loop_failed)
        try:
            loop.run_until_complete(self._serve())
        except Exception as error:
            self.failure = error
        finally:
            _close(loop)
        self._up.set()
        self._ended.set()

    def _loop_failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not self.run.current.group.killed:
            self.run.fail(error or AssertionError(context["message"]))

    def _open_store(self, scheduler: LoopScheduler) -> Store:
        store = Store(
            *(self.disk, self.clock, self.meta, self._open_index, scheduler, self.options),
            boot_id=f"boot-{self._boots}",
        )
        journal = _Journal(store._journal, Lock())
        for part in (store._flusher, store._seal, store._destager):
            part._journal = journal  # type: ignore[assignment]
        store._start()
        return store

    def _open_index(self, fresh: bool) -> WorldKeyValue:
        if fresh:
            self.index.restore({})
        return self.index

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        scheduler = LoopScheduler(asyncio.get_running_loop())
        self.store = store = await asyncio.to_thread(self._open_store, scheduler)
        targets = await asyncio.to_thread(TargetRegistry, store)
        self.rate_limits = await asyncio.to_thread(RateLimits, store, lambda: self.run.now_ns)
        nbd = NbdListener(
            *(store, ConfiguredPolicies({}), Everybody()),
            adopted=[self.network.socket(NBD_PORT)],
            limits=Limits(),
            rate_limits=self.rate_limits,
        )
        iscsi = IscsiListener(
            *(targets, Everybody()),
            adopted=[self.network.socket(ISCSI_PORT)],
            rate_limits=self.rate_limits,
        )
        for listener in (nbd, iscsi):
            listener.limiter = LogLimiter(logging.getLogger("blockd"), lambda: self.run.now_s)
            await listener.start()
        self._up.set()
        await self._stop.wait()
        await asyncio.gather(nbd.stop(DRAIN_S), iscsi.stop(DRAIN_S))
        await asyncio.to_thread(store.close)

    def call(self, work: Callable[[Store], T]) -> T:
        """Have the daemon do something on a thread of its own, as its control API does. What it
        raises; ServerGone."""
        group, store = self._group, self.store
        if group is None or store is None or group.killed:
            raise ServerGone
        result: list[T] = []
        failed: list[Exception] = []

        def perform() -> None:
            try:
                result.append(work(store))
            except Exception as error:
                failed.append(error)

        self.run.join(self.run.spawn("control", perform, group))
        if group.killed:  # it may have been done, and nobody was told
            raise ServerGone
        if failed:
            raise failed[0]
        return result[0]

    # -- the end of it

    def stop(self) -> None:
        """Drain and close, as at SIGTERM."""
        if self.store is not None and not self.struck:
            self._loop.call_soon_threadsafe(self._stop.set)
            self._ended.wait()
        self.kill()

    def kill(self) -> None:
        """kill -9: what was written is there."""
        self.lost_power = self._struck is not None and self.struck_power
        self._leave(*(self._struck or self._killed()))

    def cut(self) -> None:
        """The power goes: of what was not synced any part may be there."""
        self.lost_power = self._struck is None or self.struck_power
        self._leave(*(self._struck or self._unpowered()))

    def passed(self, name: str) -> None:
        """A thread of the daemon comes by a fail point; it may be its last."""
        if self.fail_point is None or self.fail_point[0] != name or self._group is None:
            return
        _, left, power = self.fail_point
        if left > 1 or self._group.killed:
            self.fail_point = (name, left - 1, power)
            return
        self.fail_point = None
        self._struck = self._unpowered() if power else self._killed()
        self.struck, self.struck_power = True, power
        self.disk.power_off()
        self.network.process_ended()
        self._group.killed = True
        self.failure = Killed(name)
        self._up.set()
        self._ended.set()
        self.on_strike()
        raise Killed(name)

    def _killed(self) -> tuple[Image, dict[bytes, bytes], dict[bytes, bytes]]:
        return self.disk.image(), self.meta.snapshot(), self.index.snapshot()

    def _unpowered(self) -> tuple[Image, dict[bytes, bytes], dict[bytes, bytes]]:
        self._boots += 1
        image = survivors(self.disk.trace, self._random)
        return image, self.meta.durable, self.index.durable

    def _leave(self, image: Image, meta: dict[bytes, bytes], index: dict[bytes, bytes]) -> None:
        self._image, self._meta_items, self._index_items = image, dict(meta), dict(index)
        self._struck, self.struck = None, False
        if self._meta_items.pop(META_KEY_SEALED, None) is not None:  # blockd doctor --unseal
            self.unsealed += 1
        self.abandon()

    def abandon(self) -> None:
        """End everything; nothing more is kept."""
        self.disk.power_off()
        self.network.process_ended()
        if self._group is not None:
            self.run.kill(self._group)
            self._group = None
        self.store = None
        self.disk.forget_world()

    @property
    def sealed(self) -> bool:
        return self.store is not None and self.store._seal.reason is not None
