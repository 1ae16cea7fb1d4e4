"""What a command says when it is done: what came of it, how to go on, where to look."""

import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from pipeline import documents
from pipeline.checking import Finding
from pipeline.checkpoint import Checkpoint
from pipeline.documents import Document
from pipeline.proving.plan import describe
from pipeline.proving.prove import Proof
from pipeline.session import Result
from pipeline.sweep.budget import spent
from pipeline.sweep.finish import Evaluation, front, ranking, state_of
from pipeline.sweep.lineage import Lineage
from pipeline.sweep.schedule import is_over
from pipeline.sweep.spec import StudySpec
from pipeline.sweep.standing import Standing
from pipeline.sweep.study import Study
from pipeline.sweep.verifying import Verdict
from pipeline.sweep.worker import Site, run_name
from pipeline.terminal.canvas import plain
from pipeline.terminal.frame import NAMED, cut
from pipeline.terminal.overview import Overview
from pipeline.terminal.watch import whole
from pipeline.tracking import links
from pipeline.tracking.tables import Tables

SHOWN = 5
DONE, FAILED, STOPPED = 0, 1, 75


@dataclass(frozen=True, kw_only=True)
class Said:
    """What a command says when it is done.

    Attributes:
        code: its exit code.
        text: for people.
        document: the same for scripts.
    """

    code: int
    text: str
    document: Callable[[], Document]


def _said(code: int, lines: Iterable[str], document: Callable[[], Document]) -> Said:
    return Said(code=code, text="\n".join(lines), document=document)


def report(result: Result) -> Said:
    """What a command that trains has come to."""
    study = result.study
    over = is_over(study)
    failed = [lineage for lineage in study.lineages().values() if lineage.failed()]
    lines = [
        "",
        _headline(result),
        "",
        *_best(study, over=over),
        *(f"failed: #{one.number:02d} {one.head.user_attrs.get('error', one.ended)}" for one in failed),
        *(_evaluation(study, result.evaluation) if result.evaluation is not None else ()),
        "",
        *_next(study, over=over),
        *_links(study, result.evaluation),
    ]
    return _said(_code(result), lines, lambda: documents.result(result))


def _code(result: Result) -> int:
    study = result.study
    if not result.finished:
        return STOPPED if result.how.workers else DONE
    if result.budget is not None:
        return DONE
    if result.only is not None:
        found = study.lineages()
        return FAILED if any(found[number].failed() for number in result.only) else DONE
    return DONE if ranking(study) else FAILED


def evaluation(study: Study, found: Evaluation) -> Said:
    """What an evaluation has come to."""
    lines = [*_evaluation(study, found), *_links(study, found)]
    return _said(DONE, lines, lambda: documents.evaluation(study, found))


def tables(found: Tables | None) -> Said:
    """The prepared tables."""
    if found is None:
        lines = ["the experiment declares no `prepare`; there is nothing to do"]
    else:
        shapes = {name: found[name].shape for name in found}
        lines = [
            f"{name:<12} {rows:>8} rows  {columns:>5} columns  blake3 {found.digests[name][:12]}"
            for name, (rows, columns) in shapes.items()
        ]
    return _said(DONE, lines, lambda: documents.tables(found))


def status(found: list[Standing], seen: Overview | None) -> Said:
    """How studies stand; one that was asked for in full, with what is `seen` of it."""
    lines = []
    if seen is not None:
        (one,) = found
        header = ("configuration", "state", "epochs", f"best {one.study.spec.monitor}", "checkpoints", "")
        rows = [
            (
                _name(each.lineage),
                each.state,
                f"{each.lineage.epochs}/{each.lineage.extended or one.study.spec.max_epochs}",
                "" if each.lineage.best is None else f"{each.lineage.best['value']:.6g}",
                f"{each.size_bytes:,} bytes",
                each.why,
            )
            for each in one.configurations
        ]
        lines += [*_table(header, rows), "", *plain(whole(seen)), ""]
    for one in found:
        states = ", ".join(f"{count} {state}" for state, count in sorted(one.states.items()))
        left = f", {one.left} still to be drawn" if one.left else ""
        done = "done" if one.over else "not done"
        lines.append(
            f"study {one.study.name}: {done}; {states or 'no configuration yet'}{left}; {one.size_bytes:,} bytes"
        )
    return _said(DONE, lines or ["no study yet"], lambda: documents.studies(found))


