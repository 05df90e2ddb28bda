"""A stand-in for the W&B package, for what the real one cannot be made to do here: fail, and be online."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any


class FakeArtifact:
    def __init__(self, name: str, kind: str, metadata: dict[str, Any]) -> None:
        self.name, self.kind, self.metadata = name, kind, metadata
        self.files: list[str] = []
        self.aliases: list[str] = []

    def add_file(self, path: str, policy: str, skip_cache: bool) -> None:
        self.files.append(Path(path).name)


class FakeWandb:
    """Records what it is asked; ``broken`` names the call that raises."""

    def __init__(self, broken: str = "", url: str = "https://wandb.example.org/run") -> None:
        self.broken, self.url = broken, url
        self.inits: list[dict[str, Any]] = []
        self.metrics: dict[str, tuple[str | None, str | None]] = {}
        self.artifacts: list[FakeArtifact] = []
        self.logged: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.finished: list[int] = []
        self.torn_down = 0
        self.resumed = False

    def Settings(self, **settings: Any) -> dict[str, Any]:
        if self.broken == "old settings" and "finish_timeout" in settings:
            raise ValueError("extra fields not permitted")
        return settings

    def Table(self, columns: list[str], data: list[list[Any]]) -> Any:
        return SimpleNamespace(columns=columns, data=data)

    def init(self, **settings: Any) -> "FakeWandb":
        self.inits.append(settings)
        if self.broken == f"init {settings['mode']}":
            raise TimeoutError("no answer\nfrom the server")
        self.dir = str(Path(settings["dir"]) / "wandb" / "offline-run-1" / "files")
        return self

    def define_metric(self, name: str, step_metric: str | None = None, summary: str | None = None) -> None:
        self.metrics[name] = (step_metric, summary)

    def Artifact(self, name: str, type: str, metadata: dict[str, Any]) -> "FakeArtifact":
        if self.broken == "artifact":
            raise OSError("disk full")
        return FakeArtifact(name, type, metadata)

    def log_artifact(self, artifact: "FakeArtifact", aliases: list[str]) -> None:
        artifact.aliases = aliases
        self.artifacts.append(artifact)

    def log(self, payload: dict[str, Any]) -> None:
        if self.broken == "log":
            raise ConnectionError("broken pipe")
        self.logged.append(payload)

    def finish(self, exit_code: int = 0) -> None:
        if self.broken == "finish":
            raise TimeoutError("Timed out finishing run.")
        self.finished.append(exit_code)

    def teardown(self, exit_code: int = 0) -> None:
        self.torn_down += 1
