"""MLflow's description of an ONNX artifact, written beside the untouched files.

`mlflow.onnx.save_model` would parse the graph and write it anew; then neither its digest nor its external data would be the
ones that our manifest and signatures name. The description is the same as its own, for the files that are there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import yaml

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

FLAVOR_FILES: Final = ("conda.yaml", "python_env.yaml", "requirements.txt", "MLmodel")
_GRAPH: Final = "model.onnx"
_PROVIDERS: Final = ["CPUExecutionProvider"]


def write_onnx_flavor(artifact: Path, target: Path, model_id: str) -> None:
    """Write MLmodel and its environment files for `artifact` into `target`; nothing when there is no model.onnx."""
    if not (artifact / _GRAPH).is_file():
        return
    from mlflow import pyfunc
    from mlflow.models import Model

    size = sum(path.stat().st_size for path in artifact.rglob("*") if path.is_file())
    model: Any = Model(signature=_signature(artifact), model_id=model_id, model_size_bytes=size)
    pyfunc.add_to_model(  # pyright: ignore[reportUnknownMemberType]  # not annotated by MLflow
        model, loader_module="mlflow.onnx", data=_GRAPH, conda_env="conda.yaml", python_env="python_env.yaml"
    )
    model.add_flavor(
        "onnx", onnx_version=_version("onnx"), data=_GRAPH, providers=_PROVIDERS, onnx_session_options=None, code=None
    )
    model.save(str(target / "MLmodel"))
    _write_environment(target)


def _write_environment(target: Path) -> None:
    from mlflow.utils.environment import _PythonEnv  # pyright: ignore[reportPrivateUsage]  # no public way to write it

    requirements = [f"{name}=={_version(name)}" for name in ("mlflow", "onnx", "onnxruntime") if _version(name)]
    python: Any = _PythonEnv.current()
    python.to_yaml(str(target / "python_env.yaml"))
    conda = {
        "name": "mlflow-env",
        "channels": ["conda-forge"],
        "dependencies": [f"python={python.python}", "pip", {"pip": requirements}],
    }
    (target / "conda.yaml").write_text(yaml.safe_dump(conda, sort_keys=False), encoding="utf-8")
    (target / "requirements.txt").write_text("\n".join(requirements) + "\n", encoding="utf-8")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _signature(artifact: Path) -> ModelSignature | None:
    """Return the tensors' names, dtypes and shapes (-1 = dynamic) from `onnx.json`; None when MLflow has no such dtype."""
    from mlflow.exceptions import MlflowException
    from mlflow.models import ModelSignature

    try:
        facts = cast("dict[str, Any]", json.loads((artifact / "onnx.json").read_bytes()))
        sides = {side: json.dumps([_tensor(t) for t in _tensors(facts, side)]) for side in ("inputs", "outputs")}
        return ModelSignature.from_dict(sides)
    except (OSError, ValueError, KeyError, TypeError, MlflowException):
        return None  # a nicety of the page; the graph itself says it too


def _tensors(facts: Mapping[str, Any], side: str) -> Sequence[Mapping[str, Any]]:
    return cast("Sequence[Mapping[str, Any]]", facts[side])


def _tensor(tensor: Mapping[str, Any]) -> dict[str, object]:
    shape = [dim if isinstance(dim, int) else -1 for dim in tensor["shape"]]
    return {"type": "tensor", "name": tensor["name"], "tensor-spec": {"dtype": tensor["dtype"], "shape": shape}}
