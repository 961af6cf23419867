"""Leaving torch's process group before the interpreter ends."""

from __future__ import annotations

import atexit
import sys


def leave_group_at_exit() -> None:
    """Destroy torch's process group, if there is one, while the interpreter still works.

    Gloo's threads may hold tensors of the last collective operation. If they are freed after the interpreter, they
    abort a process that had finished, and torchrun reports a failed run (seen once, in CI, not reproduced;
    pytorch/pytorch pull request 179291).
    """
    atexit.unregister(_leave_group)
    atexit.register(_leave_group)


def _leave_group() -> None:
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return
    # The other backends may wait for a process that has failed.
    if distributed.get_backend() == "gloo":
        distributed.destroy_process_group()
