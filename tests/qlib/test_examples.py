"""The examples run, and come to what they promise."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def qat_cnn(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("qat_cnn", EXAMPLES / "qat_cnn.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "qat_cnn", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_a_small_network_keeps_its_accuracy_in_integers(qat_cnn: ModuleType) -> None:
    result = qat_cnn.run(train_batches=20, test_batches=8, epochs=3)
    assert result.float_accuracy > 0.9
    assert result.final_accuracy >= result.float_accuracy - 0.01
    assert result.trained_accuracy == pytest.approx(result.final_accuracy, abs=0.002)
