"""What searches find for the epochs they train: promotion, stopping rules and none, with TPE and at random.

`python -m benchmarks.quality` draws `experiments/tabular.py`'s space on three tables of scikit-learn's. The decisions
are the engine's own, on a study in memory, of one worker. Learning curves are trained once for all methods that come to
the same configuration, without checkpoints: what is counted is epochs, not seconds.
"""

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import optuna
import pandas as pd
import torch
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState
from sklearn.datasets import load_breast_cancer, load_digits, load_wine

from experiments import tabular
from pipeline.sweep.finish import ranking
from pipeline.sweep.lineage import COMPLETE, PAUSED, PRUNED, Lineage
from pipeline.sweep.pruners import RULES, pruning_view
from pipeline.sweep.reopening import reopen
from pipeline.sweep.samplers import numbered_trial, sampling_view
from pipeline.sweep.schedule import next_segment
from pipeline.sweep.spec import StudySpec
from pipeline.sweep.study import Study

MAX_EPOCHS, ETA = 27, 3
TABLES: Mapping[str, Callable[..., Any]] = {
    "breast cancer": load_breast_cancer,
    "digits": load_digits,
    "wine": load_wine,
}
WARM_UP = "digits, warm-up"  # up to 9 epochs of rising rates, then a cosine: slower at first, better at last
LONGEST_WARM_UP = 9
CASES = (*TABLES, WARM_UP)
REOPENED, TOP = "halving, reopened", 9  # the search, and then the best nine that it has paused, to the end
METHODS = ("halving", REOPENED, "successive-halving", "median", "none")
SAMPLERS = ("tpe", "random")
PICTURE = Path(__file__).with_name("quality.png")


@dataclass(frozen=True, kw_only=True)
class Search:
    """One study.

    Attributes:
        method: a pruner, and what is done after the search.
        best: best validation loss after each trained epoch.
        complete: numbers of the configurations that were trained to the full.
        winner: number of the one with the best loss.
        winner_warm_up: its epochs of rising rates.
    """

    case: str
    sampler: str
    method: str
    seed: int
    best: list[float]
    complete: list[int]
    winner: int
    winner_warm_up: int


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--configurations", type=int, default=27)
    parser.add_argument("--picture", type=Path, default=PICTURE, help="a PNG file for the plot")
    parser.add_argument("--json", type=Path, help="a file for the rows")
    arguments = parser.parse_args()
    began_s = time.monotonic()
    jobs = [(case, seed, arguments.configurations) for case in arguments.cases for seed in range(arguments.seeds)]
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        searches = []
        for done, found in enumerate(pool.imap(_searches, jobs), start=1):
            searches += found
            print(f"{done} of {len(jobs)}", file=sys.stderr, flush=True)
    print(f"{arguments.configurations} configurations, {arguments.seeds} seeds, {time.monotonic() - began_s:.0f} s\n")
    rows = [row for case in arguments.cases for row in _rows([one for one in searches if one.case == case])]
    print(_table(rows))
    _draw_plot(searches, arguments.picture)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="ascii")


def _searches(job: tuple[str, int, int]) -> list[Search]:
    """All methods on one case and seed, which share their learning curves."""
    case, seed, configurations = job
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    curves = Curves(case, seed)
    return [_search(curves, sampler, method, configurations) for sampler in SAMPLERS for method in METHODS]


