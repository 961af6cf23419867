"""Run ``trainers.train`` under FSDP2 or DeepSpeed in processes of one CPU, where accelerate would not shard.

    torchrun --nproc_per_node 2 tests/helpers/sharded.py aft --config FILE

Set ACCELERATE_USE_FSDP=true or ACCELERATE_USE_DEEPSPEED=true. accelerate 1.15 shards on GPUs only, although torch and
DeepSpeed can shard over gloo. DIES=N ends every process after the checkpoint of step N.
"""

from __future__ import annotations

import os
import runpy
import sys
from typing import Any

from accelerate import state
from accelerate.utils import DistributedType

make_partial, make_state = state.PartialState.__init__, state.AcceleratorState.__init__
DEEPSPEED = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"


def partial_of_deepspeed(self: Any, cpu: bool = False, **rest: Any) -> None:
    """Let DeepSpeed make the group of processes."""
    make_partial(self, cpu, **rest)
    if self.distributed_type == DistributedType.MULTI_CPU:
        import deepspeed

        # Compiling it would take minutes.
        sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None
        deepspeed.init_distributed("gloo")
        self.distributed_type = DistributedType.DEEPSPEED


def state_of_deepspeed(self: Any, mixed_precision: str | None = None, cpu: bool = False, **rest: Any) -> None:
    """Hide that there is only a CPU: accelerate would switch DeepSpeed off."""
    os.environ.pop("ACCELERATE_USE_CPU", None)
    make_state(self, mixed_precision, False, **rest)


def state_of_fsdp(self: Any, *args: Any, fsdp_plugin: Any = None, **rest: Any) -> None:
    """Let accelerate treat the processes as those of GPUs after it made its state."""
    make_state(self, *args, fsdp_plugin=fsdp_plugin, **rest)
    if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
        state.PartialState._shared_state["distributed_type"] = self.distributed_type = DistributedType.FSDP
        self.fsdp_plugin = fsdp_plugin


def die_after(step: int) -> None:
    """End each process without cleaning up when the checkpoint of a step is whole."""
    from trainers.fitting.callbacks import RunLog

    save = RunLog.on_save

    def save_and_die(self: Any, args: Any, at: Any, control: Any, **rest: Any) -> None:
        save(self, args, at, control, **rest)
        if at.global_step == step:
            # The first process still marks the checkpoint as whole.
            args.distributed_state.wait_for_everyone()
            os._exit(9)

    RunLog.on_save = save_and_die  # type: ignore[method-assign]


if __name__ == "__main__":
    if DEEPSPEED:
        state.PartialState.__init__ = partial_of_deepspeed
        state.AcceleratorState.__init__ = state_of_deepspeed
    else:
        state.AcceleratorState.__init__ = state_of_fsdp
    if "DIES" in os.environ:
        die_after(int(os.environ["DIES"]))
    runpy.run_module("trainers.train", run_name="__main__")
