"""Section [metrics]."""

from dataclasses import dataclass

from blockd.config.addresses import Address


@dataclass(frozen=True, slots=True)
class MetricsConfig:
    """[metrics]: where Prometheus finds /metrics; the control socket has it in any case."""

    listen: tuple[Address, ...] = ()
    """HTTP servers of their own."""
    insecure: bool = False
    """Allows addresses that other machines reach: they learn the names of volumes, and how busy
    they are."""
