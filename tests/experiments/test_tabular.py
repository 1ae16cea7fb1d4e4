"""The classifier for tables: what it refuses, how it splits and encodes, what it predicts."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from experiments import tabular
from experiments.tabular import Data
from pipeline import UsageError


def customers(rows: int = 100) -> pd.DataFrame:
    """Numbers, a category, and a target that both decide."""
    rng = np.random.default_rng(0)
    age = rng.integers(18, 80, rows)
    city = rng.choice(["Berlin", "Paris", "Rome"], rows)
    return pd.DataFrame(
        {
            "age": age,
            "income": rng.normal(3000, 500, rows).round(2),
            "city": city,
            "bought": np.where((age > 45) | (city == "Rome"), "yes", "no"),
        }
    )


@pytest.fixture
def saved(tmp_path):
    """Writes a table where `Data.path` finds it, under a name with a space and an accent."""

    def write(table: pd.DataFrame, name: str = "my tablé.csv") -> Path:
        path = tmp_path / name
        if path.suffix == ".parquet":
            table.to_parquet(path)
        else:
            table.to_csv(path, index=False)
        return path

    return write


def refusal(path: Path, target: str = "bought", **options: float) -> str:
    with pytest.raises(UsageError) as caught:
        tabular.prepare(Data(path=path, target=target, **options))
    message = str(caught.value)
    assert "\n" not in message
    return message


# What is refused


def test_a_missing_file_is_named(tmp_path):
    path = tmp_path / "no.csv"
    assert refusal(path) == f"{path}: no such file; --data.path takes a CSV or Parquet file"


def test_a_folder_is_no_file(tmp_path):
    assert "no such file" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_an_empty_file_is_refused(tmp_path, name):
    (tmp_path / name).touch()
    assert refusal(tmp_path / name).endswith(f"{name}: the file is empty")


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("t.csv", b"\x89PNG\r\n\x1a\n\x00\xff\xfe", "not a table: 'utf-8' codec"),
        ("t.csv", b'a,b\n1,2\n1,2,3,4\n"', "not a table: "),
        ("t.csv", b"a,b\n1,2,3\n4,5,6\n", "its rows have more fields than its header"),
        ("t.csv", b"\n\n", "not a table: No columns"),
        ("t.csv", b"a;bought\n1;2\n", "columns separated by commas, found only 'a;bought'"),
        ("t.csv", b"a,bought\n", "there are columns but no rows"),
        ("t.parquet", b"a,bought\n1,2\n", "not a table: "),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path, name, content, complaint):
    (tmp_path / name).write_bytes(content)
    assert refusal(tmp_path / name).startswith(f"{tmp_path / name}: ")
    assert complaint in refusal(tmp_path / name)


def test_a_missing_target_lists_the_columns(saved):
    path = saved(customers())
    columns = "'age', 'income', 'city', 'bought'"
    assert refusal(path, target="") == (f"{path}: which column is to be predicted? Give --data.target one of {columns}")
    assert refusal(path, target="sold") == (f"{path}: there is no column 'sold'. Give --data.target one of {columns}")


def test_a_long_list_of_columns_is_cut(saved):
    path = saved(pd.DataFrame({f"x{i}": [1, 2] for i in range(30)}))
    assert refusal(path, target="y").endswith("'x19' and 10 more")


@pytest.mark.parametrize(
    ("target", "complaint"),
    [
        (["yes"] * 100, "column 'bought' (the target): every row is 'yes'; at least two classes are needed"),
        (["yes", "no"] * 49 + ["yes", None], "column 'bought' (the target): empty in 1 of 100 rows"),
        (list(range(100)), "column 'bought' (the target): 100 different values"),
        (["yes", "no"] * 49 + ["rare"] * 2, "column 'bought' (the target): class 'rare' has 2 of 100 rows"),
    ],
)
def test_a_target_that_names_no_classes_is_refused(saved, target, complaint):
    assert complaint in refusal(saved(customers().assign(bought=target)))


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ([None] * 100, "empty"),
        ([7] * 100, "constant, every value is 7"),
        ([7, None] * 50, "constant, every value is 7"),
        (["a"] * 100, "constant, every value is 'a'"),
        ([f"id-{i}" for i in range(100)], "text of 100 different values in 100 rows, such as 'id-0'"),
        ([f"id-{i}" for i in range(30)] + [None] * 70, "text of 30 different values in 30 rows"),
        (["x" * 1000 + str(i) for i in range(100)], "text of 100 different values"),
        ([*range(99), "n/k"], "expected numbers, found 'n/k' in row 100"),
        ([1.5, float("inf")] * 50, "holds an infinite value"),
    ],
)
def test_a_column_that_teaches_nothing_is_named(saved, values, complaint):
    message = refusal(saved(customers().assign(strange=values)))
    assert f"column 'strange': {complaint}" in message
    assert len(message) < 300


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (pd.date_range("2024-01-01", periods=100), "Timestamp"),
        ([{"nested": i} for i in range(100)], "dict"),
        ([[i, i] for i in range(100)], "ndarray"),
    ],
)
def test_a_column_of_neither_numbers_nor_text_is_named(saved, values, found):
    path = saved(customers().assign(strange=values), "t.parquet")
    assert f"column 'strange': expected numbers or text, found {found}" in refusal(path)


@pytest.mark.parametrize("fraction", [-0.1, 0.0, 1.0, float("nan")])
def test_a_test_fraction_out_of_range_is_refused(saved, fraction):
    assert f"--data.test-fraction {fraction}" in refusal(saved(customers()), test_fraction=fraction)


@pytest.mark.parametrize("fraction", [-0.1, 1.0])
def test_a_validation_fraction_out_of_range_is_refused(saved, fraction):
    assert f"--data.validation-fraction {fraction}" in refusal(saved(customers()), validation_fraction=fraction)


def test_too_few_rows_to_split_are_refused(saved):
    table = customers(100).assign(bought=["a", "b", "c", "d"] * 25)
    message = refusal(saved(table), test_fraction=0.02)
    assert "100 rows cannot be split by column 'bought'" in message


# Split


def test_the_split_is_80_20_of_which_a_fifth_validates(saved):
    tables = tabular.prepare(Data(path=saved(customers(1000)), target="bought"))
    assert [len(tables[name]) for name in ("train", "validation", "test")] == [640, 160, 200]


def test_every_part_has_the_classes_in_the_same_proportions(saved):
    table = customers(1000)
    tables = tabular.prepare(Data(path=saved(table), target="bought"))
    share = (table["bought"] == "yes").mean()
    for name in ("train", "validation"):
        assert tables[name]["bought"].mean() == pytest.approx(share, abs=0.005)
    assert (tables["test"]["bought"] == "yes").mean() == pytest.approx(share, abs=0.005)


def test_the_test_rows_stay_raw_and_no_row_is_in_two_parts(saved):
    table = customers(1000).assign(row=range(1000))
    tables = tabular.prepare(Data(path=saved(table), target="bought"))
    test = tables["test"]
    assert_frame_equal(test, table.loc[test["row"]].reset_index(drop=True).astype(test.dtypes))
    row = tables["columns"].set_index("name").loc["row"]
    parts = [tables[name]["row"].to_numpy("float64") for name in ("train", "validation")]
    rows = np.concatenate(parts) * (row["maximum"] - row["minimum"]) + row["minimum"]
    assert sorted([*rows.round().astype(int), *test["row"]]) == list(range(1000))


def test_without_validation_all_of_the_80_are_trained_on(saved):
    tables = tabular.prepare(Data(path=saved(customers(1000)), target="bought", validation_fraction=0))
    assert [len(tables[name]) for name in ("train", "validation", "test")] == [800, 0, 200]
    assert list(tables["validation"].columns) == list(tables["train"].columns)


def test_the_seed_alone_decides_the_split(saved):
    path = saved(customers())
    first, again, other = (tabular.prepare(Data(path=path, target="bought", seed=seed)) for seed in (0, 0, 1))
    for name in first:
        assert_frame_equal(first[name], again[name])
    assert not first["test"].equals(other["test"])


# Encode


def test_minimum_and_maximum_are_the_training_parts_own(saved):
    table = customers(100)
    tables = tabular.prepare(Data(path=saved(table), target="bought"))
    smallest = tables["test"]["age"].idxmin()
    found = table["income"] == tables["test"]["income"][smallest]
    table.loc[found, "age"] = -1000  # its row stays in the test part: the split does not look at ages
    with_outlier = tabular.prepare(Data(path=saved(table), target="bought"))
    assert with_outlier["test"]["age"].min() == -1000
    assert_frame_equal(with_outlier["columns"], tables["columns"])
    assert_frame_equal(with_outlier["train"], tables["train"])
    assert with_outlier["train"]["age"].min() == 0
    assert with_outlier["train"]["age"].max() == 1


def test_a_category_becomes_a_column_each():
    columns = tabular.fit(pd.DataFrame({"city": ["Rome", "Paris", "Rome"]}))
    encoded = tabular.encode(pd.DataFrame({"city": ["Paris", "Rome"]}), columns)
    assert encoded.to_dict("list") == {"city=Paris": [1, 0], "city=Rome": [0, 1]}
    assert set(encoded.dtypes) == {np.dtype("float32")}


def test_an_unseen_category_is_zero_everywhere():
    columns = tabular.fit(pd.DataFrame({"city": ["Rome", "Paris"]}))
    for value in ("Oslo", None):
        encoded = tabular.encode(pd.DataFrame({"city": pd.Series([value], dtype="str")}), columns)
        assert encoded.to_numpy().tolist() == [[0, 0]]


def test_missing_numbers_become_the_training_parts_median():
    columns = tabular.fit(pd.DataFrame({"age": [10.0, 20.0, None, 40.0]}))
    encoded = tabular.encode(pd.DataFrame({"age": [None, 10.0, 40.0, 70.0]}), columns)
    assert encoded["age"].to_numpy() == pytest.approx([1 / 3, 0, 1, 2])


def test_missing_text_is_a_category_of_its_own():
    columns = tabular.fit(pd.DataFrame({"city": ["Rome", None]}))
    encoded = tabular.encode(pd.DataFrame({"city": [None, "Rome"]}), columns)
    assert encoded.to_dict("list") == {"city=Rome": [0, 1], "city=missing": [1, 0]}


def test_a_column_without_values_in_the_training_part_encodes_as_a_finite_number():
    columns = tabular.fit(pd.DataFrame({"age": [None, None]}, dtype="float64"))
    encoded = tabular.encode(pd.DataFrame({"age": [None, 3.0]}, dtype="float64"), columns)
    assert encoded["age"].tolist() == [0, 3]


@pytest.mark.parametrize(
    ("raw", "numeric"),
    [
        (pd.Series([True, False]), True),
        (pd.Series([1, None], dtype="Int64"), True),
        (pd.Series([True, None], dtype="boolean"), True),
        (pd.Series([1, 2], dtype="category"), False),
        (pd.Series([True, None], dtype="object"), False),
    ],
)
def test_every_kind_of_column_can_be_encoded(raw, numeric):
    columns = tabular.fit(pd.DataFrame({"x": raw}))
    assert columns["kind"].tolist() == ["numeric" if numeric else "categorical"]
    encoded = tabular.encode(pd.DataFrame({"x": raw}), columns)
    assert encoded.shape == (2, 1 if numeric else 2)
    assert np.isfinite(encoded.to_numpy()).all()


def test_what_was_fitted_survives_parquet(saved, tmp_path):
    table = customers()
    table.loc[::10, ["city", "income"]] = None
    tables = tabular.prepare(Data(path=saved(table), target="bought"))
    for name, part in tables.items():
        part.to_parquet(tmp_path / f"{name}.parquet")
        assert_frame_equal(pd.read_parquet(tmp_path / f"{name}.parquet"), part)
    cities = tables["columns"].set_index("name").loc["city", "categories"]
    assert json.loads(cities) == ["Berlin", "Paris", "Rome", "missing"]


def test_raw_rows_for_another_table_name_the_column():
    columns = tabular.fit(pd.DataFrame({"age": [1, 2]}))
    with pytest.raises(UsageError, match="column 'age' is missing; found 'years'"):
        tabular.encode(pd.DataFrame({"years": [1]}), columns)
    with pytest.raises(UsageError, match="column 'age': expected numbers"):
        tabular.encode(pd.DataFrame({"age": ["old"]}), columns)


def test_parquet_and_csv_give_the_same_tables(saved):
    table = customers()
    from_csv = tabular.prepare(Data(path=saved(table), target="bought"))
    from_parquet = tabular.prepare(Data(path=saved(table, "t.parquet"), target="bought"))
    for name in from_csv:
        assert_frame_equal(from_csv[name], from_parquet[name])


# Train and predict

DEFAULT = tabular.Config()


def trained(plain_run, tables, config=DEFAULT, max_epochs=27):
    run = plain_run(tabular.experiment, data=tables, max_epochs=max_epochs)
    tabular.train(config, run)
    judged = plain_run(tabular.experiment, data=tables, best=run.tracked["model"].state_dict())
    metrics = tabular.evaluate(config, judged)
    return run.reports, metrics, judged.tracked["model"]


def test_without_a_file_tumours_are_told_apart(plain_run):
    tables = tabular.prepare(Data())
    assert [len(tables[name]) for name in ("train", "validation", "test")] == [364, 91, 114]
    assert tables["classes"].to_dict("list") == {"diagnosis": ["benign", "malignant"]}
    reports, metrics, model = trained(plain_run, tables)
    assert reports[-1]["loss"] == reports[-1]["val_loss"] < 0.2
    assert metrics["test_accuracy"] > 0.9
    assert metrics["test_auc"] > 0.95
    assert model.layers[-1].out_features == 1


def test_predictions_take_raw_rows_and_agree_with_the_metrics(plain_run, saved):
    table = customers(1000)
    table.loc[::50, "income"] = None
    tables = tabular.prepare(Data(path=saved(table), target="bought"))
    _, metrics, model = trained(plain_run, tables, tabular.Config(lr=3e-2))
    raw = tables["test"].drop(columns="bought")
    predicted = model.predict(raw)
    assert list(predicted.columns) == ["bought", "probability_no", "probability_yes"]
    assert predicted[["probability_no", "probability_yes"]].sum(axis=1).to_numpy() == pytest.approx(1)
    assert (predicted["bought"] == tables["test"]["bought"]).mean() == metrics["test_accuracy"] > 0.9
    one = model.predict(raw.iloc[[5]])
    assert one["bought"].tolist() == [predicted["bought"][5]]


@pytest.mark.parametrize("labels", [["low", "middle", "high"], [1, 2, 3]])
def test_several_classes_share_a_softmax(plain_run, saved, labels):
    table = customers(600)
    table["bought"] = np.array(labels)[np.digitize(table["age"], [35, 55])]
    tables = tabular.prepare(Data(path=saved(table), target="bought"))
    assert tables["classes"]["bought"].tolist() == sorted(labels)
    _, metrics, model = trained(plain_run, tables, tabular.Config(lr=3e-2))
    assert model.layers[-1].out_features == 3
    assert metrics["test_accuracy"] > 0.8
    assert "test_auc" not in metrics
    assert set(model.predict(tables["test"])["bought"]) == set(labels)


def test_without_validation_the_training_loss_is_monitored(plain_run, saved):
    tables = tabular.prepare(Data(path=saved(customers(200)), target="bought", validation_fraction=0))
    reports, metrics, _ = trained(plain_run, tables, max_epochs=3)
    assert [sorted(report) for report in reports] == [["loss", "train_accuracy", "train_loss"]] * 3
    assert reports[-1]["loss"] < reports[0]["loss"]
    assert set(metrics) == {"test_accuracy", "test_loss", "test_auc"}


def test_two_numeric_classes_and_a_categorical_target_work(plain_run, saved):
    for kind in ("int64", "category"):
        table = customers(200)
        table["bought"] = (table["bought"] == "yes").astype("int64").astype(kind)
        tables = tabular.prepare(Data(path=saved(table, "t.parquet"), target="bought"))
        assert tables["classes"]["bought"].tolist() == [0, 1]
        _, metrics, _ = trained(plain_run, tables, max_epochs=1)
        assert 0 <= metrics["test_accuracy"] <= 1
