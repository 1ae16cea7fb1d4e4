"""A classifier for tables: any CSV or Parquet file, numbers and categories, two classes or several.

Without a file it learns to tell malignant from benign breast tumours, from real measurements of 569 patients.
"""

import json
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import torch
from pandas.api.types import is_numeric_dtype
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from pipeline import Experiment, Run, UsageError

MAX_CATEGORIES = 50  # text of more different values is an identifier or prose, and nothing to one-hot
MIN_ROWS_PER_CLASS = 3  # one each to train on, to validate on and to test on


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is varied.

    Attributes:
        lr: learning rate of AdamW.
        width: units of the hidden layer.
        weight_decay: AdamW's weight decay.
        batch_size: rows a step.
    """

    lr: float = 3e-3
    width: int = 32
    weight_decay: float = 1e-2
    batch_size: int = 32


@dataclass(frozen=True, kw_only=True)
class Data:
    """Which table, what to predict, how to split.

    Attributes:
        path: a CSV or Parquet file; without one, scikit-learn's breast cancer table.
        target: the column to predict.
        test_fraction: share of the rows that training never sees.
        validation_fraction: share of the other rows by which epochs and configurations are compared;
            0 trains on all of them and compares by the training loss.
        seed: decides which row goes where.
    """

    path: Path = Path()
    target: str = ""
    test_fraction: float = 0.2
    validation_fraction: float = 0.2
    seed: int = 0


def suggest(trial: optuna.Trial) -> Config:
    return Config(
        lr=trial.suggest_float("lr", 1e-4, 1e-1, log=True),
        width=trial.suggest_int("width", 4, 128, log=True),
        weight_decay=trial.suggest_float("weight_decay", 1e-4, 1e-1, log=True),
        batch_size=trial.suggest_categorical("batch_size", [16, 32, 64]),
    )


# Prepare: load, check, split, fit on the training part, encode.


def prepare(data: Data) -> Mapping[str, pd.DataFrame]:
    """The prepared training and validation rows, the raw test rows, and what was fitted on the training rows.

    `train` and `validation` hold what `encode` returns and, as the last column, the class's place in
    `classes`. `test` holds rows as they were loaded. `columns` is what `fit` returns.
    """
    table, target = load(data)
    training, validation, test = split(table, target, data)
    columns = fit(training.drop(columns=target))
    classes = pd.DataFrame({target: sorted(table[target].unique())})
    return {
        "train": labelled(training, columns, classes),
        "validation": labelled(validation, columns, classes),
        "test": test,
        "columns": columns,
        "classes": classes,
    }


def load(data: Data) -> tuple[pd.DataFrame, str]:
    """The raw table, checked, and the name of the column to predict."""
    if data.path == Path():
        where, target = "the breast cancer table", data.target or "diagnosis"
        bunch = load_breast_cancer(as_frame=True)
        table = bunch.data.assign(diagnosis=bunch.target_names[bunch.target].astype(str))
    else:
        where, target = str(data.path), data.target
        table = read(data.path)
    if target not in table.columns:
        problem = f"there is no column {target!r}." if target else "which column is to be predicted?"
        raise UsageError(f"{where}: {problem} Give --data.target one of {listed(table.columns)}")
    if isinstance(table[target].dtype, pd.CategoricalDtype):
        table[target] = table[target].astype(table[target].cat.categories.dtype)
    check_target(table[target], where)
    for name in table.columns.drop(target):
        check_feature(table[name], where)
    return table, target


def read(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise UsageError(f"{path}: no such file; --data.path takes a CSV or Parquet file")
    if not path.stat().st_size:
        raise UsageError(f"{path}: the file is empty")
    try:
        if path.suffix.lower() in (".parquet", ".pq"):
            table = pd.read_parquet(path).reset_index(drop=True)
        else:
            table = pd.read_csv(path, low_memory=False)  # False: one type for a whole column
    except (ValueError, OSError) as error:  # parsers', decoders' and Arrow's errors are ValueErrors
        raise UsageError(f"{path}: not a table: {' '.join(str(error).split())}") from error
    table.columns = table.columns.astype(str)
    if not table.index.equals(pd.RangeIndex(len(table))):
        raise UsageError(f"{path}: not a table: its rows have more fields than its header")
    if len(table.columns) < 2:
        raise UsageError(f"{path}: expected columns separated by commas, found only {listed(table.columns)}")
    if not table.columns.is_unique:
        raise UsageError(f"{path}: column {table.columns[table.columns.duplicated()][0]!r} is there twice")
    if table.empty:
        raise UsageError(f"{path}: there are columns but no rows")
    return table


def check_target(column: pd.Series, where: str) -> None:
    place = f"{where}, column {column.name!r} (the target)"
    if column.isna().any():
        raise UsageError(f"{place}: empty in {column.isna().sum()} of {len(column)} rows; leave them out")
    rows = column.value_counts()
    if len(rows) == 1:
        raise UsageError(f"{place}: every row is {rows.index[0]!r}; at least two classes are needed")
    if len(rows) > MAX_CATEGORIES:
        raise UsageError(f"{place}: {len(rows)} different values; expected at most {MAX_CATEGORIES} classes")
    if rows.min() < MIN_ROWS_PER_CLASS:
        raise UsageError(
            f"{place}: class {rows.idxmin()!r} has {rows.min()} of {len(column)} rows; "
            f"expected at least {MIN_ROWS_PER_CLASS}: to train, to validate and to test"
        )


def check_feature(column: pd.Series, where: str) -> None:
    place = f"{where}, column {column.name!r}"
    present = column.dropna()
    if present.empty:
        raise UsageError(f"{place}: empty; leave it out")
    if is_numeric_dtype(column):
        if np.isinf(numbers(present)).any():
            raise UsageError(f"{place}: holds an infinite value; a missing one is an empty field")
        if present.nunique() == 1:
            raise UsageError(f"{place}: constant, every value is {present.iloc[0]}; leave it out")
        return
    if not isinstance(column.dtype, pd.CategoricalDtype):
        for value in present:
            if not isinstance(value, (str, bool)):
                raise UsageError(f"{place}: expected numbers or text, found {type(value).__name__} {value!r}")
    values = texts(present)
    distinct = values.nunique()
    if texts(column).nunique() == 1:
        raise UsageError(f"{place}: constant, every value is {reprlib.repr(values.iloc[0])}; leave it out")
    if distinct > min(MAX_CATEGORIES, max(10, len(values) // 2)):
        wrong = values[pd.to_numeric(values, errors="coerce").isna()]
        if len(wrong) < len(values) / 2:
            raise UsageError(
                f"{place}: expected numbers, found {reprlib.repr(wrong.iloc[0])} in row {wrong.index[0] + 1} "
                f"and {len(wrong)} rows in all; a missing value is an empty field"
            )
        raise UsageError(
            f"{place}: text of {distinct} different values in {len(values)} rows, such as "
            f"{reprlib.repr(values.iloc[0])}: too many for categories; leave it out"
        )


def listed(names: pd.Index) -> str:
    shown = ", ".join(repr(name) for name in names[:20])
    return f"{shown} and {len(names) - 20} more" if len(names) > 20 else shown or "none"


def split(table: pd.DataFrame, target: str, data: Data) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Training, validation and test rows, each with the classes in the table's own proportions."""
    if not 0 < data.test_fraction < 1:
        raise UsageError(f"--data.test-fraction {data.test_fraction}: expected more than 0, less than 1")
    if not 0 <= data.validation_fraction < 1:
        raise UsageError(f"--data.validation-fraction {data.validation_fraction}: expected 0 or more, less than 1")
    try:
        training, test = stratified(table, target, data.test_fraction, data.seed)
        validation = training.iloc[:0]
        if data.validation_fraction:
            training, validation = stratified(training, target, data.validation_fraction, data.seed)
    except ValueError as error:
        raise UsageError(f"{len(table)} rows cannot be split by column {target!r}: {error}") from error
    return training, validation, test


