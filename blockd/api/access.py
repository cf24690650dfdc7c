"""/v1/volumes/{name}/access: who may attach a volume, over both protocols (`blockd.access`)."""

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from blockd.access.book import revision
from blockd.access.rules import Rule
from blockd.api.node import Node
from blockd.api.types import AccessInfo
from blockd.device import BlockDevice
from volume.errors import NoSuchVolume


class AccessRule(BaseModel):
    """All of the conditions have to fit a client; without any the rule fits everybody."""

    model_config = ConfigDict(extra="forbid", strict=True)

    deny: bool = Field(default=False, description="Whom it fits stays out, whatever else fits.")
    read_only: bool = Field(default=False, description="Who comes in by it may only read.")
    address: str | None = Field(default=None, description="A network, as 192.0.2.0/24.")
    uid: int | None = Field(default=None, description="User of a client of a unix socket.")
    certificate: str | None = Field(
        default=None, description="A name in the client's TLS certificate."
    )
    fingerprint: str | None = Field(default=None, description="SHA-256 of that certificate, hex.")
    psk: str | None = Field(default=None, description="Identity of its pre-shared key.")
    initiator: str | None = Field(
        default=None, description="iSCSI name, or its beginning and '*'; it proves nothing."
    )
    chap_user: str | None = Field(default=None, description="Whom it proved to be by CHAP.")


class AccessChange(BaseModel):
    """The whole list: null opens the volume to all that reach its listeners, an empty one closes
    it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    rules: list[AccessRule] | None
    revision: str | None = Field(
        default=None, description="That of the list that this was made from: 409 if it has changed."
    )


def router(node: Node) -> APIRouter:
    routes = APIRouter(tags=["volumes"])

    @routes.get("/volumes/{name}/access")
    async def show_access(name: str) -> AccessInfo:
        return _info(node, _volume(node, name))

    @routes.put("/volumes/{name}/access")
    async def change_access(name: str, body: AccessChange) -> AccessInfo:
        """Durable, and true of who comes, when it is answered; whoever is attached and may not be
        has been cut."""
        volume = _volume(node, name)
        rules = None
        if body.rules is not None:
            rules = tuple(Rule(**each.model_dump()) for each in body.rules)
        cut = await node.access.change(volume, rules, body.revision)
        return _info(node, volume, tuple(cut))

    return routes


def _volume(node: Node, name: str) -> BlockDevice:
    volume = node.store.get(name) if name else None
    if volume is None:
        raise NoSuchVolume(name)
    return volume


def _info(node: Node, volume: BlockDevice, cut: tuple[str, ...] = ()) -> AccessInfo:
    access = node.access.list_of(volume)
    return AccessInfo(
        volume=volume.name,
        rules=None if access is None else access.rules,
        damaged=access is not None and access.damaged,
        revision=revision(access),
        cut=cut,
    )
