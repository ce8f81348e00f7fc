"""Work on prompts and completions in the processes of a Ray cluster.

Results come in the order of the items whatever process made them. A worker that dies (killed, out of memory)
is replaced and its batch done again; an error that a function raises is the caller's, and not tried again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from selfemo.errors import EngineError, MissingExtraError

T = TypeVar("T")
R = TypeVar("R")


def batches(items: Sequence[T], workers: int) -> Iterator[Sequence[T]]:
    """Items in order, in about four batches a worker, so that a slow one keeps nobody waiting long."""
    size = max(1, -(-len(items) // (4 * workers)))
    for i in range(0, len(items), size):
        yield items[i : i + size]


def ray_map(
    function: Callable[[Sequence[T]], list[R]],
    items: Sequence[T],
    *,
    workers: int,
    retries: int = 3,
    address: str = "",
) -> list[R]:
    """`function` over batches of `items`, in at most `workers` processes at once.

    Args:
        function: takes a batch and returns one result for each of its items; must be importable, or
            picklable by Ray.
        retries: how often a batch whose worker died is done again.
        address: of a running cluster; empty starts one on this machine.

    Raises:
        EngineError: a batch killed its worker each time.
        MissingExtraError: ray is not installed.
    """
    try:
        import ray
    except ImportError:
        raise MissingExtraError("ray", "pip install 'selfemo[verl]'") from None

    if started := not ray.is_initialized():
        ray.init(
            address=address or None,
            num_cpus=None if address else workers,
            include_dashboard=False if not address else None,
            log_to_driver=False,
            # Workers import what this process does.
            runtime_env={"env_vars": {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}},
        )
    try:
        task: Any = ray.remote(num_cpus=1, max_retries=retries)(_whole)
        waiting: list[Any] = []
        found: list[Any] = []
        for batch in batches(items, workers):
            if len(waiting) >= 2 * workers:  # keeps memory flat however many items there are
                found.extend(ray.get(waiting.pop(0)))
            waiting.append(task.remote(function, list(batch)))
        for future in waiting:
            found.extend(ray.get(future))
        return found
    except ray.exceptions.RayTaskError as e:
        raise e.as_instanceof_cause() from None
    except ray.exceptions.RayError as e:
        raise EngineError(f"a worker of Ray died {retries + 1} times on one batch: {e}") from e
    finally:
        if started:
            ray.shutdown()


def _whole(function: Callable[[Sequence[T]], list[R]], batch: Sequence[T]) -> list[R]:
    results = function(batch)
    if len(results) != len(batch):
        raise ValueError(f"{len(results)} results for {len(batch)} items")
    return results
