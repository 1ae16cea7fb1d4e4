"""How the batches of an epoch are drawn, so that they can be drawn again from the middle.

A loader is turned into a `Feed`: an iterator over the batches that remain, and what a checkpoint must keep
of it. Three kinds of loaders, three ways:

- an ordinary map-style `DataLoader`: its order is drawn anew from (seed, stage, epoch) and entered at batch k;
  nothing that was seen is loaded. Workers seed each sample by (seed, stage, epoch, index).
- a loader with `state_dict`: asked for its own state.
- any other iterable: replayed up to batch k, in a random stream of its own, which is warned about.

Of several processes that train together, each draws the same order and loads its part of each batch. So a position,
and a batch size, mean the same with however many processes; they get equally many samples of each batch, the first of
them again where it does not divide evenly. Only the first kind of loader can be split so.
"""

import copy
import logging
import random
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import numpy as np
import torch
from blake3 import blake3
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, get_worker_info

from pipeline import signals
from pipeline.errors import UsageError

log = logging.getLogger(__name__)


class RandomStream:
    """A random state of its own for python, numpy and torch (CPU); `with stream:` draws from it alone."""

    def __init__(self, key: str) -> None:
        self._seeds = _seeds(key)
        self._inner: tuple[Any, Any, Any] | None = None

    def __enter__(self) -> None:
        self._outer = _states()
        if self._inner is None:
            _seed(self._seeds)
        else:
            _set_states(self._inner)

    def __exit__(self, *exc: object) -> None:
        self._inner = _states()
        _set_states(self._outer)


def _seeds(key: str) -> tuple[int, int, int]:
    digest = blake3(key.encode()).digest(20)
    return (
        int.from_bytes(digest[:8], "big"),
        int.from_bytes(digest[8:12], "big"),
        int.from_bytes(digest[12:], "big") >> 1,
    )


def _seed(seeds: tuple[int, int, int]) -> None:
    # Not torch.manual_seed: that would seed the accelerators too, which are not this stream's.
    random.seed(seeds[0])
    np.random.seed(seeds[1])
    torch.default_generator.manual_seed(seeds[2])


def _states() -> tuple[Any, Any, Any]:
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def _set_states(states: tuple[Any, Any, Any]) -> None:
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])


@dataclass(frozen=True, kw_only=True)
class Feed:
    """The batches of one epoch that remain.

    Attributes:
        iterator: hands them out.
        inside: what a checkpoint inside this epoch keeps of the loader.
        after: what a checkpoint at this epoch's end keeps of it.
    """

    iterator: Iterator[Any]
    inside: Callable[[], dict[str, Any]]
    after: Callable[[], dict[str, Any]]


class Feeds:
    """Opens a feed for an epoch of a loader; keeps persistent workers alive from one epoch to the next.

    Generators in `tracked` are left alone: who tracks them keeps their state. `rank` is this process among the
    `world_size` that train together.
    """

    def __init__(self, tracked: Iterable[torch.Generator] = (), *, rank: int = 0, world_size: int = 1) -> None:
        self._tracked = list(tracked)
        self._rank, self._world_size = rank, world_size
        self._warned = False
        self._indexed: weakref.WeakKeyDictionary[DataLoader[Any], _Indexed] = weakref.WeakKeyDictionary()

    def open(self, loader: Iterable[Any], *, key: str, skip: int, saved: dict[str, Any] | None) -> Feed:
        """The feed of `loader`, from batch `skip` on.

        `key` names (seed, stage, epoch); `saved` is what a checkpoint kept of the loader, or None.
        Raises: UsageError, for one that several processes cannot share.
        """
        if isinstance(loader, DataLoader):
            _protect_workers(loader)
        elif isinstance(loader, Iterator) and not self._warned:
            self._warned = True
            log.warning("run.batches was given an iterator; make a new one each epoch, or a resumed run starts it anew")
        if hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict"):
            self._check_alone("run.batches: several processes cannot share a loader that keeps its own state")
            return _stateful(loader, saved)
        if type(loader) is DataLoader and not isinstance(loader.dataset, IterableDataset) and _is_finite(loader):
            if loader not in self._indexed:
                self._indexed[loader] = _Indexed(loader, self._tracked, self._rank, self._world_size)
            return self._indexed[loader].open(key, skip, saved)
        self._check_alone("run.batches: several processes can share a DataLoader of a dataset with a length only")
        return _replayed(loader, _OwnGenerators(loader, self._tracked), key, skip, saved)

    def _check_alone(self, otherwise: str) -> None:
        if self._world_size > 1:
            raise UsageError(f"{otherwise}; use an ordinary DataLoader, or --processes-per-trial 1")


