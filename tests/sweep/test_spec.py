"""What a study is, and what happens when it is asked to be another."""

import json

import pytest

from pipeline.errors import UsageError
from pipeline.sweep.spec import StudySpec, refuse_change
from tests.sweep.trials import spec


def test_a_spec_comes_back_from_json_as_it_was():
    given = spec(config={"lr": 0.1, "layers": [1, 2]}, data_options={"path": "a.csv"})
    assert StudySpec.from_json(json.loads(json.dumps(given.to_json()))) == given


def test_equal_specs_have_no_differences():
    assert spec().differences(spec()) == {}
    refuse_change("s", {}, accept=False)


def test_a_difference_names_the_field_and_both_values():
    differences = spec(configurations=8, seed=1).differences(spec())
    assert differences == {"configurations": (9, 8), "seed": (0, 1)}
    with pytest.raises(UsageError, match=r"study 's' .*configurations: 9 -> 8, seed: 0 -> 1.*--study") as raised:
        refuse_change("s", differences, accept=True)
    assert "--accept-change" not in str(raised.value)


def test_changed_code_or_data_can_be_accepted_and_the_message_says_how():
    differences = spec(code="d" * 64, data="e" * 64).differences(spec())
    with pytest.raises(UsageError, match="--accept-change true"):
        refuse_change("s", differences, accept=False)
    refuse_change("s", differences, accept=True)


def test_accepting_a_change_of_code_does_not_accept_another_search():
    differences = spec(code="d" * 64, eta=4).differences(spec())
    with pytest.raises(UsageError, match="eta: 3 -> 4"):
        refuse_change("s", differences, accept=True)


def test_more_configurations_of_the_same_search_are_continued_and_fewer_refused():
    refuse_change("s", spec(configurations=12).differences(spec()), accept=False)
    with pytest.raises(UsageError, match="configurations: 9 -> 8"):
        refuse_change("s", spec(configurations=8).differences(spec()), accept=True)
    with pytest.raises(UsageError, match=r"\(eta: 3 -> 4\)"):
        refuse_change("s", spec(configurations=12, eta=4).differences(spec()), accept=False)


@pytest.mark.parametrize(
    ("field", "value", "flag"),
    [
        ("configurations", 0, "--configurations 0"),
        ("max_epochs", 0, "--max-epochs 0"),
        ("min_epochs", -1, "--min-epochs -1"),
        ("eta", 1, "--eta 1"),
    ],
)
def test_a_search_that_makes_no_sense_is_refused_by_the_name_of_its_flag(field, value, flag):
    with pytest.raises(UsageError, match=flag):
        spec(**{field: value})
