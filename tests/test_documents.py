"""What commands say as JSON, where no command has to be run for it."""

import json

from pipeline import documents
from pipeline.checkpoint import Position
from pipeline.proving.compare import Difference
from pipeline.proving.prove import Proof
from pipeline.sweep.verifying import Verdict


def test_a_number_that_is_not_finite_is_null_at_any_depth():
    given = {"a": float("nan"), "b": [1.5, float("inf"), {"c": -float("inf")}], 3: (True, None, "x")}
    found = {"a": None, "b": [1.5, None, {"c": None}], "3": [True, None, "x"]}
    assert json.loads(documents.text(given)) == found


def test_a_proof_says_where_the_bits_part():
    first = Difference(kind="tensor", name="model.weight", how="", others=2, at=Position(0, 1, 3))
    last = Difference(kind="metric", name="loss", how="1.0 and 2.0")
    proof = Proof(
        file="mine.py",
        epochs=3,
        batches=12,
        stages=False,
        strikes=(),
        compared={"tensor": 4},
        first=(first,),
        last=(last,),
        hints=("a generator was not tracked",),
    )
    found = json.loads(documents.text(documents.proof(proof)))
    assert found["agrees"] is False
    assert found["first"] == [
        {"kind": "tensor", "name": "model.weight", "how": "", "others": 2, "at": "after 3 batches of epoch 1"}
    ]
    assert found["last"] == [{"kind": "metric", "name": "loss", "how": "1.0 and 2.0", "others": 0, "at": None}]
    assert (found["compared"], found["hints"], found["folder"]) == (
        {"tensor": 4},
        ["a generator was not tracked"],
        None,
    )


def test_of_the_checkpoints_that_do_not_verify_those_are_counted_that_count():
    bad = Verdict(owner="#00", name="one", size_bytes=1, counts=True, problem="gone")
    left = Verdict(owner="#00", name="two", size_bytes=2, counts=False, problem="gone")
    found = documents.verdicts([bad, left])
    assert found["bad"] == 1
    assert [one["problem"] for one in found["checkpoints"]] == ["gone", "gone"]
