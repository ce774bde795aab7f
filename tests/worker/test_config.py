"""Settings that cannot work are refused with a message that says which and why; secrets never print."""

from pathlib import Path
from typing import Any

import pytest

from worker import config
from worker.config import ConfigError

SECRET = "hunter2-secret"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"session_timeout_s": 50}, "session_timeout_s must not exceed request_timeout_s"),
        ({"kafka_security_protocol": "SASL_SSL"}, "kafka_username is empty; SASL_SSL needs it"),
        ({"kafka_security_protocol": "TLS"}, "kafka_security_protocol: Input should be 'PLAINTEXT', 'SSL'"),
        ({"kafka_cert_file": __file__}, "kafka_cert_file and kafka_key_file go together"),
        ({"redis_key_file": __file__}, "redis_cert_file and redis_key_file go together"),
        ({"kafka_ca_file": "/nowhere.pem"}, "kafka_ca_file: Path does not point to a file"),
        ({"broker": " , "}, "broker names no server"),
        ({"group": "a b"}, "group: String should match pattern"),
        ({"checkpoint_interval_s": 0}, "checkpoint_interval_s: Input should be greater than 0"),
        ({"model_memory_mb": 0}, "model_memory_mb: Input should be greater than or equal to 1"),
        ({"http_port": 70000}, "http_port: Input should be less than or equal to 65535"),
        ({"publish_scores": "perhaps"}, "publish_scores: Input should be a valid boolean"),
        ({"rebuild_horizon_h": 95}, "rebuild_horizon_h: Input should be greater than or equal to 96"),
        ({"topic_vital": "x"}, "topic_vital: Extra inputs are not permitted"),
        ({"redis": f"redis://:{SECRET}/x@host:6379"}, "redis must be redis://host:port/number"),
        ({"redis": f"http://:{SECRET}@host"}, "redis must be redis://host:port/number"),
    ],
)
def test_wrong_settings_are_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load(**wrong)
    assert message in str(caught.value)
    assert SECRET not in str(caught.value)


def test_environment_over_file_over_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('group = "from-file"\nhttp_port = 1\npartitions = 2\n')
    monkeypatch.setenv("RISKSTREAM_HTTP_PORT", "3")

    settings = config.load(file, partitions=4)

    assert (settings.group, settings.http_port, settings.partitions) == ("from-file", 3, 4)
    assert settings.chunk_records == 512


def test_the_memory_budget_is_in_mebibytes() -> None:
    assert config.load().model_memory_limit is None
    assert config.load(model_memory_mb=3).model_memory_limit == 3 << 20


def test_file_and_environment_are_judged_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(f'kafka_username = "u"\nkafka_password = "{SECRET}"\n')
    monkeypatch.setenv("RISKSTREAM_KAFKA_SECURITY_PROTOCOL", "SASL_PLAINTEXT")

    settings = config.load(file)

    assert (settings.kafka_security_protocol, settings.kafka_username) == ("SASL_PLAINTEXT", "u")
    assert settings.kafka_password.get_secret_value() == SECRET


def test_unknown_keys_of_the_file_are_named(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(f'redis_pasword = "{SECRET}"\n[kafka]\nusername = "u"\n')
    with pytest.raises(ConfigError, match=r"settings\.toml: no such setting: kafka, redis_pasword") as caught:
        config.load(file)
    assert SECRET not in str(caught.value)


def test_misspelt_variables_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RISKSTREAM_REDIS_PASWORD", SECRET)
    monkeypatch.setenv("riskstream_http_prot", "80")
    with pytest.raises(
        ConfigError, match="no such setting: RISKSTREAM_HTTP_PROT, RISKSTREAM_REDIS_PASWORD"
    ) as caught:
        config.load()
    assert SECRET not in str(caught.value)


def test_variables_that_are_no_settings_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RISKSTREAM_TEST_DATA", "/data")
    # What Kubernetes sets for a service named riskstream-metrics.
    monkeypatch.setenv("RISKSTREAM_METRICS_SERVICE_HOST", "10.0.0.7")
    monkeypatch.setenv("RISKSTREAM_METRICS_SERVICE_PORT_HTTP", "8080")
    monkeypatch.setenv("RISKSTREAM_METRICS_PORT", "tcp://10.0.0.7:8080")
    monkeypatch.setenv("RISKSTREAM_METRICS_PORT_8080_TCP_ADDR", "10.0.0.7")

    assert config.load().http_port == 8080


@pytest.mark.parametrize("text", ["group = ", f'redis_password = "{SECRET}', "\udcff"])
def test_broken_file(text: str, tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match="cannot read settings file") as caught:
        config.load(file)
    assert SECRET not in str(caught.value)


def test_absent_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        config.load(tmp_path / "none.toml")


def test_secrets_never_print() -> None:
    settings = config.load(
        kafka_password=SECRET, redis_password=SECRET, redis=f"redis://user:{SECRET}@127.0.0.1:6379/0"
    )

    assert SECRET not in repr(settings) + str(settings) + settings.model_dump_json()
    assert SECRET not in str(settings.model_dump(mode="json"))


def test_sasl_reaches_the_client() -> None:
    settings = config.load(
        broker="a:1, b:2",
        kafka_security_protocol="SASL_PLAINTEXT",
        kafka_sasl_mechanism="SCRAM-SHA-512",
        kafka_username="u",
        kafka_password=SECRET,
    )

    client = settings.kafka_client()

    assert client["bootstrap_servers"] == ["a:1", "b:2"]
    assert (client["sasl_mechanism"], client["sasl_plain_username"]) == ("SCRAM-SHA-512", "u")
    assert client["sasl_plain_password"] == SECRET
    assert client["ssl_context"] is None


def test_tls_verifies_host_names() -> None:
    context = config.load(kafka_security_protocol="SSL").kafka_ssl_context()

    assert context is not None
    assert context.check_hostname
