"""Exit codes of `blockd`: stable, one per thing that a script would react to differently.

`EXIT_CODE` maps the error codes of the daemon and of the CLI itself; a code that is not in it
exits with 1.
"""

OK = 0
FAILED = 1
USAGE = 2
NO_DAEMON = 3
NOT_FOUND = 4
CONFLICT = 5
NO_WRITES = 6
DAMAGED = 7
INTERRUPTED = 130

MEANING = {
    OK: "done",
    FAILED: "failed; the message says why (also: doctor found a failure)",
    USAGE: "wrong command line, configuration, name, size or policy",
    NO_DAEMON: "no daemon answers on the control socket",
    NOT_FOUND: "no such volume, snapshot, version, target, LUN, client or node",
    CONFLICT: "in the way: exists, in use, pinned, has snapshots, a LUN, cuts data",
    NO_WRITES: "no space left, or the data directory is sealed",
    DAMAGED: "stored data is damaged or of an unknown format (also: scrub found some)",
    INTERRUPTED: "interrupted by Ctrl-C (not serve, which drains and exits 0)",
}

EXIT_CODE = {
    "usage": USAGE,
    "invalid_config": USAGE,
    "tls_config": USAGE,
    "invalid_name": USAGE,
    "invalid_size": USAGE,
    "invalid_policy": USAGE,
    "invalid_request": USAGE,
    "no_daemon": NO_DAEMON,
    "no_such_volume": NOT_FOUND,
    "no_such_version": NOT_FOUND,
    "volume_exists": CONFLICT,
    "volume_busy": CONFLICT,
    "volume_has_snapshots": CONFLICT,
    "volume_replicated": CONFLICT,
    "not_primary": CONFLICT,
    "cannot_restore": CONFLICT,
    "mixed_group": USAGE,
    "versions_busy": CONFLICT,
    "snapshot_exists": CONFLICT,
    "snapshot_pinned": CONFLICT,
    "shrink_refused": CONFLICT,
    "directory_locked": CONFLICT,
    "meta_exists": CONFLICT,
    "stream_refused": CONFLICT,
    "invalid_target": USAGE,
    "no_such_target": NOT_FOUND,
    "no_such_lun": NOT_FOUND,
    "no_such_entry": NOT_FOUND,
    "no_such_client": NOT_FOUND,
    "no_cluster": CONFLICT,
    "cannot_join": CONFLICT,
    "no_such_node": NOT_FOUND,
    "node_needed": CONFLICT,
    "cannot_rebuild_rows": CONFLICT,
    "cannot_give_up": CONFLICT,
    "cannot_make_volume": CONFLICT,
    "cannot_move": CONFLICT,
    "wrong_device_map": CONFLICT,
    "stripe_unavailable": DAMAGED,
    "stripe_given_up": DAMAGED,
    "cannot_replace": CONFLICT,
    "cannot_delete": CONFLICT,
    "bad_token": USAGE,
    "bad_identity": USAGE,
    "target_exists": CONFLICT,
    "target_busy": CONFLICT,
    "lun_taken": CONFLICT,
    "volume_is_lun": CONFLICT,
    "invalid_rule": USAGE,
    "access_changed": CONFLICT,
    "out_of_space": NO_WRITES,
    "store_sealed": NO_WRITES,
    "meta_lost": DAMAGED,
    "old_meta": DAMAGED,
    "unknown_format": DAMAGED,
    "invalid_stream": DAMAGED,
    "corrupt_data": DAMAGED,
    "corrupt_chunk": DAMAGED,
    "corrupt_journal": DAMAGED,
    "corrupt_pack": DAMAGED,
    "corrupt_manifest": DAMAGED,
}


def epilog() -> str:
    """The table, as `blockd --help` ends with it."""
    return "\n".join(["Exit codes:", *(f"{code:>3}  {text}" for code, text in MEANING.items())])
