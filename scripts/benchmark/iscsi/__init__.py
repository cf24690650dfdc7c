"""blockd beside tgtd over iSCSI, in interleaved rounds.

`iscsi.clients` has the jobs, `iscsi.peers` the servers, `iscsi.command` is the command line.
"""
