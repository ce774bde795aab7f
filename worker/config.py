"""Settings: environment variables prefixed `RISKSTREAM_`, over a TOML file, over defaults.

The only place that reads the environment, but for two folders that options of the `model` commands take too
(`worker/cli_told.py`). Secrets are `SecretStr`: they never print.
"""

import enum
import os
import socket
import ssl
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    Field,
    FilePath,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import EnvSettingsSource, SettingsConfigDict, SettingsError

from schemas import news2_policy
from schemas.window import WINDOW_BINS
from worker.config_imaging import ImagingSettings

_PREFIX = "RISKSTREAM_"

_OTHER_VARIABLES = frozenset({"RISKSTREAM_TEST_DATA"})
"""Variables with our prefix that are no settings: where the tests find a data set."""

DEFAULT_MODELS = Path(__file__).resolve().parent.parent / "engines" / "models"


class Role(enum.Enum):
    """What a worker process does: score vitals, score pictures, or both side by side."""

    VITALS = "vitals"
    IMAGING = "imaging"
    ALL = "all"


class ConfigError(ValueError):
    """The settings cannot be used; the message names each setting and what it should be."""


class Settings(ImagingSettings):
    """The worker's settings. Times are in seconds unless the name says otherwise."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, frozen=True, extra="forbid")

    # Kafka
    broker: str = Field("127.0.0.1:9092", description="Kafka bootstrap servers, host:port, comma-separated")
    group: str = Field("riskstream-vitals", description="consumer group", pattern=r"^[A-Za-z0-9._-]{1,200}$")
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "PLAIN"
    kafka_username: str = ""
    kafka_password: SecretStr = SecretStr("")
    kafka_ca_file: FilePath | None = Field(
        None, description="PEM of the authorities that signed the brokers' certificates"
    )
    kafka_cert_file: FilePath | None = Field(
        None, description="PEM of the client certificate, for mutual TLS"
    )
    kafka_key_file: FilePath | None = Field(None, description="PEM of the client certificate's key")
    kafka_idempotence: bool = Field(True, description="idempotent producer; off only for brokers without it")
    session_timeout_s: float = Field(
        10.0, ge=1, le=300, description="a worker silent for this long loses its partitions"
    )
    rebalance_timeout_s: float = Field(
        30.0, ge=1, le=600, description="how long a rebalance waits for a worker"
    )
    max_poll_interval_s: float = Field(60.0, ge=5, le=1800)
    request_timeout_s: float = Field(40.0, ge=1, le=300)
    publish_timeout_s: float = Field(
        30.0, ge=1, le=300, description="a publish unconfirmed for this long is sent again"
    )
    fetch_max_bytes: int = Field(
        4 << 20, ge=1 << 16, le=64 << 20, description="bytes fetched at once from a partition"
    )
    chunk_records: int = Field(
        512, ge=1, le=10_000, description="records of a partition handled at once, at most"
    )

    # Topics
    topic_vitals: str = "vitals"
    topic_alerts: str = "risk-alerts"
    topic_scores: str = "risk-scores"
    topic_dead_letters: str = "dead-letters"
    topic_policies: str = Field("policies", description="changes of policies, compacted; empty for none")
    topic_feedback: str = Field("alert-feedback", description="what people say of alerts; empty for none")
    topic_imaging: str = Field("imaging", description="imaging events, read by the imaging role")
    topic_findings: str = Field("findings", description="what models make of pictures; empty for none")
    topic_shadow_alerts: str = Field("shadow-alerts", description="alerts of a shadow, for nobody to act on")
    topic_shadow_scores: str = Field("shadow-scores", description="every score of a shadow")
    topic_shadow_dead_letters: str = "shadow-dead-letters"
    publish_scores: bool = Field(False, description="publish every score to the scores topic")
    create_topics: bool = Field(False, description="create missing topics at start")
    partitions: int = Field(8, ge=1, le=1024, description="partitions of topics created at start")
    replication: int = Field(1, ge=1, le=9, description="replicas of topics created at start")

    # Redis
    redis: SecretStr = Field(
        SecretStr("redis://127.0.0.1:6379/0"), description="redis:// or rediss:// URL, may hold an ACL user"
    )
    redis_username: str = ""
    redis_password: SecretStr = SecretStr("")
    redis_ca_file: FilePath | None = None
    redis_cert_file: FilePath | None = None
    redis_key_file: FilePath | None = None
    redis_timeout_s: float = Field(2.0, gt=0, le=60)

    # Model
    model: str = Field("vitals", description="model in the repository")
    model_repository: Path = Field(DEFAULT_MODELS, description="folder of model folders")
    shadow_version: int | None = Field(
        None,
        ge=1,
        description="score as a shadow with this version of the model: alert nobody, write to shadow topics",
    )
    backend: Literal["onnxruntime", "onnxruntime-cuda", "tensorrt", "tensorrt-rtx"] = Field(
        "onnxruntime",
        description="runtime that computes the model: onnxruntime on the CPU, its CUDA provider or a plan on "
        "an NVIDIA GPU (both never executed); where one cannot run, onnxruntime serves and metrics tell",
    )
    precision: Literal["fp32", "fp16"] = Field(
        "fp32",
        description="what a plan computes in, for the backends tensorrt and tensorrt-rtx; fp16 too is held "
        "to golden data, within the model's golden_tolerance_fp16, its risk within a tenth of that",
    )
    plans: Path | None = Field(
        None,
        description="folder that plans are built into and loaded from; beside the model unless given, which "
        "a read-only repository does not allow",
    )
    model_memory_mb: int | None = Field(
        None,
        ge=1,
        description="MiB that a model may take, of the GPU's memory where one computes it, else of the "
        "machine's; a model estimated above it is refused before it is loaded",
    )
    infer_timeout_s: float = Field(20.0, gt=0, le=300, description="an engine call longer than this is hung")
    engine_patience_s: float = Field(
        2.0,
        gt=0,
        le=300,
        description="an engine call is waited for so long; then the next backend answers, or NEWS2 alone",
    )
    imaging_model: str = Field(
        "pneumonia",
        description="image model that the imaging role serves, and by whose policy findings raise alerts; "
        "empty for none",
    )
    news2_policy: Path = Field(news2_policy.SHIPPED, description="NEWS2's own alert policy, a JSON file")
    policies: Path | None = Field(
        None, description="JSON file of changes of alert policies; read again when it changes"
    )

    # The path
    checkpoint_interval_s: float = Field(1.0, gt=0, le=60)
    max_record_bytes: int = Field(
        1 << 20, ge=1 << 10, le=64 << 20, description="larger records are dead-lettered"
    )
    future_tolerance_s: float = Field(
        3600.0, ge=0, description="how far after its record's timestamp an event may lie"
    )
    past_tolerance_h: float = Field(24.0 * 366, ge=1, description="how far before its record's timestamp")
    rebuild_horizon_h: float = Field(
        2.0 * WINDOW_BINS + 24.0,
        ge=2.0 * WINDOW_BINS,
        description="record time that is read again when state is rebuilt from Kafka",
    )

    # HTTP and logs
    http_host: str = Field("127.0.0.1", description="address of /metrics and /health")
    http_port: int = Field(8080, ge=0, le=65535, description="0 picks a free port")
    stall_after_s: float = Field(
        120.0,
        ge=5,
        description="not live when lag is above zero and nothing moved for this long; of pictures, for the "
        "longest step of one where that is longer",
    )
    traces: Literal["off", "otlp"] = Field("off", description="OpenTelemetry traces, by the extra tracing")
    traces_endpoint: str = Field(
        "http://127.0.0.1:4318/v1/traces",
        description="where traces go, OTLP over HTTP",
        pattern=r"^https?://[^@\s]+$",
    )
    traces_ratio: float = Field(
        1.0,
        ge=0,
        le=1,
        description="share of chunks traced; a record that comes with a trace keeps its choice",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    instance: str = Field(default_factory=socket.gethostname, description="names this worker in logs")

    # The ward page, `riskstream board`
    board_host: str = Field(
        "127.0.0.1", description="address of the ward page; any but loopback needs a token"
    )
    board_port: int = Field(8090, ge=0, le=65535, description="0 picks a free port")
    board_token: SecretStr = Field(SecretStr(""), description="what readers must show; 16 characters or more")
    board_cert_file: FilePath | None = Field(None, description="PEM of the page's certificate, for HTTPS")
    board_key_file: FilePath | None = Field(None, description="PEM of the certificate's key")
    board_history_h: float = Field(
        24.0, ge=1, le=168, description="scores read back at start, and the length of trend lines"
    )
    board_alerts_h: float = Field(
        168.0, ge=1, le=8784, description="alerts read back at start, to find the open episodes"
    )
    board_patients: int = Field(2000, ge=1, le=20_000, description="patients on the page, at most")
    board_stale_h: float = Field(6.0, gt=0, le=168, description="age from which the page marks a value")
    board_quiet_s: float = Field(120.0, ge=1, le=86_400, description="silence from which the page warns")

    @model_validator(mode="after")
    def _consistent(self) -> "Settings":
        if self.session_timeout_s > self.request_timeout_s:
            raise ValueError("session_timeout_s must not exceed request_timeout_s")
        if self.kafka_security_protocol.startswith("SASL") and not self.kafka_username:
            raise ValueError(f"kafka_username is empty; {self.kafka_security_protocol} needs it")
        if bool(self.kafka_cert_file) != bool(self.kafka_key_file):
            raise ValueError("kafka_cert_file and kafka_key_file go together")
        if bool(self.redis_cert_file) != bool(self.redis_key_file):
            raise ValueError("redis_cert_file and redis_key_file go together")
        if bool(self.board_cert_file) != bool(self.board_key_file):
            raise ValueError("board_cert_file and board_key_file go together")
        if 0 < len(self.board_token.get_secret_value()) < 16:
            raise ValueError("board_token must have at least 16 characters, or be empty")
        if self.precision != "fp32" and not self.backend.startswith("tensorrt"):
            raise ValueError(
                f"precision {self.precision} is of plans, for the backends tensorrt and tensorrt-rtx; "
                f"{self.backend} computes model.onnx as it is"
            )
        if not self.bootstrap_servers:
            raise ValueError("broker names no server; write host:port, with commas between several")
        if not _is_redis_url(self.redis.get_secret_value()):
            raise ValueError(
                "redis must be redis://host:port/number or rediss://...; a password with / ? # @ or : in it "
                "goes into redis_password"
            )
        return self

    @property
    def bootstrap_servers(self) -> list[str]:
        """Kafka bootstrap servers, one host:port each."""
        return [server.strip() for server in self.broker.split(",") if server.strip()]

    @property
    def model_memory_limit(self) -> int | None:
        """Bytes that a model may take; None for no limit of its own."""
        return None if self.model_memory_mb is None else self.model_memory_mb << 20

    def precision_on(self, backend: str) -> Literal["fp32", "fp16"]:
        """What a backend computes in: the one asked for as asked, one that stands in for it in fp32."""
        return self.precision if backend == self.backend else "fp32"

    @property
    def output_topics(self) -> tuple[str, str, str]:
        """Names of the alert, score and dead-letter topics."""
        return self.topic_alerts, self.topic_scores, self.topic_dead_letters

    def kafka_ssl_context(self) -> ssl.SSLContext | None:
        """The TLS context for Kafka, verifying host names; None without TLS."""
        if not self.kafka_security_protocol.endswith("SSL"):
            return None
        context = ssl.create_default_context(cafile=self.kafka_ca_file)
        if self.kafka_cert_file and self.kafka_key_file:
            context.load_cert_chain(self.kafka_cert_file, self.kafka_key_file)
        return context

    def board_ssl_context(self) -> ssl.SSLContext | None:
        """The TLS context of the ward page; None without a certificate."""
        if not self.board_cert_file or not self.board_key_file:
            return None
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.board_cert_file, self.board_key_file)
        return context

    def kafka_client(self) -> dict[str, Any]:
        """Keyword arguments that every aiokafka client takes."""
        options: dict[str, Any] = {
            "bootstrap_servers": self.bootstrap_servers,
            "security_protocol": self.kafka_security_protocol,
            "ssl_context": self.kafka_ssl_context(),
            "request_timeout_ms": int(self.request_timeout_s * 1000),
        }
        if self.kafka_security_protocol.startswith("SASL"):
            options |= {
                "sasl_mechanism": self.kafka_sasl_mechanism,
                "sasl_plain_username": self.kafka_username,
                "sasl_plain_password": self.kafka_password.get_secret_value(),
            }
        return options


def _is_redis_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in {"redis", "rediss"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def load(file: Path | None = None, **overrides: Any) -> Settings:
    """Settings from the environment over `file` (TOML, the setting names as keys) over defaults.

    They are merged first and judged together, so that settings which need each other may lie apart.

    Raises:
        ConfigError: a setting has a wrong name, type or value.
    """
    unknown = _unknown_variables(os.environ)
    if unknown:
        raise ConfigError(f"no such setting: {', '.join(unknown)}; worker/config.py lists the settings")
    from_file = {} if file is None else _read(file)
    try:
        return Settings(**{**from_file, **EnvSettingsSource(Settings)(), **overrides})
    except SettingsError as error:
        raise ConfigError(f"not JSON: {error}") from None
    except ValidationError as error:
        lines = [
            ": ".join(filter(None, (".".join(map(str, e["loc"])), e["msg"].removeprefix("Value error, "))))
            for e in error.errors(include_input=False, include_url=False)
        ]
        raise ConfigError("; ".join(lines)) from None


def _read(file: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read settings file {file}: {error}") from None
    unknown = sorted(values.keys() - Settings.model_fields)
    if unknown:
        raise ConfigError(f"settings file {file}: no such setting: {', '.join(unknown)}")
    return values


def _unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """Variables with our prefix that set nothing: misspelt ones.

    Kubernetes describes a service `riskstream-NAME` by variables with our prefix; they are none of ours.
    """
    names = {name.upper() for name in environment if name.upper().startswith(_PREFIX)}
    end = "_SERVICE_HOST"
    services = [name.removesuffix(end) for name in names if name.endswith(end)]
    described = tuple(f"{service}_{what}" for service in services for what in ("SERVICE_", "PORT"))
    known = {f"{_PREFIX}{name.upper()}" for name in Settings.model_fields} | _OTHER_VARIABLES
    return sorted(name for name in names - known if not name.startswith(described))
