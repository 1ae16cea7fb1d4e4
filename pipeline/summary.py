"""What a command prints when it is done: what came of it, how to go on, where to look."""

from collections.abc import Iterable, Sequence

from pipeline.checking import Finding
from pipeline.checkpoint import Checkpoint
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
from pipeline.tracking import links
from pipeline.tracking.tables import Tables

SHOWN = 5
DONE, FAILED, STOPPED = 0, 1, 75


def report(result: Result) -> int:
    """Prints what a command that trains has come to; returns its exit code."""
    study = result.study
    over = is_over(study)
    print()
    print(_headline(result))
    print()
    _print_best(study, over=over)
    failed = [lineage for lineage in study.lineages().values() if lineage.failed()]
    for lineage in failed:
        print(f"failed: #{lineage.number:02d} {lineage.head.user_attrs.get('error', lineage.ended)}")
    if result.evaluation is not None:
        _print_evaluation(study, result.evaluation)
    print()
    _print_next(study, over=over)
    _print_links(study, result.evaluation)
    if not result.finished:
        return STOPPED if result.how.workers else DONE
    if result.budget is not None:
        return DONE
    if result.only is not None:
        found = study.lineages()
        return FAILED if any(found[number].failed() for number in result.only) else DONE
    return DONE if ranking(study) else FAILED


def evaluation(study: Study, found: Evaluation) -> int:
    """Prints an evaluation; returns the exit code."""
    _print_evaluation(study, found)
    _print_links(study, found)
    return DONE


def tables(found: Tables | None) -> int:
    """Prints the prepared tables; returns the exit code."""
    if found is None:
        print("the experiment declares no `prepare`; there is nothing to do")
        return DONE
    for name in found:
        rows, columns = found[name].shape
        print(f"{name:<12} {rows:>8} rows  {columns:>5} columns  blake3 {found.digests[name][:12]}")
    return DONE


def status(found: list[Standing]) -> int:
    """Prints how studies stand, the only one in full; returns the exit code."""
    if len(found) == 1:
        one = found[0]
        _print_table(
            ("configuration", "state", "epochs", f"best {one.study.spec.monitor}", "checkpoints", ""),
            [
                (
                    _name(each.lineage),
                    each.state,
                    f"{each.lineage.epochs}/{each.lineage.extended or one.study.spec.max_epochs}",
                    "" if each.lineage.best is None else f"{each.lineage.best['value']:.6g}",
                    f"{each.size_bytes:,} bytes",
                    each.why,
                )
                for each in one.configurations
            ],
        )
        print()
    for one in found:
        states = ", ".join(f"{count} {state}" for state, count in sorted(one.states.items()))
        left = f", {one.left} still to be drawn" if one.left else ""
        done = "done" if one.over else "not done"
        print(f"study {one.study.name}: {done}; {states or 'no configuration yet'}{left}; {one.size_bytes:,} bytes")
    if not found:
        print("no study yet")
    return DONE


def reported(study: Study) -> int:
    """Prints where what was rebuilt of a study is to be seen; returns the exit code."""
    site = Site.of(study)
    print(f"study {study.name}: its pages, pictures and report are up to date")
    print(f"report:    {links.artifact(site.experiment_id, site.run_id, 'report.html')}")
    _print_links(study, None)
    return DONE


def verdicts(found: list[Verdict]) -> int:
    """Prints what is true of each checkpoint; 1 if one that counts does not verify."""
    for one in found:
        state = "verifies" if one.problem is None else f"does not verify: {one.problem}"
        notes = ["a resume starts here"] * one.next + ["does not count: its trial had ended"] * (not one.counts)
        print("  ".join((one.owner, one.name, f"{one.size_bytes:>12,} bytes", state, *notes)))
    bad = [one for one in found if one.counts and one.problem is not None]
    print(f"{len(found)} checkpoints, {len(bad)} of them do not verify")
    return FAILED if bad else DONE


def tree(checkpoint: Checkpoint) -> int:
    """Prints a checkpoint's tensors as a tree; returns the exit code."""
    manifest = checkpoint.manifest
    position = manifest.position
    print(f"{checkpoint.name}  stage {position.stage}, epoch {position.epoch}, batch {position.batch}")
    for name, value in sorted(checkpoint.metrics.items()):
        print(f"  {name} = {value:.6g}")
    above: list[str] = []
    for name, tensor in sorted(manifest.tensors.items()):
        *parents, leaf = name.split(".")
        common = 0
        while common < min(len(parents), len(above)) and parents[common] == above[common]:
            common += 1
        for depth in range(common, len(parents)):
            print(f"{'  ' * depth}{parents[depth]}")
        above = parents
        shape = "x".join(str(size) for size in tensor.shape) or "scalar"
        print(f"{'  ' * len(parents)}{leaf}  {tensor.dtype} {shape}  {tensor.size_bytes:,} bytes")
    print(f"{len(manifest.tensors)} tensors, {manifest.size_bytes:,} bytes")
    return DONE


