"""The environment, read once into a frozen value. No other module reads OUTRIDER_* variables."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from psycopg import Error
from psycopg.conninfo import conninfo_to_dict
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from engine.errors import ConfigurationError
from engine.text import decimal, digits

PREFIX = "OUTRIDER_"
MIN_SECRET_BYTES = 32
SYMMETRIC = "HS256"
PROJECT = r"^[a-z0-9][a-z0-9.:-]*$"
SCHEMA = r"^(?!pg_)[a-z_][a-z0-9_]{0,62}$"
"""A PostgreSQL identifier that means the same with and without quotes."""

ORIGIN = (
    r"([a-z][a-z0-9+.-]*)://([a-z0-9_]([a-z0-9._-]*[a-z0-9_])?|\[[0-9a-f:.]+\])(:(?P<port>[1-9][0-9]{0,4}))?"
)
"""An origin as browsers send it (the HTML standard, "serialization of an origin")."""
DEFAULT_PORTS = {"http": "80", "https": "443"}

Transport = Literal["postgres", "pubsub"]
Algorithm = Literal["HS256", "RS256", "ES256"]


def _listed(value: Any) -> Any:
    """'a, b' → ('a', 'b')."""
    return (
        tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value
    )


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


Listed = BeforeValidator(_listed)
TopicName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9._~+%-]{2,250}$")]
"""A Pub/Sub resource name that leaves room for the subscription's `-sub` within 255 characters."""
Digits = BeforeValidator(digits)
Decimal = BeforeValidator(decimal)
MAX_PORT = 65_535
Port = Annotated[int, Field(ge=0, le=MAX_PORT), Digits]


class Settings(BaseModel):
    """Every setting, named as its variable without the prefix, in lower case. Durations are in seconds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    database_url: SecretStr | None = None
    # pydantic's models have a method `schema`.
    schema_name: str | None = Field(default=None, alias="schema")
    transport: Transport = "postgres"
    data_dir: Path = Path(".outrider")
    http_host: str = "127.0.0.1"
    http_port: Port = 8080
    admin_host: str = "127.0.0.1"
    admin_port: Port | None = None
    max_connections: Annotated[int, Field(ge=1, le=1_000_000), Digits] = 10_000
    max_connections_per_address: Annotated[int, Field(ge=1, le=1_000_000), Digits] = 1000
    head_seconds: Annotated[float, Field(gt=0, le=600), Decimal] = 10.0
    pubsub_project: Annotated[str, Field(pattern=PROJECT)] | None = None
    pubsub_jobs_topic: TopicName = "pipeline-jobs"
    pubsub_results_topic: TopicName = "pipeline-results"
    pubsub_dlq_topic: TopicName = "pipeline-dlq"
    jwt_secret: SecretStr | None = None
    jwks_url: str | None = Field(default=None, pattern=r"^https?://")
    jwks_file: Path | None = None
    jwt_algorithms: Annotated[tuple[Algorithm, ...], Listed] = ()
    jwt_issuer: str | None = None
    jwt_audience: str | None = None
    cors_origins: Annotated[tuple[str, ...], Listed] = ()
    pipelines: Annotated[tuple[str, ...], Listed] = ()
    worker_concurrency: Annotated[int, Field(ge=1, le=1000), Digits] = 10
    relay_workers: Annotated[int, Field(ge=0, le=256), Digits] = 1
    child_max_jobs: Annotated[int, Field(ge=1, le=1_000_000), Digits] = 1000
    child_max_mb: Annotated[int, Field(ge=64, le=1_048_576), Digits] = 512
    lease_seconds: Annotated[float, Field(ge=1, le=3600), Decimal] = 30.0
    drain_seconds: Annotated[float, Field(ge=0, le=3600), Decimal] = 25.0
    log_format: Literal["json", "console"] | None = None
    log_level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_lower)] = "info"
    retention_days: Annotated[int, Field(ge=0, le=36_500), Digits] = 0

    @field_validator("schema_name")
    @classmethod
    def _schema(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(SCHEMA, name):
            raise ValueError("a schema's name has small letters, digits and _, and does not begin with pg_")
        return name

    @field_validator("jwks_url")
    @classmethod
    def _has_host(cls, url: str | None) -> str | None:
        # Reading the port raises ValueError if it is none.
        if url is not None and not (urlsplit(url).hostname and urlsplit(url).port != 0):
            raise ValueError("not a URL with a host")
        return url

    @field_validator("cors_origins")
    @classmethod
    def _as_sent(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        if origins == ("*",):
            return origins
        for origin in origins:
            if not _is_origin(origin):
                raise ValueError(
                    f"{origin!r} is not an origin as browsers send it, such as https://app.example or"
                    " http://localhost:3000; * stands alone and allows all"
                )
        return origins

    @field_validator("database_url")
    @classmethod
    def _parsable(cls, url: SecretStr | None) -> SecretStr | None:
        try:
            conninfo_to_dict(url.get_secret_value() if url else "")
        except Error:
            # The error's text may show the password.
            raise ValueError("not a PostgreSQL connection string") from None
        return url

    @model_validator(mode="after")
    def _three_topics(self) -> Self:
        topics = (self.pubsub_jobs_topic, self.pubsub_results_topic, self.pubsub_dlq_topic)
        if len(set(topics)) < len(topics):
            raise ValueError(f"{PREFIX}PUBSUB_…_TOPIC: the three topics must differ")
        return self

    @model_validator(mode="after")
    def _project_for_pubsub(self) -> Self:
        if self.transport == "pubsub" and self.pubsub_project is None:
            raise ValueError(f"{PREFIX}PUBSUB_PROJECT must be set if {PREFIX}TRANSPORT is pubsub")
        return self

    @model_validator(mode="after")
    def _one_source_of_keys(self) -> Self:
        keys = [
            name
            for name, value in (
                ("JWT_SECRET", self.jwt_secret),
                ("JWKS_URL", self.jwks_url),
                ("JWKS_FILE", self.jwks_file),
            )
            if value is not None
        ]
        if len(keys) > 1:
            raise ValueError(f"set only one of {', '.join(PREFIX + key for key in keys)}")
        if self.jwt_secret and len(self.jwt_secret.get_secret_value().encode()) < MIN_SECRET_BYTES:
            raise ValueError(f"{PREFIX}JWT_SECRET is shorter than {MIN_SECRET_BYTES} bytes")
        symmetric = SYMMETRIC in self.jwt_algorithms
        if self.jwt_secret and self.jwt_algorithms and self.jwt_algorithms != (SYMMETRIC,):
            raise ValueError(f"{PREFIX}JWT_ALGORITHMS must be {SYMMETRIC} with a secret")
        if (self.jwks_url or self.jwks_file) and symmetric:
            raise ValueError(f"{PREFIX}JWT_ALGORITHMS must not hold {SYMMETRIC} with a JWKS")
        return self

    @property
    def algorithms(self) -> tuple[Algorithm, ...]:
        """The accepted signature algorithms: those configured, else those that fit the kind of key."""
        return self.jwt_algorithms or (("HS256",) if self.jwt_secret else ("RS256", "ES256"))

    @property
    def publish_results(self) -> bool:
        """Whether results and dead letters are written as events: only with Pub/Sub does a relay publish them."""
        return self.transport == "pubsub"

    def database(self) -> str:
        """The database URL. Raises ConfigurationError if none is set."""
        if self.database_url is None:
            raise ConfigurationError(
                [f"{PREFIX}DATABASE_URL is not set (`outrider up` brings its own database)"]
            )
        return self.database_url.get_secret_value()


def _is_origin(text: str) -> bool:
    """Whether a browser can send `text` as an origin. It leaves out the scheme's default port."""
    match = re.fullmatch(ORIGIN, text)
    if match is None or match["port"] is None:
        return match is not None
    return int(match["port"]) <= MAX_PORT and match["port"] != DEFAULT_PORTS.get(match[1])


