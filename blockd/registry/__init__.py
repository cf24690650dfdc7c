"""Which iSCSI targets and units there are, on top of a store.

    targets    names -> targets: one for each volume, and those that somebody configured
    stored     what a configured target is on disk
    units      one SCSI unit for each device, whatever targets and portals lead to it
    steps      carries out what units do without a session
    errors     what cannot be done to a target

Everything here belongs to the event loop's thread, but for what says that it waits for disks.
"""
