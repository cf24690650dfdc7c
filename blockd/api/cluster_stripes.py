"""/v1/cluster/stripes: rows that are made again, what is lost, and giving it up."""

from fastapi import APIRouter
from pydantic import BaseModel

from blockd.api.cluster_types import LostStripes, RebuiltRows
from blockd.api.node import Node, cluster_of
from blockd.api.threads import LongCalls


class RebuildRows(BaseModel):
    force: bool = False
    dry_run: bool = False


class GiveUp(BaseModel):
    """Ids of packs, or beginnings of them; `everything`: all stripes that are lost."""

    packs: tuple[str, ...] = ()
    everything: bool = False


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
        if not body.packs and not body.everything:
            return LostStripes((), (), False)
        return await long(orders.give_up, () if body.everything else body.packs)

    return routes