def checks(found: Iterable[Finding]) -> int:
    """Prints a line for each thing that was tried, as soon as it was; 1 if one of them is not as it has to be."""
    problems = 0
    for one in found:
        print(f"{'fails' if one.is_problem else 'ok':<6}{one.what:<16}{one.says}", flush=True)
        problems += one.is_problem
    return FAILED if problems else DONE


def proof(found: Proof) -> int:
    """Prints whether the bits agree, or where they part and what that usually means; 1 if they part."""
    kills = "once" if len(found.strikes) == 1 else f"{len(found.strikes)} times"
    places = ", ".join(strike.describe(stages=found.stages) for strike in found.strikes)
    trained = f"{found.epochs} epochs, {found.batches} batches"
    if found.agrees:
        words = {"tensor": "tensors", "state": "state entries", "metric": "metric values"}
        counts = ", ".join(f"{count} {words[kind]}" for kind, count in found.compared.items())
        print(f"the bits agree: {found.file}, {trained}, killed {kills} ({places}); {counts} are the same")
        return DONE
    where = f" {describe(found.first[0].at, stages=found.stages)}" if found.first and found.first[0].at else ""
    since = "" if found.resumed is None else f", resumed {describe(found.resumed, stages=found.stages)}"
    print(f"the bits part{where}{since}: {found.file}, {trained}, killed {kills} ({places})")
    for title, differences in (("first", found.first), ("in the end,", found.last)):
        for one in differences:
            place = "" if one.at is None else f" {describe(one.at, stages=found.stages)}"
            others = f" (and {one.others} more)" if one.others else ""
            print(f"{title} {one.kind}: {one.name}{others}{place}{f': {one.how}' if one.how else ''}")
    for hint in found.hints:
        print(f"likely: {hint}")
    print(f"both lie in {found.folder}")
    return FAILED


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


def _print_best(study: Study, *, over: bool) -> None:
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
    if rows:
        _print_table(("configuration", "state", "epochs", *(f"best {name}" for name in spec.objectives), ""), rows)
    if len(unbeaten) > 1:
        print(f"the first {len(unbeaten)} are each better than all others in something")


def _values(lineage: Lineage, spec: StudySpec) -> list[str]:
    """Its objectives at its best epoch."""
    best = lineage.best or {}
    return [f"{best['value']:.6g}", *(f"{best['metrics'][name]:.6g}" for name in spec.others)]


def _print_table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    for row in [header, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _name(lineage: Lineage) -> str:
    return run_name(lineage.number, lineage.head.params or lineage.config or {})


def _print_evaluation(study: Study, found: Evaluation) -> None:
    values = "  ".join(f"{name} {value:.6g}" for name, value in found.metrics.items())
    print(f"evaluated #{found.number:02d}{'' if found.fresh else ' (before)'}: {values}")
    if found.version is not None:
        print(f"registered as models:/{study.name}/{found.version}")
    else:
        print("no model registered: evaluate must track one model and ask it, by predict(table) or as model(tensor)")


def _print_next(study: Study, *, over: bool) -> None:
    resume = f"python -m pipeline resume --study {study.name}"
    if not over:
        print(f"continue:  {resume}")
        return
    if study.spec.others and len(front(study)) > 1:
        print(f"evaluate one of the best:  python -m pipeline evaluate --study {study.name} --configuration NUMBER")
    pruned = [one for one in ranking(study) if state_of(one, over=True) == "pruned"]
    if pruned:
        print(f"take a pruned one to the end:  {resume} --configuration {pruned[0].number}")


def _print_links(study: Study, found: Evaluation | None) -> None:
    site, spec = Site.of(study), study.spec
    minimize = spec.direction == "minimize"
    print(f"study:     {links.run(site.experiment_id, site.run_id)}")
    print(f"curves:    {links.configurations(site.experiment_id, study.name, spec.monitor, ascending=minimize)}")
    if found is not None and found.version is not None:
        print(f"model:     {links.model(study.name, found.version)}")
    _print_ui()


def _print_ui() -> None:
    """Where no server answers to the links, what has to be started first."""
    command = links.ui_command()
    if command is not None:
        print(f"the links want the MLflow UI:  {command}")
