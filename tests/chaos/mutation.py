"""Breaks one safeguard at a time, in a copy of the source, and shows which tests notice.

    python -m tests.chaos.mutation            # all of them
    python -m tests.chaos.mutation digest     # those of these names

A safeguard whose tests stay green is guarded by nothing: the exit code is 1 then.
"""

import ast
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
COPIED = ("pipeline", "experiments", "tests", "benchmarks", "pyproject.toml", "MLproject")
PASSED, FAILED = 0, 1  # pytest's exit codes; any other says that the tests did not run


@dataclass(frozen=True, kw_only=True)
class Mutation:
    """A safeguard, how it is broken, and who should notice.

    Attributes:
        old, new: what is replaced in `file`, where it stands exactly once.
        says: the change in a few words.
    """

    safeguard: str
    says: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


HEARTBEAT = "            self._heartbeats.record_heartbeat(trial._trial_id)\n"
CLAIMANT = '            self.set(trial._trial_id, f"{CLAIMANT}{uuid.uuid4().hex[:12]}", me)\n'
CLAIM = """\
            try:
                if not self._once.set_trial_state_values(trial._trial_id, TrialState.RUNNING):
                    return False
            except Exception as error:
                if is_away(error):
                    # Nobody can tell whose it is by now. It is ended, and its successor is claimed.
                    self.end(trial._trial_id, TrialState.FAIL, PREEMPTED)
                    return False
                raise
"""
STUDY = "tests/sweep/test_study.py"
STORAGE = "tests/sweep/test_storage.py"
PATIENCE = "tests/sweep/test_patience.py"
OUTAGE = "tests/integration/test_outage.py"
CUT = "tests/integration/test_cut_writes.py"
LINEAGE = "tests/sweep/test_lineage.py"
SAMPLERS = "tests/sweep/test_samplers.py"
CHAOS = "tests/chaos/test_chaos.py"
MUTATIONS = {
    "immediate": Mutation(
        safeguard="BEGIN IMMEDIATE",
        says="a transaction begins by a plain BEGIN",
        file="pipeline/sweep/storage.py",
        old='connection.exec_driver_sql("BEGIN IMMEDIATE")',
        new='connection.exec_driver_sql("BEGIN")',
        tests=(f"{STORAGE}::test_eight_processes_claim_every_waiting_trial_exactly_once",),
    ),
    "lowest": Mutation(
        safeguard="lowest number wins",
        says="of two successors the highest number wins",
        file="pipeline/sweep/lineage.py",
        old='        if trial.user_attrs["parent"] == (segments[-1].number if segments else None):\n',
        new="""\
        if segments and trial.user_attrs["parent"] == segments[-1].user_attrs["parent"]:
            segments[-1] = trial
        elif trial.user_attrs["parent"] == (segments[-1].number if segments else None):
""",
        tests=(
            f"{LINEAGE}::test_of_two_successors_the_lowest_number_wins_and_the_other_is_closed",
            f"{LINEAGE}::test_of_two_that_create_the_same_configuration_the_lowest_number_wins",
            f"{STUDY}::test_of_two_successors_the_higher_is_closed_and_the_lower_stays",
        ),
    ),
    "heartbeat": Mutation(
        safeguard="heartbeat before claim",
        says="the heartbeat is recorded after the claim",
        file="pipeline/sweep/study.py",
        old=HEARTBEAT + CLAIMANT + CLAIM,
        new=CLAIMANT + CLAIM + HEARTBEAT,
        tests=(
            f"{STUDY}::test_a_process_killed_right_after_its_claim_is_found_by_what_it_wrote_before",
            f"{STUDY}::test_a_process_of_another_host_killed_right_after_its_claim_is_found_by_its_heartbeat",
        ),
    ),
    "claimant": Mutation(
        safeguard="claimant before claim",
        says="who claims says so after the claim",
        file="pipeline/sweep/study.py",
        old=HEARTBEAT + CLAIMANT + CLAIM,
        new=HEARTBEAT + CLAIM + CLAIMANT,
        tests=(f"{STUDY}::test_a_process_killed_right_after_its_claim_is_found_by_what_it_wrote_before",),
    ),
    "manifest": Mutation(
        safeguard="manifest last",
        says="the manifest is uploaded first",
        file="pipeline/checkpoint/files.py",
        old="FILES = (FROZEN, TENSORS, STATE, MANIFEST)",
        new="FILES = (MANIFEST, FROZEN, TENSORS, STATE)",
        tests=("tests/checkpoint/test_store.py::test_the_manifest_is_uploaded_last",),
    ),
    "random": Mutation(
        safeguard="random state is restored",
        says="a resume leaves the random state as the seed has made it",
        file="pipeline/run.py",
        old='            restore_random(self._resumed["rng"])\n            if self._inside:\n                start',
        new="            if self._inside:\n                start",
        tests=(
            "tests/test_run.py::test_stopped_after_any_number_of_batches_it_ends_with_the_same_bits",
            "tests/test_run.py::test_before_its_batches_an_epoch_has_the_random_state_it_had_and_then_that_of_the_position",
            f"{CHAOS}::test_through_thirty_kills_and_zombies_nothing_is_lost_and_nothing_is_trained_twice",
        ),
    ),
    "digest": Mutation(
        safeguard="digests are checked",
        says="a file's digest is computed and not compared",
        file="pipeline/checkpoint/files.py",
        old="    if found.blake3 != entry.blake3:\n",
        new="    if found.blake3 != entry.blake3 and False:\n",
        tests=(
            "tests/checkpoint/test_files.py::test_every_change_of_a_file_is_detected",
            "tests/checkpoint/test_store.py::test_a_checkpoint_that_does_not_verify_is_set_aside_and_the_one_before_serves",
        ),
    ),
    "hidden": Mutation(
        safeguard="samplers see the newest segment alone",
        says="superseded segments are shown too",
        file="pipeline/sweep/samplers.py",
        old="""\
            self._found = self._shown(list(self._lineages().values()))
""",
        new="""\
            every = [(n, one) for n, line in self._lineages().items() for one in line.segments]
            self._found = self._shown([Lineage(number=n, segments=(one,)) for n, one in every])
""",
        tests=(
            f"{SAMPLERS}::test_a_view_shows_each_configuration_once_by_its_newest_segment_under_its_number",
            f"{SAMPLERS}::test_suggestions_are_a_function_of_seed_and_configuration",
        ),
    ),
    "advisory": Mutation(
        safeguard="advisory lock",
        says="processes that create a database in PostgreSQL do not wait for each other",
        file="pipeline/sweep/storage.py",
        old="SELECT pg_advisory_lock(:key)",
        new="SELECT :key",
        tests=(
            f"{STORAGE}::test_who_prepares_a_study_in_postgresql_waits_for_whoever_does",
            f"{STORAGE}::test_processes_that_create_one_study_at_once_all_find_it",
        ),
    ),
    "frozen": Mutation(
        safeguard="frozen transactions end",
        says="PostgreSQL keeps what a process has locked for as long as that stands still",
        file="pipeline/sweep/storage.py",
        old='"idle_in_transaction_session_timeout": "10s"',
        new='"idle_in_transaction_session_timeout": "0"',
        tests=(f"{STORAGE}::test_the_server_itself_frees_what_a_process_has_locked_that_stands_still",),
    ),
    "grace": Mutation(
        safeguard="grace after an outage",
        says="who was silent while the study database was away is taken for dead",
        file="pipeline/sweep/study.py",
        old="if now_s - self._works_since_s < GRACE_S:",
        new="if now_s - self._works_since_s < 0:",
        tests=(
            f"{STUDY}::test_nothing_is_closed_by_its_heartbeat_for_a_while_after_the_storage_was_away",
            f"{PATIENCE}::test_after_an_outage_nobody_is_taken_for_dead_for_a_grace_period",
        ),
    ),
    "once": Mutation(
        safeguard="a lost answer to a claim",
        says="a claim is repeated, although the first may have been made",
        file="pipeline/sweep/study.py",
        old="if not self._once.set_trial_state_values(trial._trial_id, TrialState.RUNNING):",
        new="if not self.storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING):",
        tests=(f"{PATIENCE}::test_a_claim_whose_answer_was_lost_is_ended_and_its_successor_claimed",),
    ),
    "patience": Mutation(
        safeguard="patience with MLflow",
        says="the first refusal of a worker's call is the last",
        file="pipeline/sweep/worker.py",
        old="return patiently(what, attempt, 0.0 if self._given_up else self._keeping.outage_s)",
        new="return attempt()",
        tests=(f"{CUT}::test_a_database_that_refuses_one_write_in_five_is_no_configurations_fault",),
    ),
    "adoption": Mutation(
        safeguard="spool adoption",
        says="what is taken from the disk is not said to count",
        file="pipeline/sweep/saving.py",
        old='            self._study.set(self._id, "adopted", sound[-1].name)\n',
        new="",
        tests=(
            f"{OUTAGE}::test_what_a_store_that_is_away_could_not_take_survives_a_kill_and_is_not_trained_again",
            f"{OUTAGE}::test_what_a_stop_leaves_on_this_machines_disk_is_where_training_goes_on",
            f"{OUTAGE}::test_a_tracking_server_that_does_not_come_back_stops_training_resumably",
        ),
    ),
    "hung": Mutation(
        safeguard="fenced before killed",
        says="what stands still is killed before its trial is taken away",
        file="pipeline/engines/local.py",
        old='        run_id, stacks = None, ""\n',
        new='        _kill(process)\n        run_id, stacks = None, ""\n',
        tests=("tests/engines/test_local.py::test_what_stands_still_has_lost_its_trial_before_it_is_killed",),
    ),
}


