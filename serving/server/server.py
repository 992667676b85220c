"""Local tritonserver from its wheel: one per state directory, by default on the loopback only, without telemetry.

state/
  triton.json    pid, birth and ports of the running server; written once it gives golden answers
  triton.log     output of the server (triton.log.1: of the previous run)
  triton.token   token for inference (triton.control-token: for control); made once, readable by the owner only
  triton/        backends/ (the wheel's python backend, the stub of its Python, our onnxruntime backend) and a link to the models
"""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from contract import encoded_name
from durable import write
from serving.access import SCHEME, Access, keep_token
from serving.errors import AlreadyRunning, BadEnvironment, PortInUse, ServerUnavailable
from serving.repository.encoded import install
from serving.repository.repository import ModelRepository
from serving.server import process
from serving.server.command import EXIT_TIMEOUT_S, HOST, Listening, arguments
from serving.server.control import Endpoint
from serving.server.encoded_endpoint import EncodedEndpoint
from serving.server.environment import Environment, inspect
from serving.server.shared_room import require_shared_memory

START_TIMEOUT_S = 300.0
LOCAL = Listening()
SHARED_MEMORY = Path("/dev/shm")
PLAIN = re.compile(r"[\w./@%+=:,-]+", re.ASCII)  # paths that a shell takes unquoted


@dataclass(frozen=True)
class RunningServer:
    """Content of triton.json; `born` tells the process from a later one with the same pid."""

    pid: int
    born: str
    repository: str
    http_port: int
    grpc_port: int
    metrics_port: int
    state: str
    host: str = HOST
    certificate: str = ""
    key: str = ""
    ca: str = ""

    @property
    def listening(self) -> Listening:
        """Address and certificate of its gRPC."""
        paths = [Path(path) if path else None for path in (self.certificate, self.key, self.ca)]
        return Listening(self.host, *paths)

    @property
    def url(self) -> str:
        """Url of its gRPC, as Access takes it."""
        return f"{SCHEME if self.certificate else ''}{self.listening.reached_at}:{self.grpc_port}"

    @property
    def access(self) -> Access:
        """Access with both tokens."""
        return _access(Path(self.state), url=self.url, ca=self.listening.authority)

    def again(self, environment: Path) -> LocalServer:
        """LocalServer that starts the same server again."""
        ports = (self.http_port, self.grpc_port, self.metrics_port)
        return LocalServer(Path(self.repository), Path(self.state), environment, *ports, listening=self.listening)


@dataclass(frozen=True)
class LocalServer:
    """Settings of a server for a model repository, with methods that start and stop it.

    Args:
        repository: directory that holds <model>/<version>/.
        state: directory for the server's files and logs; one server per state directory.
        environment: private Python environment with the server's wheel.
        listening: address and TLS of gRPC; by default the loopback without TLS.
    """

    repository: Path
    state: Path
    environment: Path
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002
    model: str = "products"
    listening: Listening = LOCAL

    def start(self) -> RunningServer:
        """Starts the server and returns once it gives golden answers; it outlives this process.

        Raises:
            AlreadyRunning, PortInUse, BadEnvironment: nothing was started.
            ServerUnavailable, GoldenMismatch: the server did not answer correctly and was stopped again.
        """
        with _locked(self.state):
            if server := running(self.state):
                raise AlreadyRunning(
                    f"{self.state} already has a running server (pid {server.pid}, {server.url}); stop it first"
                )
            environment = inspect(self.environment)
            _clear(self.state)  # the server of a killed start may hold the ports
            self._check_ports()
            self.repository.mkdir(parents=True, exist_ok=True)
            models = ModelRepository(self.repository, self.model)
            require_shared_memory(models, passes_bytes=environment.passes_bytes)
            self._install_backends(environment)
            install(self.repository, self.model)  # in the form of this release, even if there is no version yet
            server = self._spawn(environment)
            try:
                self._wait_ready(server)
                self._check_golden(server, environment)
                write(self.state / "triton.json", json.dumps(asdict(server)).encode())
            except BaseException:
                _stop(server, self.state)
                raise
            return server

    def stop(self) -> None:
        """Stops the server of this state directory, if one runs, and all processes that it started."""
        with _locked(self.state):
            _stop(running(self.state), self.state)

    def last_words(self) -> str:
        """End of a message: the last error in the server's log, and the path of the log."""
        log = _log(self.state)
        lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
        errors = [line for line in lines if re.match(r"E\d|error:", line)] or lines[-1:]
        return f": {errors[-1].strip() if errors else 'no message'}; see {log}"

    def _check_ports(self) -> None:
        taken: dict[int, str] = {}
        for option in ("http_port", "grpc_port", "metrics_port"):
            port = getattr(self, option)
            if taken.setdefault(port, option) != option:
                raise PortInUse(f"{option} {port} is {taken[port]} too; give each its own")
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((self.listening.host if option == "grpc_port" else HOST, port))
                except OSError as error:
                    flag = f"--{option.replace('_', '-')}"
                    raise PortInUse(
                        f"{option} {port} is not available ({error.strerror}); choose another with {flag}"
                    ) from None

    def _install_backends(self, environment: Environment) -> None:
        """Copies the backends: the stub then runs from a path of this server, by which `_clear` finds orphaned stubs."""
        runtime = _runtime(self.state)
        runtime.mkdir(mode=0o700, parents=True, exist_ok=True)
        if runtime.lstat().st_uid != os.getuid():
            raise BadEnvironment(
                f"{runtime} belongs to another user; remove it, or use a workspace path without spaces"
            )
        models = runtime / "models"
        models.unlink(missing_ok=True)
        with suppress(OSError):  # the file system may have no symbolic links
            models.symlink_to(self.repository.absolute())
        backends = _backends(self.state)
        shutil.rmtree(backends, ignore_errors=True)
        shutil.copytree(environment.wheel / "backends" / "python", backends / "python")
        shutil.copy(environment.stub, backends / "python")
        (backends / "onnxruntime").mkdir()
        shutil.copy(Path(__file__).parents[1] / "onnxruntime_backend" / "model.py", backends / "onnxruntime")

    def _spawn(self, environment: Environment) -> RunningServer:
        log = _log(self.state)
        if log.exists():
            log.replace(log.with_name("triton.log.1"))
        folder = _backends(self.state) / "python"  # the stub imports from its current folder first
        pid = process.spawn(self._command(environment), variables=environment.variables(), log=log, folder=folder)
        ports = (self.http_port, self.grpc_port, self.metrics_port)
        files = [self.listening.certificate, self.listening.key, self.listening.ca]
        tls = [str(path.absolute()) if path else "" for path in files]
        return RunningServer(
            pid,
            process.birth(pid) or "",
            str(self.repository.absolute()),
            *ports,
            str(self.state.absolute()),
            self.listening.host,
            *tls,
        )

    def _command(self, environment: Environment) -> list[str]:
        backends = [
            _backend_option(self.state),
            f"--backend-config=python,shm-region-prefix-name={shared_memory_prefix(self.state)}",
        ]
        return [
            str(environment.wheel / "bin" / "tritonserver"),
            *arguments(
                models=self._model_path,
                load=self._models(environment),
                listening=self.listening,
                ports={"http": self.http_port, "grpc": self.grpc_port, "metrics": self.metrics_port},
                access=_access(self.state, url=""),
                backends=backends,
            ),
        ]

    @property
    def _model_path(self) -> Path:
        """Path at which the server finds the repository: a link to it, as a shell would split a path with spaces."""
        models = _runtime(self.state) / "models"
        return models if models.is_symlink() else self.repository.absolute()

    def _models(self, environment: Environment) -> Iterator[str]:
        """Names of the models to load at the start."""
        if ModelRepository(self.repository, self.model).configured():
            yield self.model
        if environment.passes_bytes:
            yield encoded_name(self.model)

    def _wait_ready(self, server: RunningServer) -> None:
        def settled() -> bool:
            return process.birth(server.pid) != server.born or _is_ready(self.http_port)

        in_time = process.until(settled, timeout_s=START_TIMEOUT_S)
        if process.birth(server.pid) != server.born:
            raise ServerUnavailable(f"the server ended while it started{self.last_words()}")
        if not in_time:
            raise ServerUnavailable(f"the server was not ready within {START_TIMEOUT_S:g} s{self.last_words()}")

    def _check_golden(self, server: RunningServer, environment: Environment) -> None:
        repository = ModelRepository(self.repository, self.model)
        kinds = (Endpoint, EncodedEndpoint) if environment.passes_bytes else (Endpoint,)
        for kind in kinds:
            with kind(server.access, model=self.model) as endpoint:
                for version in repository.configured():
                    endpoint.golden_check(repository, version)


