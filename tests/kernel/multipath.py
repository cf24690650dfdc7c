"""dm-multipath in the guest, set up as docs/iscsi-guide.md says."""

import re
from collections.abc import Sequence
from pathlib import Path

from tests.kernel.rig import Rig

ONE_NODE, CLUSTER = "### multipath.conf", "### Multipath over the nodes of a cluster"
"""Sections of the guide. I/O of the second waits for as long as there is no path."""
GUIDE = Path(__file__).parents[2] / "docs/iscsi-guide.md"
IMPATIENT = {
    "node.session.timeo.replacement_timeout": "3",
    "node.conn[0].timeo.noop_out_interval": "1",
    "node.conn[0].timeo.noop_out_timeout": "2",
}


def settings_of_the_guide(heading: str) -> str:
    """What the guide tells users to put into multipath.conf, in the section of that heading."""
    section = GUIDE.read_text().partition(f"\n{heading}\n")[2]
    found = re.search(r"```conf\n(devices \{.*?)```", section, re.DOTALL)
    assert found is not None, heading
    return found[1]


def multipath(
    rig: Rig, volume: str, portals: Sequence[str], section: str = ONE_NODE
) -> tuple[str, dict[str, str]]:
    """A volume over all portals as one device, with the settings of that section; the device, and
    its paths by portal."""
    rig.put("/etc/multipath/conf.d/blockd.conf", settings_of_the_guide(section))
    paths = {portal: rig.login(volume, portal, IMPATIENT) for portal in portals}
    rig.run("multipathd")
    rig.run("until multipathd show maps raw format %n | grep -q .; do sleep 0.1; done")
    name = rig.run("multipathd show maps raw format %n").strip()
    return f"/dev/mapper/{name}", paths


def until_paths(rig: Rig, state: str, count: int) -> None:
    """Wait until so many paths are `active` or `failed` in the kernel's table."""
    _until_shown(rig, "%t", state, count)


def until_checked(rig: Rig, state: str, count: int) -> None:
    """Wait until multipathd has found so many paths `ready`, `ghost` (standby) or `faulty`."""
    _until_shown(rig, "%T", state, count)


def _until_shown(rig: Rig, column: str, state: str, count: int) -> None:
    shown = f"multipathd show paths raw format {column}"
    rig.run(f"until [ $({shown} | grep -c {state}) = {count} ]; do sleep 0.1; done")