def main(names: Iterable[str]) -> int:
    chosen = {name: MUTATIONS[name] for name in names} or MUTATIONS
    survived = []
    with tempfile.TemporaryDirectory(prefix="mutation-") as scratch:
        every = sorted({test for mutation in chosen.values() for test in mutation.tests})
        whole = Path(scratch, "whole")
        copy(ROOT, whole)  # once: the source may be edited while this runs
        red, seconds = run(whole, every)
        assert not red, f"red although nothing is broken: {red}"
        print(f"nothing broken: {len(every)} tests green in {seconds:.0f} s\n", file=sys.stderr)
        print("| safeguard | what was changed | went red | of | seconds |")
        print("|---|---|---|---|---|")
        for name, mutation in chosen.items():
            tree = Path(scratch, name)
            copy(whole, tree)
            mutate(tree, mutation)
            red, seconds = run(tree, mutation.tests)
            if not red:
                survived.append(mutation.safeguard)
            noticed = "<br>".join(f"`{test}`" for test in red) or "**NONE: IT SURVIVES**"
            print(
                f"| {mutation.safeguard} | {mutation.says} (`{mutation.file}`) | {noticed} | {len(mutation.tests)} "
                f"| {seconds:.0f} |",
                flush=True,
            )
    for safeguard in survived:
        print(f"SURVIVED, so no test guards it: {safeguard}", file=sys.stderr)
    return 1 if survived else 0


