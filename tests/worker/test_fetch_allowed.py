"""What a reference must look like, which addresses may be connected to, and which settings are refused."""

from typing import Any

import pytest

from tests.worker.pacs import CANARY, INSTANCE, assert_anonymous
from worker import config
from worker.config import ConfigError
from worker.errors import FetchRefusedError
from worker.fetch_allowed import (
    Base,
    Target,
    is_reachable,
    object_path,
    parse_base,
    parse_bucket,
    target,
)

BASES = [parse_base("https://PACS.example/dicom-web/"), parse_base("http://[::1]:8042/a/b")]
PACS = Base("https", "pacs.example", 443, "/dicom-web")
SECRET = "hunter2-secret"


@pytest.mark.parametrize(
    ("url", "rendered", "path", "frame"),
    [
        (f"https://pacs.example/dicom-web{INSTANCE}", False, INSTANCE, None),
        (f"HTTPS://pacs.EXAMPLE:443/dicom-web{INSTANCE}", False, INSTANCE, None),
        (f"https://pacs.example/dicom-web{INSTANCE}/frames/12", False, INSTANCE, 12),
        (f"https://pacs.example/dicom-web{INSTANCE}", True, f"{INSTANCE}/rendered", None),
        (f"https://pacs.example/dicom-web{INSTANCE}/frames/2", True, f"{INSTANCE}/frames/2/rendered", None),
    ],
)
def test_a_reference_under_a_base(url: str, rendered: bool, path: str, frame: int | None) -> None:
    found = target(BASES, url, rendered=rendered)
    assert found == Target(PACS, path, rendered, frame)
    assert found.url == f"https://pacs.example/dicom-web{path}"


def test_an_ipv6_base() -> None:
    assert target(BASES, f"http://[::1]:8042/a/b{INSTANCE}", rendered=False).url == (
        f"http://[::1]:8042/a/b{INSTANCE}"
    )


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        (f"http://pacs.example/dicom-web{INSTANCE}", "host-not-allowed"),
        (f"https://pacs.example:8443/dicom-web{INSTANCE}", "host-not-allowed"),
        (f"https://pacs.example.evil.example/dicom-web{INSTANCE}", "host-not-allowed"),
        (f"https://evil.example/pacs.example/dicom-web{INSTANCE}", "host-not-allowed"),
        (f"https://pacs.example./dicom-web{INSTANCE}", "host-not-allowed"),
        (f"https://169.254.169.254/dicom-web{INSTANCE}", "host-not-allowed"),
        (f"https://user:word@pacs.example/dicom-web{INSTANCE}", "invalid-reference"),
        (f"https://pacs.example@evil.example/dicom-web{INSTANCE}", "invalid-reference"),
        (f"https://pacs.example\\@evil.example/dicom-web{INSTANCE}", "invalid-reference"),
        (f"https://pacs.example/other{INSTANCE}", "invalid-reference"),
        (f"https://pacs.example/dicom-web-2{INSTANCE}", "invalid-reference"),
        (f"https://pacs.example/dicom-web/../admin{INSTANCE}", "invalid-reference"),
        (f"https://pacs.example/dicom-web/%2e%2e/admin{INSTANCE}", "invalid-reference"),
        (f"https://pacs.example/dicom-web{INSTANCE}%2f..%2fx", "invalid-reference"),
        (f"https://pacs.example/dicom-web{INSTANCE}?next=http://evil.example", "invalid-reference"),
        (f"https://pacs.example/dicom-web{INSTANCE}#x", "invalid-reference"),
        (f"https://pacs.example/dicom-web{INSTANCE}/frames/0", "invalid-reference"),
        (f"https://pacs.example/dicom-web{INSTANCE}/frames/1,2", "invalid-reference"),
        (f"https://pacs.example/dicom-web{INSTANCE}/metadata", "invalid-reference"),
        (f"https://pacs.example/dicom-web{INSTANCE}\r\nX: y", "invalid-reference"),
        (f"https://pacs.example/dicom-web//studies/1.{CANARY}", "invalid-reference"),
        (f"https://pacs.example/dicom-web{INSTANCE}{'.1' * 40}", "invalid-reference"),
        (f"https://pacs.example/dicom-web/studies/{CANARY}/series/2/instances/.", "invalid-reference"),
        (f"file:///etc/{CANARY}", "invalid-reference"),
        (f"ftp://pacs.example/dicom-web{INSTANCE}", "invalid-reference"),
        (f"//pacs.example/dicom-web{INSTANCE}", "invalid-reference"),
        (f"https://pacs.exаmple/dicom-web{INSTANCE}", "invalid-reference"),  # a Cyrillic letter
        (f"https://pacs.example:x/{CANARY}", "invalid-reference"),
        (f"https://[{CANARY}", "invalid-reference"),
    ],
)
def test_a_reference_that_is_refused(url: str, reason: str) -> None:
    with pytest.raises(FetchRefusedError) as caught:
        target(BASES, url, rendered=False)
    assert caught.value.reason == reason
    assert_anonymous(caught.value)


