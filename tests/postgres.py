"""A PostgreSQL server of the tests' own, from Debian's package, in a temporary folder and on loopback only."""

import os
import shutil
import socket
import subprocess
import tempfile
from itertools import count
from pathlib import Path

PASSWORD = "pla%nted s/ecret"  # with what has to be quoted in a URL
QUOTED = "pla%25nted%20s%2Fecret"
USER = "thaw"


def binaries() -> Path:
    """The folder of the newest version's programs."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    assert found, "PostgreSQL is not installed, which the tests need: apt-get install postgresql"
    return found[-1].parent


class PostgresServer:
    """A server with a database for whoever asks; its data does not survive the machine, but a restart of the server.

    `host` is where it listens; whoever reaches it there has to know the password. `settings` are the server's own,
    beside or instead of those that tests are given.
    """

    def __init__(self, host: str = "127.0.0.1", **settings: str | int) -> None:
        self._host = host
        self._settings = {"fsync": "off", "max_connections": 200} | settings
        self._bin = binaries()
        self._folder = Path(tempfile.mkdtemp(prefix="thaw-postgres-"))
        # It refuses to run as root.
        as_nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        self._prefix = as_nobody if os.geteuid() == 0 else []
        if self._prefix:
            os.chown(self._folder, 65534, 65534)
        password = self._folder / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        self._data = self._folder / "data"
        with socket.socket() as free:
            free.bind((host, 0))
            self.port = free.getsockname()[1]
        self._numbers = count()
        self._run("initdb", "--no-sync", "-A", "scram-sha-256", "-U", USER, f"--pwfile={password}", "-D", self._data)
        with (self._data / "pg_hba.conf").open("a") as rules:
            rules.write("host all all 10.0.0.0/8 scram-sha-256\n")
        self.start()

    def start(self) -> None:
        """Returns when it answers."""
        settings = " ".join(f"-c {name}={value}" for name, value in self._settings.items())
        options = f"-h {self._host} -p {self.port} -k {self._folder} {settings}"
        self._run("pg_ctl", "start", "-w", "-D", self._data, "-o", options, "-l", self._folder / "log")

    def stop(self) -> None:
        """At once, as in a crash: whoever is connected finds out by its next call."""
        self._run("pg_ctl", "stop", "-w", "-m", "immediate", "-D", self._data)

    def ensure_running(self) -> None:
        """Starts it again if a test has left it stopped."""
        if not (self._data / "postmaster.pid").exists():
            self.start()

    def database(self) -> str:
        """The URL of a new database."""
        name = f"study{next(self._numbers)}"
        environment = {**os.environ, "PGPASSWORD": PASSWORD}
        where = ["-h", self._host, "-p", str(self.port), "-U", USER]
        subprocess.run([self._bin / "createdb", *where, name], check=True, env=environment)
        return self.url(name)

    def dump(self, url: str) -> str:
        """All that a database of this server holds, as text."""
        command = [self._bin / "pg_dump", f"--host={self._host}", f"--port={self.port}", f"--username={USER}"]
        environment = {**os.environ, "PGPASSWORD": PASSWORD}
        name = url.rpartition("/")[2]
        return subprocess.run([*command, name], check=True, env=environment, capture_output=True, text=True).stdout

    @property
    def pid(self) -> int:
        """Of the process that all others of the server come from."""
        return int((self._data / "postmaster.pid").read_text().split()[0])

    @property
    def log(self) -> str:
        """What it has said so far."""
        return (self._folder / "log").read_text()

    def url(self, database: str, password: str = QUOTED) -> str:
        return f"postgresql://{USER}:{password}@{self._host}:{self.port}/{database}"

    def close(self) -> None:
        if (self._data / "postmaster.pid").exists():
            self.stop()
        shutil.rmtree(self._folder)

    def _run(self, program: str, *arguments: str | Path) -> None:
        command = [*self._prefix, self._bin / program, *arguments]
        found = subprocess.run(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False, cwd=self._folder
        )
        assert found.returncode == 0, f"{program}: {found.stderr}"
