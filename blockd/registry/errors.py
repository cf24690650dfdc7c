"""What can go wrong with targets; messages name the object, the value and the way out.

TargetError
  NoSuchTarget  TargetExists  TargetBusy  InvalidTarget
  NoSuchLun  LunTaken  NoSuchEntry  VolumeIsLun
"""


class TargetError(Exception):
    """`code` is stable and machine-readable, as that of volume's errors."""

    code = "target_error"


class NoSuchTarget(TargetError):
    code = "no_such_target"

    def __init__(self, name: str) -> None:
        super().__init__(f"target {name}: there is none; `blockd target list` shows what there is")


class TargetExists(TargetError):
    code = "target_exists"

    def __init__(self, name: str) -> None:
        super().__init__(f"target {name}: exists already; choose another name or delete it first")


class TargetBusy(TargetError):
    code = "target_busy"

    def __init__(self, name: str, count: int) -> None:
        super().__init__(
            f"target {name}: {count} session(s) are logged in; log out first or use --force"
        )


class InvalidTarget(TargetError):
    """A name, secret, network or number that cannot be."""

    code = "invalid_target"


class NoSuchLun(TargetError):
    code = "no_such_lun"

    def __init__(self, target: str, lun: int) -> None:
        super().__init__(
            f"target {target}: there is no LUN {lun}; `blockd target show {target}` lists them"
        )


class LunTaken(TargetError):
    code = "lun_taken"

    def __init__(self, target: str, lun: int) -> None:
        super().__init__(
            f"target {target}: LUN {lun} is taken; leave the number out for a free one"
        )


class NoSuchEntry(TargetError):
    code = "no_such_entry"

    def __init__(self, target: str, what: str) -> None:
        super().__init__(
            f"target {target}: {what} is not on its list; `blockd target show {target}` has it"
        )


class VolumeIsLun(TargetError):
    code = "volume_is_lun"

    def __init__(self, volume: str, targets: list[str]) -> None:
        shown = ", ".join(targets[:3]) + (", ..." if len(targets) > 3 else "")
        super().__init__(
            f"volume {volume}: is a unit of {shown}; `blockd target lun remove` it, or use --force"
        )
