"""What a metric is, and the usual ways to make one."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from blockd.metrics.facts import Facts

Sample = tuple[tuple[str, ...], float]

PREFIX: Final = "blockd_"


@dataclass(frozen=True, slots=True)
class Definition:
    """One metric. `kind` is "counter", "gauge" or "histogram"."""

    name: str
    kind: str
    help: str
    samples: Callable[[Facts], Iterable[Sample]]
    labels: tuple[str, ...] = ()

    @property
    def exposed(self) -> str:
        """As it is scraped."""
        return PREFIX + self.name + ("_total" if self.kind == "counter" else "")


def gauge(name: str, help_: str, value: Callable[[Facts], float | None]) -> Definition:
    """`value` None: there is nothing to tell, and no sample."""

    def samples(facts: Facts) -> list[Sample]:
        found = value(facts)
        return [] if found is None else [((), found)]

    return Definition(name, "gauge", help_, samples)


def by_volume(
    name: str,
    help_: str,
    value: Callable[[Facts], Iterable[tuple[str, float]]],
    kind: str = "gauge",
) -> Definition:
    def samples(facts: Facts) -> list[Sample]:
        return [((volume,), number) for volume, number in value(facts)]

    return Definition(name, kind, help_, samples, ("volume",))
