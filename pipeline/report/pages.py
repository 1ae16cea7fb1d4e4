"""What the pages of a study and of its configurations say in MLflow, as Markdown."""

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial

from pipeline.databases import sqlite_file
from pipeline.report.found import Found, values_of
from pipeline.sweep import halving
from pipeline.sweep.lineage import PAUSED, Lineage, progress_of, why_ended
from pipeline.sweep.pruners import PAUSING
from pipeline.sweep.storage import redacted
from pipeline.tracking import links

SHOWN = 5
SEGMENTS_SHOWN = 20
SIZE = 5000  # characters of a tag that every MLflow store takes
_MARKS = str.maketrans(
    {
        **{mark: f"\\{mark}" for mark in "\\`*_[]|~"},
        "&": "&amp;",
        "<": "&lt;",
        ">": "&gt;",
        "\n": " ",
        "\r": " ",
    }
)


def plain(text: object) -> str:
    """A user's text in Markdown: nothing in it is markup, and it stays in its cell."""
    return str(text).translate(_MARKS)


def study_page(found: Found, *, version: str | None, storage: str | None) -> str:
    """The description of a study's run.

    `version` is that of the registered model, and `storage` the URL that the commands have to be told, if any.
    """
    parts = [_standing(found) + _leader(found), _best(found), _counts(found), _work(found), _swept(found)]
    commands = _commands(found, version, storage)
    return "\n\n".join(parts)[: SIZE - len(commands) - 2] + "\n\n" + commands


def study_tags(found: Found) -> dict[str, str]:
    """Tags of a study's run that make columns."""
    if not found.front:
        return {}
    return {"best_configuration": ",".join(str(one.number) for one in found.front)}


def study_metrics(found: Found) -> dict[str, float]:
    """Metrics of a study's run; its chart is the study's course, and its columns tell studies apart."""
    best = values_of(found.ranking[0], found.spec) if found.ranking else {}
    return {
        **{f"best/{name}": float(value) for name, value in best.items()},
        **{f"configurations/{state}": float(count) for state, count in found.counts.items()},
        "epochs/trained": float(found.epochs),
        "epochs/saved": float(found.saved),
        "segments/broken_off": float(found.breaks.total()),
        "segments/resumed": float(len(found.resumptions)),
    }


def configuration_page(found: Found, lineage: Lineage) -> str:
    """The description of a configuration's run."""
    spec, state = found.spec, found.states[lineage.number]
    study = _link(found.name, links.run(found.site.experiment_id, found.site.run_id))
    said = [f"Configuration #{lineage.number:02d} of study {study}: **{state}** at epoch {lineage.epochs} of "]
    said[0] += f"{found.budget(lineage)}."
    if lineage.best is not None:
        values = ", ".join(f"{plain(name)} {value:.6g}" for name, value in values_of(lineage, spec).items())
        said.append(f"Best epoch {lineage.best['epoch']}: {values}.")
    if lineage.stopped_early is not None:
        said.append(f"Complete early, after epoch {lineage.stopped_early}: it had not improved for long enough.")
    if "error" in lineage.head.user_attrs:
        text = _link("traceback.txt", _artifact(found, lineage, "traceback.txt"))
        said.append(f"Its last segment raised `{_code(lineage.head.user_attrs['error'])}` ({text}).")
    name = lineage.progress["checkpoint"]
    if name is not None:
        manifest = _link(name, _artifact(found, lineage, f"checkpoints/{name}/manifest.json"))
        said.append(f"A resume starts from checkpoint {manifest}, if that verifies.")
    shown = lineage.segments[-SEGMENTS_SHOWN:]
    rows = [(*cells, plain(resumed)) for *cells, resumed in map(segment_cells, shown)]
    table = _table(("segment", "from", "to", "began", "took", "ended", "resumed"), rows)
    older = len(lineage.segments) - len(shown)
    return "\n\n".join([" ".join(said), table, *([f"{older} older segments are not shown."] if older else [])])[:SIZE]


