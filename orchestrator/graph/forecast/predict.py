"""Models to call: the fp32 graph and its twins, as the user's `evaluate(predict)` and the metrics want them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from orchestrator.ascend.precision import Policy
from orchestrator.graph.forecast.batches import Batches, fitted
from orchestrator.graph.forecast.pieces import take_apart
from orchestrator.graph.forecast.workspace import Workspace

Array = np.ndarray[Any, Any]
Predict = Callable[[Mapping[str, Array]], dict[str, Array]]
Evaluate = Callable[[Predict], Mapping[str, float]]


class Model:
    """A graph in a session. Calling it runs any number of samples, in pieces that bound memory."""

    def __init__(self, space: Workspace, batches: Batches, policy: Policy | None, keep: Collection[str] = ()) -> None:
        self._space, self._batches = space, batches
        self._names = [entry.name for entry in space.graph.output]
        if policy is None:
            model = space.derived(space.graph.node)
        else:
            pieces = take_apart(space, policy, keep=keep)
            model = space.derived(pieces.nodes)
            del model.graph.initializer[:]
            model.graph.initializer.extend(pieces.initializers)
        self._session = space.session(model, optimise=True)

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return every output, samples stacked.

        Raises:
            UserCodeError: The inputs are not those that the graph declares.
            GateError: The runtime fails on them.
        """
        given = fitted(inputs, self._batches.inputs)
        batches = Batches(self._batches.inputs, given, size=self._batches.size)
        asked = {
            len(array) for name, value in inputs.items() if name in batches.sliced and (array := np.asarray(value)).ndim
        }
        count = asked.pop() if len(asked) == 1 else batches.count
        found = [self._space.run(self._session, self._names, feed) for feed in batches]
        whole = {name: np.concatenate([piece[i] for piece in found]) for i, name in enumerate(self._names)}
        return {name: value[:count] if len(value) == batches.count else value for name, value in whole.items()}
