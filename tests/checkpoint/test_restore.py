"""A state that does not fit is refused with a list of what differs, and nothing live has changed."""

import numpy as np
import pytest
import torch

from pipeline.checkpoint import capture, check_names, encode, restore
from pipeline.errors import EncodeError, MismatchError, UsageError
from tests.checkpoint.comparing import assert_same
from tests.checkpoint.training import small_model, step


class Stubborn:
    """Takes its state, and then refuses it."""

    def __init__(self, refuses=False):
        self.refuses = refuses
        self.value = torch.zeros(2)

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]
        if self.refuses and self.value.sum() > 0:
            raise KeyError("no")


def _objects(**changes):
    model = changes.pop("model", None) or small_model()
    optimizer = torch.optim.Adam(model.parameters())
    return {
        "model": model,
        "optimizer": optimizer,
        "scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 2),
        "generator": torch.Generator(),
        **changes,
    }


def _refused(objects, state, match):
    before = capture(objects)
    with pytest.raises(MismatchError, match=match) as caught:
        restore(objects, state)
    assert_same(capture(objects), before)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _trained(**changes):
    objects = _objects(**changes)
    step(objects)
    objects["generator"].manual_seed(99)
    return capture(objects)


def _different(kind):
    model = small_model()
    if kind == "shape":
        model[3] = torch.nn.Linear(8, 3)
    if kind == "dtype":
        model.double()
    if kind == "more":
        model.append(torch.nn.Linear(2, 2))
    if kind == "fewer":
        del model[3]
    return model


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("shape", r"model.3.weight: expected float32 \[3, 8\], found float32 \[2, 8\]"),
        ("dtype", r"model.0.weight: expected float64 \[8, 4\], found float32 \[8, 4\]"),
        ("more", r"missing: model.4.bias: float32 \[2\], model.4.weight"),
        ("fewer", r"unexpected: model.3.bias: float32 \[2\], model.3.weight"),
    ],
)
def test_another_architecture_is_refused_with_the_difference(kind, message):
    _refused(_objects(model=_different(kind)), _trained(), message)


def test_a_long_difference_is_cut_after_ten_entries():
    layers = torch.nn.Sequential(*[torch.nn.Linear(4, 4) for _ in range(9)])
    text = _refused({"model": layers}, {"model": {}, "kinds": {"model": "module"}}, "and 8 more")
    assert text.count("float32") == 10


def test_an_object_that_the_checkpoint_lacks_is_refused():
    _refused(_objects(extra=Stubborn()), _trained(), "missing: extra")


@pytest.mark.parametrize(
    "other",
    [
        {"optimizer": lambda model: torch.optim.SGD(model.parameters(), lr=0.1)},
        {"generator": lambda model: np.random.default_rng(0)},
        {"scheduler": lambda model: Stubborn()},
    ],
    ids=lambda value: next(iter(value)),
)
def test_another_kind_of_object_is_refused(other):
    model = small_model()
    ((name, build),) = other.items()
    _refused(_objects(model=model, **{name: build(model)}), _trained(), f"{name}: expected .*, found")


def test_other_groups_of_parameters_are_refused():
    model = small_model()
    parameters = list(model.parameters())
    split = torch.optim.Adam([{"params": parameters[:2]}, {"params": parameters[2:]}])
    _refused(_objects(model=model, optimizer=split), _trained(), "expected 2 groups, found 1")
    fewer = torch.optim.Adam(parameters[:-1])
    _refused(_objects(model=model, optimizer=fewer), _trained(), "found parameter 3.bias, not expected")
    turned = torch.optim.Adam([{"params": parameters[2:]}, {"params": parameters[:2]}])
    saved = capture(_objects(model=model, optimizer=split))
    _refused(_objects(model=model, optimizer=turned), saved, "expected parameter 1.weight, not found")


def test_lbfgs_refuses_reordered_parameters_since_its_history_is_flat():
    def build(turned):
        model = small_model()
        parameters = list(model.parameters())
        return {"model": model, "optimizer": torch.optim.LBFGS(parameters[::-1] if turned else parameters)}

    first = build(turned=False)
    step(first)
    _refused(build(turned=True), capture(first), "LBFGS needs the same order")


@pytest.mark.parametrize("place", ["first", "last"])
def test_an_object_that_refuses_its_state_undoes_what_was_loaded(place):
    saved, extra = Stubborn(), Stubborn(refuses=True)
    saved.value = torch.ones(2)
    state = _trained(extra=saved)
    objects = _objects(extra=extra)
    if place == "first":
        objects = {"extra": extra, **{name: value for name, value in objects.items() if name != "extra"}}
    _refused(objects, state, "KeyError while the state was loaded")


def test_a_malformed_generator_state_undoes_what_was_loaded():
    state = _trained()
    state["generator"] = torch.zeros(3, dtype=torch.uint8)
    objects = _objects()
    before = capture(objects)
    with pytest.raises(Exception, match="generator: not a state of this generator"):
        restore(objects, state)
    assert_same(capture(objects), before)


def test_a_part_of_the_checkpoint_is_restored_alone():
    state, objects = _trained(), _objects()
    before = capture(objects)
    restore({"model": objects["model"]}, state)
    after = capture(objects)
    assert_same(after["model"], state["model"])
    assert_same(after["optimizer"], before["optimizer"])


def test_a_lazy_module_is_refused_until_it_has_seen_a_batch():
    model = torch.nn.LazyLinear(2)
    with pytest.raises(EncodeError, match=r"model\.weight: not initialised yet"):
        capture({"model": model})


def test_a_state_that_holds_itself_is_refused():
    extra = Stubborn()
    extra.value = []
    extra.value.append(extra.value)
    with pytest.raises(EncodeError, match="extra"):
        capture({"extra": extra})


def test_a_lambda_in_a_state_is_refused_with_its_path():
    extra = Stubborn()
    extra.value = [lambda: 0]
    with pytest.raises(EncodeError, match=r"^extra\.value\.0: a builtins.function cannot be saved"):
        encode(capture({"extra": extra}))


@pytest.mark.parametrize("name", ["rng", "loop", "loader", "grad", "kinds", "transient", "a b", "a.b", "", "../x"])
def test_a_name_that_is_none_or_ours_is_refused(name):
    with pytest.raises(UsageError, match="track"):
        check_names({name: small_model()})


@pytest.mark.parametrize("value", [1, object(), {"state_dict": 1}, lambda: 0, np.random.RandomState(0)])
def test_an_object_without_a_state_is_refused(value):
    with pytest.raises(UsageError, match="without state_dict"):
        check_names({"thing": value})
    check_names({"model": small_model(), "torch": torch.Generator(), "numpy": np.random.default_rng()})
