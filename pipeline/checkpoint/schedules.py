"""What a learning-rate schedule does when training goes on beyond the length it was planned for.

A schedule that was built with `T_max=run.max_epochs` comes to its end with its run. Trained further, a cosine rises
again, one cycle raises, a linear decay stays at nothing; only the user can say what is wanted:

- `keep`: the state as saved. A StepLR or ExponentialLR just goes on, a cosine turns back up, as torch has it. Of a
  function (LambdaLR, MultiplicativeLR) the position is what is saved; the function is what the experiment builds now.
- `stretch`: the same shape over the new length, from the present epoch on. It is what a run planned for the new length
  has from here: a cosine that was spent at 27 of 27 epochs stands at 27 of 81, so its rate jumps up from 0 to three
  quarters of the first. The experiment builds it for the new length, and it takes as many steps as the old one had.
- `constant`: the rate it has reached, from now on; its `step` does nothing more.
"""

import copy
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from pipeline.errors import UsageError

Schedule = Literal["keep", "stretch", "constant"]
_KIND = "scheduler "  # as `kind_of` has it, before the name of the class
_KNOWN = frozenset(
    name for name, one in vars(lr_scheduler).items() if isinstance(one, type) and issubclass(one, LRScheduler)
)


def check_schedule(state: Mapping[str, Any], *, epochs: int, max_epochs: int, schedule: Schedule | None) -> None:
    """Whether the schedulers of a checkpoint, taken after `epochs`, can go on to `max_epochs` as they are told.

    Raises:
        UsageError: nothing was said of one whose planned end lies before, or what was said is impossible.
    """
    kinds = {name: kind for name, kind in state.get("kinds", {}).items() if kind.startswith(_KIND)}
    if schedule in ("stretch", "constant") and not kinds:
        raise UsageError(f"--schedule {schedule}: the checkpoint holds no scheduler of torch's; leave it out")
    optimizers = [kind for kind in state.get("kinds", {}).values() if kind.startswith("optimizer ")]
    if schedule == "stretch" and len(kinds) > len(optimizers):
        raise UsageError("--schedule stretch: several schedulers share an optimizer; say keep or constant")
    for name, kind in kinds.items():
        saved, which = state[name], f"{name} ({kind.removeprefix(_KIND)})"
        is_known = kind.removeprefix(_KIND) in _KNOWN
        if schedule == "stretch" and not is_known:
            raise UsageError(f"--schedule stretch: {which} is none of torch's own schedulers; say keep or constant")
        ends = _end(saved)
        is_before = ends is not None and ends < _steps(saved) * max_epochs / max(epochs, 1)
        if schedule == "keep" and is_before and _holds(saved, "total_steps"):
            raise UsageError(f"--schedule keep: {which} has no rate beyond its {ends} steps; say stretch or constant")
        why = None
        if is_before:
            why = f"was planned for {ends} steps"
        elif _holds(saved, "lr_lambdas"):
            why = "is a function, which no checkpoint holds"
        elif not is_known and not any(float(rate) for rate in _rates(saved)):
            why = "has nothing left"
        if schedule is None and why is not None:
            rates = ", ".join(f"{float(rate):.3g}" for rate in _rates(saved))
            raise UsageError(
                f"{which} {why}, and has reached learning rate {rates} at epoch {epochs}; say what it does until epoch "
                f"{max_epochs}: --schedule keep (its state as saved), stretch (the same shape over the new length) or "
                "constant (this rate)"
            )


class Schedules:
    """The tracked schedulers of a run that goes on from a checkpoint.

    Attributes:
        held: whether they stay at the rate they have reached.
    """

    def __init__(self, saved: Mapping[str, Any], *, stretch: bool = False, held: bool = False) -> None:
        self.held = held
        self._saved = saved
        self._stretch = stretch
        self._forwarded: dict[str, _Forwarded] = {}

    def built(self, objects: Mapping[str, Any]) -> None:
        """Called before the checkpoint is loaded into objects that were just built."""
        if self._stretch:
            for name, scheduler in _schedulers(objects):
                if not isinstance(scheduler, ReduceLROnPlateau):  # it has no length to be stretched over
                    self._forwarded[name] = _forward(scheduler, _steps(self._saved[name]))

    def loaded(self, objects: Mapping[str, Any]) -> None:
        """Called whenever the checkpoint has been loaded into the objects."""
        for name, scheduler in _schedulers(objects):
            if name in self._forwarded:
                self._forwarded[name].load_into(scheduler)
            if self.held:
                _hold(scheduler)


