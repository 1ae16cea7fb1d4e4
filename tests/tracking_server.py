"""An MLflow tracking server of the tests' own, on loopback: killed and started again whenever a test likes."""

import os
import shutil
import socket
import tempfile
import threading
import warnings
from multiprocessing import get_context, parent_process
from multiprocessing.process import BaseProcess
from pathlib import Path

import requests

from tests.integration.commands import wait_until
from tests.integration.preloaded import PRELOADED


class TrackingServer:
    """The application that `mlflow server` serves, by uvicorn as there, over SQLite; artifacts go through it.

    A process of its own, and leader of its own group, that has most of what it imports already: started anew it answers
    in a second.
    """

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="thaw-tracking-"))
        self._process: BaseProcess | None = None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self._port}"
        self.start()

    def start(self) -> None:
        """Returns when it answers."""
        context = get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self._process = context.Process(target=_serve, args=(self._folder, self._port))
        self._process.start()
        wait_until(self._answers, f"the tracking server answers; see {self._folder / 'log'}")

    def stop(self) -> None:
        """By SIGKILL, whatever it is doing."""
        assert self._process is not None
        self._process.kill()
        self._process.join()
        self._process.close()
        self._process = None

    def close(self) -> None:
        if self._process is not None:
            self.stop()
        shutil.rmtree(self._folder)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.exitcode is None, (self._folder / "log").read_text()
        try:
            return requests.get(f"{self.uri}/health", timeout=10).ok
        except requests.ConnectionError:
            return False


def _serve(folder: Path, port: int) -> None:
    os.setsid()
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(log, number)
    _end_with_parent()
    from mlflow import server

    store = f"sqlite:///{folder / 'mlflow.db'}"
    os.environ |= {  # as `mlflow server` tells its application
        server.BACKEND_STORE_URI_ENV_VAR: store,
        server.ARTIFACT_ROOT_ENV_VAR: "mlflow-artifacts:/",
        server.ARTIFACTS_DESTINATION_ENV_VAR: str(folder / "artifacts"),
        server.SERVE_ARTIFACTS_ENV_VAR: "true",
        "_MLFLOW_SGI_NAME": "uvicorn",
    }
    server.handlers.initialize_backend_stores(store, None, "mlflow-artifacts:/")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mlflow.server.fastapi_app
        import uvicorn
    uvicorn.run(mlflow.server.fastapi_app.app, host="127.0.0.1", port=port, log_level="warning")


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
