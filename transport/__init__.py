"""transport: what several nodes need to be one store: peers, groups, placement, stripes.

docs/cluster.md is the plan, and says what is built.
"""
