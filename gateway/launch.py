"""One local instance, from its settings to the first answer: what is started, in which order, with which settings.

Stores and services start together, since the services spend their first second importing; Envoy comes last, when
everything it calls answers. The end runs the other way: Envoy, services, stores.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from gateway import durable, embedded, log_sizes, probe, running, server_key, session_secret, upstreams
from gateway.failure import Failure
from gateway.given import Given, lacking
from gateway.home import Home
from gateway.part import Part
from gateway.port import Port, claim, free_port
from gateway.running import Running
from gateway.supervisor import OnDeath, Stopped, Supervisor

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping

    from gateway.envoy_tls import Certificate
    from gateway.part import Probe

_READY_SECONDS = 30.0
_GRACE_SECONDS = 40.0  # a service finishes its streams (PADDOCK_GRACE_SECONDS), then its settlements
# Setting and socket of each listener of a service.
_LISTENERS = {
    "policy": {
        "PADDOCK_POLICY_LISTEN": "policy",
        "PADDOCK_POLICY_EDGE_LISTEN": "policy-edge",
        "PADDOCK_POLICY_HTTP_LISTEN": "policy-http",
    },
    "processor": {"PADDOCK_PROCESSOR_LISTEN": "processor", "PADDOCK_PROCESSOR_EDGE_LISTEN": "processor-edge"},
}
_PYTHON = (sys.executable, "-P", "-m")  # -P: modules never come from the directory the operator happens to be in
# What must not reach the services: the client's own key, and what they are told here.
_NOT_PASSED_ON = ("PADDOCK_KEY", "PADDOCK_DATA_DIR", "PADDOCK_ENVOY")


@dataclass(frozen=True, slots=True)
class Config:
    """What an operator can say about a local instance."""

    data_dir: Path
    upstreams: tuple[str, ...] = ()  # base URLs
    host: str = "127.0.0.1"
    port: int = 8080  # 0: any free one
    workers: int = 1  # of policy and of processor
    demo: bool = False  # with the demo upstream
    database_url: str | None = None  # None: embedded
    redis_url: str | None = None
    on_death: OnDeath = OnDeath.STOP
    check_upstreams: bool = True
    announce: bool = True  # let this user's commands find it without --data-dir
    envoy_threads: int | None = None
    address_rate: int | None = None  # requests a second that Envoy takes from one address; None: as shipped
    grpc_checks: bool = False  # Envoy asks policy over gRPC, as a mesh does
    environment: Mapping[str, str] = field(default_factory=dict)  # further settings of the services
    certificate: Certificate | None = None  # the front door speaks TLS
    otlp_endpoint: str = ""  # Envoy and both services send their spans there
    log_bytes: int = log_sizes.MAX_BYTES  # of one log file
    metering: str = "envoy"  # or processor: where the answers of models are metered


@dataclass(frozen=True, slots=True)
class Ready:
    """A started instance."""

    running: Running
    supervisor: Supervisor
    began: float  # monotonic


class Launch:
    """Runs one instance to its end."""

    def __init__(self, config: Config, say: Callable[[str], None]) -> None:
        self._config = config
        self._say = say
        self._began = monotonic()
        self._task: asyncio.Task[None] | None = None
        self._supervisor: Supervisor | None = None
        self._asked = False
        self._secrets: dict[str, str] = {}  # where the services find theirs
        self._given = Given({**os.environ, **config.environment}, config.otlp_endpoint)
        self._home = Home.open(config.data_dir)
        self._metrics = self._home.path / "metrics"
        self._access_log = self._home.logs / log_sizes.ACCESS_LOG
        self.database_url = config.database_url or embedded.postgres_url(self._home)
        self.redis_url = config.redis_url or embedded.redis_url(self._home)

    async def run(self, when_ready: Callable[[Ready], Awaitable[None]]) -> None:
        """Start everything, call `when_ready`, go on until it fails or is asked to stop.

        Raises Failure or `Stopped`; nothing runs any more then.
        """
        self._task = asyncio.current_task()
        self._given.check()
        try:
            await self._run(when_ready)
        except asyncio.CancelledError:
            if not self._asked:
                raise
            raise Stopped from None
        except OSError as error:
            failure = lacking(error, self._home.path)
            if failure is None:
                raise
            raise failure from error

    def ask_to_stop(self) -> None:
        """End `run`; a second time: without patience. On the event loop's thread."""
        self._asked = True
        if self._supervisor is not None:
            self._supervisor.ask_to_stop()
        elif self._task is not None:
            self._task.cancel()

    async def _run(self, when_ready: Callable[[Ready], Awaitable[None]]) -> None:
        config, home = self._config, self._home
        with ExitStack() as stack:
            stack.enter_context(home.claimed())
            given = self._given.environment
            self._secrets = server_key.settings(home.path, given) | session_secret.settings(home.path, given)
            _fresh_directory(self._metrics)
            port = stack.enter_context(claim(config.host, config.port))
            await self._look_outside()
            async with Supervisor(home.logs, home.locks, on_death=config.on_death, say=self._say) as supervisor:
                self._supervisor = supervisor
                started = await self._start(supervisor, port)
                stack.enter_context(running.announced(started, to_user=config.announce))
                await when_ready(Ready(started, supervisor, self._began))
                async with asyncio.TaskGroup() as kept:  # until the supervisor raises
                    kept.create_task(durable.keep_synced(home.append_only_files))
                    kept.create_task(
                        log_sizes.keep_bounded(supervisor.logs, home.socket("envoy-admin"), config.log_bytes)
                    )

    async def _look_outside(self) -> None:
        """What is not started here must answer already."""
        config = self._config
        for name, url in (("PADDOCK_DATABASE_URL", config.database_url), ("PADDOCK_REDIS_URL", config.redis_url)):
            if url is not None:
                with self._step(name):
                    await upstreams.store_answers(name, url)
        if config.check_upstreams and not config.demo:
            await upstreams.check(config.upstreams, self._say, self._given.upstream_key(), self._given.upstream_ca())

    async def _start(self, supervisor: Supervisor, port: Port) -> Running:
        config, home = self._config, self._home
        urls = config.upstreams
        if config.demo:
            number = free_port()
            urls = (f"http://127.0.0.1:{number}", *urls)
            await supervisor.spawn(_demo(number, self._environment(urls)))
        async with asyncio.TaskGroup() as group:
            bootstrap = group.create_task(asyncio.to_thread(self._envoy_config, port, urls))
            group.create_task(self._redis_and_services(supervisor, urls))
            if config.database_url is None:
                group.create_task(self._postgres(supervisor))
        if config.demo:
            with self._step("demo upstream"):
                await supervisor.ready("demo-upstream")
        url = port.url if config.certificate is None else port.url.replace("http://", "https://")
        with self._step("envoy"):
            ready = _answers(f"{url}/healthz")
            await supervisor.start(
                embedded.envoy(
                    bootstrap.result(),
                    ready,
                    home.socket("envoy-admin"),
                    self._access_log,
                    threads=config.envoy_threads,
                )
            )
        with self._step("whole path"):
            await _whole_path(f"{url}/readyz")
        pid = os.getpid()
        return Running(
            data_dir=str(home.path),
            pid=pid,
            started=running.start_time(pid) or "",
            url=url,
            database_url=self.database_url,
            redis_url=self.redis_url,
            server_key_dir=self._environment(urls).get(server_key.DIRECTORY, ""),
        )

    async def _redis_and_services(self, supervisor: Supervisor, urls: tuple[str, ...]) -> None:
        """The services wait for PostgreSQL by themselves; their counters they want at once, and Valkey is quick."""
        if self._config.redis_url is None:
            with self._step("valkey"):
                await supervisor.start(embedded.valkey(self._home))
        services = self._services(self._environment(urls))
        with self._step(f"{len(services)} services"):
            for part in services:
                await supervisor.spawn(part)
            for part in services:
                await supervisor.ready(part.name)

    async def _postgres(self, supervisor: Supervisor) -> None:
        home = self._home
        setup = embedded.postgres_setup(home)
        if setup is not None:
            with self._step("postgres", "new database"):
                await supervisor.run(setup)
        async with asyncio.TaskGroup() as group:
            if setup is not None:
                group.create_task(supervisor.run(embedded.postgres_sync(home)))
            with self._step("postgres"):
                await supervisor.start(embedded.postgres(home))
        if setup is not None:
            embedded.postgres_is_set_up(home)

    def _environment(self, urls: tuple[str, ...]) -> dict[str, str]:
        passed = {name: value for name, value in os.environ.items() if name not in _NOT_PASSED_ON}
        return passed | {
            "PYTHONUNBUFFERED": "1",
            "PADDOCK_ACCESS_LOG_FILE": str(self._access_log),
            "PROMETHEUS_MULTIPROC_DIR": str(self._metrics),
            **self._config.environment,
            **self._secrets,
            "PADDOCK_DATABASE_URL": self.database_url,
            "PADDOCK_REDIS_URL": self.redis_url,
            "PADDOCK_UPSTREAMS": ",".join(urls),
            "PADDOCK_OTLP_ENDPOINT": self._given.otlp_endpoint,
        }

    def _services(self, environment: Mapping[str, str]) -> list[Part]:
        return [
            self._service(name, number, listeners, environment)
            for name, listeners in _LISTENERS.items()
            for number in range(self._config.workers)
        ]

    def _service(self, name: str, number: int, listeners: Mapping[str, str], environment: Mapping[str, str]) -> Part:
        paths = {setting: self._home.socket(f"{listener}-{number}") for setting, listener in listeners.items()}
        return Part(
            name=f"{name}-{number}",
            argv=(*_PYTHON, name),
            env={**environment, **{setting: f"unix:{path}" for setting, path in paths.items()}},
            ready=probe.sockets_accept(*paths.values()),
            stage=embedded.SERVICES,
            stop_seconds=_GRACE_SECONDS,
        )

    def _envoy_config(self, port: Port, urls: tuple[str, ...]) -> Path:
        from gateway import envoy_config  # YAML takes its time: read while the stores start
        from gateway.envoy_config import Address

        def sockets(listener: str) -> list[Address]:
            return [Address(path=str(self._home.socket(f"{listener}-{n}"))) for n in range(self._config.workers)]

        shipped = shipped_envoy()
        per_second = self._config.address_rate
        config = envoy_config.adapt(
            shipped / "envoy.yaml",
            shipped / "clusters.yaml",
            listen=Address(host=port.address, port=port.number),
            admin=Address(path=str(self._home.socket("envoy-admin"))),
            policy=sockets("policy"),
            policy_edge=sockets("policy-edge"),
            policy_http=sockets("policy-http"),
            processor=sockets("processor"),
            processor_edge=sockets("processor-edge"),
            upstreams=urls,
            max_request_body_bytes=self._given.body_limit(),
            max_envelope_bytes=self._given.envelope_limit(),
            tier_upstreams=self._given.tier_upstreams(),
            options=() if self._config.certificate is None else ("tls",),
            otlp=self._given.otlp_url(),
            upstream_key=self._given.upstream_key(),
            upstream_ca=self._given.upstream_ca(),
            metering=self._config.metering,
            address_rate=None if per_second is None else envoy_config.Rate(per_second, 2 * per_second),
            access_log=self._access_log,
            grpc_checks=self._config.grpc_checks,
        )
        return envoy_config.write(config, self._home.path / "envoy", self._config.certificate)

    @contextmanager
    def _step(self, name: str, what: str = "ready") -> Iterator[None]:
        began = monotonic()
        yield
        self._say(f"  {name:<14} {what:<18} {monotonic() - began:5.2f} s")


