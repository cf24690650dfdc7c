"""SCSI block devices: CDB in, result or sense out. No socket, no transport.

    target.TargetDevice   LUN -> unit; what is answered for LUNs that are not there
    unit.LogicalUnit      one volume as a SCSI device: checks, then dispatch by `opcodes.TABLE`
    task                  what a command needs while it runs, as steps that a transport carries out
    cdb, sense            bytes <-> facts
    disk, verify, provisioning, atomic, copy, sanitize     the commands that move data
    inquiry, vpd, capacity, readiness, logs, alua          the commands that tell something
    modes, reservations                                    the commands that set something
    opcodes               all of these in one table, and what is told of it

References are to SAM-5 (T10/BSR INCITS 515), SPC-4 (513) and SBC-3 (514), where nothing else is
said.
"""
