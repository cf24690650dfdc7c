"""Which packs become stripes, and of how many shards."""

import pytest

from tests.device_maps import device_id, even_map, pack_ids
from transport.cold import code_for
from transport.placement import Placement


@pytest.mark.parametrize(
    ("domains", "code"),
    [(0, None), (2, None), (3, (2, 1)), (5, (2, 1)), (6, (4, 2)), (11, (4, 2)), (12, (8, 3))],
)
def test_the_code_is_as_wide_as_the_cluster_allows(
    domains: int, code: tuple[int, int] | None
) -> None:
    assert code_for(domains) == code


@pytest.mark.parametrize("hosts", range(3, 30))
def test_every_code_that_is_chosen_can_be_placed(hosts: int) -> None:
    placement = Placement(even_map(hosts, 2).drain(device_id(0)))
    code = code_for(placement.domain_count)
    assert code is not None
    assert len(placement.choose(pack_ids(1)[0], sum(code))) == sum(code)
