"""Router, agent and replica in environments that hold nothing else: no SQLAlchemy, MLflow, Ray, torch or pydantic; numpy 1.26
without gRPC, and numpy 2 with it."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from support.serving_site import ServingSite, generation, scale_bundle

PACKAGES = ["onnxruntime", "orjson", "uvloop", "httptools", "safetensors", "httpx"]
NUMPY = {"numpy1": ["numpy==1.26.4"], "numpy2": ["numpy>=2", "grpcio", "protobuf"]}
ABSENT = ("sqlalchemy", "mlflow", "ray", "torch", "pydantic", "onnx", "yaml")


def _make(folder: Path, extra: list[str]) -> str:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=60)
    python = str(folder / "bin" / "python")
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "-q",
        "--only-binary",
        ":all:",
        *extra,
        *PACKAGES,
    ]
    done = subprocess.run(install, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    return python


@pytest.fixture(scope="session")
def pythons(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("environments")
    with ThreadPoolExecutor(2) as pool:
        made = {name: pool.submit(_make, root / name, extra) for name, extra in NUMPY.items()}
        return {name: future.result() for name, future in made.items()}


@pytest.mark.parametrize("name", NUMPY)
def test_a_bare_environment_serves(pythons: dict[str, str], name: str, tmp_path: Path) -> None:
    python = pythons[name]
    code = (
        "import importlib.util, numpy; "
        f"print(numpy.__version__.split('.')[0], [n for n in {ABSENT} if importlib.util.find_spec(n)])"
    )
    found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert found.stdout.split(maxsplit=1) == [name[-1], "[]\n"]
    site = ServingSite(tmp_path / "site", python=python, env={"PATH": os.environ["PATH"], "HOME": os.environ["HOME"]})
    try:
        site.start_router()
        assert bool(site.grpc) == ("grpcio" in NUMPY[name])
        site.start_agent()
        site.serve("double", generation(1, scale_bundle(tmp_path / "double", 2.0)))
        x = np.arange(8, dtype=np.float32).reshape(2, 4)
        with site.client() as client:
            for binary in (True, False):
                assert np.array_equal(client.infer("double", {"x": x}, binary=binary).outputs["y"], x * 2)
    finally:
        site.stop()


@pytest.mark.parametrize("module", ["router.process", "replica.process", "agent.process", "client", "admin"])
def test_the_data_plane_imports_nothing_heavy(module: str) -> None:
    code = (
        f"import sys, orchestrator.serving.{module}; print([n for n in {(*ABSENT, 'onnxruntime')} if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"