def _schedulers(objects: Mapping[str, Any]) -> Iterator[tuple[str, LRScheduler]]:
    return ((name, one) for name, one in objects.items() if isinstance(one, LRScheduler))


@dataclass(frozen=True, kw_only=True)
class _Forwarded:
    """A scheduler at a later position, and what it has set in each of its optimizer's groups."""

    state: dict[str, Any]
    groups: list[dict[str, Any]]

    def load_into(self, scheduler: LRScheduler) -> None:
        scheduler.load_state_dict(copy.deepcopy(self.state))
        for group, values in zip(scheduler.optimizer.param_groups, self.groups, strict=True):
            for name, value in values.items():
                _set(group, name, value)


def _forward(scheduler: LRScheduler, steps: int) -> _Forwarded:
    """A scheduler that was just built, after so many steps; its optimizer gets the rates of that position."""
    groups = scheduler.optimizer.param_groups
    for group, rate in zip(groups, scheduler.get_last_lr(), strict=True):
        _set(group, "lr", rate)  # the optimizer may have been loaded already
    before = [_values(group) for group in groups]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the optimizer has not stepped in between
        for _ in range(steps):
            scheduler.step()
    changed = [
        {name: value for name, value in _values(group).items() if name == "lr" or value != old.get(name)}
        for group, old in zip(groups, before, strict=True)
    ]
    return _Forwarded(state=copy.deepcopy(scheduler.state_dict()), groups=changed)


def _hold(scheduler: LRScheduler) -> None:
    """Makes its `step` do nothing. Its class keeps its name: what is saved of it is as before."""
    kind = type(scheduler)
    if "_is_held" not in vars(kind):
        held = type(kind.__name__, (kind,), {"step": _stay, "_is_held": True, "__module__": kind.__module__})
        scheduler.__class__ = held


def _stay(*_: Any, **__: Any) -> None:
    """The step of a schedule that is held."""


def _end(saved: Mapping[str, Any]) -> int | None:
    """The step at which it was planned to end; None for one that goes on, or holds the full rate afterwards.

    Known by what a scheduler saves: those inside another come without the names of their classes.
    """
    if "_milestones" in saved:  # SequentialLR
        last = _end(saved["_schedulers"][-1])
        return None if last is None else int(saved["_milestones"][-1]) + last
    if "_schedulers" in saved:  # ChainedScheduler
        return min((end for one in saved["_schedulers"] if (end := _end(one)) is not None), default=None)
    if "total_steps" in saved:  # OneCycleLR
        return int(saved["total_steps"])
    if "T_max" in saved:  # CosineAnnealingLR: one that has come all the way round is meant to
        return None if saved["last_epoch"] >= 2 * saved["T_max"] else int(saved["T_max"])
    is_linear_decay = "start_factor" in saved and saved["end_factor"] < saved["start_factor"]
    is_polynomial = "power" in saved and "total_iters" in saved
    return int(saved["total_iters"]) if is_linear_decay or is_polynomial else None


def _steps(saved: Mapping[str, Any]) -> int:
    if "last_epoch" in saved:
        return int(saved["last_epoch"])
    return max((_steps(one) for one in saved.get("_schedulers", ())), default=0)


def _rates(saved: Mapping[str, Any]) -> list[float | Tensor]:
    return list(saved.get("_last_lr", ()))


def _holds(saved: Mapping[str, Any], entry: str) -> bool:
    return entry in saved or any(_holds(one, entry) for one in saved.get("_schedulers", ()))


def _values(group: Mapping[str, Any]) -> dict[str, Any]:
    values = {name: value for name, value in group.items() if name != "params"}
    return values | {"lr": values["lr"].clone()} if isinstance(values["lr"], Tensor) else values


def _set(group: dict[str, Any], name: str, value: Any) -> None:
    if isinstance(group[name], Tensor):
        group[name].fill_(value)
    else:
        group[name] = value
