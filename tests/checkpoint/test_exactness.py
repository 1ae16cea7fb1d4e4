"""Training that goes on from a checkpoint has the bits of training that was never interrupted."""

import inspect
import random

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn

from pipeline.checkpoint import capture, restore
from tests.checkpoint.comparing import assert_same
from tests.checkpoint.training import assert_resumes_exactly, small_model, step, through_files

pytestmark = pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")

OPTIMIZERS = {
    name: value
    for name, value in vars(torch.optim).items()
    if inspect.isclass(value) and issubclass(value, torch.optim.Optimizer) and value is not torch.optim.Optimizer
}
ARGUMENTS = {
    "SGD": [{"lr": 0.1, "momentum": 0.9, "nesterov": True}, {"lr": 0.1}],
    "Adam": [{"amsgrad": True}, {"fused": True}, {"foreach": True}],
    "AdamW": [{}, {"fused": True}, {"lr": torch.tensor(0.01)}],
    "RMSprop": [{"momentum": 0.9, "centered": True}],
    "LBFGS": [{"max_iter": 4, "history_size": 3}, {"max_iter": 4, "line_search_fn": "strong_wolfe"}],
    "Rprop": [{"lr": 0.01}],
}


class Embeddings(torch.nn.Module):
    """A model whose gradients are sparse, which SparseAdam wants."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(10, 2, sparse=True)

    def forward(self, x):
        return self.table(x.abs().mul(3).long().clamp(max=9))


class Matrices(torch.nn.Module):
    """A model of matrices alone, which Muon wants."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(4, 8, bias=False)
        self.second = torch.nn.Linear(8, 2, bias=False)

    def forward(self, x):
        return self.second(self.first(x).relu())


MODELS = {"SparseAdam": Embeddings, "Muon": Matrices}


def test_the_optimizers_of_torch_are_all_here():
    assert {"SGD", "AdamW", "LBFGS", "NAdam", "ASGD", "Adafactor", "SparseAdam", "Muon"} <= set(OPTIMIZERS)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [(name, arguments) for name in OPTIMIZERS for arguments in ARGUMENTS.get(name, [{}])],
    ids=str,
)
def test_every_optimizer_resumes_exactly(tmp_path, name, arguments):
    def build():
        model = MODELS.get(name, small_model)()
        own = {key: value.clone() if torch.is_tensor(value) else value for key, value in arguments.items()}
        return {"model": model, "optimizer": OPTIMIZERS[name](model.parameters(), **own)}

    assert_resumes_exactly(tmp_path, build)


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name not in ("SparseAdam", "LBFGS", "Muon")])
def test_the_state_of_bfloat16_parameters_keeps_its_dtype(tmp_path, name):
    def build():
        model = small_model(torch.bfloat16)
        return {"model": model, "optimizer": OPTIMIZERS[name](model.parameters())}

    assert_resumes_exactly(tmp_path, build)


def _scheduler(kind, **arguments):
    return lambda optimizer: kind(optimizer, **arguments)


class Decay:
    """A callable object: LambdaLR saves its attributes."""

    def __init__(self):
        self.calls = 0

    def __call__(self, epoch):
        self.calls += 1
        return 0.9**self.calls


