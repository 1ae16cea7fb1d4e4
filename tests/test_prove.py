"""`prove`: it passes what resumes exactly, and finds and names each way in which a loop does not."""

import importlib
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pipeline.checkpoint import Position
from pipeline.proving.compare import first_differences
from pipeline.proving.hints import chances
from pipeline.proving.plan import WAYS, describe, plan_kills
from pipeline.proving.record import Moment, digest, entries
from pipeline.proving.variables import untracked
from tests.integration.commands import EXPERIMENTS, Workplace, wait_until_gone

GALLERY = Path(__file__).parent / "gallery"


@pytest.fixture
def workplace(tmp_path: Path) -> Iterator[Workplace]:
    place = Workplace(tmp_path / "work")
    yield place
    place.close()


@pytest.fixture
def scratch() -> Iterator[Path]:
    """The folder for temporary files of a command; its path is short, because sockets lie in it."""
    folder = Path(tempfile.mkdtemp(prefix="prove-"))
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("file", "arguments", "agree"),
    [
        (EXPERIMENTS / "linear.py", (), "linear.py, 3 epochs, 12 batches, killed 5 times"),
        (EXPERIMENTS / "digits.py", ("--max-epochs", "2"), "digits.py, 2 epochs, 36 batches, killed 5 times"),
        (GALLERY / "two_stages.py", (), "two_stages.py, 4 epochs, 12 batches, killed 5 times"),
        (GALLERY / "logs_by_itself.py", ("--kills", "2"), "logs_by_itself.py, 3 epochs, 12 batches, killed 2 times"),
    ],
    ids=lambda value: value.stem if isinstance(value, Path) else "",
)
def test_what_resumes_exactly_passes_and_nothing_is_left(
    workplace: Workplace, scratch: Path, file: Path, arguments: tuple[str, ...], agree: str
):
    output = workplace.run("prove", file, *arguments, environment={"TMPDIR": str(scratch)})
    (line,) = [line for line in output.splitlines() if line.startswith("the bits")]
    assert line.startswith(f"the bits agree: {agree} (")
    assert "said by the experiment" not in output
    assert list(workplace.folder.iterdir()) == []
    assert list(scratch.glob("thaw-*")) == []
    if file.name == "linear.py":  # every sort of kill, and of what comes after it
        for text in ("by SIGKILL after", "by SIGTERM after", "by SIGKILL at the end", "by SIGTERM at the end"):
            assert f"killed {text}" in output
        assert "goes on from the checkpoint after" in output
        assert "goes on from the checkpoint at the end of epoch" in output


@pytest.mark.parametrize(
    ("file", "arguments", "parted", "hint"),
    [
        ("untracked_ema", (), "first metric: val_loss", "`average` (Linear) in train has a state and is not tracked"),
        (
            "untracked_scheduler",
            (),
            "first state: optimizer.param_groups.0.lr",
            "`scheduler` (CosineAnnealingLR) in train is a scheduler that is not tracked",
        ),
        (
            "own_torch_generator",
            (),
            "first tensor: model.weight",
            "`noise` (Generator) in train is a random generator that is not tracked",
        ),
        (
            "own_numpy_generator",
            (),
            "first tensor: model.weight",
            "`noise` (Generator) in train is a random generator that is not tracked",
        ),
        ("running_mean", (), "first tensor: model.weight", "`scale` (float) in train is a plain variable"),
        ("epoch_sum", (), "first metric: train_loss", "`losses` (list) in train is a plain variable"),
        ("wall_clock", (), "first tensor: model.weight", "wall_clock.py, line 30: time.time() reads the clock"),
        (
            "system_entropy",
            (),
            "first tensor: model.weight",
            "system_entropy.py, line 13: np.random.default_rng() draws from the system",
        ),
    ],
)
def test_a_broken_experiment_is_found_and_what_parts_is_named(
    workplace: Workplace, scratch: Path, file: str, arguments: tuple[str, ...], parted: str, hint: str
):
    output = workplace.run(
        "prove", GALLERY / f"{file}.py", "--kills", "3", *arguments, code=1, environment={"TMPDIR": str(scratch)}
    )
    lines = output.splitlines()
    assert any(line.startswith(("the bits part after ", "the bits part at ")) for line in lines)
    (first,) = [line for line in lines if line.startswith(parted)]
    assert " of epoch " in first
    assert any(line.startswith(f"likely: {hint}") for line in lines), output
    twice = "two undisturbed runs differ as well" in output
    assert twice == (file in ("wall_clock", "system_entropy"))
    (kept,) = scratch.glob("thaw-prove-*")
    assert f"both lie in {kept}" in lines
    assert {path.name for path in kept.iterdir()} >= {"undisturbed", "killed", "again"}
    assert list(workplace.folder.iterdir()) == []