def stratified(table: pd.DataFrame, target: str, fraction: float, seed: int) -> list[pd.DataFrame]:
    parts = train_test_split(table, test_size=fraction, random_state=seed, stratify=table[target])
    return [part.reset_index(drop=True) for part in parts]


def fit(rows: pd.DataFrame) -> pd.DataFrame:
    """What `encode` needs to know, one row for each raw column.

    `name` and `kind`; for a numeric column `fill` (the median), `minimum` and `maximum`; for a categorical
    one `categories`, a JSON list. A column with missing values has a category `missing`.
    """
    fitted = []
    for name in rows.columns:
        if is_numeric_dtype(rows[name]):
            known = numbers(rows[name].dropna())
            known = known if len(known) else np.zeros(1)  # empty here, but not in the whole table
            stats = {"fill": np.median(known), "minimum": known.min(), "maximum": known.max()}
            fitted.append({"name": name, "kind": "numeric", **stats, "categories": "[]"})
        else:
            categories = json.dumps(sorted(texts(rows[name]).unique()), ensure_ascii=False)
            fitted.append({"name": name, "kind": "categorical", "categories": categories})
    return pd.DataFrame(fitted, columns=["name", "kind", "fill", "minimum", "maximum", "categories"]).astype(
        {"fill": "float64", "minimum": "float64", "maximum": "float64"}
    )