class Curves:
    """Learning curves of one table and seed, trained as far as somebody has asked, and no epoch twice."""

    def __init__(self, case: str, seed: int) -> None:
        self.case, self.seed = case, seed
        table = TABLES[case.partition(",")[0]](as_frame=True).frame
        training, validation, _ = tabular.split(table, "target", tabular.Data(seed=seed))
        self._columns = tabular.fit(training.drop(columns="target"))
        self._classes = pd.DataFrame({"target": sorted(table["target"].unique())})
        self._training, self._validation = (
            tabular.tensors(tabular.labelled(part, self._columns, self._classes)) for part in (training, validation)
        )
        self._known: dict[tuple[Any, ...], tuple[list[float], Iterator[float]]] = {}

    def suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        config = asdict(tabular.suggest(trial))
        return config | ({"warm_up": trial.suggest_int("warm_up", 0, LONGEST_WARM_UP)} if self.case == WARM_UP else {})

    def value(self, config: Mapping[str, Any], epoch: int) -> float:
        """The validation loss after an epoch, from 1."""
        key = tuple(sorted(config.items()))
        values, training = self._known.setdefault(key, ([], self._train(**config)))
        while len(values) < epoch:
            values.append(next(training))
        return values[epoch - 1]

    def _train(
        self, *, lr: float, width: int, weight_decay: float, batch_size: int, warm_up: int | None = None
    ) -> Iterator[float]:
        generator = torch.Generator().manual_seed(self.seed)
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            model = tabular.Classifier(self._columns, self._classes, width)
        optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay, fused=True)
        rows, labels = self._training
        for epoch in range(MAX_EPOCHS):
            if warm_up is not None:
                optimizer.param_groups[0]["lr"] = lr * _share(epoch, warm_up)
            for batch in torch.randperm(len(rows), generator=generator).split(batch_size):
                tabular.loss_of(model(rows[batch]), labels[batch]).backward()
                optimizer.step()
                optimizer.zero_grad()
            with torch.no_grad():
                loss = tabular.loss_of(model(self._validation[0]), self._validation[1]).item()
            yield loss


def _share(epoch: int, warm_up: int) -> float:
    """What of the learning rate an epoch has: a line up to all of it, then a cosine down to nothing."""
    if epoch < warm_up:
        return (epoch + 1) / (warm_up + 1)
    return 0.5 + 0.5 * float(np.cos(np.pi * (epoch - warm_up) / (MAX_EPOCHS - warm_up)))


class _Memory(InMemoryStorage):
    """Optuna's storage in memory; nobody's heart has to beat here."""

    def record_heartbeat(self, trial_id: int) -> None:
        pass

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        return []


def _search(curves: Curves, sampler: str, method: str, configurations: int) -> Search:
    """What a method has come to."""
    spec = StudySpec(
        experiment="tabular.py",
        code="",
        data=None,
        data_options={},
        config=None,
        monitor="loss",
        direction="minimize",
        configurations=configurations,
        max_epochs=MAX_EPOCHS,
        min_epochs=1,
        eta=ETA,
        pruner="halving" if method == REOPENED else method,
        sampler=sampler,
        seed=curves.seed,
    )
    storage: Any = _Memory()
    study = Study("quality", "", storage, storage.create_new_study([optuna.study.StudyDirection.MINIMIZE], "quality"))
    study.set_attr("spec", spec.to_json())
    best: list[float] = []
    _work(study, curves, best)
    if method == REOPENED:
        paused = [one.number for one in ranking(study) if one.ended == PAUSED]
        reopen(study, paused[:TOP])
        _work(study, curves, best)
    lineages = study.lineages()
    winner = min(lineages.values(), key=lambda one: (one.best or {})["value"])
    return Search(
        case=curves.case,
        sampler=sampler,
        method=method,
        seed=curves.seed,
        best=best,
        complete=[one.number for one in lineages.values() if one.ended == COMPLETE],
        winner=winner.number,
        winner_warm_up=(winner.config or {}).get("warm_up", 0),
    )


def _work(study: Study, curves: Curves, best: list[float]) -> None:
    """One worker's turns: claim, draw, train, report, and what follows from it, as in `pipeline.sweep`."""
    spec, storage = study.spec, study.storage
    rule = pruning_view(study, spec)
    while isinstance(found := next_segment(study), Lineage):
        trial_id = found.head._trial_id
        config = found.config
        if config is None:
            trial = numbered_trial(sampling_view(study, spec, found.number), trial_id, found.number)
            config = curves.suggest(trial)
            study.set(trial_id, "config", config)
        values = [curves.value(config, epoch) for epoch in range(1, found.epochs + 1)]
        while True:
            values.append(curves.value(config, len(values) + 1))
            best.append(min([values[-1], *best[-1:]]))
            _report(study, trial_id, values)
            if len(values) == MAX_EPOCHS:
                study.end(trial_id, TrialState.COMPLETE, COMPLETE, min(values))
            elif len(values) == found.until:
                study.end(trial_id, TrialState.PRUNED, PAUSED)
            elif spec.pruner in RULES and rule.judges(found, storage.get_trial(trial_id)):
                study.end(trial_id, TrialState.PRUNED, PRUNED)
            else:
                continue
            break