def copy(source: Path, target: Path) -> None:
    target.mkdir()
    for name in COPIED:
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source / name, target / name)


def mutate(tree: Path, mutation: Mutation) -> None:
    file = tree / mutation.file
    text = file.read_text(encoding="utf-8")
    found = text.count(mutation.old)
    assert found == 1, f"{mutation.file}: what is to be replaced stands there {found} times, expected once"
    changed = text.replace(mutation.old, mutation.new)
    ast.parse(changed)  # a syntax error would make every test red, and show nothing
    file.write_text(changed, encoding="utf-8")


def run(tree: Path, tests: Iterable[str]) -> tuple[list[str], float]:
    """The tests that went red, parameters of one counted as one, and how long they all took."""
    began_s = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rf", "--tb=no", *tests]
    environment = {**os.environ, "PYTHONPATH": str(tree), "COLUMNS": "1000"}
    done = subprocess.run(command, cwd=tree, env=environment, text=True, capture_output=True, check=False)
    assert done.returncode in (PASSED, FAILED), done.stdout + done.stderr
    failed = [line.split()[1].partition("[")[0] for line in done.stdout.splitlines() if line.startswith("FAILED ")]
    assert bool(failed) == (done.returncode == FAILED), done.stdout
    red = [test.rpartition("::")[2] for test in dict.fromkeys(failed)]
    return red, time.monotonic() - began_s


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