def encode(table: pd.DataFrame, columns: pd.DataFrame) -> pd.DataFrame:
    """Raw rows as float32: numbers from 0 to 1 within the fitted range, a category as a column of its own.

    A category that `fit` did not see is 0 in all of them.
    """
    encoded: dict[str, np.ndarray] = {}
    for column in columns.itertuples():
        if column.name not in table.columns:
            raise UsageError(f"column {column.name!r} is missing; found {listed(table.columns)}")
        raw = table[column.name]
        if column.kind == "numeric":
            try:
                values = numbers(raw)
            except (ValueError, TypeError) as error:
                raise UsageError(f"column {column.name!r}: expected numbers: {error}") from error
            values = np.where(np.isnan(values), column.fill, values)
            encoded[column.name] = (values - column.minimum) / ((column.maximum - column.minimum) or 1.0)
        else:
            values = texts(raw)
            for category in json.loads(column.categories):
                encoded[f"{column.name}={category}"] = (values == category).to_numpy()
    return pd.DataFrame(encoded, index=table.index).astype("float32")


def numbers(column: pd.Series) -> np.ndarray:
    """float64, nan where a value is missing."""
    return column.to_numpy(dtype="float64", na_value=np.nan)


def texts(column: pd.Series) -> pd.Series:
    """The values as text, `missing` where there is none."""
    return column.astype(object).where(column.notna(), "missing").map(str)


def labelled(table: pd.DataFrame, columns: pd.DataFrame, classes: pd.DataFrame) -> pd.DataFrame:
    prepared, target = encode(table, columns), classes.columns[0]
    prepared.insert(len(prepared.columns), target, places(table[target], classes))
    return prepared


def places(labels: pd.Series, classes: pd.DataFrame) -> np.ndarray:
    """Where each label stands in the table of classes."""
    return pd.Index(classes.iloc[:, 0]).get_indexer(labels)


# Train