def _report(study: Study, trial_id: int, values: Sequence[float]) -> None:
    epoch = 1 + int(np.argmin(values))
    best = {"epoch": epoch, "value": min(values), "checkpoint": f"e{epoch}"}
    study.set(trial_id, "progress", {"checkpoint": f"e{len(values)}", "epochs": len(values), "best": best})
    study.report(trial_id, len(values), values[-1])


def _rows(searches: Sequence[Search]) -> list[dict[str, Any]]:
    """One for each method. Random draws are the same for all methods: so `none` says which was the best of them."""
    rows = []
    full = {(one.sampler, one.seed): one for one in searches if one.method == "none"}
    least = {  # the fewest epochs that any method has trained
        seed: min(len(one.best) for one in searches if one.seed == seed) for seed in {one.seed for one in searches}
    }
    for sampler in SAMPLERS:
        for method in METHODS:
            of = [one for one in searches if (one.sampler, one.method) == (sampler, method)]
            losses = [one.best[-1] for one in of]
            winners = [full[sampler, one.seed].winner in one.complete for one in of]
            slow = [full[sampler, one.seed].winner_warm_up > LONGEST_WARM_UP // 2 for one in of]
            rows.append(
                {
                    "case": of[0].case,
                    "sampler": sampler,
                    "method": method,
                    "epochs": mean(len(one.best) for one in of),
                    "loss": mean(losses),
                    "deviation": stdev(losses) if len(losses) > 1 else 0.0,
                    "loss_at_equal_epochs": mean(one.best[least[one.seed] - 1] for one in of),
                    "found": sum(winners) if sampler == "random" else None,
                    "slow": sum(slow) if sampler == "random" and of[0].case == WARM_UP else None,
                    "found_slow": sum(a and b for a, b in zip(winners, slow, strict=True))
                    if sampler == "random" and of[0].case == WARM_UP
                    else None,
                }
            )
    return rows


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        f"{'':15} {'':6} {'':18} {'epochs':>6}  {'best loss':>15}  {'at equal epochs':>15}  {'found':>5}  {'slow':>5}"
    ]
    for row in rows:
        found = "-" if row["found"] is None else row["found"]
        slow = "-" if row["slow"] is None else f"{row['found_slow']}/{row['slow']}"
        loss = f"{row['loss']:.4f} ± {row['deviation']:.4f}"
        lines.append(
            f"{row['case']:15} {row['sampler']:6} {row['method']:18} {row['epochs']:6.0f}  {loss:>15}"
            f"  {row['loss_at_equal_epochs']:15.4f}  {found:>5}  {slow:>5}"
        )
    return "\n".join(lines)


def _draw_plot(searches: Sequence[Search], file: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    cases = list(dict.fromkeys(one.case for one in searches))
    figure, axes = plt.subplots(1, len(cases), figsize=(4 * len(cases), 3.6), squeeze=False, layout="constrained")
    for axis, case in zip(axes[0], cases, strict=True):
        for sampler, style in zip(SAMPLERS, ("-", "--"), strict=True):
            for place, method in enumerate(METHODS):
                of = [one.best for one in searches if (one.case, one.sampler, one.method) == (case, sampler, method)]
                epochs = range(3, round(mean(len(best) for best in of)) + 1)
                losses = [mean(best[min(epoch, len(best)) - 1] for best in of) for epoch in epochs]
                axis.plot(epochs, losses, style, color=f"C{place}", label=f"{method}, {sampler}", linewidth=1.3)
                axis.plot(epochs[-1:], losses[-1:], "o" if sampler == "tpe" else "s", color=f"C{place}", markersize=4)
        axis.set(title=case, xscale="log", yscale="log", xlabel="epochs trained")
    axes[0][0].set_ylabel("best validation loss, mean of all seeds")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize="small")
    figure.savefig(file, dpi=80)


if __name__ == "__main__":
    main()
