"""/v1/cluster/stripes: rows that are made again, what is lost, and giving it up."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import PydanticCustomError

from blockd.api.cluster_types import LostStripes, RebuiltRows
from blockd.api.node import Node, cluster_of
from blockd.api.threads import LongCalls


class RebuildRows(BaseModel):
    force: bool = False
    dry_run: bool = False


MAX_NAMED = 4096
MAX_SHOWN = 80

PackName = Annotated[str, Field(pattern="^[0-9a-f]{8,64}$")]
PackNames = Annotated[tuple[PackName, ...], Field(min_length=1, max_length=MAX_NAMED)]


def _in_words(value: object, check: ValidatorFunctionWrapHandler) -> Any:
    """Of a union pydantic tells what each kind of it would have to be, and not what was said."""
    try:
        return check(value)
    except ValidationError as error:
        wrong = repr(error.errors()[0]["input"])[:MAX_SHOWN]
        raise PydanticCustomError(
            "packs",
            "{wrong}: name 1 to {most} packs, each by 8 to 64 hex digits of its id as "
            "`blockd cluster stripes lost` shows it, or all",
            {"wrong": wrong, "most": MAX_NAMED},
        ) from None


class GiveUp(BaseModel):
    """Ids of packs, or beginnings of them, or "all" stripes that are lost: one of these has to be
    said. `dry_run`: only look, and say what would be given up."""

    model_config = ConfigDict(extra="forbid")

    packs: Annotated[PackNames | Literal["all"], WrapValidator(_in_words)]
    dry_run: bool = False


def router(node: Node) -> APIRouter:
    routes = APIRouter(prefix="/cluster/stripes", tags=["cluster"])
    long = LongCalls()

    @routes.post("/rebuild-rows")
    async def rebuild_rows(body: RebuildRows) -> RebuiltRows:
        """Make rows that etcd has lost again from shards; a row that is there is not changed."""
        orders = cluster_of(node).stripe_orders
        return await long(orders.rebuild_rows, force=body.force, dry_run=body.dry_run)

    @routes.get("/lost")
    async def lost() -> LostStripes:
        """Stripes that are lost or given up, and which ranges of volumes here need them."""
        return await long(cluster_of(node).stripe_orders.lost)

    @routes.post("/give-up")
    async def give_up(body: GiveUp) -> LostStripes:
        """What cannot be read of lost stripes is an I/O error from now on, and waited for no more;
        durable on return."""
        orders = cluster_of(node).stripe_orders
        packs = None if isinstance(body.packs, str) else body.packs
        return await long(orders.give_up, packs, dry_run=body.dry_run)

    return routes
