"""Bringing what people see in MLflow up to date: the pages as text, the pictures, and the report that stands alone."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.report import frames
from pipeline.report.found import Found
from pipeline.report.pages import changed, configuration_page, study_metrics, study_page, study_tags
from pipeline.sweep.study import Study
from pipeline.tracking import runs


class Refresher:
    """What MLflow shows of a study, brought up to date as often as it is asked to; only what is new is written."""

    def __init__(self, study: Study, *, storage: str | None) -> None:
        """`storage` is the URL that the commands on the page have to be told, None if they find it by themselves."""
        self._study = study
        self._storage = storage
        self._notes: dict[str, str] | None = None  # by run; None: not read yet
        self._metrics: dict[str, float] = {}

    def pages(self) -> None:
        """The descriptions of the study and its configurations, and the study's metrics."""
        found = Found.of(self._study)
        if self._notes is None:
            self._notes = {run.info.run_id: run.data.tags.get(runs.NOTE, "") for run in self._runs(found)}
            self._metrics = runs.metrics_of(found.site.run_id)
        for lineage in found.lineages.values():
            if lineage.run_id is not None:
                self._describe(lineage.run_id, configuration_page(found, lineage))
        self._describe(
            found.site.run_id, study_page(found, version=self._version(found), storage=self._storage), study_tags(found)
        )
        none = {name: 0.0 for name in self._metrics if name.startswith("configurations/")}
        new = changed(none | study_metrics(found), self._metrics)
        if new:
            runs.log_now(found.site.run_id, new, found.epochs)
            self._metrics |= new

    def pictures(self, *, stop: Callable[[], bool] = lambda: False) -> None:
        """The pictures; those that are not drawn when `stop` says so are left as they are."""
        from pipeline.report.pictures import pictures

        found = Found.of(self._study)
        with tempfile.TemporaryDirectory(prefix="thaw-") as folder:
            for name, figure in pictures(found):
                file = Path(folder, f"{name}.png")
                figure.savefig(file)
                runs.log_file(found.site.run_id, file, "pictures")
                if stop():
                    return

    def everything(self) -> None:
        """All there is: pages, pictures, tables, and the report that stands alone."""
        self.pages()
        self.pictures()
        self.tables()
        self.report()

    def tables(self) -> None:
        """The results as tables, for other programs: of configurations and of segments."""
        found = Found.of(self._study)
        results = frames.configurations(found.lineages, self._runs(found), over=found.search_over)
        segments = frames.segments(found.lineages)
        with tempfile.TemporaryDirectory(prefix="thaw-") as folder:
            for name, table in (("results", results), ("segments", segments)):
                table.to_csv(Path(folder, f"{name}.csv"))
                _storable(table).to_parquet(Path(folder, f"{name}.parquet"))
            for file in sorted(Path(folder).iterdir()):
                runs.log_file(found.site.run_id, file)

    def report(self) -> None:
        """report.html: the page that stands alone."""
        from pipeline.report.standalone import failed_first, standalone

        found = Found.of(self._study)
        texts = {one.number: runs.read_text(str(one.run_id), "traceback.txt") for one in failed_first(found)}
        page = standalone(found, {number: text for number, text in texts.items() if text is not None})
        with tempfile.TemporaryDirectory(prefix="thaw-") as folder:
            file = Path(folder, "report.html")
            file.write_text(page, encoding="utf-8")
            runs.log_file(found.site.run_id, file)

    def _describe(self, run_id: str, text: str, tags: dict[str, str] | None = None) -> None:
        assert self._notes is not None
        if self._notes.get(run_id) != text:
            runs.describe(run_id, text, **(tags or {}))
            self._notes[run_id] = text

    def _runs(self, found: Found) -> list[Any]:
        return runs.find_runs(found.site.experiment_id, {"study_run": found.site.run_id, "kind": "configuration"})

    def _version(self, found: Found) -> str | None:
        """The registered model of the best configuration; the newest, where there are several."""
        if len(found.front) != 1:
            return None
        key = {"study_run": found.site.run_id, "kind": "evaluate", "configuration": str(found.front[0].number)}
        versions = [run.data.tags.get("model_version") for run in runs.find_runs(found.site.experiment_id, key)]
        return next((version for version in reversed(versions) if version is not None), None)


def _storable(table: pd.DataFrame) -> pd.DataFrame:
    """Parquet's columns have one type each: fields of a configuration that mix several become text."""
    mixed = [name for name in table.columns if table[name].dtype == object]
    return table.astype(dict.fromkeys(mixed, "str"))