SCHEDULERS = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.9**epoch),
    "LambdaLR of an object": lambda o: lr_scheduler.LambdaLR(o, Decay()),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda epoch: 0.9),
    "StepLR": _scheduler(lr_scheduler.StepLR, step_size=2),
    "MultiStepLR": _scheduler(lr_scheduler.MultiStepLR, milestones=[2, 4, 4]),
    "ConstantLR": _scheduler(lr_scheduler.ConstantLR, total_iters=5),
    "LinearLR": _scheduler(lr_scheduler.LinearLR, total_iters=5),
    "ExponentialLR": _scheduler(lr_scheduler.ExponentialLR, gamma=0.9),
    "CosineAnnealingLR": _scheduler(lr_scheduler.CosineAnnealingLR, T_max=5),
    "CosineAnnealingWarmRestarts": _scheduler(lr_scheduler.CosineAnnealingWarmRestarts, T_0=2, T_mult=2),
    "PolynomialLR": _scheduler(lr_scheduler.PolynomialLR, total_iters=9, power=2.0),
    "CyclicLR": _scheduler(lr_scheduler.CyclicLR, base_lr=0.01, max_lr=0.1, step_size_up=2),
    "CyclicLR of exponents": _scheduler(
        lr_scheduler.CyclicLR, base_lr=0.01, max_lr=0.1, step_size_up=2, mode="exp_range", gamma=0.9
    ),
    "OneCycleLR": _scheduler(lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=20),
    "ReduceLROnPlateau": _scheduler(lr_scheduler.ReduceLROnPlateau, patience=0, threshold=10.0),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o,
        [
            lr_scheduler.SequentialLR(
                o,
                [lr_scheduler.LinearLR(o, total_iters=2), lr_scheduler.ExponentialLR(o, 0.9)],
                milestones=[2],
            ),
            lr_scheduler.MultiStepLR(o, [1, 2]),
        ],
        milestones=[4],
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ExponentialLR(o, 0.9), lr_scheduler.MultiStepLR(o, [2, 5])]
    ),
    "SWALR": _scheduler(SWALR, swa_lr=0.05, anneal_epochs=3),
}


def test_the_schedulers_of_torch_are_all_here():
    public = {name for name in lr_scheduler.__all__ if name not in ("LRScheduler", "LRSchedulerBase")}
    assert public <= {name.split()[0] for name in SCHEDULERS}


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("before", [0, 3])
def test_every_scheduler_resumes_exactly(tmp_path, name, before):
    def build():
        model = small_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        return {"model": model, "optimizer": optimizer, "scheduler": SCHEDULERS[name](optimizer)}

    assert_resumes_exactly(tmp_path, build, before=before)


def test_a_learning_rate_that_is_a_tensor_stays_the_same_tensor(tmp_path):
    kept = []

    def build():
        model, lr = small_model(), torch.tensor(0.1)
        kept.append(lr)
        optimizer = torch.optim.Adam(model.parameters(), lr=lr)
        return {
            "model": model,
            "optimizer": optimizer,
            "scheduler": lr_scheduler.MultiStepLR(optimizer, [1, 2, 5]),
        }

    assert_resumes_exactly(tmp_path, build)
    assert_same(kept[1], kept[0])
    assert kept[1].item() == pytest.approx(1e-4)


def test_a_gradient_scaler_resumes_with_its_scale(tmp_path):
    def build():
        model = small_model()
        return {
            "model": model,
            "optimizer": torch.optim.SGD(model.parameters(), lr=0.01),
            "scaler": torch.amp.GradScaler("cpu", growth_interval=2),
        }

    def train(objects):
        objects["optimizer"].zero_grad()
        scaler = objects["scaler"]
        scaler.scale(objects["model"](torch.randn(8, 4)).square().mean()).backward()
        scaler.step(objects["optimizer"])
        scaler.update()

    state = assert_resumes_exactly(tmp_path, build, train)
    assert state["scaler"]["scale"] > 65536


def test_an_averaged_model_resumes_with_its_average(tmp_path):
    def build():
        model = small_model()
        ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
        return {"model": model, "ema": ema, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}

    def train(objects):
        step(objects)
        objects["ema"].update_parameters(objects["model"])

    state = assert_resumes_exactly(tmp_path, build, train)
    assert state["ema"]["n_averaged"] == 3


def test_tied_weights_stay_tied(tmp_path):
    def build():
        model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh(), torch.nn.Linear(4, 4))
        model[2].weight = model[0].weight
        return {"model": model, "optimizer": torch.optim.AdamW(model.parameters())}

    state = assert_resumes_exactly(tmp_path, build)
    assert set(state["optimizer"]["state"]) == {"0.weight", "0.bias", "2.bias"}
    objects = build()
    restore(objects, state)
    assert objects["model"][2].weight is objects["model"][0].weight


