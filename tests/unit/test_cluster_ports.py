import dataclasses
import socket

import pytest

from orchestrator.cluster.ports import is_free, pick_ports
from orchestrator.core.errors import InfraError


def test_a_block_is_consecutive_distinct_and_free():
    ports = pick_ports(20)
    values = list(dataclasses.astuple(ports))
    assert values[:9] == list(range(values[0], values[0] + 9))
    assert (ports.first_worker, ports.last_worker) == (values[0] + 9, values[0] + 28)
    assert all(is_free(port) for port in range(ports.gcs, ports.last_worker + 1))


def test_ports_lie_below_the_ephemeral_range():
    with open("/proc/sys/net/ipv4/ip_local_port_range") as file:
        start = int(file.read().split()[0])
    assert pick_ports(64).last_worker < start


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_port_in_use_is_not_free(host):
    with socket.socket() as busy:
        busy.bind((host, 0))
        busy.listen()
        assert not is_free(busy.getsockname()[1])


def test_a_range_without_a_free_block_is_an_error_that_says_so():
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        with pytest.raises(InfraError, match="no 10 free consecutive ports"):
            pick_ports(1, lowest=port - 1, highest=port + 10)


def test_a_range_that_is_too_small_is_an_error():
    with pytest.raises(InfraError, match="free consecutive"):
        pick_ports(100, lowest=20_000, highest=20_050)
