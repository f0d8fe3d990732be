"""The pure parts: names and lengths that MLflow takes, redaction, lineage, translation of errors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tracking_samples import DictMapping

from orchestrator.core.errors import TrackingError, Unreachable
from orchestrator.core.redact import remember_secret
from orchestrator.tracking.call import Memory
from orchestrator.tracking.client import Exists, Gone, _translate
from orchestrator.tracking.limits import NOTE, TAG_MAX_CHARS, fit, fit_note, safe_key, safe_model_name
from orchestrator.tracking.lineage import Lineage
from orchestrator.tracking.measures import dataset_digest
from orchestrator.tracking.pages import page_urls, registered_page, run_page
from orchestrator.tracking.runs import run_status
from orchestrator.tracking.snapshot import ArtifactRef, Dataset, ExecutionSnapshot, StepSnapshot


def test_importing_tracking_imports_nothing_heavy() -> None:
    code = (
        "import sys, orchestrator.tracking.projector, orchestrator.tracking.snapshot, orchestrator.tracking.ui;"
        "print([m for m in ('mlflow', 'sqlalchemy', 'pandas', 'onnx', 'numpy', 'torch', 'ray') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@settings(deadline=None)
@given(st.text(max_size=400))
def test_every_name_becomes_one_that_mlflow_takes(name: str) -> None:
    from mlflow.utils.validation import _validate_metric_name

    safe = safe_key(name)
    _validate_metric_name(safe)
    assert len(safe) <= 250


@pytest.mark.parametrize("name", ["loss", "system/npu_utilization", "a.b-c_d e", "val/top 1"])
def test_good_names_stay(name: str) -> None:
    assert safe_key(name) == name


def test_changed_names_do_not_collide() -> None:
    assert len({safe_key(name) for name in ("a(b", "a)b", "a_b", "/a_b", "a//b", "a/b")}) == 6


def test_model_names_have_no_dots() -> None:
    assert safe_model_name("digits.v2-checkpoint") == "digits-v2-checkpoint"


def test_long_values_go_to_files_whole() -> None:
    fitted = fit({"short": "x", "long": "y" * 7000}, 6000, "params")
    assert fitted.values["short"] == "x"
    assert fitted.files == {"params/long.txt": "y" * 7000}
    assert "7000 characters" in fitted.values["long"]
    assert "params/long.txt" in fitted.values["long"]


def test_secrets_are_masked_and_numbers_are_not() -> None:
    remember_secret("hunter2hunter2")
    values = fit({"api_key": "abcdefgh", "note": "uses hunter2hunter2", "max_tokens": "512"}, 6000, "params").values
    assert values == {"api_key": "***", "note": "uses ***", "max_tokens": "512"}


def test_long_note_points_at_the_whole() -> None:
    text = "\n".join(f"| line {i} |" for i in range(2000))
    fitted = fit_note(text)
    assert len(fitted.values[NOTE]) <= TAG_MAX_CHARS
    assert "note.md" in fitted.values[NOTE]
    assert fitted.files["note.md"] == text


def test_dataset_digest_fits() -> None:
    assert dataset_digest(Dataset("d", "u", "sha256:" + "ab" * 32)) == ("ab" * 32)[:36]
    assert dataset_digest(Dataset("d", "u", "v1.2")) == "v1.2"
    assert len(dataset_digest(Dataset("d", "u", "v" * 80))) == 36
    assert dataset_digest(Dataset("d", "u", "")) == "undeclared"


@pytest.mark.parametrize(
    ("state", "status"),
    [
        ("succeeded", "FINISHED"),
        ("failed(user)", "FAILED"),
        ("cancelled", "KILLED"),
        ("interrupted", "KILLED"),
        ("waiting(approval)", "RUNNING"),
        ("running", "RUNNING"),
    ],
)
def test_states(state: str, status: str) -> None:
    assert run_status(state) == status


def _ref(name: str, kind: str, *parents: str) -> ArtifactRef:
    return ArtifactRef(f"sha256:{name}", kind, kind, parents=tuple(f"sha256:{parent}" for parent in parents))


def _snapshot(*steps: StepSnapshot, lineage: tuple[ArtifactRef, ...] = ()) -> ExecutionSnapshot:
    return ExecutionSnapshot("x1", "r", "", "", {}, "running", 0, steps=steps, lineage=lineage)


def test_a_bundle_stands_for_its_most_derived_model() -> None:
    checkpoint, onnx, report = _ref("c", "checkpoint"), _ref("o", "onnx"), _ref("r", "report")
    bundle = _ref("b", "bundle")
    snapshot = _snapshot(
        StepSnapshot("train", "train", outputs=(checkpoint,)),
        StepSnapshot("evaluate", "evaluate", inputs=(checkpoint,), outputs=(report,)),
        StepSnapshot("export", "export", inputs=(checkpoint,), outputs=(onnx,)),
        StepSnapshot("bundle", "bundle", inputs=(onnx, checkpoint, report), outputs=(bundle,)),
        StepSnapshot("deploy", "deploy", inputs=(bundle,)),
    )
    lineage = Lineage.of(snapshot)
    assert lineage.models_behind([bundle]) == ["sha256:o"]
    assert lineage.models_of_release([bundle]) == ["sha256:c", "sha256:o"]
    assert [step.name for step in lineage.consumers(snapshot, "sha256:o")] == ["bundle", "deploy"]


def test_a_rollback_finds_its_models_in_the_given_lineage() -> None:
    bundle, onnx = _ref("b", "bundle", "o", "c"), _ref("o", "onnx", "c")
    snapshot = _snapshot(
        StepSnapshot("rollback", "rollback", inputs=(bundle,)), lineage=(bundle, onnx, _ref("c", "checkpoint"))
    )
    assert Lineage.of(snapshot).models_of_release([bundle]) == ["sha256:c", "sha256:o"]


def test_a_cycle_in_damaged_lineage_ends() -> None:
    a, b = _ref("a", "onnx", "b"), _ref("b", "checkpoint", "a")
    assert Lineage.of(_snapshot(lineage=(a, b))).ancestors("sha256:a") == ["sha256:b"]


def test_links_carry_the_training_view() -> None:
    urls = page_urls("http://127.0.0.1:5000/", {"run": run_page("1", "r"), "remote": "http://m/#/x"})
    assert urls == {
        "run": "http://127.0.0.1:5000/#/experiments/1/runs/r?workflowType=machine_learning",
        "remote": "http://m/#/x",
    }
    assert registered_page("a b", "2") == "/#/models/a%20b/versions/2?workflowType=machine_learning"


def test_a_new_epoch_forgets_ids() -> None:
    mapping = DictMapping()
    memory = Memory(mapping, "sqlite:////x.db")
    record = memory.record("run:1")
    record.id = "abc"
    memory.save(record)
    assert Memory(mapping, "sqlite:////x.db").record("run:1").id == "abc"
    assert Memory(mapping, "sqlite:////y.db").record("run:1").id == ""
    memory.new_epoch()
    assert memory.record("run:1").id == ""
    assert Memory(mapping, "sqlite:////x.db").record("run:1").id == ""


class _Mlflow(Exception):
    def __init__(self, message: str, code: str, status: int) -> None:
        super().__init__(message)
        self.error_code = code
        self._status = status

    def get_http_status_code(self) -> int:
        return self._status


@pytest.mark.parametrize(
    ("error", "family"),
    [
        (_Mlflow("no run", "RESOURCE_DOES_NOT_EXIST", 404), Gone),
        (_Mlflow("The run x must be in the 'active' state", "INVALID_PARAMETER_VALUE", 400), Gone),
        (_Mlflow("there", "RESOURCE_ALREADY_EXISTS", 400), Exists),
        (_Mlflow("bad", "INVALID_PARAMETER_VALUE", 400), TrackingError),
        (_Mlflow("down", "INTERNAL_ERROR", 500), Unreachable),
        (ConnectionResetError("gone"), Unreachable),
        (ZeroDivisionError("a bug of ours"), ZeroDivisionError),
    ],
)
def test_errors_are_told_apart(error: Exception, family: type[Exception]) -> None:
    assert type(_translate(error, "create run", "http://user:password@host")) is family


def test_errors_name_no_password() -> None:
    error = _translate(ConnectionResetError("at http://user:password@host"), "x", "http://user:password@host")
    assert "password" not in str(error)


def test_snapshot_paths_are_optional(tmp_path: Path) -> None:
    assert ArtifactRef("sha256:x", "onnx").path is None
