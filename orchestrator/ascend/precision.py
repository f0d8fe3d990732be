"""What each precision mode of the Ascend toolchains does to an operator's float tensors, per SoC.

A policy answers three questions about an operator: in which format it reads, in which it writes, and whether it could
stay in fp32 on this SoC. Modes are named as in `--precision_mode_v2`; the older names are taken too. How an operator on
the grey list, a Cast and a kept operator choose is what the graph engine does (github:hicann/ge @ffdcbc9f, selection of
dtypes in the nn engine). What no published source settles is an assumption: each is a sentence in `Policy.assumptions`,
which travels with everything derived.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from orchestrator.ascend.kernels import Kernel, kernel
from orchestrator.ascend.operators import ascend_types
from orchestrator.ascend.soc import Soc
from orchestrator.ascend.soc import soc as find_soc
from orchestrator.core.errors import PlanError

Format = Literal["keep", "fp16", "bf16"]
Low = Literal["fp16", "bf16"]
Accumulate = Literal["fp32", "fp16"]
Colour = Literal["white", "black", "grey"]

MODES: Final = (
    "fp16", "mixed_float16", "cube_fp16in_fp32out", "allow_fp32_to_fp16", "mixed_bfloat16", "bf16", "origin", "fp32",
)  # fmt: skip
ALIASES: Final = {
    "force_fp16": "fp16", "enforce_fp16": "fp16", "allow_mix_precision": "mixed_float16",
    "allow_mix_precision_fp16": "mixed_float16", "allow_mix_precision_bf16": "mixed_bfloat16",
    "preferred_optimal": "mixed_float16", "force_fp32": "cube_fp16in_fp32out", "enforce_fp32": "cube_fp16in_fp32out",
    "preferred_fp32": "allow_fp32_to_fp16", "must_keep_origin_dtype": "origin", "enforce_origin": "origin",
}  # fmt: skip
"""Other names of the modes: ATC's `--precision_mode` and those of MindSpore Lite's Ascend context."""

CUBE_OPERATORS: Final = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum", "LSTM", "GRU", "RNN"})
"""ONNX operators whose work the matrix unit does: it multiplies what its SoC can and accumulates in fp32."""

_CUBE_WITHOUT_FP32: Final = frozenset({"Ascend310", "Ascend310P", "Ascend910"})
_BF16_FAMILIES: Final = frozenset({"Ascend310B", "Ascend910B", "Ascend910_93", "Ascend950"})
_REDUCTIONS: Final = frozenset({
    "ReduceMean", "ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum", "GlobalAveragePool",
})  # fmt: skip
_CONTROL_INPUTS: Final[Mapping[str, frozenset[int]]] = {
    "Resize": frozenset({1, 2}), "Upsample": frozenset({1}), "Dropout": frozenset({1}),
    "NonMaxSuppression": frozenset({3, 4}), "BatchNormalization": frozenset({1, 2, 3, 4}),
}  # fmt: skip
"""Float inputs that are read as they are: settings of the operator, and statistics whose kernels take only fp32."""

_ASSUMED: Final = (
    "every ONNX node is one kernel: fusions of the compiler, which round less, are not emulated",
    "kernels compute in fp32 on rounded inputs and round their result once; order of summation is that of the CPU",
    "LSTM, GRU and RNN: states are rounded in every step, gates and the hidden state's cell stay in fp32; with own activations, peepholes, clipping "
    "or sequence lengths only inputs, weights and results are rounded",
    "Softmax, LayerNormalization and InstanceNormalization hold what is inside in fp32",
    "fp16 subnormals are kept, not flushed to zero",
    "weights beyond the format's range are clipped to it (--is_weight_clip=1, the default)",
)
_SUMS: Final[Mapping[Accumulate, str]] = {
    "fp32": "vector reductions sum in fp32, as the published TBE kernel of ReduceMean does but in high-performance mode",
    "fp16": "vector reductions hold their sum in 16 bits before they scale it, which is the worst case: the published TBE "
    "kernel of ReduceMean scales first",
}


@dataclass(frozen=True, slots=True)
class Rounding:
    """What the target does to an operator's float tensors.

    Attributes:
        inputs: Format that it reads in; `keep` reads what is there.
        output: Format that it writes in.
        follows: Whether it goes by its first float input that is no constant (grey list): `inputs` and `output` are what
            it takes where that was computed in the low format, otherwise it stays in fp32.
        wide_inputs: Positions of float inputs that are read unrounded in any mode.
    """

    inputs: Format
    output: Format
    follows: bool = False
    wide_inputs: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Policy:
    """A precision mode on a SoC.

    Attributes:
        name: The mode, one of `MODES`.
        soc: The SoC; None is no SoC in particular: IEEE overflow and no limits of kernels.
        low: The 16-bit format of the mode.
        saturating: Whether infinity becomes the largest finite value and NaN zero where a tensor is rounded.
        accumulate: Format of the sums inside vector reductions; the matrix unit always sums in fp32.
        edits: Ascend-IR operators that the user moved -> the list that they are on now.
        assumptions: Choices that no published source settles, as sentences.
    """

    name: str
    soc: str | None
    low: Low
    saturating: bool
    accumulate: Accumulate = "fp32"
    edits: Mapping[str, Colour] = field(default_factory=dict[str, Colour])
    assumptions: tuple[str, ...] = ()

    def of(self, op_type: str, domain: str = "") -> Rounding:
        """Return what happens to the float tensors of an operator."""
        wide = _CONTROL_INPUTS.get(op_type, frozenset[int]()) if domain in {"", "ai.onnx"} else frozenset[int]()
        low = Rounding(self.low, self.low, wide_inputs=wide)
        keep = Rounding("keep", "keep", wide_inputs=wide)
        if self.name in {"fp32", "origin"} or op_type == "Cast":  # a Cast keeps the dtypes that it names in every mode
            return keep
        if self.name in {"fp16", "bf16"}:
            return low if self._takes_low(op_type, domain) else keep
        if self.name.startswith("mixed_"):
            return self._mixed(op_type, domain, low, keep)
        if op_type in CUBE_OPERATORS and domain in {"", "ai.onnx"}:
            return replace(low, output="keep") if self.name == "cube_fp16in_fp32out" else low
        return keep if self.can_keep(op_type, domain) else low

    def can_keep(self, op_type: str, domain: str = "") -> bool:
        """Tell whether the SoC has an fp32 kernel for an operator; true where the tables know none at all."""
        family = self._family()
        if family is None:
            return True
        if op_type in CUBE_OPERATORS and domain in {"", "ai.onnx"}:
            return family not in _CUBE_WITHOUT_FP32
        return self._takes(op_type, domain, "float32")

    def colour(self, op_type: str, domain: str = "") -> Colour:
        """Return the list of the mixed modes that an operator is on; grey where the tables name none."""
        names = _ir_types(op_type, domain)
        for name in names:
            if name in self.edits:
                return self.edits[name]
        row = self._kernel(op_type, domain)
        if row is not None:
            return row.mixed
        return "white" if op_type in CUBE_OPERATORS and domain in {"", "ai.onnx"} else "grey"

    def accumulates(self, op_type: str) -> Accumulate:
        """Return the format of the sums inside an operator."""
        return self.accumulate if op_type in _REDUCTIONS else "fp32"

    def to_json(self) -> dict[str, object]:
        """Return the policy, JSON-ready."""
        return {
            "mode": self.name, "soc": self.soc, "format": self.low, "saturating": self.saturating,
            "accumulate": self.accumulate, "mixlist": dict(self.edits), "assumptions": list(self.assumptions),
        }  # fmt: skip

    def _mixed(self, op_type: str, domain: str, low: Rounding, keep: Rounding) -> Rounding:
        colour = self.colour(op_type, domain)
        if colour == "black" and self.can_keep(op_type, domain):
            return keep
        if not self._takes_low(op_type, domain):
            return keep
        if colour == "grey" and self.can_keep(op_type, domain):
            return replace(low, follows=True)
        return low

    def _takes_low(self, op_type: str, domain: str) -> bool:
        return self._takes(op_type, domain, "float16" if self.low == "fp16" else "bfloat16")

    def _takes(self, op_type: str, domain: str, dtype: str) -> bool:
        """Tell whether the kernel reads `dtype` at its first float input; true where the tables do not tell."""
        row = self._kernel(op_type, domain)
        dtypes = None if row is None else _first_floats(row)
        return dtypes is None or dtype in dtypes

    def _kernel(self, op_type: str, domain: str) -> Kernel | None:
        """Return the kernel of the main Ascend-IR operator that computes it; the others are for other ranks."""
        family = self._family()
        if family is None:
            return None
        found = (kernel(name, family) for name in _ir_types(op_type, domain))
        return next((row for row in found if row is not None), None)

    def _family(self) -> str | None:
        return find_soc(self.soc).family if self.soc else None


def policy(
    soc: str | None,
    mode: str,
    *,
    mixlist: Mapping[str, Mapping[str, Collection[str]]] | None = None,
    accumulate: Accumulate = "fp32",
) -> Policy:
    """Return the policy of a precision mode on a SoC.

    Args:
        soc: As in `--soc_version`; None for a runtime without a SoC.
        mode: One of `MODES` or of `ALIASES`.
        mixlist: Content of a `--modify_mixlist` file: `black-list` and `white-list`, each with `to-add`, `to-remove`.
        accumulate: Format of the sums inside vector reductions.

    Raises:
        PlanError: The mode or the SoC is unknown, the SoC lacks bfloat16, or lists are given to a mode without lists.
    """
    name = ALIASES.get(mode, mode)
    if name not in MODES:
        raise PlanError(f"unknown precision mode {mode[:80]!r}", hint=f"use one of {', '.join(MODES)}")
    chip = find_soc(soc) if soc else None
    low: Low = "bf16" if name in {"bf16", "mixed_bfloat16"} else "fp16"
    if low == "bf16" and chip is not None and chip.family not in _BF16_FAMILIES:
        raise PlanError(
            f"precision mode {name!r} needs bfloat16, which {chip.name} does not have",
            hint="use mixed_float16 or fp16 for this SoC",
        )
    if mixlist and not name.startswith("mixed_"):
        raise PlanError(
            f"lists of operators are edited, but mode {name!r} has no lists", hint="use mixed_float16 or drop the edits"
        )
    edits = _edits(mixlist or {})
    saturating = chip.saturating if chip is not None else False
    return Policy(name, soc, low, saturating, accumulate, edits, _assumptions(name, chip, accumulate))


def _edits(mixlist: Mapping[str, Mapping[str, Collection[str]]]) -> dict[str, Colour]:
    """Read the edits; an operator that leaves a list and joins none becomes grey."""
    unknown = sorted(set(mixlist) - {"black-list", "white-list"})
    wrong = [f"{name}.{key}" for name, edit in mixlist.items() for key in edit if key not in {"to-add", "to-remove"}]
    if unknown or wrong:
        raise PlanError(
            f"unknown keys in the edits of the lists: {', '.join([*unknown, *wrong])}",
            hint="black-list and white-list, each with to-add and to-remove",
        )
    edits: dict[str, Colour] = {name: "grey" for edit in mixlist.values() for name in edit.get("to-remove", ())}
    added: dict[str, list[Colour]] = {}
    lists: tuple[tuple[Colour, str], ...] = (("white", "white-list"), ("black", "black-list"))
    for colour, key in lists:
        for name in mixlist.get(key, {}).get("to-add", ()):
            added.setdefault(name, []).append(colour)
    both = sorted(name for name, colours in added.items() if len(colours) > 1)
    if both:
        raise PlanError(f"{', '.join(both)} cannot be on the white and on the black list", hint="add it to one of them")
    edits.update({name: colours[0] for name, colours in added.items()})
    return edits


def _assumptions(mode: str, chip: Soc | None, accumulate: Accumulate) -> tuple[str, ...]:
    if mode == "fp32":
        return ()
    found = [*_ASSUMED, _SUMS[accumulate]]
    if mode.startswith("mixed_"):
        found.append("the list of an operator is that of the Ascend-IR operator which ATC's parser names")
    if mode == "origin":
        found.append(
            "an operator without an fp32 kernel runs on the AI CPU with the same numbers, or is refused by ATC"
        )
    if chip is None:
        found.append("no SoC: overflow is infinite and no kernel limits are known")
    elif chip.overflow == "unknown":
        found.append(f"no source tells how {chip.name} overflows; taken as saturating, which is the stricter check")
    if chip is not None and chip.saturating:
        found.append("tensors that stay in fp32 do not saturate")
    return tuple(found)


def _first_floats(row: Kernel) -> frozenset[str] | None:
    """Return the dtypes of the kernel's first input that may be a float; None where it decides when it is compiled."""
    floats = {"float16", "bfloat16", "float32"}
    return next((dtypes for dtypes in row.inputs if dtypes is None or dtypes & floats), None)


def _ir_types(op_type: str, domain: str) -> tuple[str, ...]:
    return ascend_types(op_type) if domain in {"", "ai.onnx"} else ()
