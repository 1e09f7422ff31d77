"""Process groups of our own."""

from __future__ import annotations

import torch
import torch.distributed as dist


def own_group(group: dist.ProcessGroup | None, device: torch.device) -> dist.ProcessGroup:
    """The same ranks as a group of their own.

    Collectives pair up by their order within a group, and the communication thread runs beside others: SyncBatchNorm's,
    a second model's, DDP's own, the caller's.
    """
    group = group if group is not None else dist.group.WORLD
    assert group is not None  # there is a default group
    ranks = dist.get_process_group_ranks(group)
    own: dist.ProcessGroup = dist.new_group(
        ranks,
        timeout=group._get_backend(device).options._timeout,
        backend=dist.get_backend(group),
        use_local_synchronization=len(ranks) < dist.get_world_size(),
        sort_ranks=False,
    )
    return own
