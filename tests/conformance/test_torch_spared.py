"""What is left out of torch's export flows changes no result, and is there again afterwards."""

from __future__ import annotations

import contextlib
import gc
from contextlib import AbstractContextManager

import pytest
import torch
from torch import nn
from torch._export import utils

from conformance.backends.torch_spared import spared


def test_all_is_as_before_afterwards() -> None:
    listing = utils._materialize_cpp_cia_ops
    with pytest.raises(ValueError, match="inside"), spared():
        assert not gc.isenabled()
        assert utils._materialize_cpp_cia_ops is not listing
        raise ValueError("inside")
    assert gc.isenabled()
    assert utils._materialize_cpp_cia_ops is listing


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with spared():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_operators_that_come_late_are_found_by_the_next_case() -> None:
    with spared():
        before = {op.name() for op in utils._collect_all_valid_cia_ops()}
    library = torch.library.Library("suite_test_late", "DEF")
    library.define("twice(Tensor x) -> Tensor")
    library.impl("twice", lambda x: x + x, "CompositeImplicitAutograd")
    with spared():
        after = {op.name() for op in utils._collect_all_valid_cia_ops()}
    assert after - before == {"suite_test_late::twice"}


def test_a_batch_norm_that_is_left_is_converted_alike() -> None:
    pytest.importorskip("torchao")
    assert converted(spared()) == converted(contextlib.nullcontext())


def converted(how: AbstractContextManager[None]) -> str:
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    torch.manual_seed(0)
    module, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)).eval(), torch.rand(2, 3, 6, 6)
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    with how:
        prepared = prepare_pt2e(torch.export.export(module, (x,)).module(), quantizer)
        prepared(x)
        return str(convert_pt2e(prepared).code)
