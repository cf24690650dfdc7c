"""What versions cost: snapshots, clones, dedup, diff, memory, space and gc, as figures.

One module for each part; `versions.command` is the command line.
"""
