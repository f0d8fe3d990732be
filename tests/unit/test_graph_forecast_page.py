from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from orchestrator.ascend.precision import policy
from orchestrator.graph.forecast.forecast import forecast
from orchestrator.graph.forecast.page import page
from orchestrator.graph.verdict import Thresholds
from tests.support.zoo import ZOO


def test_figures_are_rounded_and_do_not_break(tmp_path: Path) -> None:
    graph = ZOO["mlp"]()
    onnx.save(graph.model, tmp_path / "model.onnx")

    def evaluate(predict: Any) -> dict[str, float]:
        predict(graph.samples)
        return {"accuracy": 134 / 150}

    made = page(
        forecast(
            tmp_path / "model.onnx",
            policy=policy("Ascend310P3", "fp16"),
            samples=graph.samples,
            keep="none",
            thresholds=Thresholds(40.0, 0.9995),
            evaluate=evaluate,
            threads=1,
        )
    )
    cells = dict(re.findall(r'<tr><td data-label="">([^<]*)</td><td[^>]*>([^<]*)</td>', made))
    assert cells["accuracy"] == "0.893333"
    assert cells["operations in fp32"] == "0.00%"
    assert not re.search(r">-?\d+\.\d{7,}<", made)
    figures = re.findall(r"<td([^>]*)>[\d.,]+(?: dB|%)?<", made)
    assert figures
    assert all('class="fig"' in style for style in figures)


def test_tables_with_long_names_become_cards_on_a_phone(tmp_path: Path) -> None:
    graph = ZOO["rmsnorm_massive"]()
    onnx.save(graph.model, tmp_path / "model.onnx")
    samples = {name: np.asarray(value) for name, value in graph.samples.items()}
    made = page(
        forecast(
            tmp_path / "model.onnx",
            policy=policy("Ascend310P3", "fp16"),
            samples=samples,
            thresholds=Thresholds(40.0, 0.9995),
            threads=1,
        )
    )
    worst = made[made.index("Worst tensors") :]
    assert '<table class="cards">' in worst
    assert 'data-label="cumulative dB"' in worst
