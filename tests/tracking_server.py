"""An MLflow tracking server of the tests' own, on loopback: killed and started again whenever a test likes."""

import os
import secrets
import shutil
import socket
import tempfile
import threading
import warnings
from collections.abc import Mapping
from multiprocessing import get_context, parent_process
from multiprocessing.process import BaseProcess
from pathlib import Path

import requests

from tests.integration.commands import wait_until
from tests.integration.preloaded import PRELOADED


class TrackingServer:
    """The application that `mlflow server` serves, by uvicorn as there.

    A process of its own, and leader of its own group, that has most of what it imports already: started anew it answers
    in a second.
    """

    def __init__(
        self,
        *,
        store: str | None = None,
        artifacts: str | None = None,
        login: tuple[str, str] | None = None,
        environment: Mapping[str, str] | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        """Over the database `store`, by default an SQLite file.

        `artifacts` is where clients bring them by themselves; without it they go through the server. With `login`, a
        user and a password, it lets in nobody else. It listens on `host`. `environment` is what else is in its own.
        """
        self._folder = Path(tempfile.mkdtemp(prefix="thaw-tracking-"))
        self._environment = {**_login(self._folder, login), **(environment or {})}
        self._artifacts = artifacts
        self._store = store or f"sqlite:///{self._folder / 'mlflow.db'}"
        self._process: BaseProcess | None = None
        with socket.socket() as free:
            free.bind((host, 0))
            self._port = free.getsockname()[1]
        self._host = host
        self.uri = f"http://{host}:{self._port}"
        self.start()

    def start(self) -> None:
        """Returns when it answers."""
        context = get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self._process = context.Process(
            target=_serve,
            args=(self._folder, self._host, self._port, self._store, self._artifacts, self._environment),
        )
        self._process.start()
        wait_until(self._answers, f"the tracking server answers; see {self._folder / 'log'}")

    def stop(self) -> None:
        """By SIGKILL, whatever it is doing."""
        assert self._process is not None
        self._process.kill()
        self._process.join()
        self._process.close()
        self._process = None

    @property
    def log(self) -> str:
        """What it has said so far."""
        return (self._folder / "log").read_text()

    def close(self) -> None:
        if self._process is not None:
            self.stop()
        shutil.rmtree(self._folder)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.exitcode is None, self.log
        try:
            return requests.get(f"{self.uri}/health", timeout=10).ok
        except requests.ConnectionError:
            return False


def _login(folder: Path, login: tuple[str, str] | None) -> dict[str, str]:
    if login is None:
        return {}
    settings = {
        "default_permission": "READ",
        "database_uri": f"sqlite:///{folder / 'auth.db'}",
        "authorization_function": "mlflow.server.auth:authenticate_request_basic_auth",
        "grant_default_workspace_access": "false",
        "auth_cache_ttl_seconds": "60",
    }
    file = folder / "auth.ini"
    file.write_text("\n".join(["[mlflow]", *(f"{name} = {value}" for name, value in settings.items())]))
    return {
        "MLFLOW_AUTH_CONFIG_PATH": str(file),
        "MLFLOW_AUTH_ADMIN_USERNAME": login[0],
        "MLFLOW_AUTH_ADMIN_PASSWORD": login[1],
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(),
    }


def _serve(folder: Path, host: str, port: int, store: str, artifacts: str | None, environment: dict[str, str]) -> None:
    os.setsid()
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(log, number)
    _end_with_parent()
    from mlflow import server

    root = artifacts or "mlflow-artifacts:/"
    os.environ |= {  # as `mlflow server` tells its application
        **environment,
        server.BACKEND_STORE_URI_ENV_VAR: store,
        server.ARTIFACT_ROOT_ENV_VAR: root,
        "_MLFLOW_SGI_NAME": "uvicorn",
    }
    if artifacts is None:
        os.environ |= {
            server.ARTIFACTS_DESTINATION_ENV_VAR: str(folder / "artifacts"),
            server.SERVE_ARTIFACTS_ENV_VAR: "true",
        }
    server.handlers.initialize_backend_stores(store, None, root)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mlflow.server.fastapi_app
        import uvicorn

        if "MLFLOW_AUTH_CONFIG_PATH" in environment:
            import mlflow.server.auth

            app = mlflow.server.auth.create_app(server.app)
        else:
            app = mlflow.server.fastapi_app.app
    uvicorn.run(app, host=host, port=port, log_level="warning")


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