@pytest.mark.parametrize(
    ("address", "public", "internal"),
    [
        ("93.184.216.34", True, True),
        ("2606:2800:220:1::1", True, True),
        ("10.1.2.3", False, True),
        ("172.16.0.1", False, True),
        ("192.168.1.1", False, True),
        ("100.64.0.1", False, True),
        ("127.0.0.1", False, True),
        ("::1", False, True),
        ("fd00::1", False, True),
        ("0.0.0.0", False, False),
        ("0.1.2.3", False, False),
        ("::", False, False),
        ("169.254.169.254", False, False),
        ("100.100.100.200", False, False),
        ("fd00:ec2::254", False, False),
        ("fe80::1%eth0", False, False),
        ("224.0.0.1", False, False),
        ("ff02::1", False, False),
        ("255.255.255.255", False, False),
        ("::ffff:169.254.169.254", False, False),
        ("::ffff:10.0.0.1", False, True),
        ("::ffff:93.184.216.34", True, True),
        ("::169.254.169.254", False, False),
        ("64:ff9b::a9fe:a9fe", False, False),
        ("64:ff9b::5db8:d822", True, True),
        ("2002:a9fe:a9fe::1", False, False),
        ("2002:7f00:1::1", False, True),
        ("2001:0:4136:e378:8000:63bf:5601:5601", False, False),
    ],
)
def test_addresses(address: str, public: bool, internal: bool) -> None:
    assert is_reachable(address, internal=False) is public
    assert is_reachable(address, internal=True) is internal


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        (f"s3://other/{CANARY}", "bucket-not-allowed"),
        (f"s3://scans/chest-2/{CANARY}", "bucket-not-allowed"),
        ("s3://scans/chest", "bucket-not-allowed"),
        (f"s3://scans/chest/../{CANARY}", "invalid-reference"),
        (f"s3://scans/chest//{CANARY}", "invalid-reference"),
        ("s3://scans/chest/", "invalid-reference"),
        (f"s3://scans/chest/{CANARY}?versionId=1", "invalid-reference"),
        (f"s3://scans/chest/{CANARY}::file:///etc/passwd", "invalid-reference"),
        (f"simplecache::s3://scans/chest/{CANARY}", "invalid-reference"),
        (f"zip://x::s3://scans/chest/{CANARY}", "invalid-reference"),
        (f"file:///scans/chest/{CANARY}", "invalid-reference"),
        (f"local://scans/chest/{CANARY}", "invalid-reference"),
        (f"http://scans/chest/{CANARY}", "invalid-reference"),
        (f"scans/chest/{CANARY}", "invalid-reference"),
        (f"s3://scans/chest/{CANARY}\n", "invalid-reference"),
        (f"s3:///chest/{CANARY}", "invalid-reference"),
    ],
)
def test_an_object_that_is_refused(url: str, reason: str) -> None:
    with pytest.raises(FetchRefusedError) as caught:
        object_path([parse_bucket("s3://scans/chest/")], url)
    assert caught.value.reason == reason
    assert_anonymous(caught.value)