def _standing(found: Found) -> str:
    """In what state the study is, and why."""
    if found.over and found.counts["failed"] == len(found.lineages):
        return "**Failed**: none of its configurations has come to a result."
    if found.over:
        return f"**Done**: all {_many(found.spec.configurations, 'configuration')} drawn, nothing is left to train."
    if found.search_over:
        return "**Not done**: the search is over, and configurations that were given more epochs have some left."
    running = found.counts["running"]
    waiting = found.counts["interrupted"] + found.counts["waiting"]
    rest = [
        *([f"{_many(running, 'configuration')} training"] if running else []),
        *([f"{waiting} waiting to go on"] if waiting else []),
        *([f"{found.counts['paused']} paused at their rungs"] if found.counts["paused"] else []),
        *([f"{found.left} still to be drawn"] if found.left else []),
    ]
    word = "Running" if running else "Not done, and nobody trains just now"
    return f"**{word}**: {', '.join(rest)} (as of {found.at:%Y-%m-%d %H:%M:%S})."


def _leader(found: Found) -> str:
    """The best in a few words: the UI shows the first lines only, until it is asked for more."""
    if len(found.front) != 1:
        return f" {len(found.front)} are each better than all others in something." if found.front else ""
    best = found.front[0]
    values = ", ".join(f"{plain(name)} {value:.6g}" for name, value in values_of(best, found.spec).items())
    return f" Best: {_link(f'#{best.number:02d}', _page(found, best))}, {values}."


def _swept(found: Found) -> str:
    spec = found.spec
    goals = ", ".join(f"{one} `{_code(name)}`" for name, one in spec.objectives.items())
    said = f"`{_code(spec.experiment)}`: {goals}; at most {_many(spec.max_epochs, 'epoch')} each; seed {spec.seed}"
    if spec.config is not None:
        return f"### What is trained\n\n{said}."
    said += f"; sampler {spec.sampler}, pruner {spec.pruner}"
    if spec.pruner in PAUSING:
        rungs = halving.rungs(min_epochs=spec.min_epochs, max_epochs=spec.max_epochs, eta=spec.eta)
        said += f", compared at epochs {', '.join(str(rung) for rung in rungs[:-1])}, one in {spec.eta} goes on"
    rows = [(plain(name), _range(one)) for name, one in distributions(found).items()]
    return f"### What is swept\n\n{said}.\n\n{_table(('parameter', 'values'), rows)}"


def distributions(found: Found) -> dict[str, BaseDistribution]:
    """Every parameter that was drawn, and what from."""
    return {name: one for lineage in found.lineages.values() for name, one in lineage.head.distributions.items()}


def _range(one: BaseDistribution) -> str:
    if isinstance(one, CategoricalDistribution):
        return plain(", ".join(str(choice) for choice in one.choices))
    low, high, log, step = (getattr(one, name, None) for name in ("low", "high", "log", "step"))
    notes = [*(["log scale"] if log else []), *([f"steps of {step}"] if step not in (None, 1) else [])]
    return f"{low:g} to {high:g}{', ' if notes else ''}{', '.join(notes)}"


def _best(found: Found) -> str:
    if not found.ranking:
        return "### Best\n\nNo configuration has a result yet."
    unbeaten = {one.number for one in found.front}
    shown = sorted(found.ranking, key=lambda one: one.number not in unbeaten)[: max(SHOWN, min(len(unbeaten), 10))]
    rows = [
        (
            _link(found.name_of(one)[:80], _page(found, one)),
            found.states[one.number],
            f"{one.epochs}/{found.budget(one)}",
            *(f"{value:.6g}" for value in values_of(one, found.spec).values()),
            str((one.best or {})["epoch"]),
        )
        for one in shown
    ]
    return "### Best\n\n" + _table(
        ("configuration", "state", "epochs", *(plain(name) for name in found.spec.objectives), "at epoch"), rows
    )


def _counts(found: Found) -> str:
    why = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in found.failures.most_common())
    states = [
        f"{count} {state}{f' ({why})' if state == 'failed' else ''}" for state, count in found.counts.most_common()
    ]
    left = [f"{found.left} still to be drawn"] if found.left else []
    return f"### Configurations\n\n{', '.join([*states, *left]) or 'none yet'}."