def test_an_experiment_that_fails_when_it_is_resumed_is_told_with_the_kill_before_it(workplace: Workplace):
    output = workplace.run("prove", GALLERY / "fails_resumed.py", code=1)
    assert (
        "error: training, killed by SIGKILL at the end of epoch 0 and begun again, failed: "
        "RuntimeError: a first epoch was expected"
    ) in output.splitlines()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--kills", "0"), "--kills 0: expected at least 1"),
        (("--max-epochs", "0"), "--max-epochs 0: expected at least 1"),
        (("--max-epochs", "1"), "one epoch without run.batches has no place to be killed at"),
    ],
)
def test_what_cannot_be_proved_is_said(workplace: Workplace, arguments: tuple[str, ...], reason: str):
    assert reason in workplace.run("prove", GALLERY / "fails_resumed.py", *arguments, code=2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_proof_that_is_stopped_leaves_nothing(workplace: Workplace, scratch: Path, number: signal.Signals):
    command = workplace.start("prove", EXPERIMENTS / "linear.py", environment={"TMPDIR": str(scratch)})
    command.wait_for_output("goes on from")
    members = command.members()
    command.signal_group(number)
    assert command.wait() == 75
    wait_until_gone(members)
    assert list(scratch.glob("thaw-*")) == []


POSITIONS = [Position(0, epoch, batch) for epoch in range(3) for batch in (1, 2, 3)] + [
    Position(0, epoch, 0) for epoch in (1, 2, 3)
]


def test_one_seed_plans_the_same_kills_and_another_others():
    positions = sorted(POSITIONS)
    plans = [plan_kills(positions, 5, seed) for seed in (0, 0, 1)]
    assert plans[0] == plans[1]
    assert plans[0] != plans[2]


@pytest.mark.parametrize("seed", range(20))
def test_every_plan_has_every_sort_of_kill_in_the_order_of_training(seed: int):
    positions = sorted(POSITIONS)
    plan = plan_kills(positions, len(WAYS), seed)
    assert [kill.at for kill in plan] == sorted({kill.at for kill in plan})
    assert positions[-1] not in [kill.at for kill in plan]
    sorts = {(kill.signal.name, kill.at.batch > 0, kill.before, kill.checkpoint_at is not None) for kill in plan}
    assert sorts == {
        ("SIGKILL", True, False, True),
        ("SIGKILL", False, False, False),
        ("SIGTERM", True, False, False),
        ("SIGKILL", True, True, False),
        ("SIGTERM", False, False, False),
    }
    for kill in plan:
        if kill.checkpoint_at is not None:
            assert kill.checkpoint_at.epoch == kill.at.epoch
            assert 0 < kill.checkpoint_at.batch <= kill.at.batch


def test_no_more_kills_are_planned_than_there_are_places():
    assert len(plan_kills([Position(0, 1, 0), Position(0, 2, 0)], 5, 0)) == 1
    assert plan_kills([Position(0, 1, 0)], 5, 0) == []


@pytest.mark.parametrize(
    ("position", "text"),
    [
        (Position(0, 1, 3), "after 3 batches of epoch 1"),
        (Position(0, 0, 1), "after 1 batch of epoch 0"),
        (Position(0, 2, 0), "at the end of epoch 1"),
        (Position(1, 0, 0), "at the start"),
    ],
)
def test_a_position_reads_well(position: Position, text: str):
    assert describe(position) == text
    assert describe(position, stages=True) == f"{text} of stage {position.stage}"


def moment(at: Position, weight: torch.Tensor, lr: float, **metrics: float) -> Moment:
    state = {"model": {"weight": weight}, "optimizer": {"lr": lr}, "loop": {"previous": None}}
    found = entries(state, metrics)
    return Moment(at=at, names=tuple(found), texts=tuple(found.values()))


def test_the_first_tensor_state_entry_and_metric_are_named_where_each_parts():
    one, other = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0000002])
    ends = Position(0, 1, 0)
    undisturbed = [moment(Position(0, 0, n), one, 0.1) for n in (1, 2)] + [moment(ends, one, 0.1, loss=0.5)]
    killed = [
        moment(Position(0, 0, 1), one, 0.1),
        moment(Position(0, 0, 1), one, 0.2),
        moment(Position(0, 0, 2), other, 0.2),
        moment(ends, other, 0.2, loss=0.25),
    ]
    there = {one.at: one for one in undisturbed}
    assert first_differences(there, undisturbed) == []
    found = [(d.kind, d.name, d.at, d.how) for d in first_differences(there, killed)]
    assert found == [
        ("state", "optimizer.lr", Position(0, 0, 1), "0.1 undisturbed, 0.2 killed"),
        ("tensor", "model.weight", Position(0, 0, 2), ""),
        ("metric", "loss", ends, "0.5 undisturbed, 0.25 killed"),
    ]


