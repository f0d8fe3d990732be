import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.cluster.capacity import NodeCapacity, find_shortage, require_capacity
from orchestrator.core.errors import NoCapacity

NODES = [NodeCapacity("a", {"CPU": 8, "GPU": 4}), NodeCapacity("b", {"CPU": 2, "GPU": 4})]


def test_what_fits_is_no_shortage():
    assert find_shortage(NODES, {"GPU": 1, "CPU": 1}, 6) is None
    assert find_shortage(NODES, {"GPU": 0, "CPU": 0}, 99) is None
    assert find_shortage([], {}, 1) is None


def test_the_scarce_resource_is_named():
    short = find_shortage(NODES, {"GPU": 2, "CPU": 1}, 5)
    assert short is not None
    assert (short.resource, short.fits, short.total) == ("GPU", 4, 8)


def test_a_worker_does_not_lie_on_two_nodes():
    short = find_shortage(NODES, {"GPU": 8}, 1)
    assert short is not None
    assert short.fits == 0


def test_fractions_add_up():
    node = [NodeCapacity("a", {"NPU": 0.3})]
    assert find_shortage(node, {"NPU": 0.1}, 3) is None
    assert find_shortage(node, {"NPU": 0.1}, 4) is not None


def test_the_error_says_what_is_asked_and_what_there_is():
    with pytest.raises(
        NoCapacity, match=r"cluster x holds 0 of 2 workers: each needs 1 GPU, the cluster has 0"
    ) as caught:
        require_capacity([NodeCapacity("a", {"CPU": 2})], {"GPU": 1, "CPU": 1}, 2, cluster="cluster x")
    assert caught.value.details["resource"] == "GPU"
    assert caught.value.exit_code == 5


@given(st.lists(st.integers(0, 16), max_size=5), st.integers(1, 8), st.integers(1, 20))
def test_fits_is_the_sum_over_nodes(gpus, each, workers):
    nodes = [NodeCapacity(str(i), {"GPU": gpu}) for i, gpu in enumerate(gpus)]
    fits = sum(gpu // each for gpu in gpus)
    short = find_shortage(nodes, {"GPU": each}, workers)
    assert (short is None) == (fits >= workers)
    assert short is None or short.fits == fits
