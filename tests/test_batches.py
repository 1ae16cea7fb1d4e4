"""Every kind of loader: what its epochs hand out, and that they can be entered in the middle."""

import logging
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    WeightedRandomSampler,
    get_worker_info,
)

from pipeline.batches import Feed, Feeds
from pipeline.checkpoint import capture_random, restore_random, seed_all
from pipeline.errors import UsageError
from tests.checkpoint.comparing import assert_same

# Of machines with fewer cores than a loader has workers here.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")
SAMPLES = 23  # no multiple of the batch size: the last batch is a short one


class Counting(Dataset):
    """Samples that are their own index; remembers which were loaded, in the process that loaded them."""

    def __init__(self) -> None:
        self.loaded: list[int] = []

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> int:
        self.loaded.append(index)
        return index


class Noisy(Counting):
    """Samples with a draw from each source of chance."""

    def __getitem__(self, index: int) -> tuple[int, float, float, Tensor]:
        return index, random.random(), float(np.random.rand()), torch.rand(3)


class NoisyInBatches(Noisy):
    """The same, loaded a batch at a time."""

    def __getitems__(self, indices: list[int]) -> list[Any]:
        shift = random.random()
        return [(*self[index], shift) for index in indices]


class Stream(IterableDataset):
    """Samples that only come one after the other, with chance in order and content."""

    def __iter__(self) -> Iterator[tuple[int, float, float]]:
        info = get_worker_info()
        start, step = (0, 1) if info is None else (info.id, info.num_workers)
        for index in range(start, SAMPLES, step):
            yield index + 100 * random.randrange(10), float(np.random.rand()), torch.rand(()).item()


class OwnState:
    """A loader that knows how to resume itself."""

    def __init__(self) -> None:
        self.place = 0

    def __iter__(self) -> Iterator[int]:
        while self.place < 6:
            self.place += 1
            yield 10 * self.place
        self.place = 0

    def state_dict(self) -> dict[str, int]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.place = state["place"]


