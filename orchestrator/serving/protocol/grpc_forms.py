"""Messages of a known form: requests whose raw input differs, and nothing else, are parsed once; so is what answers share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from orchestrator.serving.dispatch.lanes import Request
from orchestrator.serving.errors import RequestError
from orchestrator.serving.protocol.answer import AnswerForm
from orchestrator.serving.protocol.forms import Form, request_of
from orchestrator.serving.protocol.oip import InferRequest
from orchestrator.serving.protocol.oip_grpc import MESSAGES, decode, lane_part, parse_request, write_answer, writes_raw
from orchestrator.serving.protocol.tensors import Tensor

_CACHE: Final = 1024
_FORM_BYTES: Final = 2048
_RAW_BYTES: Final = 1 << 20
_ALIKE: Final = 8
"""Forms of messages of one length that are kept."""
_RAW_TAG: Final = b"\x32"
"""Of `raw_output_contents`: field 6, a length and so many bytes."""
_OTHER: Final = bytes(255 - byte for byte in range(256))


class RawForm(NamedTuple):
    """What messages of one form share: all bytes before those of the raw input, and what they say."""

    before: bytes
    model: tuple[str, str]
    form: Form


class Message(NamedTuple):
    """A message that has arrived.

    Attributes:
        model: The name and the version that it asks for.
        known: The request, where its form is known.
        parsed: The message, where it is not.
    """

    data: bytes
    model: tuple[str, str]
    known: InferRequest | None
    parsed: Any


class RawForms:
    """The forms that one listener has seen.

    Args:
        always_raw: Answers are raw whatever the inputs are.
    """

    __slots__ = ("_always_raw", "_known")

    def __init__(self, *, always_raw: bool) -> None:
        self._always_raw = always_raw
        self._known: dict[int, list[RawForm]] = {}

    def open(self, data: bytes) -> Message:
        """Tell which model a message is for.

        Raises:
            RequestError: It is no `ModelInferRequest`.
        """
        for before, model, form in self._known.get(len(data), ()):
            if data.startswith(before):
                name, datatype, shape, _ = form.inputs[0]
                tensor = Tensor(name, datatype, shape, memoryview(data)[len(before) :])
                return Message(data, model, request_of(form, {name: tensor}), None)
        parsed = decode(MESSAGES["ModelInferRequest"], data)
        return Message(data, (parsed.model_name, parsed.model_version), None, parsed)

    def parse(self, message: Message) -> InferRequest:
        """As `parse_request`, which see."""
        if message.known is not None:
            return message.known
        request = parse_request(message.parsed, always_raw=self._always_raw)
        self._learn(message.data, message.parsed, request)
        return request

    def _learn(self, data: bytes, message: Any, request: InferRequest) -> None:
        """Remember the form of a message, where the raw bytes of its only input are its last ones."""
        tensors = list(request.inputs.values())
        if request.id is not None or len(tensors) != 1 or len(message.raw_input_contents) != 1:
            return
        name, datatype, shape, raw = tensors[0]
        before = data[: len(data) - len(raw)]
        fits = datatype != "BYTES" and 0 < len(raw) <= _RAW_BYTES and len(before) <= _FORM_BYTES
        if not fits or not data.endswith(raw):
            return
        # With other bytes in that place the message must say the same but for them.
        other = bytes(raw).translate(_OTHER)
        try:
            probe = decode(MESSAGES["ModelInferRequest"], before + other)
        except RequestError:
            return  # another field ends with the same bytes
        if list(probe.raw_input_contents) != [other]:
            return
        probe.raw_input_contents[0] = bytes(raw)
        if probe == message:
            if len(self._known) >= _CACHE:
                self._known.clear()
            form = Form([(name, datatype, shape, len(raw))], request._replace(inputs={}), len(raw), {})
            alike = self._known.setdefault(len(data), [])
            alike.insert(0, RawForm(before, (message.model_name, message.model_version), form))
            del alike[_ALIKE:]


def render(request: Request, outputs: Sequence[Tensor]) -> bytes:
    """Return a serialized `ModelInferResponse`."""
    lane, wanted = request.lane, request.fitted.wanted
    key = "grpc", wanted, *[(tensor.shape, len(tensor.data)) for tensor in outputs]
    form = lane.answers.get(key)
    if form is None:
        if request.request_id or not writes_raw(wanted, outputs):
            return lane_part(lane) + write_answer(request, outputs)
        form = lane.answers[key] = _form(request, outputs)
    pieces: list[Any] = []
    for text, place in zip(form.texts, form.binary, strict=True):
        pieces += text, outputs[place].data
    if request.request_id:
        pieces.append(MESSAGES["ModelInferResponse"](id=request.request_id).SerializeToString())
    return b"".join(pieces)


def _form(request: Request, outputs: Sequence[Tensor]) -> AnswerForm:
    """Protobuf joins messages by joining their bytes: everything but the raw contents, then these one after the other."""
    places = {tensor.name: place for place, tensor in enumerate(outputs)}
    binary = [places[wanted.name] for wanted in request.fitted.wanted]
    described = MESSAGES["ModelInferResponse"]()
    for place in binary:
        tensor = outputs[place]
        described.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
    texts = [_RAW_TAG + _varint(len(outputs[place].data)) for place in binary]
    texts[0] = lane_part(request.lane) + described.SerializeToString() + texts[0]
    return AnswerForm(texts, [], binary)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    found.append(value)
    return bytes(found)
