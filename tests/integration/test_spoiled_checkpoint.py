"""Checkpoints that went bad on the disk: found, set aside, and the ones before them used; and what a resume says of
itself when the machine is not what it was."""

from pathlib import Path

import pytest

from pipeline.checkpoint import MlflowStore
from pipeline.sweep.lineage import lineages
from tests.integration.commands import Workplace

LINEAR = Path(__file__).parents[2] / "experiments" / "linear.py"
SWEEP = ("sweep", LINEAR, "--configurations", "4", "--eta", "2", "--workers", "1")


@pytest.fixture
def pruned(workplace: Workplace) -> Workplace:
    """A sweep in which one configuration was pruned at epoch 2, its second rung: it has a checkpoint of each."""
    workplace.run(*SWEEP)
    return workplace


def pruned_number(workplace: Workplace) -> int:
    found = workplace.study().lineages().values()
    (lineage,) = [one for one in found if one.ended == "paused" and one.epochs == 2]
    return lineage.number


def spoil(workplace: Workplace, number: int, newest: int) -> list[str]:
    """Flips a bit in the last tensors of the newest checkpoints of a configuration; returns their names."""
    (run,) = workplace.runs(kind="configuration", configuration=str(number))
    store = MlflowStore(run.info.run_id, workplace.tracking_uri)
    names = store.names()[-newest:]
    for name in names:
        path = store.get(name) / "state.safetensors"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    return names


def test_verify_finds_a_flipped_bit_and_changes_nothing(pruned: Workplace) -> None:
    assert "0 of them do not verify" in pruned.run("verify", "--study", "linear")
    number = pruned_number(pruned)
    (name,) = spoil(pruned, number, newest=1)
    output = pruned.run("verify", "--study", "linear", code=1)
    (bad,) = [line for line in output.splitlines() if "does not verify:" in line]
    assert bad.startswith(f"#{number:02d}  {name}")
    assert "1 of them do not verify" in output
    (before,) = [line for line in output.splitlines() if line.startswith(f"#{number:02d}") and "e00001" in line]
    assert before.endswith("a resume starts here")
    (run,) = pruned.runs(kind="configuration", configuration=str(number))
    assert not [tag for tag in run.data.tags if tag.startswith("checkpoint_set_aside")]
    assert "1 of them do not verify" in pruned.run("verify", "--run", run.info.run_id, code=1)


def test_a_resume_sets_a_spoiled_checkpoint_aside_and_ends_as_if_it_had_been_good(
    pruned: Workplace, new_workplace: "pytest.FixtureRequest"
) -> None:
    number = pruned_number(pruned)
    (name,) = spoil(pruned, number, newest=1)
    output = pruned.run("resume", "--study", "linear", "--configuration", str(number))
    assert f"checkpoint {name} does not verify and is set aside" in output
    resumed = pruned.trained(configuration=str(number))
    assert f"checkpoint_set_aside.{name}" in resumed.run.data.tags
    assert resumed.run.data.tags["resumed"] == "exact"
    assert [step for step, _ in resumed.curves["train_loss"]] == [1, 2, 3, 4, 5]

    undisturbed = new_workplace("undisturbed")
    undisturbed.run(*SWEEP)
    undisturbed.run("resume", "--study", "linear", "--configuration", str(number))
    reference = undisturbed.trained(configuration=str(number))
    assert resumed.reported == reference.reported
    assert resumed.text == reference.text


def test_a_checkpoint_behind_the_newest_whose_manifest_is_damaged_stays_and_is_set_aside(pruned: Workplace) -> None:
    number = pruned_number(pruned)
    (run,) = pruned.runs(kind="configuration", configuration=str(number))
    store = MlflowStore(run.info.run_id, pruned.tracking_uri)
    name = store.names()[0]
    manifest = store.get(name) / "manifest.json"
    manifest.write_text(manifest.read_text().replace("1", "2", 1))
    damaged = manifest.read_text()
    output = pruned.run("resume", "--study", "linear", "--configuration", str(number))
    assert f"checkpoint {name} cannot be read and is set aside" in output
    resumed = pruned.trained(configuration=str(number))
    assert f"checkpoint_set_aside.{name}" in resumed.run.data.tags
    assert resumed.run.data.tags["state"] == "complete"
    assert manifest.read_text() == damaged


def test_with_no_checkpoint_left_the_configuration_fails_and_says_so(pruned: Workplace) -> None:
    number = pruned_number(pruned)
    spoil(pruned, number, newest=9)
    output = pruned.run("resume", "--study", "linear", "--configuration", str(number), code=1)
    assert "of its 2 checkpoints verifies" in output
    assert "sweep again under another --study" in output
    (run,) = pruned.runs(kind="configuration", configuration=str(number))
    assert (run.info.status, run.data.tags["state"]) == ("FAILED", "failed")


def test_a_resume_on_another_machine_is_labelled_best_effort(pruned: Workplace) -> None:
    number = pruned_number(pruned)
    study = pruned.study()
    study.set_attr("site", {**study.attrs["site"], "threads": 3})
    output = pruned.run("resume", "--study", "linear", "--configuration", str(number))
    assert f"#{number:02d} resumes by best effort, not exactly: threads: " in output
    (run,) = pruned.runs(kind="configuration", configuration=str(number))
    assert run.data.tags["resumed"].startswith("best effort (threads: ")
    head = lineages(pruned.trials())[number].head
    assert head.user_attrs["resumed"].startswith("best effort")


def test_inspect_prints_what_is_in_a_checkpoint(pruned: Workplace) -> None:
    run_id = pruned.trained(state="complete").run.info.run_id
    output = pruned.run("inspect", run_id)
    assert "epoch 5, batch 0" in output
    assert "model\n  bias  float32 1  4 bytes\n  weight  float32 1x1  4 bytes\n" in output
    assert "no such MLflow run" in pruned.run("inspect", "0" * 32, code=2)
