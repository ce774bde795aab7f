"""A real Orthanc with its DICOMweb plugin for the integration tests, on a free loopback port."""

import json
from base64 import b64encode
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import aiohttp

from tests.integration.servers import Account, Server, free_ports

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
"""Where Debian's package orthanc-dicomweb puts it."""

_TIMEOUT = aiohttp.ClientTimeout(total=30)


class OrthancServer(Server):
    """Orthanc, with HTTP alone and one user; what it stores stays between `stop` and `start`.

    url: of its DICOMweb service.
    """

    def __init__(self, directory: Path, account: Account) -> None:
        self._config = directory / "orthanc.json"
        super().__init__("orthanc", directory, ["Orthanc", str(self._config)])
        (port,) = free_ports(1)
        self.account = account
        self._root = f"http://127.0.0.1:{port}"
        self.url = f"{self._root}/dicom-web"
        self._config.write_text(json.dumps(self._settings(port)))
        self._config.chmod(0o600)

    def _settings(self, port: int) -> dict[str, Any]:
        storage = str(self.directory / "storage")
        return {
            "HttpPort": port,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": True,
            "RegisteredUsers": {self.account.username: self.account.password},
            "DicomServerEnabled": False,
            "StorageDirectory": storage,
            "IndexDirectory": storage,
            "Plugins": [str(PLUGIN)],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "EnableWado": False},
        }

    async def answers(self) -> bool:
        try:
            async with self._session() as session, session.get(f"{self.url}/studies?limit=1") as response:
                return response.status == 200
        except aiohttp.ClientError:
            return False

    async def store(self, files: Sequence[bytes]) -> None:
        """Store DICOM files by STOW-RS, all in one request."""
        parts = (b"--edge\r\nContent-Type: application/dicom\r\n\r\n" + file + b"\r\n" for file in files)
        kind = 'multipart/related; type="application/dicom"; boundary=edge'
        body, headers = b"".join(parts) + b"--edge--\r\n", {"Content-Type": kind}
        url = f"{self.url}/studies"
        sent = BytesIO(body)
        async with self._session() as session, session.post(url, data=sent, headers=headers) as response:
            told = await response.text()
            assert response.status == 200, told
        failed = json.loads(told).get("00081198", {})
        assert not failed.get("Value"), "Orthanc has not stored all"

    async def compressed(self, file: bytes, syntax: str) -> bytes:
        """A DICOM file in another transfer syntax, by Orthanc's own encoders; it keeps nothing of it."""
        async with self._session() as session:
            async with session.post(f"{self._root}/instances", data=BytesIO(file)) as response:
                instance = f"{self._root}/instances/{(await response.json(content_type=None))['ID']}"
            order = {
                "Transcode": syntax,
                "Keep": ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"],
                "Force": True,
            }
            async with session.post(f"{instance}/modify", json=order) as response:
                made = await response.read()
                assert response.status == 200, made
            async with session.delete(instance) as response:
                assert response.status == 200
        return made

    def _session(self) -> aiohttp.ClientSession:
        known = b64encode(f"{self.account.username}:{self.account.password}".encode()).decode()
        return aiohttp.ClientSession(headers={"Authorization": f"Basic {known}"}, timeout=_TIMEOUT)