def test_frozen_parameters_and_groups_resume_exactly(tmp_path):
    def build():
        model = small_model()
        model[0].weight.requires_grad_(False)
        groups = [{"params": model[3].parameters(), "lr": 0.5}, {"params": [*model[0].parameters()]}]
        return {"model": model, "optimizer": torch.optim.Adam(groups)}

    state = assert_resumes_exactly(tmp_path, build)
    assert [group["params"] for group in state["optimizer"]["param_groups"]] == [
        ["3.weight", "3.bias"],
        ["0.weight", "0.bias"],
    ]


def test_several_models_and_optimizers_resume_exactly(tmp_path):
    def build():
        one, two = small_model(), small_model()
        return {
            "generator": one,
            "critic": two,
            "both": torch.optim.Adam([*one.parameters(), *two.parameters()]),
            "optimizer": torch.optim.SGD(two.parameters(), lr=0.1, momentum=0.9),
            "model": torch.nn.Sequential(one[0], two[1:]),
        }

    def train(objects):
        objects["both"].zero_grad()
        step(objects)
        objects["both"].step()

    state = assert_resumes_exactly(tmp_path, build, train)
    assert {"critic.3.weight", "generator.0.weight"} <= set(state["both"]["state"])
    assert "3.weight" in state["optimizer"]["state"]


def test_a_parameter_that_no_tracked_module_owns_is_saved_by_its_index(tmp_path):
    def build():
        model = small_model()
        extra = torch.nn.Parameter(torch.zeros(()))
        extra.grad = torch.ones(())
        return {"model": model, "optimizer": torch.optim.Adam([extra, *model.parameters()])}

    state = assert_resumes_exactly(tmp_path, build, before=1, after=0)
    assert set(state["optimizer"]["state"]) >= {"model.0.weight"}
    assert state["optimizer"]["param_groups"][0]["params"][0] == 0


def test_reordered_parameters_of_equal_shape_are_found_by_name(tmp_path):
    def build(turned):
        model = torch.nn.ModuleList([torch.nn.Linear(3, 3) for _ in range(2)])
        parameters = list(model.parameters())
        return {"model": model, "optimizer": torch.optim.Adam(parameters[::-1] if turned else parameters)}

    first = build(turned=False)
    for value in first["model"].parameters():
        value.grad = torch.rand_like(value)
    first["optimizer"].step()
    second = build(turned=True)
    restore(second, through_files(tmp_path, capture(first)))
    for one, two in zip(first["model"].parameters(), second["model"].parameters(), strict=True):
        assert_same(dict(first["optimizer"].state[one]), dict(second["optimizer"].state[two]))


def test_pending_gradients_are_accumulated_across_a_checkpoint(tmp_path):
    class Every:
        """Steps the optimizer on every fourth call; its count is part of the state."""

        count = 0

        def state_dict(self):
            return {"count": self.count}

        def load_state_dict(self, state):
            self.count = state["count"]

    def build():
        model = small_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return {"model": model, "optimizer": optimizer, "every": Every()}

    def train(objects):
        objects["model"](torch.randn(8, 4)).square().mean().backward()
        objects["every"].count += 1
        if objects["every"].count % 4 == 0:
            objects["optimizer"].step()
            objects["optimizer"].zero_grad()

    state = assert_resumes_exactly(tmp_path, build, train, before=2, after=5)
    assert state["grad"]["model"]["0.weight"].abs().sum() > 0


