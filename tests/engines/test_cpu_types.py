"""Which types a CPU computes in software, and the warning of it."""

from __future__ import annotations

import pytest
import torch

from lm_eval_aft.core.engine import HostArgs
from lm_eval_aft.engines.cpu_types import types_in_software
from lm_eval_aft.engines.hf.engine import HFEngine

ZEN_3 = {"architecture": "x86_64", "avx2": True, "f16c": True, "avx512_bf16": False}
ZEN_4 = {"architecture": "x86_64", "avx512_f": True, "avx512_bf16": True}
SAPPHIRE_RAPIDS = {"architecture": "x86_64", "avx512_bf16": True, "avx512_fp16": True, "amx_bf16": True}
GRAVITON_3 = {"architecture": "arm64", "neon": True, "bf16": True, "fp16_arith": True}


@pytest.fixture
def cpu(monkeypatch):
    """Sets what torch says of the CPU."""
    return lambda capabilities: monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)


@pytest.mark.parametrize(
    ("capabilities", "software"),
    [
        (ZEN_3, [torch.bfloat16, torch.float16]),
        (ZEN_4, [torch.float16]),
        (SAPPHIRE_RAPIDS, []),
        (GRAVITON_3, []),
        # torch cannot tell.
        ({}, []),
    ],
)
def test_types_without_instructions_are_computed_in_software(cpu, capabilities, software):
    cpu(capabilities)
    assert types_in_software() == software


def test_an_older_torch_says_nothing(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert types_in_software() == []


@pytest.mark.parametrize(
    ("dtype", "capabilities", "warned"),
    [("bfloat16", ZEN_3, True), ("float32", ZEN_3, False), ("bfloat16", ZEN_4, False), ("float16", ZEN_4, True)],
)
def test_one_warning_names_the_type_and_the_faster_one(tiny, cpu, caplog, dtype, capabilities, warned):
    cpu(capabilities)
    engine = HFEngine.load({"pretrained": tiny, "dtype": dtype}, HostArgs("auto", None, "cpu"))
    warnings = [record.message for record in caplog.records if "instructions" in record.message]
    assert (
        warnings
        == [
            f"This CPU has no instructions for {dtype}, and computes many rows several times slower than in float32: "
            "dtype=float32 is faster here, and gives other texts."
        ]
        * warned
    )
    # The type is never changed.
    assert str(engine.model.dtype) == f"torch.{dtype}"
