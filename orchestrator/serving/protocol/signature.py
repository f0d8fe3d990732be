"""A model's signature, and what it takes for a request to fit it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from orchestrator.serving.errors import RequestError
from orchestrator.serving.protocol.oip import InferRequest, WantedOutput
from orchestrator.serving.protocol.tensors import ITEM_BYTES, Buffer, Tensor, TensorSpec, check_size, count


@dataclass(frozen=True, slots=True)
class Signature:
    """What a model takes and gives.

    Attributes:
        max_batch: Most rows of axis 0 that may run together; 1 = axis 0 has no meaning.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch: int

    def is_like(self, other: Signature, *, mixed: bool) -> bool:
        """Tell whether requests for one fit the other; builds for several SoCs (`mixed`) may differ in the largest batch."""
        if not mixed:
            return self == other
        batching = (self.max_batch > 1) == (other.max_batch > 1)
        return batching and (self.inputs, self.outputs) == (other.inputs, other.outputs)


class Fitted(NamedTuple):
    """A request in the model's terms.

    Attributes:
        inputs: In the model's order.
        wanted: In the client's order.
        rows: Size of axis 0; 1 where the model does not batch.
        key: Requests with equal keys may be concatenated.
        size_bytes: Of all inputs.
    """

    inputs: tuple[Tensor, ...]
    wanted: tuple[WantedOutput, ...]
    rows: int
    key: tuple[tuple[int, ...], ...]
    size_bytes: int


def fit(request: InferRequest, signature: Signature) -> Fitted:
    """Compare a request with a signature.

    Raises:
        RequestError: It does not fit; the message names the tensor.
    """
    form = request.form
    if form is None:
        return _fit(request, signature)
    known = form.fits.get(id(signature))
    if known is None or known[0] is not signature:
        fitted = _fit(request, signature)
        form.fits[id(signature)] = signature, fitted._replace(inputs=())
        return fitted
    given = request.inputs
    inputs = tuple([given[spec.name] for spec in signature.inputs])
    _, wanted, rows, key, size_bytes = known[1]
    return Fitted(inputs, wanted, rows, key, size_bytes)


def _fit(request: InferRequest, signature: Signature) -> Fitted:
    given = request.inputs
    if request.raw is not None:
        given = {signature.inputs[0].name: _raw_input(request.raw, signature)}
    names = {spec.name for spec in signature.inputs}
    if given.keys() != names:
        raise RequestError(f"inputs are {_list(sorted(given))}, the model takes {_list(sorted(names))}")
    inputs = tuple(given[spec.name] for spec in signature.inputs)
    sizes: dict[str, int] = {}
    for tensor, spec in zip(inputs, signature.inputs, strict=True):
        _check(tensor, spec, sizes)
    batches = signature.max_batch > 1
    rows = inputs[0].shape[0] if batches else 1
    if batches and any(tensor.shape[0] != rows for tensor in inputs):
        # Axis 0 may have no name; joined with others, rows would go to whom they do not belong.
        raise RequestError(
            f"inputs have {[tensor.shape[0] for tensor in inputs]} rows, one request has as many of each"
        )
    if rows > signature.max_batch:
        raise RequestError(f"{rows} rows are too many; the model takes at most {signature.max_batch} in one request")
    key = tuple(tensor.shape[1:] if batches else tensor.shape for tensor in inputs)
    return Fitted(inputs, _wanted(request, signature), rows, key, sum(len(tensor.data) for tensor in inputs))


def misfit(outputs: Sequence[Tensor], signature: Signature) -> str:
    """Return what is wrong with the outputs of a batch, or nothing; whether axis 0 holds its rows is another question."""
    if len(outputs) != len(signature.outputs):
        return f"{len(outputs)} outputs, the model has {len(signature.outputs)}"
    first = 1 if signature.max_batch > 1 else 0
    for tensor, spec in zip(outputs, signature.outputs, strict=True):
        if tensor.name != spec.name or tensor.datatype != spec.datatype:
            return f"output {tensor.name!r} of {tensor.datatype}, the model has {spec.name!r} of {spec.datatype}"
        fits = len(tensor.shape) == len(spec.dims) and all(
            size == dim or isinstance(dim, str)
            for size, dim in zip(tensor.shape[first:], spec.dims[first:], strict=True)
        )
        if not fits:
            return f"output {spec.name!r} of shape {list(tensor.shape)}, the model has {spec.shape}"
    return ""


def _check(tensor: Tensor, spec: TensorSpec, sizes: dict[str, int]) -> None:
    if tensor.datatype != spec.datatype:
        raise RequestError(f"input {tensor.name!r} is {tensor.datatype}, the model takes {spec.datatype}")
    if len(tensor.shape) != len(spec.dims):
        raise RequestError(f"input {tensor.name!r} has shape {list(tensor.shape)}, the model takes {spec.shape}")
    for size, dim in zip(tensor.shape, spec.dims, strict=True):
        if isinstance(dim, int):
            if size != dim:
                raise RequestError(
                    f"input {tensor.name!r} has shape {list(tensor.shape)}, the model takes {spec.shape}"
                )
        elif dim and sizes.setdefault(dim, size) != size:
            raise RequestError(f"input {tensor.name!r}: dimension {dim!r} is {size} here and {sizes[dim]} elsewhere")


def _wanted(request: InferRequest, signature: Signature) -> tuple[WantedOutput, ...]:
    if request.outputs is None:
        return tuple(WantedOutput(spec.name, request.binary_output) for spec in signature.outputs)
    names = {spec.name for spec in signature.outputs}
    unknown = [wanted.name for wanted in request.outputs if wanted.name not in names]
    if unknown:
        raise RequestError(f"the model has no output {_list(unknown)}, it has {_list(sorted(names))}")
    return request.outputs


def _raw_input(data: Buffer, signature: Signature) -> Tensor:
    """A raw request is one input and one row; at most one other dimension may follow from its size."""
    if len(signature.inputs) != 1:
        wanted = len(signature.inputs)
        # The texts of this function are Triton's: clients look for them.
        text = f"Raw request must only have 1 input (found 1) to be deduced but got {wanted} inputs in the model"
        raise RequestError(text)
    spec = signature.inputs[0]
    dims = [1 if place == 0 and signature.max_batch > 1 else dim for place, dim in enumerate(spec.dims)]
    free = [place for place, dim in enumerate(dims) if not isinstance(dim, int)]
    if len(free) > 1:
        text = "can not be deduced because there are more than one variable-sized dimension"
        raise RequestError(f"The shape of the raw input {spec.name!r} {text}")
    if spec.datatype == "BYTES":
        data = len(data).to_bytes(4, "little") + bytes(data)
        shape = [1 if place in free else dim for place, dim in enumerate(dims)]
        if any(dim != 1 for dim in shape):
            raise RequestError(f"For BYTE datatype raw input {spec.name!r}, the model must have input shape [1]")
    else:
        fixed = count([dim for dim in dims if isinstance(dim, int)]) * ITEM_BYTES[spec.datatype]
        shape = [len(data) // max(1, fixed) if place in free else dim for place, dim in enumerate(dims)]
    tensor = Tensor(spec.name, spec.datatype, tuple(dim for dim in shape if isinstance(dim, int)), data)
    try:
        check_size(tensor.datatype, tensor.shape, tensor.data)
    except ValueError as error:
        raise RequestError(f"raw input {spec.name!r} {error}") from error
    return tensor


def _list(names: Sequence[str]) -> str:
    return "[" + ", ".join(repr(name[:80]) for name in names[:10]) + (", …]" if len(names) > 10 else "]")