def running(state: Path) -> RunningServer | None:
    """Running server of a state directory, or None; removes a triton.json whose server has ended."""
    path = state / "triton.json"
    try:
        server = RunningServer(**json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        server = None
    if server and process.birth(server.pid) == server.born:
        return server
    path.unlink(missing_ok=True)
    return None


def _stop(server: RunningServer | None, state: Path) -> None:
    if server:
        process.end(server.pid, born=server.born, grace_s=EXIT_TIMEOUT_S + 5.0)
    _clear(state)


def _clear(state: Path) -> None:
    """Removes what a server of this state directory may have left: processes, shared memory, triton.json."""
    stub = str(_backends(state) / "python" / "triton_python_backend_stub")
    option = _backend_option(state)
    process.kill([pid for pid, argv in process.commands() if argv[0] == stub or option in argv])
    for region in SHARED_MEMORY.glob(f"{shared_memory_prefix(state)}*"):
        region.unlink(missing_ok=True)
    (state / "triton.json").unlink(missing_ok=True)
    shutil.rmtree(_runtime(state), ignore_errors=True)


@contextmanager
def _locked(state: Path) -> Iterator[None]:
    """Lock for one start or stop at a time; the kernel releases the lock of a killed process."""
    state.mkdir(parents=True, exist_ok=True)
    with (state / "triton.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=5.0)
    try:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _access(state: Path, *, url: str, ca: Path | None = None) -> Access:
    """Access with the tokens of a state directory; they are made on the first call."""
    return Access(url, keep_token(state / "triton.token"), keep_token(state / "triton.control-token"), ca)


def _runtime(state: Path) -> Path:
    """Directory in which the server finds its backends and models; `models` is a link to the repository.

    The wheel's python backend starts its stub through a shell without quoting. A state directory with a space or a quote
    in its path is therefore replaced by a directory in /tmp.
    """
    own = state.absolute() / "triton"
    return own if PLAIN.fullmatch(str(own)) else Path("/tmp") / f"cleanshelf-{os.getuid()}-{_digest(state)}"


def _backends(state: Path) -> Path:
    return _runtime(state) / "backends"


def _backend_option(state: Path) -> str:
    return f"--backend-directory={_backends(state)}"


def _log(state: Path) -> Path:
    return state / "triton.log"


def shared_memory_prefix(state: Path) -> str:
    """Beginning of the names in /dev/shm of the server of this state directory."""
    return f"cleanshelf-{_digest(state)}-"


def _digest(state: Path) -> str:
    """Name of a state directory. A container may have another one at the same path, and share /dev/shm and /tmp with us."""
    info = state.stat()
    place = f"{info.st_dev}:{info.st_ino}:".encode() + os.fsencode(state.absolute())
    return hashlib.sha256(place).hexdigest()[:12]
