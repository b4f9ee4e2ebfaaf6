"""The environment is read once, and whatever is wrong with it is said at once, a line for each fault."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from engine.errors import ConfigurationError
from engine.settings import load

SECRET = "s" * 32


def test_without_an_environment_the_defaults_hold() -> None:
    settings = load({})
    assert (settings.transport, settings.http_host, settings.http_port) == ("postgres", "127.0.0.1", 8080)
    assert (settings.lease_seconds, settings.drain_seconds, settings.worker_concurrency) == (30, 25, 10)
    assert (settings.retention_days, settings.log_level, settings.admin_port) == (0, "info", None)


def test_an_empty_variable_counts_as_unset_and_foreign_ones_are_left_alone() -> None:
    assert load({"OUTRIDER_HTTP_PORT": "", "HTTP_PORT": "x", "OUTRIDERS": "y"}) == load({})


def test_values_are_read_as_they_are_meant() -> None:
    settings = load(
        {
            "OUTRIDER_PIPELINES": " a.b , c,",
            "OUTRIDER_DATA_DIR": "/data",
            "OUTRIDER_LOG_LEVEL": "WARNING",
            "OUTRIDER_ADMIN_PORT": "0",
            "OUTRIDER_LEASE_SECONDS": "1.5",
        }
    )
    assert settings.pipelines == ("a.b", "c")
    assert settings.data_dir == Path("/data")
    assert (settings.log_level, settings.admin_port, settings.lease_seconds) == ("warning", 0, 1.5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HTTP_PORT", "65536"),
        ("HTTP_PORT", "eighty"),
        ("TRANSPORT", "kafka"),
        ("WORKER_CONCURRENCY", "0"),
        ("WORKER_CONCURRENCY", "1001"),
        ("WORKER_CONCURRENCY", "1.5"),
        ("LEASE_SECONDS", "0.5"),
        ("LEASE_SECONDS", "nan"),
        ("LEASE_SECONDS", "inf"),
        ("DRAIN_SECONDS", "-1"),
        ("LOG_LEVEL", "loud"),
        ("LOG_FORMAT", "xml"),
        ("RETENTION_DAYS", "-1"),
        ("JWKS_URL", "file:///etc/passwd"),
        ("JWKS_URL", "https://"),
        ("JWKS_URL", "https:///keys"),
        ("JWKS_URL", "https://issuer:port/keys"),
        ("JWKS_URL", "https://issuer:99999/keys"),
        ("JWKS_URL", "https://[::1/keys"),
        ("JWT_ALGORITHMS", "none"),
        ("CORS_ORIGINS", "null"),
        ("CORS_ORIGINS", "app.example"),
        ("CORS_ORIGINS", "//app.example"),
        ("CORS_ORIGINS", "https://app.example/"),
        ("CORS_ORIGINS", "https://app.example/path"),
        ("CORS_ORIGINS", "https://app.example?x"),
        ("CORS_ORIGINS", "https://app.example#x"),
        ("CORS_ORIGINS", "https://App.Example"),
        ("CORS_ORIGINS", "https://bücher.example"),
        ("CORS_ORIGINS", "https://user@app.example"),
        ("CORS_ORIGINS", "https://*.app.example"),
        ("CORS_ORIGINS", "https://app.example:443"),
        ("CORS_ORIGINS", "http://app.example:80"),
        ("CORS_ORIGINS", "http://app.example:"),
        ("CORS_ORIGINS", "http://app.example:0"),
        ("CORS_ORIGINS", "http://app.example:65536"),
        ("CORS_ORIGINS", "http://app.example:08080"),
        ("CORS_ORIGINS", "https://"),
        ("CORS_ORIGINS", "https://app.example https://b.example"),
        ("CORS_ORIGINS", "https://app.example,*"),
        ("CORS_ORIGINS", "*,*"),
        ("CORS_ORIGINS", "https://good.example, bad"),
        ("DATABASE_URL", "host=h port"),
        ("DATABASE_URL", "postgresql://u:p@h/d?no_such=option"),
        ("DATABSE_URL", "postgresql:///d"),
    ],
)
def test_a_wrong_value_or_name_is_one_line_that_names_the_variable(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load({"OUTRIDER_" + name: value})
    [line] = caught.value.problems
    assert line.startswith(f"OUTRIDER_{name.upper()}: ")
    assert "\n" not in line


@pytest.mark.parametrize(
    ("value", "origins"),
    [
        ("", ()),
        (" , ", ()),
        ("*", ("*",)),
        (" https://app.example , http://localhost:3000,", ("https://app.example", "http://localhost:3000")),
        ("http://127.0.0.1:8080,http://[::1]:8080", ("http://127.0.0.1:8080", "http://[::1]:8080")),
        ("capacitor://localhost,http://my_host", ("capacitor://localhost", "http://my_host")),
        ("http://a:443,https://a:80", ("http://a:443", "https://a:80")),
        ("https://xn--bcher-kva.example", ("https://xn--bcher-kva.example",)),
    ],
)
def test_origins_are_written_as_browsers_send_them(value: str, origins: tuple[str, ...]) -> None:
    assert load({"OUTRIDER_CORS_ORIGINS": value}).cors_origins == origins


def test_every_fault_has_its_line() -> None:
    with pytest.raises(ConfigurationError) as caught:
        load({"OUTRIDER_HTTP_PORT": "x", "OUTRIDER_LEASE_SECONDS": "y", "OUTRIDER_TYPO": "z"})
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(
    "environ",
    [
        {"OUTRIDER_JWT_SECRET": "short"},
        {"OUTRIDER_JWT_SECRET": SECRET, "OUTRIDER_JWKS_URL": "https://issuer/keys"},
        {"OUTRIDER_JWT_SECRET": SECRET, "OUTRIDER_JWT_ALGORITHMS": "RS256"},
        {"OUTRIDER_JWKS_URL": "https://issuer/keys", "OUTRIDER_JWT_ALGORITHMS": "HS256,RS256"},
    ],
)
def test_keys_and_algorithms_must_go_together(environ: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load(environ)
    assert len(caught.value.problems) == 1


def test_secrets_are_not_shown() -> None:
    url = "postgresql://u:hunter2@h/d"
    settings = load({"OUTRIDER_DATABASE_URL": url, "OUTRIDER_JWT_SECRET": SECRET})
    assert "hunter2" not in repr(settings) + str(settings)
    assert SECRET not in repr(settings)
    assert settings.database() == url
    with pytest.raises(ConfigurationError) as caught:
        load({"OUTRIDER_DATABASE_URL": "postgresql://u:hunter2@h/d?bad=1"})
    assert "hunter2" not in str(caught.value)


def test_settings_do_not_change_and_a_database_must_be_named() -> None:
    settings = load({})
    with pytest.raises(ValidationError):
        # The type checker refuses it too.
        settings.http_port = 1  # type: ignore[misc]
    with pytest.raises(ConfigurationError, match="OUTRIDER_DATABASE_URL"):
        settings.database()


def test_a_variable_in_small_letters_is_no_setting() -> None:
    with pytest.raises(ConfigurationError) as caught:
        load({"OUTRIDER_http_port": "1"})
    assert caught.value.problems == ("OUTRIDER_http_port: no such setting; did you mean OUTRIDER_HTTP_PORT?",)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("OUTRIDER_PIPELINE", "; did you mean OUTRIDER_PIPELINES?"),
        ("OUTRIDER_LEASE_SECNODS", "; did you mean OUTRIDER_LEASE_SECONDS?"),
        ("OUTRIDER_COLOUR", ""),
    ],
)
def test_a_setting_that_there_is_not_suggests_the_one_it_looks_like(given: str, said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load({given: "1"})
    assert caught.value.problems == (f"{given}: no such setting{said}",)


@pytest.mark.parametrize("text", ["1_0", " 10", "10\n", "+10", "1e1", "inf", "nan", "٣", "0x10", "true"])
@pytest.mark.parametrize(
    "name", ["WORKER_CONCURRENCY", "HTTP_PORT", "RETENTION_DAYS", "LEASE_SECONDS", "DRAIN_SECONDS"]
)
def test_a_number_is_written_in_digits(name: str, text: str) -> None:
    with pytest.raises(ConfigurationError, match=f"OUTRIDER_{name}: not a"):
        load({f"OUTRIDER_{name}": text})
    assert getattr(load({f"OUTRIDER_{name}": "010"}), name.lower()) == 10


def test_seconds_may_have_a_point() -> None:
    assert load({"OUTRIDER_LEASE_SECONDS": "1.5"}).lease_seconds == 1.5
    with pytest.raises(ConfigurationError):
        load({"OUTRIDER_WORKER_CONCURRENCY": "10.0"})
