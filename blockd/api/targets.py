"""/v1/targets: iSCSI targets, their units, access lists and CHAP; /v1/sessions: who is logged in.

Changes are durable when they are answered. The secrets of CHAP come in and never go out.
"""

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from blockd.api.iscsi_types import LunInfo, SessionInfo, TargetInfo
from blockd.api.node import Node
from blockd.device import LastingDevice
from blockd.iscsi.targets import Target
from blockd.registry import stored
from blockd.registry.configured import ConfiguredTarget
from blockd.registry.errors import NoSuchTarget
from blockd.registry.targets import TargetRegistry
from blockd.scsi.unit import LogicalUnit
from blockd.scsi.vpd import naa

MAX_NEW_LUNS = 256  # of one request; as many as a target has


class TargetCreate(BaseModel):
    """A new target, with these units from LUN 0 on. All or nothing."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(description="An iSCSI name, as iqn.2026-11.io.blockd:db.")
    alias: str = ""
    redirect: str | None = Field(default=None, description="HOST:PORT, for who logs in.")
    luns: list[str] = Field(
        default_factory=list, max_length=MAX_NEW_LUNS, description="Volumes, or vol@version."
    )


class TargetChange(BaseModel):
    """What is not given stays as it is."""

    model_config = ConfigDict(extra="forbid", strict=True)

    alias: str | None = None
    redirect: str | None = Field(default=None, description='"" for none.')


class LunCreate(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    source: str = Field(description="A volume, or vol@version, which is read-only.")
    lun: int | None = Field(
        default=None, description="null: one more than the highest that was ever given."
    )


class AclEntry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    entry: str = Field(description="An initiator's name, its beginning and *, or a network.")


class ChapUser(BaseModel):
    """Who proves himself how; a user that is there gets another secret."""

    model_config = ConfigDict(extra="forbid")  # not strict: a SecretStr comes as a string

    user: str
    secret: SecretStr
    mutual: bool = Field(default=False, description="What the target proves itself by.")


def router(node: Node) -> APIRouter:
    routes = APIRouter(tags=["targets"])
    _add_targets(routes, node)
    _add_luns(routes, node)
    _add_access(routes, node)

    @routes.get("/sessions")
    async def list_sessions() -> list[SessionInfo]:
        """Discovery sessions, too; in order of login."""
        return node.sessions()

    return routes


def _add_targets(routes: APIRouter, node: Node) -> None:
    @routes.get("/targets")
    async def list_targets(
        automatic: Annotated[bool, Query(description="Those of volumes, too.")] = True,
    ) -> list[TargetInfo]:
        """By name."""
        configured = {each.stored.name: each for each in node.targets.configured()}
        found = [
            _automatic(node.targets, target)
            for target in (node.targets.all() if automatic else ())
            if target.name not in configured
        ]
        found += [_configured(node.targets, each) for each in configured.values()]
        return sorted(found, key=lambda target: target.name)

    @routes.post("/targets", status_code=201)
    async def create_target(body: TargetCreate) -> TargetInfo:
        await node.targets.create(body.name, body.alias, body.redirect, body.luns)
        return _configured(node.targets, node.targets.named(body.name))

    @routes.get("/targets/{name}")
    async def show_target(name: str) -> TargetInfo:
        try:
            return _configured(node.targets, node.targets.named(name))
        except NoSuchTarget:
            target = node.targets.get(name)
            if target is None:
                raise
            return _automatic(node.targets, target)

    @routes.patch("/targets/{name}")
    async def change_target(name: str, body: TargetChange) -> TargetInfo:
        def changed(target: stored.StoredTarget) -> stored.StoredTarget:
            alias = target.alias if body.alias is None else body.alias
            redirect = target.redirect if body.redirect is None else body.redirect or None
            return stored.changed(target, alias, redirect)

        await node.targets.change(name, changed)
        return _configured(node.targets, node.targets.named(name))

    @routes.delete("/targets/{name}", status_code=204)
    async def delete_target(
        name: str,
        force: Annotated[bool, Query(description="Even while initiators are logged in.")] = False,
    ) -> None:
        await node.targets.delete(name, force=force)


def _add_luns(routes: APIRouter, node: Node) -> None:
    @routes.post("/targets/{name}/luns", status_code=201)
    async def add_lun(name: str, body: LunCreate) -> LunInfo:
        """Initiators that are logged in are told (unit attention 3F/0E)."""
        number = await node.targets.add_lun(name, body.source, body.lun)
        target = node.targets.named(name)
        [added] = [each for each in target.stored.luns if each.lun == number]
        return _lun(target, added)

    @routes.delete("/targets/{name}/luns/{lun}", status_code=204)
    async def remove_lun(name: str, lun: int) -> None:
        """The number is not given again by itself."""
        await node.targets.change(name, partial(stored.without_lun, lun=lun))


def _add_access(routes: APIRouter, node: Node) -> None:
    @routes.post("/targets/{name}/acl")
    async def add_entry(name: str, body: AclEntry) -> TargetInfo:
        """Lists hold for logins from now on; who is logged in stays."""
        await node.targets.change(name, partial(stored.with_entry, entry=body.entry))
        return _configured(node.targets, node.targets.named(name))

    @routes.delete("/targets/{name}/acl")
    async def remove_entry(name: str, entry: Annotated[str, Query()]) -> TargetInfo:
        await node.targets.change(name, partial(stored.without_entry, entry=entry))
        return _configured(node.targets, node.targets.named(name))

    @routes.put("/targets/{name}/chap")
    async def set_chap(name: str, body: ChapUser) -> TargetInfo:
        secret = body.secret.get_secret_value().encode()
        change = partial(stored.with_chap, user=body.user, secret=secret, mutual=body.mutual)
        await node.targets.change(name, change)
        return _configured(node.targets, node.targets.named(name))

    @routes.delete("/targets/{name}/chap")
    async def clear_chap(
        name: str,
        user: Annotated[str | None, Query(description="Only this one.")] = None,
        mutual: Annotated[bool, Query(description="Only the target's own.")] = False,
    ) -> TargetInfo:
        await node.targets.change(name, partial(stored.without_chap, user=user, mutual=mutual))
        return _configured(node.targets, node.targets.named(name))


def _configured(targets: TargetRegistry, target: ConfiguredTarget) -> TargetInfo:
    luns = tuple(_lun(target, each) for each in target.stored.luns)
    return _info(targets, target.target, luns, automatic=False)


def _automatic(targets: TargetRegistry, target: Target) -> TargetInfo:
    luns = tuple(_unit(lun, unit) for lun, unit in target.device.units.items())
    return _info(targets, target, luns, automatic=True)


def _info(
    targets: TargetRegistry, target: Target, luns: tuple[LunInfo, ...], *, automatic: bool
) -> TargetInfo:
    access = target.access
    return TargetInfo(
        name=target.name,
        automatic=automatic,
        alias=target.alias,
        redirect=target.redirect,
        luns=luns,
        initiators=access.initiators,
        addresses=access.addresses,
        chap_users=tuple(each.user for each in access.chap),
        mutual_user=None if access.mutual is None else access.mutual.user,
        session_count=targets.session_count(target),
    )


def _lun(target: ConfiguredTarget, kept: stored.StoredLun) -> LunInfo:
    device = target.device_at(kept)
    if device is not None:
        return _device(kept.lun, device)
    gone = f"{kept.volume}@{kept.ref}" if kept.ref else kept.volume
    return LunInfo(kept.lun, gone, False, 0, 0, bool(kept.ref), "")


def _device(lun: int, device: LastingDevice) -> LunInfo:
    return LunInfo(
        lun=lun,
        source=device.name,
        present=True,
        size=device.size,
        block_size=device.block_size,
        read_only=device.read_only,
        naa=naa(device.uuid).hex(),
    )


def _unit(lun: int, unit: LogicalUnit) -> LunInfo:
    device: LastingDevice = unit.device  # type: ignore[assignment] # the registry made the unit
    return _device(lun, device)
