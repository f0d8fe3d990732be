"""A router whose models echo every datatype: one model for each, named after it, and `all`, which takes one of each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.link_replica import DATATYPES, LinkReplica, row, specs
from support.serving_site import ServingSite


@pytest.fixture(scope="session")
def echo_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServingSite]:
    site = ServingSite(tmp_path_factory.mktemp("datatypes") / "site")
    replicas: list[LinkReplica] = []
    try:
        site.start_router()
        models = {**{d.lower(): specs(d) for d in DATATYPES}, "all": specs(*DATATYPES)}
        site.put({name: {"pool": "edge", "generations": [row(name)]} for name in models})
        for name, inputs in models.items():
            replicas.append(LinkReplica(site.short / "link.sock", name, inputs))
            site.admin.wait_ready(name, 1, 5)
        yield site
    finally:
        for replica in replicas:
            replica.stop()
        site.stop()
