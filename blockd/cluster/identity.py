"""Which node of which cluster a data directory is. Loads nothing of peers."""

from blockd.config import ServeConfig
from blockd.toml_decode import ConfigError
from transport.keys import Identity, read_identity


def node_identity(config: ServeConfig) -> Identity:
    """Who the daemon is among its peers. ConfigError: nobody yet; BadIdentity, OSError."""
    found = read_identity(config.data)
    if found is None:
        raise ConfigError(
            f"{config.data} is in no cluster yet: say `blockd cluster init NAME` for the first "
            "node, `blockd cluster join TOKEN` for others; or take [cluster] out of the "
            "configuration to have it serve alone"
        )
    if not found.joined:
        raise ConfigError(
            f"{config.data}: node {found.name} has not heard yet that it is in the cluster; say "
            "`blockd cluster init` or `blockd cluster join` again"
        )
    return found
