"""All that recipe code may import.

A recipe's training is one function. It runs unchanged on every worker of a Ray cluster, under `torchrun`, and as a
plain script:

    from orchestrator import user

    def main(run: user.Run) -> None:
        model = run.prepare(build())                                   # to its device; DDP when there are several workers
        optimizer = torch.optim.Adam(model.parameters(), lr=run.params.lr)
        loader = DataLoader(data, batch_size=64, sampler=run.sampler(data))
        for epoch in run.epochs(run.params.epochs, model=model, optimizer=optimizer):
            for images, labels in loader:
                ...
            run.log(loss=run.mean(loss))

    if __name__ == "__main__":
        user.launch(main, params={"lr": 0.002, "epochs": 12})

`run.epochs` is all there is to fault tolerance: it restores the last complete checkpoint, yields the epochs that are
not committed yet, and commits a checkpoint after each. A killed training, started again, goes on where it was; no
committed epoch is trained twice, and it draws the same random numbers as a training that was never killed.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sized
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar, cast

from orchestrator.steps.user_params import Params
from orchestrator.steps.user_step import StepRun

if TYPE_CHECKING:
    import torch
    from torch.utils.data.distributed import DistributedSampler

    from orchestrator.steps.train_state import Stateful

    Module = TypeVar("Module", bound=torch.nn.Module)

__all__ = ["Params", "Run", "StepRun", "launch"]


class Run:
    """One worker's view of a training.

    Attributes:
        params: The recipe's `train.params`.
        rank: This worker, 0 … world_size - 1. Rank 0 alone writes files.
        world_size: How many workers train together.
        local_rank: This worker among those of its machine.
        device: `cuda:<n>` or `cpu`; `prepare` moves the model there, you move the batches.
        checkpoint_dir: Where checkpoints are committed.
    """

    def __init__(
        self,
        params: Mapping[str, Any],
        *,
        rank: int,
        world_size: int,
        local_rank: int,
        device: torch.device,
        checkpoint_dir: Path,
        metrics_file: Path,
        keep: int = 2,
    ) -> None:
        from orchestrator.steps.train_checkpoint import LOCK_FILE, Checkpoints, lock_exclusively
        from orchestrator.steps.train_state import seed_all

        self.params = Params(params)
        self.rank = rank
        self.world_size = world_size
        self.local_rank = local_rank
        self.device = device
        self.checkpoint_dir = checkpoint_dir
        self._metrics_file = metrics_file
        self._checkpoints = Checkpoints(checkpoint_dir, keep)
        self._pending: dict[str, float] = {}
        self._epoch: int | None = None
        self._stopping = False
        self._samplers: list[DistributedSampler[Any]] = []
        self._lock: IO[str] | None = None
        if rank == 0:
            # A trainer of an orchestrator that was killed may still live for a moment; wait until it is gone.
            self._lock = lock_exclusively(checkpoint_dir / LOCK_FILE)
            self._checkpoints.clear_torn()
        self._barrier()
        seed_all(int(self.params.get("seed", 0)))

    def prepare(self, model: Module) -> Module:
        """Move `model` to this worker's device, and wrap it for data-parallel training when there are more workers."""
        import torch

        model = model.to(self.device)
        if self.world_size == 1 or not any(p.requires_grad for p in model.parameters()):
            return model
        devices = [self.device] if self.device.type == "cuda" else None
        wrapped = torch.nn.parallel.DistributedDataParallel(model, device_ids=devices)
        return cast("Module", wrapped)

    def sampler(self, dataset: Sized, *, shuffle: bool = True) -> DistributedSampler[Any]:
        """Return a sampler that deals `dataset` out among the workers, shuffled anew in each epoch of `run.epochs`."""
        from torch.utils.data.distributed import DistributedSampler

        sampler: DistributedSampler[Any] = DistributedSampler(
            cast("Any", dataset),
            num_replicas=self.world_size,
            rank=self.rank,
            shuffle=shuffle,
            seed=int(self.params.get("seed", 0)),
        )
        self._samplers.append(sampler)
        return sampler

    def epochs(
        self, total: int, *, model: torch.nn.Module, optimizer: Stateful | None = None, **states: Stateful
    ) -> Iterator[int]:
        """Yield the epochs (from 0) that are not committed yet; commit a checkpoint after each.

        Random numbers (torch, numpy, random) are seeded before each epoch from the seed, the epoch and the rank.
        Leave the loop early with `run.stop()`; after a `break` the epoch counts as not trained.

        Args:
            total: How many epochs the whole training has.
            model: As `prepare` returned it.
            optimizer: Its state is part of the checkpoint.
            states: More of the kind: `scheduler=...`, `scaler=...`.
        """
        import torch

        from orchestrator.steps.train_state import seed_all

        if optimizer is not None:
            states = {"optimizer": optimizer, **states}
        seed = torch.initial_seed()
        first = self.restore(model, **states)
        for epoch in range(first, total):
            if self._stopping:
                return
            self._epoch, self._pending = epoch, {}
            seed_all(seed, epoch, self.rank)
            for sampler in self._samplers:
                sampler.set_epoch(epoch)
            try:
                yield epoch
                self.save(epoch, model, total=total, **states)
            finally:
                self._epoch = None

    def stop(self) -> None:
        """End the training after this epoch's checkpoint. Every worker must call it in the same epoch."""
        self._stopping = True

    def save(self, epoch: int, model: torch.nn.Module, *, total: int = 0, **states: Stateful) -> None:
        """Commit a checkpoint of `epoch`; `run.epochs` does it for you. Every worker must call it; none goes on before.

        Args:
            epoch: The epoch (from 0) that is done.
            model: As `prepare` returned it.
            total: How many epochs the whole training has; for the progress bar.
            states: `optimizer=...`, `scheduler=...`.
        """
        if self.rank == 0:
            from orchestrator.steps.train_records import append_records, metric_record
            from orchestrator.steps.train_state import write_state

            facts = {"epoch": epoch, "epochs": total, "world_size": self.world_size, "stopped": self._stopping}
            facts |= {"step": epoch, "metrics": self._pending}
            self._checkpoints.commit(epoch, lambda folder: write_state(folder, model, states, facts))
            records = [metric_record(name, value, epoch) for name, value in self._pending.items()]
            append_records(self._metrics_file, [*records, {"epoch": epoch, "of": total}])
        self._pending = {}
        self._barrier()

    def restore(self, model: torch.nn.Module, **states: Stateful) -> int:
        """Load the last complete checkpoint, if there is one; returns the next epoch to train (0 without one)."""
        epoch = self._agree_on_newest()
        if epoch < 0:
            return 0
        from orchestrator.steps.train_records import append_records, metric_record
        from orchestrator.steps.train_state import read_state

        facts = read_state(self._checkpoints.of_epoch(epoch).folder, model, states)
        self._stopping = bool(facts["stopped"])
        if self.rank == 0:
            # The process may have died between the commit and these lines; whoever reads them drops repetitions.
            records = [metric_record(name, value, epoch) for name, value in facts["metrics"].items()]
            append_records(self._metrics_file, [*records, {"epoch": epoch, "of": facts["epochs"]}])
        return epoch + 1

    def log(self, *, step: int | None = None, **metrics: float | torch.Tensor) -> None:
        """Record metrics, e.g. `run.log(loss=0.31, accuracy=0.97)`; rank 0's count, other ranks' are dropped.

        Inside `run.epochs` they belong to the epoch and appear when it is committed. With `step` they appear at once,
        under that number (say, of a batch).

        Raises:
            ValueError: A value is NaN or infinite: a training that diverged should end, not go on for hours.
        """
        found = {name: _number(value) for name, value in metrics.items()}
        for name, value in found.items():
            if not math.isfinite(value):
                where = "" if self._epoch is None else f" in epoch {self._epoch}"
                raise ValueError(f"{name} is {value}{where}: the training has diverged (lower the learning rate?)")
        if self.rank != 0:
            return
        if step is None and self._epoch is not None:
            self._pending.update(found)
            return
        from orchestrator.steps.train_records import append_records, metric_record

        append_records(self._metrics_file, [metric_record(name, value, step or 0) for name, value in found.items()])

    def mean(self, value: float | torch.Tensor) -> float:
        """Return the mean of one number over all workers. Every worker must call it."""
        import torch

        if self.world_size == 1:
            return _number(value)
        total = torch.tensor(_number(value), dtype=torch.float32, device=self.device)
        torch.distributed.all_reduce(total)  # pyright: ignore[reportUnknownMemberType]  torch leaves it untyped
        return float(total) / self.world_size

    def close(self) -> None:
        """Release the lock on the checkpoints."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _agree_on_newest(self) -> int:
        newest = self._checkpoints.newest() if self.rank == 0 else None
        epoch = -1 if newest is None else newest.epoch
        if self.world_size == 1:
            return epoch
        import torch

        agreed = torch.tensor(epoch, device=self.device)
        torch.distributed.broadcast(agreed, src=0)
        return int(agreed)

    def _barrier(self) -> None:
        if self.world_size > 1:
            import torch

            torch.distributed.barrier()  # pyright: ignore[reportUnknownMemberType]  torch leaves it untyped


def launch(main: Callable[[Run], None], params: Mapping[str, Any] | None = None) -> None:
    """Run `main` as a plain script or as one process of `torchrun`; for `if __name__ == "__main__":`.

    Reads `RANK`, `WORLD_SIZE`, `LOCAL_RANK` and, under `orchestrate run` with `train.command`, `ORCHESTRATE_PARAMS`,
    `ORCHESTRATE_CHECKPOINT_DIR` and `ORCHESTRATE_METRICS_FILE`; checkpoints go to `./checkpoints` otherwise.

    Args:
        main: The recipe's training.
        params: Defaults, for when no recipe gives any.
    """
    import torch

    rank, world_size, local_rank = (
        int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
    )
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if world_size > 1:
        torch.distributed.init_process_group("nccl" if cuda else "gloo")
    folder = Path(os.environ.get("ORCHESTRATE_CHECKPOINT_DIR", "checkpoints")).resolve()
    given = json.loads(os.environ.get("ORCHESTRATE_PARAMS", "{}"))
    run = Run(
        {**(params or {}), **given},
        rank=rank,
        world_size=world_size,
        local_rank=local_rank,
        device=device,
        checkpoint_dir=folder,
        metrics_file=Path(os.environ.get("ORCHESTRATE_METRICS_FILE", folder / "metrics.ndjson")),
    )
    try:
        main(run)
    finally:
        run.close()
        if world_size > 1:
            torch.distributed.destroy_process_group()


def _number(value: float | torch.Tensor) -> float:
    return float(value if isinstance(value, int | float) else value.detach())
