"""Which 16-bit types the CPU computes by instructions of its own. It computes the others in software."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from lm_eval_aft.core.log import log

# The instruction sets for matrix products in each type, as torch names them: of x86 first, then of Arm.
INSTRUCTIONS = {
    torch.bfloat16: ("avx512_bf16", "amx_bf16", "avx10_2", "bf16", "sve_bf16"),
    torch.float16: ("avx512_fp16", "amx_fp16", "avx10_2", "fp16_arith"),
}


def types_in_software() -> list[torch.dtype]:
    """The 16-bit types without instructions. Empty if torch cannot tell, as its older versions."""
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    if "architecture" not in capabilities:
        return []
    return [dtype for dtype, names in INSTRUCTIONS.items() if not any(capabilities.get(name) for name in names)]


def warn_of_software(dtype: torch.dtype) -> None:
    """Warn if this CPU computes the type of a model's weights in software."""
    if dtype in types_in_software():
        log.warning(
            "This CPU has no instructions for %s, and computes many rows several times slower than in float32: "
            "dtype=float32 is faster here, and gives other texts.",
            str(dtype).removeprefix("torch."),
        )