def schema_of_environment() -> str | None:
    """The schema of this process's installation, or None: then each connection's own search_path finds it.

    Read from the environment at each call, as libpq reads PGSERVICE: every connection of a process has the same
    schema, whoever opens it. Raises ConfigurationError.
    """
    name = os.environ.get(f"{PREFIX}SCHEMA") or None
    return name if name is None else load({f"{PREFIX}SCHEMA": name}).schema_name


def load(environ: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
    """Read the settings from `environ`, by default the process's own. An empty variable counts as unset.

    Raises ConfigurationError with one line for each wrong value and each unknown OUTRIDER_* name.
    """
    source = os.environ if environ is None else environ
    values: dict[str, Any] = {
        _field(name): value for name, value in source.items() if name.startswith(PREFIX) and value
    }
    try:
        return Settings.model_validate(values | overrides)
    except ValidationError as error:
        raise ConfigurationError([_line(fault) for fault in error.errors()]) from None


def _field(name: str) -> str:
    """The field of a variable. A variable that is not in capitals keeps its name, which no field has."""
    return name.removeprefix(PREFIX).lower() if name.isupper() else name


def _line(fault: Any) -> str:
    if not fault["loc"]:
        return str(fault["msg"]).removeprefix("Value error, ")
    field = str(fault["loc"][0])
    name = field if field.startswith(PREFIX) else PREFIX + field.upper()
    if fault["type"] == "extra_forbidden":
        return f"{name}: no such setting{_near(name)}"
    return f"{name}: {str(fault['msg']).removeprefix('Value error, ')}"


def _near(name: str) -> str:
    """A hint at the setting that was probably meant, or nothing."""
    known = [PREFIX + (field.alias or key).upper() for key, field in Settings.model_fields.items()]
    near = get_close_matches(name.upper(), known, n=1, cutoff=0.8)
    return f"; did you mean {near[0]}?" if near else ""