def test_a_batch_that_the_undisturbed_run_never_had_is_a_difference():
    (found,) = first_differences({}, [moment(Position(0, 0, 9), torch.zeros(1), 0.1)])
    assert (found.kind, found.name, found.at) == ("state", "position", Position(0, 0, 9))


@pytest.mark.parametrize(
    "other",
    [
        torch.tensor([0.0, -0.0]),
        torch.tensor([0.0, 1e-45]),
        torch.tensor([[0.0, 0.0]]),
        torch.zeros(2, dtype=torch.int32),
        torch.zeros(3),
        torch.zeros(0),
    ],
)
def test_tensors_that_differ_in_a_bit_a_shape_or_a_dtype_have_other_digests(other: torch.Tensor):
    assert digest(torch.zeros(2)) == digest(torch.zeros(4)[::2])
    assert digest(torch.zeros(2)) != digest(other)


LOOPS = """
import random
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

SEEN = {"batches": 0}

class Meter:
    def __init__(self):
        self.total = 0.5

class Noisy(Dataset):
    chance = None
    def __init__(self):
        self.rng = np.random.default_rng(0)
    def __len__(self):
        return 1

def train(look):
    model, other = nn.Linear(1, 1), nn.Linear(1, 1)
    part = model.weight
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    generator, foreign = torch.Generator(), random.Random(0)
    meter, count, text = Meter(), 3, "long " * 20
    loader = DataLoader(Noisy())
    nothing = iter(())
    for _ in range(1):
        losses = [0.25]
        epoch(look, losses)
        below = 7

def epoch(look, losses):
    for batch in run.batches(look):
        loss = 1.0
"""


def test_the_variables_of_a_loop_are_found_wherever_they_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = tmp_path / "loops_of_mine.py"
    source.write_text(LOOPS)
    monkeypatch.syspath_prepend(str(tmp_path))
    module = importlib.import_module("loops_of_mine")
    found = {}

    class Looking:
        def batches(self, look: object) -> Iterator[int]:
            yield 0
            found.update(untracked([source]))

    module.run = Looking()
    module.train(None)
    kinds = {name: variable.kind for name, variable in found.items()}
    assert kinds == {
        "model train": "object",
        "other train": "object",
        "part train": "value",
        "optimizer train": "object",
        "scheduler train": "scheduler",
        "generator train": "generator",
        "foreign train": "foreign generator",
        "meter.total train": "value",
        "count train": "value",
        "text train": "value",
        "loader.dataset.rng train": "generator",
        "losses train": "value",
        "losses epoch": "value",
        "look train": "value",
        "look epoch": "value",
        "SEEN loops_of_mine.py": "value",
    }
    assert found["count train"].text == "3"
    assert found["text train"].text.startswith("blake3 ")


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("import time\ntime.perf_counter()", "line 2: time.perf_counter() reads the clock"),
        ("from time import monotonic as now\nnow()", "line 2: now() reads the clock"),
        ("import datetime\ndatetime.datetime.now()", "line 2: datetime.datetime.now() reads the clock"),
        ("import numpy as np\nnp.random.default_rng()", "line 2: np.random.default_rng() draws from the system"),
        ("import os\nos.urandom(4)", "line 2: os.urandom() draws from the system"),
        ("import numpy as np\nnp.random.default_rng(0)", None),
        ("import time\ntime.sleep(1)", None),
        ("run.time()", None),
    ],
)
def test_clocks_and_unseeded_chance_are_found_in_the_source(tmp_path: Path, code: str, found: str | None):
    source = tmp_path / "mine.py"
    source.write_text(code)
    texts = chances([source])
    assert len(texts) == (found is not None)
    if found is not None:
        assert texts[0].startswith(f"mine.py, {found}")