def _work(found: Found) -> str:
    said = [f"{_many(found.epochs, 'epoch')} trained"]
    if found.saved:
        said.append(f"{found.saved} saved by pausing what fell behind")
    if found.promotions:
        said.append(f"{_many(found.promotions, 'time')} a paused one went on")
    lines = [", ".join(said) + "."]
    if found.breaks:
        whys = ", ".join(f"{count} {why.replace('_', ' ')}" for why, count in found.breaks.most_common())
        labels = Counter(segment.user_attrs.get("resumed", "from its beginning") for segment in found.resumptions)
        how = ", ".join(f"{count} {plain(label)}" for label, count in labels.most_common(3))
        lines.append(
            f"Broken off {_many(found.breaks.total(), 'time')} ({whys}), resumed "
            f"{_many(len(found.resumptions), 'time')}{f' ({how})' if how else ''}."
        )
    return "### Work\n\n" + "\n\n".join(lines)


def _commands(found: Found, version: str | None, storage: str | None) -> str:
    """The commands that go on from here, as they are to be typed."""
    name = shlex.quote(found.name)
    told = "" if storage is None else f" --storage {shlex.quote(redacted(storage))}"
    resume = f"python -m pipeline resume --study {name}{told}"
    lines = [] if found.over else [f"{resume}  # continue"]
    if found.ranking:
        lines.append(f"{resume} --top 3 --max-epochs {3 * found.spec.max_epochs}  # extend the best")
    idle = [one for one in found.ranking if found.states[one.number] in ("paused", "pruned")]
    if idle:
        lines.append(f"{resume} --configuration {idle[0].number}  # give this one the whole budget")
    if version is not None:
        lines.append(
            f"mlflow models serve -m models:/{name}/{version} --env-manager local --port 5001  # serve the best"
        )
    elif found.ranking:
        lines.append(f"python -m pipeline evaluate --study {name}{told}  # evaluate the best, and register its model")
    file = sqlite_file(found.url)
    where = f" in `{_code(file.parent)}`" if file is not None else ""
    return f"### Go on{where}\n\n```\n" + "\n".join(lines) + "\n```" if lines else ""


def segment_cells(segment: FrozenTrial) -> tuple[str, ...]:
    """Its number, from and to which checkpoint, when and for how long, why it ended, and how it was resumed."""
    attrs, began, ended = segment.user_attrs, segment.datetime_start, segment.datetime_complete
    reached = progress_of(segment)["checkpoint"]
    why = why_ended(segment) or ("running" if began else "waiting")
    if why == PAUSED:
        why = f"paused at epoch {progress_of(segment)['epochs']}"
    return (
        str(segment.number),
        attrs["start"] or "the beginning",
        reached if reached is not None and reached != attrs["start"] else "nothing new",
        "" if began is None else f"{began:%Y-%m-%d %H:%M:%S}",
        "" if began is None or ended is None else duration(ended - began),
        why.replace("_", " "),
        attrs.get("resumed", "" if attrs["start"] is None or began is None else "not yet"),
    )


def duration(span: timedelta) -> str:
    """For people: 3.2 s, 4 min, 2.5 h."""
    seconds = span.total_seconds()
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


def _page(found: Found, lineage: Lineage) -> str | None:
    return None if lineage.run_id is None else links.run(found.site.experiment_id, lineage.run_id)


def _artifact(found: Found, lineage: Lineage, path: str) -> str | None:
    return None if lineage.run_id is None else links.artifact(found.site.experiment_id, lineage.run_id, path)


def _link(text: str, link: str | None) -> str:
    return plain(text) if link is None else f"[{plain(text)}]({links.within(link)})"


def _code(text: str | Path) -> str:
    """Inside backticks nothing is markup but they."""
    return str(text).replace("`", "'").replace("\n", " ")[:300]


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def changed(new: Mapping[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
    """What is not there yet, or otherwise."""
    return {name: value for name, value in new.items() if old.get(name) != value}
