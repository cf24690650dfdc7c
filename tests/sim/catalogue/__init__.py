"""The catalogue of workloads whose every crash state is enumerated; see `tests.sim.crash_window`.

Each module has the workloads of one part of the store; `CATALOGUE` has them all, by name.
"""

from tests.sim.catalogue import collection, rounds, versions, volumes, writes
from tests.sim.catalogue.life import Workload

MODULES = (writes, rounds, collection, versions, volumes)

CATALOGUE: dict[str, Workload] = {
    name: workload for module in MODULES for name, workload in module.CATALOGUE.workloads.items()
}
