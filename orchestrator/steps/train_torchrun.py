"""How Ray Train sets up our workers, and the checkpoint of scripts that know nothing of us."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ray.train.backend import Backend, BackendConfig

from orchestrator.core.errors import UserCodeError
from orchestrator.core.files import write_json
from orchestrator.steps.train_checkpoint import MODEL_FILE, STATE_FILE

_TORCH: Final = (".pt", ".pth", ".bin", ".ckpt")


class _PlainBackend(Backend):  # pyright: ignore[reportMissingTypeArgument]  Ray's generic is not exported
    # As under torchrun, each process sees all devices of its machine and picks its own; NCCL needs that too.
    share_cuda_visible_devices: bool = True


@dataclass
class PlainConfig(BackendConfig):
    """Like Ray's TorchConfig, but the worker (or the script) joins the process group itself.

    The controller of Ray Train then needs no torch, which saves seconds at every start.
    """

    @property
    def backend_cls(self) -> type[Any]:
        """Ray's name for what sets up the workers."""
        return _PlainBackend


def collect_foreign(root: Path, folder: Path) -> Path:
    """Make a checkpoint artifact of the newest weights below `root`.

    A `.safetensors` file goes before a `torch.save` file; of several, one named `model.safetensors`, else the newest
    that is not an optimizer's.

    Args:
        root: The script's `ORCHESTRATE_CHECKPOINT_DIR`.
        folder: Where the artifact is built; made here.

    Raises:
        UserCodeError: There are no weights, or the file holds more than tensors.
    """
    files = [path for path in root.rglob("*") if path.is_file() and "optim" not in path.name]
    tensors = [path for path in files if path.suffix == ".safetensors"]
    found = tensors or [path for path in files if path.suffix in _TORCH]
    if not found:
        raise UserCodeError(
            "the script left no weights: no .safetensors or torch.save file in ORCHESTRATE_CHECKPOINT_DIR",
            hint="save the model's state_dict into the folder that this variable names",
        )
    newest = max(found, key=lambda path: (path.name == MODEL_FILE, path.stat().st_mtime_ns, path.name))
    folder.mkdir(parents=True)
    if newest.suffix == ".safetensors":
        shutil.copyfile(newest, folder / MODEL_FILE)
    else:
        from orchestrator.graph.torch_model import torch_file_to_safetensors

        torch_file_to_safetensors(newest, folder / MODEL_FILE)
    write_json(folder / STATE_FILE, {"schema": 1, "source": newest.relative_to(root).as_posix()})
    return folder