def test_an_object_under_a_prefix() -> None:
    assert object_path(["scans/chest"], "s3://scans/chest/2026/é 1.dcm") == "scans/chest/2026/é 1.dcm"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"imaging_roots": "/nowhere-at-all"}, "imaging_roots.0: Path does not point to a directory"),
        ({"imaging_roots": [__file__]}, "imaging_roots.0: Path does not point to a directory"),
        ({"imaging_hosts": "pacs.example/dicom-web"}, "imaging_hosts: write https://host"),
        ({"imaging_hosts": f"https://u:{SECRET}@pacs.example"}, "imaging_hosts: write https://host"),
        ({"imaging_hosts": "https://pacs.example/a/../b"}, "imaging_hosts: write https://host"),
        ({"imaging_hosts": "https://10.0.0.5/dicom-web"}, "10.0.0.5 is private, link-local or reserved"),
        (
            {
                "imaging_hosts": "http://169.254.169.254/latest",
                "imaging_internal_hosts": "169.254.169.254",
            },
            "169.254.169.254 is private, link-local",
        ),
        (
            {"imaging_hosts": "https://pacs.example", "imaging_internal_hosts": "pacs.exampel"},
            "imaging_internal_hosts: pacs.exampel is no host of imaging_hosts",
        ),
        (
            {"imaging_hosts": "https://a.example", "imaging_credentials": {"https://a.example": SECRET}},
            'imaging_credentials: write "basic USER:PASSWORD"',
        ),
        (
            {"imaging_credentials": {"https://b.example": f"bearer {SECRET}"}},
            "imaging_credentials: b.example has an entry that imaging_hosts has not",
        ),
        ({"imaging_buckets": "gs://bucket"}, "write s3://bucket"),
        ({"imaging_buckets": "s3://bucket, bucket"}, "write s3://bucket"),
        ({"imaging_cert_file": __file__}, "imaging_cert_file and imaging_key_file go together"),
        ({"imaging_max_bytes": 0}, "imaging_max_bytes: Input should be greater"),
    ],
)
def test_settings_that_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load(**wrong)
    assert message in str(caught.value)
    assert SECRET not in str(caught.value)


def test_lists_and_secrets_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RISKSTREAM_IMAGING_HOSTS", "https://a.example/x, https://b.example")
    monkeypatch.setenv(
        "RISKSTREAM_IMAGING_CREDENTIALS",
        f'{{"https://a.example/x/": "Basic u:{SECRET}", "https://b.example": "bearer {SECRET}"}}',
    )
    monkeypatch.setenv("RISKSTREAM_IMAGING_ROOTS", "/tmp,/usr")

    settings = config.load()

    assert settings.imaging_hosts == ("https://a.example/x", "https://b.example")
    assert [str(root) for root in settings.imaging_roots] == ["/tmp", "/usr"]
    assert SECRET not in repr(settings) + settings.model_dump_json()
    assert settings.imaging_authorizations() == {
        parse_base("https://a.example/x"): "Basic dTpodW50ZXIyLXNlY3JldA==",
        parse_base("https://b.example"): f"Bearer {SECRET}",
    }


def test_credentials_that_are_not_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RISKSTREAM_IMAGING_CREDENTIALS", f"bearer {SECRET}")
    with pytest.raises(ConfigError, match=r"not JSON.*imaging_credentials") as caught:
        config.load()
    assert SECRET not in str(caught.value)


def test_nothing_is_allowed_by_default() -> None:
    settings = config.load()
    assert not any((settings.imaging_roots, settings.imaging_hosts, settings.imaging_buckets))