def reported(study: Study) -> Said:
    """Where what was rebuilt of a study is to be seen."""
    document = documents.reported(study)
    lines = [
        f"study {study.name}: its pages, pictures and report are up to date",
        f"report:    {document['report']}",
        *_links(study, None),
    ]
    return _said(DONE, lines, lambda: document)


def verdicts(found: list[Verdict]) -> Said:
    """What is true of each checkpoint; 1 if one that counts does not verify."""
    lines = []
    for one in found:
        state = "verifies" if one.problem is None else f"does not verify: {one.problem}"
        notes = ["a resume starts here"] * one.next + ["does not count: its trial had ended"] * (not one.counts)
        lines.append("  ".join((one.owner, one.name, f"{one.size_bytes:>12,} bytes", state, *notes)))
    bad = [one for one in found if one.counts and one.problem is not None]
    lines.append(f"{len(found)} checkpoints, {len(bad)} of them do not verify")
    return _said(FAILED if bad else DONE, lines, lambda: documents.verdicts(found))


def tree(checkpoint: Checkpoint) -> Said:
    """A checkpoint's tensors as a tree."""
    manifest = checkpoint.manifest
    position = manifest.position
    lines = [
        f"{checkpoint.name}  stage {position.stage}, epoch {position.epoch}, batch {position.batch}",
        *(f"  {name} = {value:.6g}" for name, value in sorted(checkpoint.metrics.items())),
    ]
    above: list[str] = []
    for name, tensor in sorted(manifest.tensors.items()):
        *parents, leaf = name.split(".")
        common = 0
        while common < min(len(parents), len(above)) and parents[common] == above[common]:
            common += 1
        lines += [f"{'  ' * depth}{parents[depth]}" for depth in range(common, len(parents))]
        above = parents
        shape = "x".join(str(size) for size in tensor.shape) or "scalar"
        lines.append(f"{'  ' * len(parents)}{leaf}  {tensor.dtype} {shape}  {tensor.size_bytes:,} bytes")
    lines.append(f"{len(manifest.tensors)} tensors, {manifest.size_bytes:,} bytes")
    return _said(DONE, lines, lambda: documents.inspected(checkpoint))


def checks(found: Iterable[Finding]) -> Said:
    """A line for each thing that was tried; exit code 1 if one of them is not as it has to be."""
    tried = list(found)
    lines = [f"{'fails' if one.is_problem else 'ok':<6}{one.what:<16}{one.says}" for one in tried]
    code = FAILED if any(one.is_problem for one in tried) else DONE
    return _said(code, lines, lambda: documents.checks(tried))


def proof(found: Proof) -> Said:
    """Whether the bits agree, or where they part and what that usually means; 1 if they part."""
    return _said(DONE if found.agrees else FAILED, _proof(found), lambda: documents.proof(found))


def _proof(found: Proof) -> list[str]:
    kills = "once" if len(found.strikes) == 1 else f"{len(found.strikes)} times"
    places = ", ".join(strike.describe(stages=found.stages) for strike in found.strikes)
    trained = f"{found.epochs} epochs, {found.batches} batches"
    if found.agrees:
        words = {"tensor": "tensors", "state": "state entries", "metric": "metric values"}
        counts = ", ".join(f"{count} {words[kind]}" for kind, count in found.compared.items())
        return [f"the bits agree: {found.file}, {trained}, killed {kills} ({places}); {counts} are the same"]
    where = f" {describe(found.first[0].at, stages=found.stages)}" if found.first and found.first[0].at else ""
    since = "" if found.resumed is None else f", resumed {describe(found.resumed, stages=found.stages)}"
    lines = [f"the bits part{where}{since}: {found.file}, {trained}, killed {kills} ({places})"]
    for title, differences in (("first", found.first), ("in the end,", found.last)):
        for one in differences:
            place = "" if one.at is None else f" {describe(one.at, stages=found.stages)}"
            others = f" (and {one.others} more)" if one.others else ""
            lines.append(f"{title} {one.kind}: {one.name}{others}{place}{f': {one.how}' if one.how else ''}")
    return [*lines, *(f"likely: {hint}" for hint in found.hints), f"both lie in {found.folder}"]


