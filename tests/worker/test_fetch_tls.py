"""TLS with a DICOMweb service: trusted authorities and the right name alone, client certificates."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from schemas.imaging import DicomwebImage
from tests.worker.pacs import (
    INSTANCE,
    PICTURE,
    Pacs,
    assert_anonymous,
    event_of,
    fetch,
    running,
    settings_for,
)
from worker.errors import SourceAwayError, SourceUntrustedError


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def trusted(authority: trustme.CA, tmp_path: Path) -> dict[str, Any]:
    """Settings that trust the authority."""
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    return {"imaging_ca_file": tmp_path / "ca.pem", "imaging_connect_timeout_s": 2.0}


def server(authority: trustme.CA, name: str) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(name).configure_cert(context)
    return context


async def ask(pacs: Pacs, settings: dict[str, Any], host: str = "127.0.0.1") -> bytes:
    base = f"https://{host}:{pacs.port}/dicom-web"
    changes = {"imaging_hosts": [base], "imaging_internal_hosts": [host], **settings}
    return (await fetch(settings_for(pacs, **changes), event_of(DicomwebImage(base + INSTANCE)))).content


@pytest.fixture
async def pacs(authority: trustme.CA) -> AsyncIterator[Pacs]:
    async with running(server(authority, "127.0.0.1")) as pacs:
        yield pacs


async def test_a_trusted_service(pacs: Pacs, trusted: dict[str, Any]) -> None:
    assert await ask(pacs, trusted) == PICTURE


async def test_an_unknown_authority(pacs: Pacs, tmp_path: Path) -> None:
    trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")
    for settings in ({}, {"imaging_ca_file": tmp_path / "other.pem"}):
        with pytest.raises(SourceUntrustedError) as caught:
            await ask(pacs, settings)
        assert_anonymous(caught.value)
    assert pacs.asked == []


async def test_a_certificate_of_another_name(pacs: Pacs, trusted: dict[str, Any]) -> None:
    with pytest.raises(SourceUntrustedError) as caught:
        await ask(pacs, trusted, host="localhost")
    assert caught.value.reason == "source-untrusted"
    assert pacs.asked == []


async def test_a_client_certificate(authority: trustme.CA, trusted: dict[str, Any], tmp_path: Path) -> None:
    demanding = server(authority, "127.0.0.1")
    demanding.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(demanding)
    issued = authority.issue_cert("worker.example")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    async with running(demanding) as pacs:
        with pytest.raises(SourceAwayError):
            await ask(pacs, trusted)
        files = {"imaging_cert_file": tmp_path / "cert.pem", "imaging_key_file": tmp_path / "key.pem"}
        assert await ask(pacs, {**trusted, **files}) == PICTURE


async def test_a_service_without_tls(trusted: dict[str, Any]) -> None:
    async with running() as pacs:
        with pytest.raises(SourceAwayError) as caught:
            await ask(pacs, trusted)
        assert_anonymous(caught.value)
        assert pacs.asked == []


async def test_a_handshake_that_hangs(trusted: dict[str, Any]) -> None:
    left = asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.transport.abort()
        left.set()

    listening = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    pacs = Pacs()
    pacs.port = listening.sockets[0].getsockname()[1]
    async with listening:
        with pytest.raises(SourceAwayError) as caught:
            await ask(pacs, {**trusted, "imaging_connect_timeout_s": 0.2})
        await left.wait()
    assert caught.value.reason == "source-away"
