"""What `send imaging` makes of folders, files and data sets, and of a DICOMweb service's answers."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from aiohttp import web
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from pydicom import Dataset
from pydicom.data import get_testdata_file
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from typer.testing import CliRunner

from engines import repository
from engines.images import prepare, to_png
from schemas.imaging import DicomwebImage, FileImage, ImagingEvent, InlineImage
from worker import dicomweb_query, embedded, imaging_source, simulate
from worker.cli import app
from worker.config import Settings
from worker.films import film
from worker.imaging_source import Choice
from worker.recording import SourceError

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


def png(seed: int = 0, side: int = 8) -> bytes:
    return to_png(np.random.default_rng(seed).random((side, side, 1)).astype(np.float32))


def dicom(path: Path, **attributes: str) -> Path:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.1", generate_uid()
    dataset.PatientID, dataset.Modality = "p-9", "DX"
    for name, value in attributes.items():
        setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


def events(source: Path | str, choice: Choice | None = None) -> list[ImagingEvent]:
    return list(imaging_source.read(str(source), choice or Choice()).open())


def test_a_dicom_file_says_whose_and_when(tmp_path: Path) -> None:
    path = dicom(
        tmp_path / "a.dcm", AcquisitionDate="20260131", AcquisitionTime="120000.5", BodyPartExamined="CHEST"
    )
    (event,) = events(path)
    content = path.read_bytes()
    assert (event.patient, event.time, event.modality, event.body_part) == ("p-9", NOON, "DX", "CHEST")
    assert event.image == InlineImage(content)
    assert (event.sha256, event.size) == (sha256(content).hexdigest(), len(content))
    assert events(path) == [event]


@pytest.mark.parametrize(
    ("attributes", "hour"),
    [
        ({"StudyDate": "20260131", "StudyTime": "13"}, 12),
        ({"StudyDate": "20260131", "StudyTime": "1300", "TimezoneOffsetFromUTC": "-0500"}, 18),
        ({"StudyDate": "20250101", "ContentDate": "20260131", "ContentTime": "010000"}, 0),
        ({"AcquisitionDateTime": "20260131120000.000000", "StudyDate": "20250101"}, 11),
        ({"AcquisitionDateTime": "20260131120000.5-0500", "StudyDate": "20250101"}, 17),
        ({"AcquisitionDateTime": "2026013112+0000", "TimezoneOffsetFromUTC": "-0500"}, 12),
    ],
)
def test_times_are_in_the_files_zone_or_else_in_the_one_given(
    tmp_path: Path, attributes: dict[str, str], hour: int
) -> None:
    (event,) = events(dicom(tmp_path / "a.dcm", **attributes), Choice(zone=ZoneInfo("Europe/Berlin")))
    assert event.time.astimezone(UTC) == NOON.replace(hour=hour)


def test_a_folder_with_its_manifest(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "b.png").write_bytes(png(1))
    (tmp_path / "a.png").write_bytes(png(2))
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "events.csv").write_text(
        "file,patient,time,view\nin/b.png,p-1,2026-01-31T12:00:00Z,PA\na.png,p-2,2026-01-31 13:00,\n"
    )
    pictures = imaging_source.read(str(tmp_path), Choice(zone=ZoneInfo("Europe/Berlin")))
    first, second = pictures.open()
    assert (pictures.count, pictures.skipped) == (2, 1)
    assert (first.patient, second.patient) == ("p-2", "p-1")
    assert first.time == second.time == NOON
    assert second.view == "PA"


def test_large_pictures_go_by_reference_unless_stated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imaging_source, "INLINE_BYTES", 100)
    path = tmp_path / "a.png"
    path.write_bytes(png(side=64))
    choice = Choice(patient="p", time=NOON)
    assert events(path, choice)[0].image == FileImage(str(path))
    assert events(path, choice._replace(carry="inline"))[0].image == InlineImage(path.read_bytes())
    monkeypatch.setattr(imaging_source, "INLINE_BYTES", 1 << 20)
    assert events(path, choice)[0].image == InlineImage(path.read_bytes())
    assert events(path, choice._replace(carry="reference"))[0].image == FileImage(str(path))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.png", png(), "whose picture is it"),
        ("a.txt", b"text", "neither PNG"),
        ("a.dcm", b"\0" * 128 + b"DICM" + b"\xff" * 60, "a.dcm"),
    ],
)
def test_what_cannot_be_sent_is_said(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=says):
        events(tmp_path / name)


def test_one_bad_file_of_a_folder_keeps_no_other_back(tmp_path: Path) -> None:
    dicom(tmp_path / "a.dcm", StudyDate="20260131", StudyTime="120000")
    dicom(tmp_path / "b.dcm")
    (tmp_path / "c.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 60)
    dicom(tmp_path / "z.dcm", StudyDate="20260131", StudyTime="120000")
    dicom(tmp_path / "DICOMDIR")
    found = imaging_source.read(str(tmp_path), Choice())
    assert len(list(found.open())) == 2
    assert found.skipped == 1
    says = ("b.dcm: when was it taken", "c.dcm: ")
    assert all(part in why for part, why in zip(says, found.left_out, strict=True))


def test_a_file_whose_name_no_event_can_hold_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "odd\udcff.png").write_bytes(png())
    choice = Choice(patient="p", time=NOON, carry="reference")
    found = imaging_source.read(str(tmp_path), choice)
    assert not list(found.open())
    assert "not UTF-8" in found.left_out[0]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ("a.png,p,yesterday\n", "row 2: time"),
        ("a.png,,2026-01-31T12:00:00Z\n", "row 2: the columns"),
    ],
)
def test_a_wrong_manifest_is_said_before_anything_is_sent(tmp_path: Path, rows: str, says: str) -> None:
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "events.csv").write_text("file,patient,time\n" + rows)
    with pytest.raises(SourceError, match=says):
        imaging_source.read(str(tmp_path), Choice())


def test_what_the_manifest_names_and_cannot_be_sent_keeps_nothing_else_back(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "b.png").write_text("no picture")
    (tmp_path / "notes.txt").write_text("nor is this, but nobody names it")
    rows = [f"{name}.png,p,2026-01-31T12:00:00Z" for name in "abc"]
    (tmp_path / "events.csv").write_text("\n".join(["file,patient,time", *rows]))
    found = imaging_source.read(str(tmp_path), Choice())
    assert len(list(found.open())) == 1
    assert (found.skipped, [why.partition(": ")[2] for why in found.left_out]) == (
        1,
        [
            "events.csv names it, and it is no PNG, JPEG or DICOM file",
            "events.csv names it, and it is not there",
        ],
    )


def test_a_dicom_header_of_another_maker() -> None:
    (event,) = events(str(get_testdata_file("CT_small.dcm")))
    assert event.modality == "CT"
    assert event.time.isoformat() == "1997-04-30T11:29:36-05:00"  # content time and offset, of 5 h


def test_pictures_of_a_data_set(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "set.npz", train_images=images, train_labels=np.zeros((3, 1), dtype=np.uint8))
    found = events(f"medmnist:{tmp_path / 'set.npz'}", Choice(limit=2))
    assert [event.patient for event in found] == ["image-0", "image-1"]
    assert isinstance(found[1].image, InlineImage)
    assert found[1].image.content == to_png((images[1] / 255).astype(np.float32)[:, :, None])


def test_films_of_ill_lungs_look_ill_to_the_shipped_model() -> None:
    engine = repository.load(repository.SHIPPED, "pneumonia")
    assert engine.config.image is not None
    risks = {}
    for level in (0.0, 1.0):
        pictures = [prepare(film(1, n, level), engine.config.image) for n in range(20)]
        risks[level] = engine.run({"image": np.stack(pictures)})["probability"][:, 1]
    engine.close()
    assert np.median(risks[0.0]) < 0.3
    assert np.median(risks[1.0]) > 0.7


def test_simulated_films_are_the_same_each_time_and_in_order() -> None:
    choice = Choice(limit=12)
    found = events("simulate", choice)
    assert found == events("simulate", choice)
    assert [event.time for event in found] == sorted(event.time for event in found)
    everyone = simulate.patients(12)
    assert {event.patient for event in found} == {patient.id for patient in everyone}
    admitted = {patient.id: patient.admitted for patient in everyone}
    assert all(event.time >= admitted[event.patient] for event in found)


def attributes(**values: str) -> dict[str, object]:
    return {tag: {"vr": "LO", "Value": [value]} for tag, value in values.items()}


@asynccontextmanager
async def service(
    studies: int, most: int = 1000, said: dict[str, str] | None = None
) -> AsyncIterator[tuple[str, list[str]]]:
    """A DICOMweb service with two images and a report in each study, of which it says more in `said`.

    It names `most` studies at once.
    """
    asked: list[str] = []

    async def all_studies(request: web.Request) -> web.Response:
        asked.append(request.headers.get("Authorization", ""))
        offset, limit = int(request.query["offset"]), min(int(request.query["limit"]), most)
        numbers = range(offset, min(offset + limit, studies))
        if not numbers:
            return web.Response(status=204)
        return web.json_response(
            [
                attributes(
                    **{"0020000D": f"1.{n}", "00100020": f"p{n}", "00080020": "20260131", "00080030": "12"}
                    | (said if said and n == 1 else {})
                )
                for n in numbers
            ]
        )

    async def instances(request: web.Request) -> web.StreamResponse:
        uid = request.match_info["study"]
        images = [
            attributes(
                **{"0020000E": f"{uid}.1", "00080018": f"{uid}.1.{n}", "00080060": "DX", "00280010": "8"}
            )
            for n in range(2)
        ]
        report = attributes(**{"0020000E": f"{uid}.2", "00080018": f"{uid}.2.0", "00080060": "SR"})
        told = json.dumps([*images, {**report, "00280010": {"vr": "US"}}]).encode()
        response = web.StreamResponse(headers={"Content-Type": "application/dicom+json"})
        await response.prepare(request)
        for at in range(0, len(told), 100):
            await response.write(told[at : at + 100])
            await asyncio.sleep(0)
        return response

    site = web.Application()
    site.router.add_get("/dicom-web/studies", all_studies)
    site.router.add_get("/dicom-web/studies/{study}/instances", instances)
    runner = web.AppRunner(site)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    try:
        yield f"http://{host}:{port}/dicom-web", asked
    finally:
        await runner.cleanup()


async def test_a_services_images_by_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicomweb_query, "PAGE", 2)
    async with service(5) as (url, _):
        found = [event async for event in dicomweb_query.events(url + "/", Settings(), Choice(), [])]
    assert len(found) == 10
    assert found[3].image == DicomwebImage(f"{url}/studies/1.1/series/1.1.1/instances/1.1.1.1")
    assert (found[3].patient, found[3].time, found[3].modality) == ("p1", NOON, "DX")
    assert len({event.event_id for event in found}) == 10


async def test_a_service_may_name_fewer_studies_than_it_is_asked_for() -> None:
    async with service(5, most=2) as (url, asked):
        found = [event async for event in dicomweb_query.events(url, Settings(), Choice(), [])]
    assert len({event.event_id for event in found}) == len(found) == 10
    assert len(asked) == 4


@pytest.mark.parametrize("said", [{"00080020": ""}, {"00100020": ""}, {"00100020": "p" * 1000}])
async def test_an_image_that_cannot_be_sent_keeps_no_other_back(said: dict[str, str]) -> None:
    left_out: list[str] = []
    async with service(3, said=said) as (url, _):
        found = [event async for event in dicomweb_query.events(url, Settings(), Choice(), left_out)]
    assert [event.patient for event in found] == ["p0", "p0", "p2", "p2"]
    assert len(left_out) == 2


async def test_a_service_states_its_zone() -> None:
    async with service(2, said={"00080201": "-0500"}) as (url, _):
        found = [event async for event in dicomweb_query.events(url, Settings(), Choice(), [])]
    assert [event.time.astimezone(UTC).hour for event in found] == [12, 12, 17, 17]


async def test_a_limit_and_credentials_hold_for_a_service() -> None:
    async with service(5) as (url, asked):
        settings = Settings(
            imaging_hosts=(url,),
            imaging_internal_hosts=("127.0.0.1",),
            imaging_credentials={url: "bearer secret"},
        )
        found = [event async for event in dicomweb_query.events(url, settings, Choice(limit=3), [])]
    assert len(found) == 3
    assert asked == ["Bearer secret"]


async def test_a_service_that_is_none_is_said() -> None:
    async with service(1) as (url, _):
        with pytest.raises(SourceError, match="answers 404"):
            _ = [event async for event in dicomweb_query.events(url + "/x", Settings(), Choice(), [])]
    with pytest.raises(SourceError, match="cannot be asked"):
        _ = [event async for event in dicomweb_query.events(url, Settings(), Choice(), [])]


@pytest.mark.parametrize("arguments", [["send", "nowhere.jsonl"], ["send", "vitals", "nowhere.jsonl"]])
def test_send_means_vitals_unless_imaging_is_said(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert "nowhere.jsonl" in str(result.output) + str(result.exception)


async def with_topic(broker: str, topic: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=broker)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, 1, 1)])
    finally:
        await admin.close()


def test_send_imaging_ends_with_1_if_a_picture_could_not_be_sent(tmp_path: Path) -> None:
    dicom(tmp_path / "a.dcm", StudyDate="20260131", StudyTime="120000")
    dicom(tmp_path / "b.dcm")
    with embedded.tansu() as broker:
        asyncio.run(with_topic(broker.address, "imaging"))
        environment = {"RISKSTREAM_BROKER": broker.address, "RISKSTREAM_KAFKA_IDEMPOTENCE": "false"}
        result = CliRunner().invoke(app, ["send", "imaging", str(tmp_path)], env=environment)
    said = result.output + str(result.exception)
    assert result.exit_code == 1
    assert "sent 1 imaging events" in said
    assert "b.dcm: when was it taken" in said
    assert "1 pictures could not be sent" in said


def test_send_imaging_says_what_is_wrong(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["send", "imaging", str(tmp_path)])
    assert result.exit_code == 1
    assert "holds no PNG" in str(result.output) + str(result.exception)