def _headline(result: Result) -> str:
    study = result.study
    if not result.finished and not result.how.workers:
        return f"study {study.name} waits for workers: python -m pipeline worker --study {study.name}"
    if not result.finished and result.how.until == "segment":
        return f"study {study.name}: not done yet; run the same command again to continue"
    if not result.finished:
        return f"study {study.name}: stopped; run the same command again to continue"
    if result.budget is not None:
        trained = f"{spent(study.lineages())} epochs are trained, and --max-total-epochs {result.budget} is spent"
        return f"study {study.name}: {trained}; give it more, or leave it out, to continue"
    if result.only is not None:
        found = study.lineages()
        return "\n".join(_reopened(study, found[number], trained=result.trained) for number in result.only)
    count = len(study.lineages())
    configurations = f"{count} configuration{'s' if count != 1 else ''}"
    if not result.trained:
        return f"study {study.name} is done: {configurations}, nothing left to train"
    return f"study {study.name}: {configurations} done"


def _reopened(study: Study, lineage: Lineage, *, trained: bool) -> str:
    which = f"study {study.name}: configuration #{lineage.number:02d}"
    if not trained:
        return f"{which} has had its {lineage.epochs} epochs, nothing left to train"
    return f"{which} is {state_of(lineage, over=True)} at epoch {lineage.epochs}"


def _best(study: Study, *, over: bool) -> list[str]:
    spec = study.spec
    unbeaten = {lineage.number for lineage in front(study)} if spec.others else set()
    shown = sorted(ranking(study), key=lambda one: one.number not in unbeaten)
    rows = [
        (
            _name(lineage),
            state_of(lineage, over=over),
            f"{lineage.epochs}/{lineage.extended or spec.max_epochs}",
            *_values(lineage, spec),
            "" if lineage.is_feasible else "breaks a constraint",
        )
        for lineage in shown[: max(SHOWN, len(unbeaten))]
    ]
    header = ("configuration", "state", "epochs", *(f"best {name}" for name in spec.objectives), "")
    lines = _table(header, rows) if rows else []
    if len(unbeaten) > 1:
        lines.append(f"the first {len(unbeaten)} are each better than all others in something")
    return lines


def _values(lineage: Lineage, spec: StudySpec) -> list[str]:
    """Its objectives at its best epoch."""
    best = lineage.best or {}
    return [f"{best['value']:.6g}", *(f"{best['metrics'][name]:.6g}" for name in spec.others)]


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Lines of it; in a terminal that is too narrow the first column is cut, and elsewhere nothing."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    if sys.stdout.isatty():
        room = shutil.get_terminal_size().columns - sum(width + 2 for width in widths[1:])
        widths[0] = min(widths[0], max(room, NAMED))
    return [
        "  ".join(
            cell.ljust(width) for cell, width in zip((cut(first, widths[0]), *rest), widths, strict=True)
        ).rstrip()
        for first, *rest in [header, *rows]
    ]


def _name(lineage: Lineage) -> str:
    return run_name(lineage.number, lineage.head.params or lineage.config or {})


def _evaluation(study: Study, found: Evaluation) -> list[str]:
    values = "  ".join(f"{name} {value:.6g}" for name, value in found.metrics.items())
    line = f"evaluated #{found.number:02d}{'' if found.fresh else ' (before)'}: {values}"
    if found.version is not None:
        return [line, f"registered as models:/{study.name}/{found.version}"]
    return [
        line,
        "no model registered: evaluate must track one model and ask it, by predict(table) or as model(tensor)",
    ]


def _next(study: Study, *, over: bool) -> list[str]:
    resume = f"python -m pipeline resume --study {study.name}"
    if not over:
        return [f"continue:  {resume}"]
    lines = []
    if study.spec.others and len(front(study)) > 1:
        evaluate = f"python -m pipeline evaluate --study {study.name} --configuration NUMBER"
        lines.append(f"evaluate one of the best:  {evaluate}")
    pruned = [one for one in ranking(study) if state_of(one, over=True) == "pruned"]
    if pruned:
        lines.append(f"take a pruned one to the end:  {resume} --configuration {pruned[0].number}")
    return lines


def _links(study: Study, found: Evaluation | None) -> list[str]:
    site, spec = Site.of(study), study.spec
    minimize = spec.direction == "minimize"
    lines = [
        f"study:     {links.run(site.experiment_id, site.run_id)}",
        f"curves:    {links.configurations(site.experiment_id, study.name, spec.monitor, ascending=minimize)}",
    ]
    if found is not None and found.version is not None:
        lines.append(f"model:     {links.model(study.name, found.version)}")
    return [*lines, *_ui()]


def _ui() -> list[str]:
    """Where no server answers to the links, what has to be started first."""
    command = links.ui_command()
    return [] if command is None else [f"the links want the MLflow UI:  {command}"]