def _source(loader: DataLoader[Any]) -> Any:
    """What draws the order: indices of batches, or of samples for a loader that does not batch."""
    return loader.sampler if loader.batch_sampler is None else loader.batch_sampler


def _is_finite(loader: DataLoader[Any]) -> bool:
    """Whether the order can be drawn as a whole; a sampler without a length may go on for ever."""
    try:
        len(_source(loader))
    except TypeError:
        return False
    return True


class _Indexed:
    """A map-style loader whose order we draw."""

    def __init__(self, loader: DataLoader[Any], tracked: Sequence[torch.Generator], rank: int, world_size: int) -> None:
        self._source = _source(loader)
        self._rank, self._world_size = rank, world_size
        if world_size > 1:
            _check_splittable(loader)
        self._generators = _OwnGenerators(loader, tracked)
        self._order = _Order()
        workers = loader.num_workers > 0
        self._seeded = workers
        dataset: Any = _SeededDataset(loader.dataset) if workers else loader.dataset
        order: dict[str, Any] = (
            {"batch_size": None, "sampler": self._order}
            if loader.batch_sampler is None
            else {"batch_sampler": self._order}
        )
        self._loader: DataLoader[Any] = DataLoader(
            dataset,
            **order,
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
            timeout=loader.timeout,
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
            generator=None,  # the samplers draw from the user's; what this one draws seeds nothing that lasts
            prefetch_factor=loader.prefetch_factor,
            persistent_workers=loader.persistent_workers,
            in_order=loader.in_order,
        )

    def open(self, key: str, skip: int, saved: dict[str, Any] | None) -> Feed:
        start = self._generators.start(saved, inside=skip > 0)
        with RandomStream(key), signals.blocked():
            batches = [self._part(batch) for batch in list(self._source)[skip:]]
            self._order.entries = [self._keyed(key, batch) for batch in batches] if self._seeded else batches
            iterator = iter(self._loader)
        return Feed(
            iterator=iterator,
            inside=lambda: start,
            after=self._generators.states,
        )

    def _part(self, batch: Any) -> Any:
        """This process's samples of a batch."""
        if self._world_size == 1:
            return batch
        size = -(-len(batch) // self._world_size)
        return list(islice(cycle(batch), self._rank * size, (self._rank + 1) * size))

    def _keyed(self, key: str, batch: Any) -> Any:
        return [(key, index) for index in batch] if self._loader.batch_sampler is not None else (key, batch)


def _check_splittable(loader: DataLoader[Any]) -> None:
    if loader.batch_sampler is None:
        raise UsageError("run.batches: without a batch_size, several processes cannot share the loader; give it one")
    if isinstance(getattr(loader.batch_sampler, "sampler", None), DistributedSampler):
        raise UsageError(
            "run.batches gives each process its part of each batch by itself; leave DistributedSampler out, for "
            "instance DataLoader(dataset, batch_size=64, shuffle=True)"
        )


class _OwnGenerators:
    """The generators that the user built a loader with, each once; none for what is no `DataLoader`."""

    def __init__(self, loader: Iterable[Any], tracked: Sequence[torch.Generator]) -> None:
        batches = getattr(loader, "batch_sampler", None)
        parts = {
            "loader": loader,
            "sampler": getattr(loader, "sampler", None),
            "batch_sampler": batches,
            "batched_sampler": getattr(batches, "sampler", None),
        }
        self._found: dict[str, torch.Generator] = {}
        for name, part in parts.items():
            generator = getattr(part, "generator", None)
            known = [*self._found.values(), *tracked]
            if isinstance(generator, torch.Generator) and all(generator is not one for one in known):
                self._found[name] = generator

    def start(self, saved: dict[str, Any] | None, *, inside: bool) -> dict[str, Any]:
        """Puts them where a checkpoint saw them, if there is one; returns their states at the epoch's start.

        At an epoch's start one that was seeded otherwise is another one, made for this epoch, and is left as it is.
        """
        states = {} if saved is None else saved.get("generators", {})
        for name in states.keys() & self._found.keys():  # the epoch before may have had another loader
            before = torch.Generator(self._found[name].device)
            before.set_state(states[name])
            if inside or before.initial_seed() == self._found[name].initial_seed():
                self._found[name].set_state(states[name])
        return self.states()

    def states(self) -> dict[str, Any]:
        return {"generators": {name: generator.get_state() for name, generator in self._found.items()}}


class _Order:
    """The sampler of a loader of ours: whatever entries it is given."""

    def __init__(self) -> None:
        self.entries: Sequence[Any] = ()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


class _SeededDataset:
    """A dataset in a loader's worker: what a sample draws depends on its key and index, not on the worker."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __getitem__(self, keyed: tuple[str, Any]) -> Any:
        key, index = keyed
        _seed(_seeds(f"{key}/{index}"))
        return self._dataset[index]

    def __getitems__(self, keyed: list[tuple[str, Any]]) -> list[Any]:
        if not hasattr(self._dataset, "__getitems__"):
            return [self[one] for one in keyed]
        _seed(_seeds(f"{keyed[0][0]}/{[index for _, index in keyed]}"))
        return self._dataset.__getitems__([index for _, index in keyed])  # type: ignore[no-any-return]


class _WorkerStart:
    """A loader's `worker_init_fn`: the user's own, in a process that only the trainer can end."""

    def __init__(self, inner: Callable[[int], None] | None) -> None:
        self._inner = inner

    def __call__(self, worker: int) -> None:
        signals.obey_parent_only()
        info = get_worker_info()
        if info is not None and isinstance(info.dataset, _SeededDataset):
            # The user's function expects its own dataset; WorkerInfo guards its attributes against writes.
            object.__setattr__(info, "dataset", info.dataset._dataset)
        if self._inner is not None:
            self._inner(worker)


def _protect_workers(loader: DataLoader[Any]) -> None:
    if not isinstance(loader.worker_init_fn, _WorkerStart):
        loader.worker_init_fn = _WorkerStart(loader.worker_init_fn)


def _stateful(loader: Any, saved: dict[str, Any] | None) -> Feed:
    if saved is not None and "state_dict" in saved:
        loader.load_state_dict(saved["state_dict"])
    with signals.blocked():
        iterator = iter(loader)
    return Feed(iterator=iterator, inside=lambda: _own_state(loader), after=lambda: _own_state(loader))


def _own_state(loader: Any) -> dict[str, Any]:
    return {"state_dict": copy.deepcopy(loader.state_dict())}  # it goes on changing while it is written


def _replayed(
    loader: Iterable[Any], generators: _OwnGenerators, key: str, skip: int, saved: dict[str, Any] | None
) -> Feed:
    stream = RandomStream(key)
    start = generators.start(saved, inside=skip > 0)
    if isinstance(loader, DataLoader):
        loader._iterator = None  # persistent workers would draw on from where the epoch before left them

    def batches() -> Iterator[Any]:
        with stream, signals.blocked():
            iterator = iter(loader)
        start = time.monotonic()
        if skip:
            log.warning("%s cannot start in its middle: loading %d seen batches again", _name(loader), skip)
        done, handed = object(), 0
        while True:
            with stream:
                batch = next(iterator, done)
            if batch is done:
                return
            handed += 1
            if handed == skip:
                log.warning("loaded %d seen batches again in %.1f s", skip, time.monotonic() - start)
            if handed > skip:
                yield batch

    return Feed(iterator=batches(), inside=lambda: start, after=generators.states)


def _name(loader: Iterable[Any]) -> str:
    return type(getattr(loader, "dataset", loader)).__name__
