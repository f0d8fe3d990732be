import os
import subprocess
import sys
import time

import pytest

from orchestrator.cluster.parts import Child
from orchestrator.cluster.site import MARKER, LocalSite
from orchestrator.cluster.sweep import end_site, site_processes
from orchestrator.core.processes import ProcessIdentity

SLEEP = "import time; time.sleep(60)"
# A leader of its own session with two children: one without our marker, one that re-parents and ignores SIGTERM.
LEADER = f"""
import subprocess, sys, os, signal, time
subprocess.Popen([sys.executable, "-c", {SLEEP!r}], env={{}})
if os.fork() == 0:
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("ready", flush=True)
        time.sleep(60)
    os._exit(0)
os.wait()
time.sleep(60)
"""


@pytest.fixture
def site(tmp_path):
    found = LocalSite("local", tmp_path)
    found.logs.mkdir(parents=True)
    found.runtime.mkdir()
    yield found
    assert end_site(found.id, None, grace_s=0.1) == []
    found.runtime.rmdir()


def leader(site):
    process = subprocess.Popen(
        [sys.executable, "-c", LEADER], env={MARKER: site.id}, start_new_session=True, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_children_that_hide_are_found_and_all_are_ended(site):
    process = leader(site)
    assert len(site_processes(site.id)) == 3
    assert end_site(site.id, ProcessIdentity.of(process.pid), grace_s=0.2) == []
    assert site_processes(site.id) == []
    process.wait()
    process.stdout.close()


def test_children_are_found_when_their_leader_is_dead(site):
    process = leader(site)
    process.kill()
    process.wait()
    process.stdout.close()
    assert len(site_processes(site.id)) == 2


def test_others_are_left_alone(site, tmp_path):
    other = LocalSite("other", tmp_path)
    stranger = subprocess.Popen([sys.executable, "-c", SLEEP], env={MARKER: other.id}, start_new_session=True)
    # A marked process in our own session must not condemn the session.
    guest = subprocess.Popen([sys.executable, "-c", SLEEP], env={MARKER: site.id})
    try:
        while not site_processes(site.id):
            time.sleep(0.01)
        assert [found.pid for found in site_processes(site.id)] == [guest.pid]
        assert end_site(site.id, None, grace_s=0.2) == []
        assert stranger.poll() is None
        assert os.getpid()
    finally:
        stranger.kill()
        stranger.wait()
        guest.wait()


class Script(Child):
    """A child whose behaviour is a line of Python."""

    def __init__(self, site, code, ready):
        super().__init__(site, "script")
        self.code, self.ready, self.starts, self.cleaned = code, ready, 0, 0

    def start(self):
        self.starts += 1
        self.spawn([sys.executable, "-c", self.code], {MARKER: self.site.id})

    def is_ready(self):
        return self.ready

    def clean_up(self):
        self.cleaned += 1


def tick_until(child, condition, timeout_s=10.0):
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        child.tick()
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError(f"still {child.state}: {child.error}")


def test_a_child_that_dies_comes_back_with_growing_pauses(site):
    child = Script(site, SLEEP, ready=True)
    tick_until(child, lambda: child.state == "up")
    first = child.identity
    os.kill(first.pid, 9)
    tick_until(child, lambda: child.state == "restarting")
    tick_until(child, lambda: child.state == "up")
    assert child.identity != first
    assert (child.starts, child.cleaned) == (2, 1)


def test_a_child_that_never_comes_up_is_failed_says_why_and_is_tried_again(site):
    child = Script(site, "import sys; sys.exit('no such thing')", ready=False)
    tick_until(child, lambda: child.state == "failed")
    assert "no such thing" in child.error
    assert "code 1" in child.error
    starts = child.starts
    tick_until(child, lambda: child.starts > starts)
    assert child.state == "failed"