def seeded(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shuffled(**options: Any) -> DataLoader:
    return DataLoader(options.pop("dataset", None) or Counting(), **{"batch_size": 4, "shuffle": True, **options})


# Each builds a loader with its own generators new, as a process that resumes does.
LOADERS: dict[str, Callable[[], Iterable[Any]]] = {
    "shuffled": shuffled,
    "in_order": lambda: shuffled(shuffle=False),
    "shuffled_by_two_workers": lambda: shuffled(dataset=Noisy(), num_workers=2),
    "by_persistent_workers": lambda: shuffled(dataset=Noisy(), num_workers=2, persistent_workers=True),
    "batches_loaded_as_a_whole": lambda: shuffled(dataset=NoisyInBatches(), num_workers=1),
    "a_generator_of_its_own": lambda: shuffled(generator=seeded()),
    "a_generator_of_its_own_and_workers": lambda: shuffled(dataset=Noisy(), generator=seeded(), num_workers=1),
    "sampler_with_a_generator": lambda: shuffled(shuffle=None, sampler=RandomSampler(Counting(), generator=seeded())),
    "weighted_sampler": lambda: shuffled(shuffle=None, sampler=WeightedRandomSampler(range(1, SAMPLES), 30)),
    "weighted_sampler_with_a_generator": lambda: shuffled(
        shuffle=None, sampler=WeightedRandomSampler(range(1, SAMPLES), 30, generator=seeded())
    ),
    "loader_and_sampler_with_a_generator_each": lambda: shuffled(
        shuffle=None, sampler=RandomSampler(Counting(), generator=seeded(1)), generator=seeded(2), num_workers=1
    ),
    "batch_sampler": lambda: DataLoader(
        Counting(), batch_sampler=BatchSampler(RandomSampler(Counting()), 5, drop_last=True)
    ),
    "batch_sampler_over_a_sampler_with_a_generator": lambda: DataLoader(
        Counting(), batch_sampler=BatchSampler(RandomSampler(Counting(), generator=seeded()), 5, drop_last=True)
    ),
    "no_batches_but_samples": lambda: shuffled(batch_size=None),
    "no_batches_but_samples_by_workers": lambda: shuffled(dataset=Noisy(), batch_size=None, num_workers=2),
    "sampler_of_batches": lambda: DataLoader(
        NoisyInBatches(), batch_size=None, sampler=BatchSampler(RandomSampler(Counting()), 5, drop_last=False)
    ),
    "its_own_state": OwnState,
    "stream": lambda: DataLoader(Stream(), batch_size=4),
    "stream_by_two_workers": lambda: DataLoader(Stream(), batch_size=4, num_workers=2),
    "stream_by_persistent_workers": lambda: DataLoader(Stream(), batch_size=4, num_workers=2, persistent_workers=True),
    "stream_with_a_generator": lambda: DataLoader(Stream(), batch_size=4, num_workers=1, generator=seeded()),
    "a_loader_of_the_users_class": lambda: type("Mine", (DataLoader,), {})(Counting(), batch_size=4, shuffle=True),
    "a_loader_of_the_users_class_with_a_generator": lambda: type("Mine", (DataLoader,), {})(
        Counting(), batch_size=4, shuffle=True, generator=seeded()
    ),
    "list": lambda: [1, 2, 3, 4, 5, 6, 7],
}


def opened(feeds: Feeds, loader: Iterable[Any], epoch: int, skip: int = 0, saved: Any = None) -> Feed:
    return feeds.open(loader, key=f"7/0/{epoch}", skip=skip, saved=saved)


def epoch_of(loader: Iterable[Any], epoch: int = 0, **options: Any) -> list[Any]:
    return list(opened(Feeds(), loader, epoch, **options).iterator)


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize("skip", [1, 3])
def test_an_epoch_entered_in_the_middle_hands_out_what_remains_and_so_do_those_after_it(kind: str, skip: int) -> None:
    seed_all(1)
    feeds, loader = Feeds(), LOADERS[kind]()
    list(opened(feeds, loader, 0).iterator)
    feed = opened(feeds, loader, 1)
    for _ in range(skip):
        next(feed.iterator)
    saved, state = feed.inside(), capture_random()
    rest = list(feed.iterator)
    later = [list(opened(feeds, loader, epoch).iterator) for epoch in (2, 3)]
    assert rest

    seed_all(2)
    feeds, loader = Feeds(), LOADERS[kind]()
    feed = opened(feeds, loader, 1, skip, saved)
    restore_random(state)
    assert_same(list(feed.iterator), rest)
    assert_same([list(opened(feeds, loader, epoch).iterator) for epoch in (2, 3)], later)


@pytest.mark.parametrize("kind", LOADERS)
def test_an_epoch_after_a_finished_one_is_the_same_in_a_new_process(kind: str) -> None:
    seed_all(1)
    feeds, loader = Feeds(), LOADERS[kind]()
    feed = opened(feeds, loader, 0)
    list(feed.iterator)
    saved, state = feed.after(), capture_random()
    later = [list(opened(feeds, loader, epoch).iterator) for epoch in (1, 2)]

    seed_all(2)
    feeds, loader = Feeds(), LOADERS[kind]()
    feed = opened(feeds, loader, 1, 0, saved)
    restore_random(state)
    assert_same([list(feed.iterator), list(opened(feeds, loader, 2).iterator)], later)


@pytest.mark.parametrize("kind", ["shuffled", "weighted_sampler", "batch_sampler", "no_batches_but_samples"])
def test_the_order_is_a_function_of_the_key_whatever_was_drawn_before(kind: str) -> None:
    seed_all(1)
    first = epoch_of(LOADERS[kind](), 0)
    seed_all(2)
    torch.rand(100)
    assert_same(epoch_of(LOADERS[kind](), 0), first)
    assert [str(batch) for batch in epoch_of(LOADERS[kind](), 1)] != [str(batch) for batch in first]


def test_every_sample_is_handed_out_once_an_epoch() -> None:
    for epoch in range(3):
        handed = torch.cat(epoch_of(shuffled(), epoch)).tolist()
        assert sorted(handed) == list(range(SAMPLES))
        assert handed != sorted(handed)


@pytest.mark.parametrize("kind", LOADERS)
def test_drawing_the_order_leaves_the_training_its_random_state(kind: str) -> None:
    seed_all(3)
    before = capture_random()
    opened(Feeds(), LOADERS[kind](), 0)
    assert_same(capture_random(), before)


def test_no_sample_that_was_seen_is_loaded_again() -> None:
    whole = torch.cat(epoch_of(shuffled())).tolist()
    loader = shuffled()
    epoch_of(loader, skip=3)
    assert loader.dataset.loaded == whole[12:]


def test_without_workers_a_dataset_draws_from_the_training_itself() -> None:
    seed_all(4)
    expected = [Noisy()[index] for index in range(4)]
    seed_all(4)
    (batch, *_) = epoch_of(DataLoader(Noisy(), batch_size=4))
    assert_same(batch[1].tolist(), [sample[1] for sample in expected])
    assert_same(batch[3], torch.stack([sample[3] for sample in expected]))


@pytest.mark.parametrize("dataset", [Noisy, NoisyInBatches])
def test_what_a_sample_draws_does_not_depend_on_how_many_workers_load(dataset: type[Noisy]) -> None:
    one = epoch_of(shuffled(dataset=dataset(), num_workers=1))
    assert_same(epoch_of(shuffled(dataset=dataset(), num_workers=2)), one)
    assert_same(epoch_of(shuffled(dataset=dataset(), num_workers=3, prefetch_factor=1)), one)


def test_what_a_sample_draws_changes_with_the_epoch_and_differs_between_samples() -> None:
    draws = [
        (python, numpy, noise.sum())
        for epoch in range(3)
        for batch in epoch_of(shuffled(dataset=Noisy(), num_workers=1), epoch)
        for python, numpy, noise in zip(*(part.tolist() for part in batch[1:3]), batch[3], strict=True)
    ]
    for source in zip(*draws, strict=True):
        assert len({float(value) for value in source}) == 3 * SAMPLES


def test_a_loader_keeps_its_own_generator() -> None:
    """Another seed of it, another order; the training's own seed and the epoch have no part in that."""
    first = epoch_of(shuffled(generator=seeded(1)), 0)
    assert_same(epoch_of(shuffled(generator=seeded(1)), 1), first)
    assert torch.cat(epoch_of(shuffled(generator=seeded(2)), 0)).tolist() != torch.cat(first).tolist()
    loader, feeds = shuffled(generator=seeded(1)), Feeds()
    orders = [torch.cat(list(opened(feeds, loader, epoch).iterator)).tolist() for epoch in range(3)]
    assert len({str(order) for order in orders}) == 3


def test_the_loaders_options_are_kept() -> None:
    def tagged(batch: list[int]) -> tuple[str, list[int]]:
        return "mine", batch

    (first, *_, last) = epoch_of(shuffled(collate_fn=tagged, drop_last=True, batch_size=5))
    assert first[0] == "mine"
    assert len(last[1]) == 5


def note_worker(worker: int) -> None:
    info = get_worker_info()
    info.dataset.note = f"worker {worker} of {info.num_workers}, {type(info.dataset).__name__}"


class Noted(Counting):
    note = ""

    def __getitem__(self, index: int) -> str:
        return self.note


class NotedStream(IterableDataset):
    note = ""

    def __iter__(self) -> Iterator[str]:
        yield self.note


@pytest.mark.parametrize("dataset", [Noted, NotedStream])
def test_the_users_worker_init_fn_is_called_and_sees_its_own_dataset(dataset: type[Dataset]) -> None:
    loader = DataLoader(dataset(), batch_size=None, num_workers=2, worker_init_fn=note_worker)
    for _ in range(2):  # once more: it must not be wrapped twice
        notes = set(epoch_of(loader))
        assert notes == {f"worker {n} of 2, {dataset.__name__}" for n in range(2)}


def test_an_iterable_is_replayed_with_a_warning_of_what_that_costs(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        epoch_of(DataLoader(Stream(), batch_size=4))
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        epoch_of(DataLoader(Stream(), batch_size=4), skip=2)
    assert "Stream cannot start in its middle: loading 2 seen batches again" in caplog.text
    assert "loaded 2 seen batches again in" in caplog.text


def test_a_map_style_loader_and_one_with_a_state_are_not_replayed(caplog: pytest.LogCaptureFixture) -> None:
    epoch_of(shuffled(), skip=2)
    epoch_of(OwnState(), skip=2, saved={"state_dict": {"place": 2}})
    assert not caplog.records


def test_a_generator_function_is_replayed_exactly() -> None:
    def draws() -> Iterator[tuple[float, float, float]]:
        for _ in range(6):
            yield random.random(), float(np.random.rand()), torch.rand(()).item()

    seed_all(1)
    whole = epoch_of(draws())
    seed_all(2)
    torch.rand(3)
    assert_same(epoch_of(draws(), skip=2), whole[2:])
    assert epoch_of(draws(), 1) != whole


def test_what_training_draws_between_batches_does_not_change_a_replayed_stream() -> None:
    whole = epoch_of(DataLoader(Stream(), batch_size=4))
    disturbed = []
    for batch in opened(Feeds(), DataLoader(Stream(), batch_size=4), 0).iterator:
        torch.rand(5)
        random.random()
        np.random.rand()
        disturbed.append(batch)
    assert_same(disturbed, whole)


def test_an_epoch_may_have_another_kind_of_loader_than_the_one_before() -> None:
    for first in LOADERS.values():
        feed = opened(Feeds(), first(), 0)
        list(feed.iterator)
        for second in (shuffled, OwnState):
            if first is not second:
                assert_same(epoch_of(second(), 1, saved=feed.after()), epoch_of(second(), 1))


def test_persistent_workers_live_from_one_epoch_to_the_next() -> None:
    loader, feeds = shuffled(dataset=Where(), num_workers=2, persistent_workers=True), Feeds()
    first, second = (set(torch.cat(list(opened(feeds, loader, epoch).iterator)).tolist()) for epoch in range(2))
    assert len(first) == 2
    assert first == second


class Where(Counting):
    def __getitem__(self, index: int) -> int:
        info = get_worker_info()
        return info.seed


def test_an_epoch_left_early_does_not_disturb_the_next() -> None:
    for options in ({}, {"num_workers": 2}, {"num_workers": 2, "persistent_workers": True}):
        loader, feeds = shuffled(**options), Feeds()
        next(opened(feeds, loader, 0).iterator)
        assert_same(list(opened(feeds, loader, 1).iterator), epoch_of(shuffled(**options), 1))


def test_a_tensor_dataset_in_order_is_what_the_loader_itself_hands_out() -> None:
    loader = DataLoader(TensorDataset(torch.arange(10)), batch_size=3, sampler=SequentialSampler(range(10)))
    assert_same(epoch_of(loader), list(loader))


def test_a_loader_made_anew_each_epoch_keeps_the_generator_it_was_made_with() -> None:
    data = list(range(20))

    def loader(epoch: int) -> DataLoader:
        return DataLoader(data, batch_size=5, shuffle=True, generator=torch.Generator().manual_seed(epoch))

    feeds = Feeds()
    first = feeds.open(loader(0), key="k0", skip=0, saved=None)
    list(first.iterator)
    expected = [batch.tolist() for batch in feeds.open(loader(1), key="k1", skip=0, saved=None).iterator]
    resumed = Feeds().open(loader(1), key="k1", skip=0, saved=first.after())
    assert [batch.tolist() for batch in resumed.iterator] == expected


def test_persistent_workers_draw_no_more_from_the_users_generator_than_new_ones() -> None:
    data = list(range(20))

    def loader() -> DataLoader:
        own = torch.Generator().manual_seed(1)
        return DataLoader(data, batch_size=5, shuffle=True, generator=own, num_workers=1, persistent_workers=True)

    feeds, kept = Feeds(), loader()
    orders, states = [], []
    for epoch in range(3):
        feed = feeds.open(kept, key=f"k{epoch}", skip=0, saved=None)
        orders.append([batch.tolist() for batch in feed.iterator])
        states.append(feed.after())
    resumed, again = Feeds(), loader()
    for epoch in (1, 2):
        saved = states[0] if epoch == 1 else None
        feed = resumed.open(again, key=f"k{epoch}", skip=0, saved=saved)
        assert [batch.tolist() for batch in feed.iterator] == orders[epoch]


def test_a_tracked_generator_is_not_set_back_by_the_loader_that_shares_it() -> None:
    own = torch.Generator().manual_seed(1)
    loader = DataLoader(list(range(20)), batch_size=5, shuffle=True, generator=own)
    feed = Feeds([own]).open(loader, key="k", skip=0, saved={"generators": {"loader": torch.Generator().get_state()}})
    assert feed.inside() == {"generators": {}}


def test_a_sampler_without_an_end_is_replayed_rather_than_drawn_as_a_whole() -> None:
    class Endless(torch.utils.data.Sampler):
        def __iter__(self):
            while True:
                yield 3

        __len__ = None

    loader = DataLoader(list(range(20)), batch_size=2, sampler=Endless())
    feed = Feeds().open(loader, key="k", skip=1, saved=None)
    assert next(feed.iterator).tolist() == [3, 3]


def test_an_iterator_in_place_of_a_loader_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    Feeds().open(iter([1, 2]), key="k", skip=0, saved=None)
    assert "make a new one each epoch" in caplog.text


def test_several_processes_load_the_same_batches_in_parts_of_equal_size() -> None:
    whole = epoch_of(shuffled(), skip=2)
    parts = [list(opened(Feeds(rank=rank, world_size=3), shuffled(), 0, 2).iterator) for rank in range(3)]
    assert [[len(batch) for batch in part] for part in parts] == [[2, 2, 2, 1]] * 3
    for batch, *mine in zip(whole, *parts, strict=True):
        # Four samples do not divide evenly by three: the first are taken again.
        expected = batch.tolist() if len(batch) % 3 == 0 else [*batch.tolist(), *batch.tolist()[:2]]
        assert torch.cat(mine).tolist() == expected


def test_a_batch_smaller_than_the_processes_are_many_is_repeated() -> None:
    parts = [epoch_of_rank(rank, shuffled(shuffle=False, batch_size=1)) for rank in range(3)]
    assert [batch.tolist() for batch in parts[2]] == [[index] for index in range(SAMPLES)]
    assert_same(parts[1], parts[2])


def test_what_a_sample_draws_does_not_depend_on_how_many_processes_share_the_batch() -> None:
    (whole, *_) = epoch_of(shuffled(dataset=Noisy(), num_workers=1))
    parts = [epoch_of_rank(rank, shuffled(dataset=Noisy(), num_workers=1), 2)[0] for rank in range(2)]
    assert_same([torch.cat([torch.as_tensor(part[n]) for part in parts]) for n in range(4)], list(whole))


@pytest.mark.parametrize(
    ("loader", "complaint"),
    [
        (lambda: DataLoader(Stream(), batch_size=4), "several processes can share a DataLoader of a dataset with"),
        (OwnState, "cannot share a loader that keeps its own state"),
        (lambda: shuffled(batch_size=None), "without a batch_size"),
        (
            lambda: shuffled(shuffle=None, sampler=DistributedSampler(Counting(), num_replicas=2, rank=0)),
            "leave DistributedSampler out",
        ),
    ],
)
def test_what_several_processes_cannot_share_is_refused(loader: Callable[[], Any], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        epoch_of_rank(0, loader())


def epoch_of_rank(rank: int, loader: Iterable[Any], world_size: int = 3) -> list[Any]:
    return list(opened(Feeds(rank=rank, world_size=world_size), loader, 0).iterator)