def test_gradients_that_the_checkpoint_lacks_are_cleared():
    model = small_model()
    state = capture({"model": model})
    model(torch.ones(2, 4)).sum().backward()
    restore({"model": model}, state)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_compiled_model_and_a_plain_one_read_each_others_checkpoints(tmp_path):
    model = torch.nn.Sequential(small_model(), torch.nn.Linear(2, 2))
    part = torch.compile(small_model(), backend="eager")
    compiled = torch.compile(torch.nn.Sequential(part, torch.nn.Linear(2, 2)), backend="eager")
    for first, second in ((model, compiled), (compiled, model)):
        objects = {"model": first, "optimizer": torch.optim.Adam(first.parameters())}
        for parameter in first.parameters():
            parameter.grad = torch.rand_like(parameter)
        objects["optimizer"].step()
        state = through_files(tmp_path, capture(objects))
        assert not any("_orig_mod" in name for name in state["model"])
        restored = {"model": second, "optimizer": torch.optim.Adam(second.parameters())}
        restore(restored, state)
        assert_same(capture(restored), state)


class Cache(torch.nn.Module):
    """A running value in a buffer that `state_dict` leaves out, and a cache that grows."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2))
        self.register_buffer("seen", torch.zeros(1), persistent=False)
        self.register_buffer("cache", None, persistent=False)

    def forward(self, x):
        self.seen += x.mean()
        self.cache = torch.cat([self.cache if self.cache is not None else x.new_zeros(0), x.mean().reshape(1)])
        return x[:, :2] * self.weight + self.seen + self.cache.sum()


def test_buffers_that_state_dict_leaves_out_are_state_too(tmp_path):
    def build():
        model = torch.nn.Sequential(Cache())
        return {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}

    state = assert_resumes_exactly(tmp_path, build)
    assert state["transient"]["model"]["0.cache"].shape == (3,)
    assert "0.cache" not in state["model"]


class Extra(torch.nn.Linear):
    def __init__(self):
        super().__init__(4, 2)
        self.calls = {}

    def forward(self, x):
        self.calls[len(self.calls)] = (x.shape, x.dtype)
        return super().forward(x)

    def get_extra_state(self):
        return dict(self.calls)

    def set_extra_state(self, state):
        self.calls = state


def test_the_extra_state_of_a_module_comes_back(tmp_path):
    def build():
        model = torch.nn.Sequential(Extra())
        return {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}

    state = assert_resumes_exactly(tmp_path, build)
    assert len(state["model"]["0._extra_state"]) == 3


class Ema:
    """A user's own object, with its state in odd containers."""

    def __init__(self):
        self.state = {1: (torch.zeros(2), {"seen": set()}), "history": [float("inf")], "array": np.zeros(2)}

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = state


def test_a_users_own_object_and_own_generators_resume_exactly(tmp_path):
    def build():
        return {
            "ema": Ema(),
            "torch_generator": torch.Generator().manual_seed(random.randrange(100)),
            **{
                kind.__name__: np.random.Generator(kind(random.randrange(100)))
                for kind in (np.random.PCG64, np.random.MT19937, np.random.Philox, np.random.SFC64)
            },
        }

    def train(objects):
        draws = [torch.rand(2, generator=objects["torch_generator"])]
        draws += [torch.from_numpy(objects[name].random(2)) for name in ("PCG64", "MT19937", "Philox", "SFC64")]
        draws += [
            torch.rand(2),
            torch.tensor([random.random(), random.gauss()]),
            torch.from_numpy(np.random.rand(2)),
        ]
        state = objects["ema"].state
        state[1][0].add_(torch.cat(draws).sum())
        state[1][1]["seen"].add(len(state["history"]))
        state["history"].append(state[1][0][0].item())
        state["array"] += np.random.standard_normal()

    assert_resumes_exactly(tmp_path, build, train)


def test_a_snapshot_does_not_alias_what_trains_on(tmp_path):
    model = small_model()
    objects = {"model": model, "optimizer": torch.optim.Adam(model.parameters()), "ema": Ema()}
    step(objects)
    taken = capture(objects)
    written = through_files(tmp_path, taken)
    step(objects)
    objects["ema"].state[1][0].add_(1)
    objects["ema"].state["array"] += 1
    assert_same(dict(taken), written)
    restore(objects, taken)
    step(objects)
    objects["ema"].state[1][0].add_(1)
    assert_same(dict(taken), written)