class Classifier(nn.Module):
    """One hidden layer with ReLU; a single sigmoid output for two classes, softmax for several."""

    def __init__(self, columns: pd.DataFrame, classes: pd.DataFrame, width: int) -> None:
        super().__init__()
        self.columns = columns
        self.classes = classes
        inputs = encode(pd.DataFrame(columns=columns["name"]), columns).shape[1]
        outputs = 1 if len(classes) == 2 else len(classes)
        self.layers = nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, outputs))

    def forward(self, rows: Tensor) -> Tensor:
        """(rows, encoded columns) -> logits, (rows, 1) for two classes and (rows, classes) for several."""
        return self.layers(rows)

    @torch.no_grad()
    def predict(self, table: pd.DataFrame) -> pd.DataFrame:
        """The class of each raw row under the target's name, and `probability_CLASS` for every class."""
        device = next(self.parameters()).device
        rows = torch.tensor(encode(table, self.columns).to_numpy(), device=device)
        chances = probabilities(self.eval()(rows)).cpu().numpy()
        names = self.classes.iloc[:, 0]
        predicted = {names.name: names.to_numpy()[chances.argmax(axis=1)]}
        predicted |= {f"probability_{name}": chances[:, place] for place, name in enumerate(names)}
        return pd.DataFrame(predicted, index=table.index)


def probabilities(logits: Tensor) -> Tensor:
    """(rows, classes), each row adds up to 1."""
    if logits.shape[1] > 1:
        return logits.softmax(dim=1)
    return torch.cat([(-logits).sigmoid(), logits.sigmoid()], dim=1)


def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
    if logits.shape[1] > 1:
        return cross_entropy(logits, labels)
    return binary_cross_entropy_with_logits(logits.squeeze(1), labels.float())


def tensors(prepared: pd.DataFrame) -> tuple[Tensor, Tensor]:
    """(rows, encoded columns) as float32 and the (rows,) classes' places as int64."""
    features, labels = prepared.iloc[:, :-1], prepared.iloc[:, -1]
    return torch.tensor(features.to_numpy(dtype="float32")), torch.tensor(labels.to_numpy(dtype="int64"))


@torch.no_grad()
def measure(model: Classifier, prepared: pd.DataFrame, device: torch.device) -> tuple[float, float]:
    """Mean loss and accuracy."""
    rows, labels = (tensor.to(device) for tensor in tensors(prepared))
    logits = model.eval()(rows)
    hits = probabilities(logits).argmax(dim=1) == labels
    return loss_of(logits, labels).item(), hits.float().mean().item()


def train(config: Config, run: Run) -> None:
    training, validation = run.data["train"], run.data["validation"]
    loader = DataLoader(TensorDataset(*tensors(training)), batch_size=config.batch_size, shuffle=True)
    model = Classifier(run.data["columns"], run.data["classes"], config.width).to(run.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)

    run.track(model=model, optimizer=optimizer)
    for _ in run.epochs():
        model.train()
        for rows, labels in run.batches(loader):
            loss = loss_of(model(rows.to(run.device)), labels.to(run.device))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            run.mean(train_loss=loss.item())
        if len(validation):
            val_loss, val_accuracy = measure(model, validation, run.device)
            run.report(loss=val_loss, val_loss=val_loss, val_accuracy=val_accuracy)
        else:
            loss_now, train_accuracy = measure(model, training, run.device)
            run.report(loss=loss_now, train_accuracy=train_accuracy)


def evaluate(config: Config, run: Run) -> Mapping[str, float]:
    """Judges the model as it will be served: on raw rows."""
    classes = run.data["classes"]
    model = Classifier(run.data["columns"], classes, config.width).to(run.device)
    run.track(model=model)

    test, target = run.data["test"], classes.columns[0]
    predicted = model.predict(test.drop(columns=target))
    chances = predicted.drop(columns=target).to_numpy(dtype="float64")
    labels = places(test[target], classes)
    metrics = {
        "test_accuracy": float((chances.argmax(axis=1) == labels).mean()),
        "test_loss": float(-np.log(chances[np.arange(len(labels)), labels].clip(min=1e-12)).mean()),
    }
    if len(classes) == 2 and len(set(labels)) == 2:
        metrics["test_auc"] = float(roc_auc_score(labels, chances[:, 1]))
    return metrics


experiment = Experiment(
    config=Config,
    suggest=suggest,
    train=train,
    data=Data,
    prepare=prepare,
    evaluate=evaluate,
    monitor="loss",  # the validation part's, or the training part's where there is no other
    direction="minimize",
    max_epochs=27,
)
