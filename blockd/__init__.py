"""blockd: the daemon, its protocols and its CLI."""
