"""Passes of fixed shapes, which CUDA replays as captured graphs: the host issues one launch instead of a thousand.

Rows are padded to a few sizes, keys to the room of the cache; what is padded is seen by nobody. On a GPU every new
combination is captured once, after which a pass costs what its kernels do. On the CPU the same shapes run as they are,
which is how they are tested where there is no GPU.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dtp_ros.engine.cache import RowCache
from dtp_ros.engine.passes import SPARE, Output, Passes, Request
from dtp_ros.models.base import VlaAdapter

BUCKET = 32  # rows of a prefill, and room of a cache, are multiples of it
FEW = (1, 2, 3, 4, 6, 8)  # rows of a pass behind the prefill
MOST_ROOMS = 3  # sizes of cache that are kept, with their graphs: an instruction may need another bucket

_log = logging.getLogger(__name__)


class StaticCache(RowCache):
    """A cache of fixed room that lives on from step to step: a pass writes to `slots` and sees all of it.

    What no mask shows must still be finite (zero times NaN is NaN), so each step begins with zeros: a step that was not
    finite leaves nothing to the next.
    """

    def __init__(self, num_layers: int, room: int, role: int) -> None:
        super().__init__(num_layers)
        self.room = room
        self.role = role
        self.slots = torch.empty(0, dtype=torch.int64)  # [n]

    def clear(self) -> None:
        """Empty it."""
        self.length = 0
        if self._block is not None:
            self._block.zero_()

    def reserve(self, room: int) -> None:
        """There is room from the start; raises ValueError where it does not suffice."""
        if room > self.room:
            raise ValueError(f"a static cache of {self.room} rows cannot hold {room}")

    def take(self, other: RowCache, length: int, batch: int = 1) -> None:
        """See RowCache; into the memory that is there, and one only."""
        if length and other._block is not None:
            if self._block is None:
                self._block = other._block.new_zeros((*other._block.shape[:-2], self.room, other._block.shape[-1]))
            self._block[..., :length, :] = other._block[..., :length, :]
            self.length = length

    def write(self, index: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """See RowCache; keys and values of the whole room."""
        if self._block is None:
            shape = len(self.layers), 2, *keys.shape[:2], self.room, keys.shape[-1]
            self._block = keys.new_zeros(shape)
        block = self._of_layer(index, keys)
        block[0].index_copy_(2, self.slots, keys)
        block[1].index_copy_(2, self.slots, values)
        return block[0], block[1]


@dataclass(frozen=True)
class _Plan:
    """A pass of one combination of shapes: the buffers it reads, and what runs it on them.

    groups: buffers of row indices, for the layers that share them.
    """

    request: Request
    slots: Tensor
    groups: Mapping[tuple[int, ...], Tensor]
    run: Callable[[], Output]


class StaticPasses(Passes):
    """Passes of fixed shapes, kept from step to step.

    graphs: capture them on CUDA. Where a capture fails, the reason is logged once and the passes run uncaptured.
    """

    static = True

    def __init__(self, adapter: VlaAdapter, *, graphs: bool = True) -> None:
        super().__init__(adapter)
        self.graphs = graphs and adapter.device.type == "cuda"
        self._caches: dict[tuple[int, int], StaticCache] = {}
        self._plans: dict[tuple[object, ...], _Plan] = {}
        self._pool: Any = None

    def cache(self, room: int, role: int) -> RowCache:
        """See Passes: one a role and bucket, emptied."""
        room = _up(room + SPARE, BUCKET)
        if (room, role) not in self._caches:
            self._forget_rooms(room)
            self._caches[room, role] = StaticCache(self._adapter.num_layers, room, role)
        cache = self._caches[room, role]
        cache.clear()
        return cache

    def _forget_rooms(self, wanted: int) -> None:
        """Let go of the oldest size of cache, where another one is about to be made."""
        rooms = list(dict.fromkeys(room for room, _ in self._caches))
        if wanted not in rooms and len(rooms) == MOST_ROOMS:
            self._plans = {key: plan for key, plan in self._plans.items() if key[0] != rooms[0]}
            self._caches = {key: cache for key, cache in self._caches.items() if key[0] != rooms[0]}

    def run(self, request: Request, cache: RowCache) -> Output:
        """See Passes; another cache than its own runs as it comes."""
        if not isinstance(cache, StaticCache):
            return super().run(request, cache)
        count = request.embeddings.shape[1]
        rows = next((n for n in FEW if n >= count), _up(count, BUCKET))
        rows = min(rows, cache.room - cache.length)
        cache.reserve(cache.length + rows)
        groups = _grouped(request.attention)
        padded = tuple((layers, _pow2(len(index))) for layers, index in groups.items())
        key = (cache.room, cache.role, rows, request.states, padded, request.plain_causal)
        if key not in self._plans:
            self._plans[key] = self._plan(request, cache, rows, groups)
        plan = self._plans[key]
        _load(plan, request, groups, cache.length)
        output = plan.run()
        attention = {
            layer: output.attention[layer][:, : len(index)] for layers, index in groups.items() for layer in layers
        }
        return Output(output.hidden[:, :count], attention, {layer: s[:, :count] for layer, s in output.states.items()})

    def _plan(self, request: Request, cache: StaticCache, rows: int, groups: Mapping[tuple[int, ...], Tensor]) -> _Plan:
        """Buffers for requests of this form, and the pass over them, captured where it can be."""
        embeddings = request.embeddings.new_zeros((1, rows, request.embeddings.shape[2]))
        positions = request.position_ids.new_zeros((*request.position_ids.shape[:-1], rows))
        mask = request.mask.new_zeros((1, 1, rows, cache.room))
        slots = torch.arange(rows, device=embeddings.device)
        indices = {layers: index.new_zeros(_pow2(len(index))) for layers, index in groups.items()}
        attention = {layer: index for layers, index in indices.items() for layer in layers}
        fixed = Request(
            embeddings, positions, mask, request.columns.clone(), attention, request.states, request.plain_causal
        )

        def forward() -> Output:
            cache.slots = slots
            return self._forward(fixed, cache)

        plan = _Plan(fixed, slots, indices, forward)
        if not self.graphs:
            return plan
        _load(plan, request, groups, cache.length)
        return _Plan(fixed, slots, indices, self._captured(forward))

    def _captured(self, forward: Callable[[], Output]) -> Callable[[], Output]:
        """`forward` as a captured graph, or itself where that cannot be."""
        try:
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(2):  # kernels are chosen and workspaces made before the capture
                    forward()
            torch.cuda.current_stream().wait_stream(stream)
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            # Other threads of a node may speak to the GPU meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                output = forward()
        except RuntimeError as error:
            _log.warning("passes run without captured graphs: %s", str(error).splitlines()[0])
            self.graphs = False
            return forward

        def replay() -> Output:
            graph.replay()
            return output

        return replay


def _load(plan: _Plan, request: Request, groups: Mapping[tuple[int, ...], Tensor], length: int) -> None:
    """Fill the buffers of a plan. A padded row stands behind the others and sees itself alone."""
    fixed, count = plan.request, request.embeddings.shape[1]
    rows = fixed.embeddings.shape[1]
    fixed.embeddings[:, :count] = request.embeddings
    fixed.embeddings[:, count:] = 0.0
    fixed.position_ids[..., :count] = request.position_ids
    torch.arange(length, length + rows, out=plan.slots)
    fixed.mask.zero_()
    fixed.mask[..., :count, : length + count] = request.mask
    fixed.mask[0, 0, torch.arange(count, rows, device=plan.slots.device), plan.slots[count:]] = True
    fixed.columns.copy_(request.columns)
    for layers, index in groups.items():
        plan.groups[layers][: len(index)] = index


def _grouped(attention: Mapping[int, Tensor]) -> dict[tuple[int, ...], Tensor]:
    """Layers that share a tensor of row indices -> that tensor."""
    layers: dict[int, list[int]] = {}
    for layer, index in attention.items():
        layers.setdefault(id(index), []).append(layer)
    return {tuple(found): attention[found[0]] for found in layers.values()}


def _up(number: int, step: int) -> int:
    return -(-number // step) * step


def _pow2(number: int) -> int:
    return 1 << max(number - 1, 0).bit_length()