def _fresh_directory(path: Path) -> None:
    """An empty directory: the workers' metrics of an earlier start are not this one's."""
    path.mkdir(mode=0o700, exist_ok=True)
    for old in path.glob("*.db"):
        old.unlink()


def shipped_envoy() -> Path:
    """The directory of the shipped envoy.yaml: beside the packages in a source tree, or where the wheel puts data."""
    for directory in (Path(__file__).parent.parent / "envoy", Path(sys.prefix) / "share" / "paddock" / "envoy"):
        if (directory / "envoy.yaml").is_file():
            return directory
    raise Failure("the shipped envoy.yaml is not installed", do="Install paddock anew.")


def _demo(number: int, environment: Mapping[str, str]) -> Part:
    return Part(
        name="demo-upstream",
        argv=(*_PYTHON, "gateway.demo", "--host", "127.0.0.1", "--port", str(number)),
        env=environment,
        ready=probe.port_accepts("127.0.0.1", number),
        stage=embedded.SERVICES,
    )


def _answers(url: str) -> Probe:
    async def answers() -> bool:
        try:
            status, _ = await probe.get(url, verify=False)  # our own Envoy, whose certificate is for another name
        except (OSError, ValueError):  # not listening yet
            return False
        return status == 200

    return answers


async def _whole_path(url: str) -> None:
    """Wait for 200 from /readyz, asked through Envoy; Failure names what is not ready."""
    deadline = monotonic() + _READY_SECONDS
    status, body = 0, b""
    while monotonic() < deadline:
        with suppress(OSError, ValueError):  # if Envoy has died, the supervisor says so
            status, body = await probe.get(url, patience=10.0, verify=False)
        if status == 200:
            return
        await asyncio.sleep(0.05)
    try:
        checks = json.loads(body)["checks"]
        missing = ", ".join(name for name, state in checks.items() if state != "ok")
    except (ValueError, KeyError, AttributeError, TypeError):  # not policy's answer but Envoy's own, or none
        missing = "policy"
    raise Failure(
        f"everything runs, but after {_READY_SECONDS:.0f} s this is not ready: {missing}",
        quote=body.decode(errors="replace"),
        do="The logs in the data directory say more.",
    )
