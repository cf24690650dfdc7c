"""Worlds of several nodes from seeds, share 2 of those that every run lives."""

from tests.sim.cluster.gate import worlds

test_worlds_keep_every_promise = worlds(2)
