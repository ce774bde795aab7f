"""The Challenge's format, its known junk, and how it becomes rows."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from engines import physionet2012
from engines.errors import DatasetError
from engines.physionet2012 import Stay
from schemas.features import CHANNEL, FEATURES, STATIC
from schemas.window import FILL, rows

HEAD = (
    "Time,Parameter,Value\n00:00,RecordID,{record}\n"
    "00:00,Age,54\n00:00,Gender,0\n00:00,Height,-1\n00:00,ICUType,4\n"
)
OUTCOMES = "RecordID,SAPS-I,SOFA,Length_of_stay,Survival,In-hospital_death\n1,6,1,5,-1,0\n2,16,8,8,3,1\n"


def stay_of(*lines: str, record: str = "1") -> Stay:
    folder_text = HEAD.format(record=record) + "\n".join(lines) + "\n"
    return physionet2012._stay("x", folder_text)


def write_set(folder: Path, outcomes: str | None = OUTCOMES) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for record in ("2", "1"):
        (folder / f"{record}.txt").write_text(HEAD.format(record=record) + f"00:07,HR,7{record}\n")
    if outcomes is not None:
        (folder / "Outcomes-a.txt").write_text(outcomes)
    return folder


def archive_of(folder: Path, path: Path) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, arcname="set-a")
    return path


@pytest.mark.parametrize(
    "layout", ["folder", "nested", "archive", "archive in a folder", "outcomes beside it"]
)
def test_every_layout_gives_the_same_stays(tmp_path: Path, layout: str) -> None:
    source = write_set(tmp_path / "made" / "set-a")
    match layout:
        case "nested":
            source = tmp_path / "made"
        case "archive":
            source = archive_of(source, tmp_path / "set-a.tar.gz")
        case "archive in a folder":
            (tmp_path / "data").mkdir()
            source = archive_of(source, tmp_path / "data" / "set-a.tar.gz").parent
        case "outcomes beside it":
            (tmp_path / "data").mkdir()
            (source / "Outcomes-a.txt").rename(tmp_path / "data" / "Outcomes-a.txt")
            source = archive_of(source, tmp_path / "data" / "set-a.tar.gz").parent
    stays = physionet2012.read(source)
    assert [(stay.record, stay.outcome, stay.samples[-1].value) for stay in stays] == [
        ("1", 0, 71),
        ("2", 1, 72),
    ]


def test_an_archive_beside_its_files_counts_each_stay_once(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "data" / "set-a")
    alone = physionet2012.read(folder)
    archive_of(folder, tmp_path / "data" / "set-a.tar.gz")
    assert physionet2012.read(tmp_path / "data") == alone


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("1.txt", HEAD.format(record="1") + "00:07,HR,99\n"),
        ("Outcomes-b.txt", "RecordID,In-hospital_death\n1,1\n"),
    ],
)
def test_two_files_that_disagree_on_a_stay_are_refused(tmp_path: Path, name: str, text: str) -> None:
    folder = write_set(tmp_path / "s")
    (folder / "other").mkdir()
    (folder / "other" / name).write_text(text)
    with pytest.raises(DatasetError, match="the same RecordID different content"):
        physionet2012.read(folder)


@pytest.mark.parametrize("archived", [False, True])
def test_files_of_no_concern_are_left_alone(tmp_path: Path, archived: bool) -> None:
    folder = write_set(tmp_path / "data" / "s")
    alone = physionet2012.read(folder)
    (folder / "README.txt").write_bytes("Übersicht".encode("latin-1"))
    (folder / "._1.txt").write_bytes(b"\x00\x05\x16\x07Mac OS X")
    (folder / "._Outcomes-a.txt").write_bytes(b"\x00\x05\x16\x07Mac OS X")
    (folder / "._set-a.tar.gz").write_bytes(b"\x00\x05\x16\x07Mac OS X")
    source = archive_of(folder, tmp_path / "set-a.tar.gz") if archived else folder
    assert physionet2012.read(source) == alone


def test_a_byte_order_mark_is_no_hindrance(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "s")
    alone = physionet2012.read(folder)
    (folder / "1.txt").write_text((folder / "1.txt").read_text(), encoding="utf-8-sig")
    assert physionet2012.read(folder) == alone


def test_outcomes_may_be_absent(tmp_path: Path) -> None:
    assert [stay.outcome for stay in physionet2012.read(write_set(tmp_path / "s", None))] == [None, None]


@pytest.mark.parametrize(
    ("outcomes", "scores"),
    [
        (OUTCOMES, [(6, 1), (16, 8)]),
        ("RecordID,SAPS-I,SOFA,In-hospital_death\n1,-1,0,0\n2,5,-1,1\n", [(None, 0), (5, None)]),
        ("RecordID,SAPS-I,In-hospital_death\n1,,0\n2,high,1\n", [(None, None), (None, None)]),
        (None, [(None, None), (None, None)]),
    ],
)
def test_severity_scores_are_read_where_they_are(
    tmp_path: Path, outcomes: str | None, scores: list[tuple[int | None, int | None]]
) -> None:
    stays = physionet2012.read(write_set(tmp_path / "s", outcomes))
    assert [(stay.saps1, stay.sofa) for stay in stays] == scores


def test_samples_are_coded_and_descriptors_of_minus_one_dropped() -> None:
    stay = stay_of("01:30,FiO2,0.4", "47:59,Weight,-1", "48:00,SaO2,97")
    assert [(s.minute, s.code, s.value, s.unit) for s in stay.samples] == [
        (0, "30525-0", 54, "a"),
        (0, "46098-0", 0, "1"),
        (0, "riskstream-icu-type", 4, "1"),
        (90, "3150-0", 0.4, "1"),
        (2880, "2708-6", 97, "%"),
    ]


def test_lines_that_are_no_samples_are_counted() -> None:
    stay = stay_of(
        "01:00,,", "1:60,HR,80", "02:00,HR,NaN", "02:00,HR,fast", "02:00,Pulse,80", "02:00,HR,80,1", ""
    )
    assert stay.skipped == 7
    assert len(stay.samples) == 3


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("01:00,SysABP,0", "implausible-value"),
        ("01:00,Temp,-17.8", "implausible-value"),
        ("01:00,pH,73.5", "implausible-value"),
        ("01:00,pH,735", "implausible-value"),
        ("01:00,HR,0", "implausible-value"),
    ],
)
def test_known_junk_is_refused_as_the_worker_refuses_it(line: str, reason: str) -> None:
    accepted = physionet2012.clean(stay_of(line))
    assert accepted.rejected == {reason: 1}
    assert len(accepted.value) == 0


@pytest.mark.parametrize(
    ("line", "feature", "value"),
    [
        ("01:00,FiO2,1", "fio2", 100),
        ("01:00,FiO2,0.21", "fio2", 21),
        ("01:00,Mg,2", "magnesium", 0.822876),
        ("01:00,K,4.1", "potassium", 4.1),
        ("01:00,Platelets,172", "platelets", 172),
        ("01:00,MechVent,1", "mechanical_ventilation", 1),
    ],
)
def test_canonical_units(line: str, feature: str, value: float) -> None:
    accepted = physionet2012.clean(stay_of(line))
    assert accepted.channel.tolist() == [CHANNEL[feature]]
    assert accepted.value == pytest.approx([value], rel=1e-5)


def test_bins_hold_the_last_value_and_count_every_accepted_one() -> None:
    stay = stay_of("00:10,HR,80", "00:50,HR,90", "00:50,HR,91", "00:20,HR,0", "00:30,HR,70", "02:00,HR,60")
    values, counts, statics = physionet2012.to_bins(stay)
    heart_rate = CHANNEL["heart_rate"]
    assert counts[:, heart_rate].tolist() == [4, 0, 1]
    assert values[[0, 2], heart_rate].tolist() == [91, 60]
    np.testing.assert_array_equal(statics, np.array([54, 0, np.nan, 4], np.float32))


@pytest.mark.parametrize(("offset", "bins"), [(0, 49), (1, 49), (59, 49)])
def test_a_measurement_at_48_hours_opens_another_bin(offset: int, bins: int) -> None:
    stay = stay_of("00:00,HR,80", "48:00,HR,90")
    assert len(physionet2012.to_bins(stay, offset).values) == bins
    cut = physionet2012.bins(physionet2012.clean(stay), 0, 48)
    assert cut.counts[:, CHANNEL["heart_rate"]].sum() == 1


def test_the_offset_moves_the_hour_border() -> None:
    stay = stay_of("00:29,HR,80", "00:30,HR,90")
    assert physionet2012.to_bins(stay, 30).counts[:, CHANNEL["heart_rate"]].tolist() == [1, 1]


def test_a_stay_without_series_has_a_row() -> None:
    row = rows(*physionet2012.to_bins(stay_of()))
    series = [channel for channel in range(len(FEATURES)) if channel not in STATIC]
    assert row.values.shape == (1, len(FEATURES))
    np.testing.assert_array_equal(row.values[0, series], FILL[series])


def test_the_digest_is_of_the_content(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set-a")
    one = physionet2012.digest(physionet2012.read(folder))
    assert one == physionet2012.digest(physionet2012.read(archive_of(folder, tmp_path / "b.tar.gz")))
    (folder / "1.txt").write_text(HEAD.format(record="1") + "00:07,HR,99\n")
    assert one != physionet2012.digest(physionet2012.read(folder))


@pytest.mark.parametrize("argument", ["", "physionet2012:", "physionet2012", "mimic:/tmp", "/tmp"])
def test_another_source_is_refused(argument: str) -> None:
    with pytest.raises(DatasetError, match="physionet2012:DIR"):
        physionet2012.parse_source(argument)


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such folder"):
        physionet2012.parse_source(f"physionet2012:{tmp_path / 'absent'}")


def test_a_folder_without_stays(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(DatasetError, match="holds no stay"):
        physionet2012.read(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not an archive", b"\x1f\x8b" + bytes(40)])
def test_a_damaged_archive(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "set-a.tar.gz"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"not a readable \.tar\.gz"):
        physionet2012.read(path)


def test_a_truncated_archive(tmp_path: Path) -> None:
    path = archive_of(write_set(tmp_path / "set-a"), tmp_path / "set-a.tar.gz")
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(DatasetError, match=r"not a readable \.tar\.gz"):
        physionet2012.read(path)


@pytest.mark.parametrize("text", ["RecordID,Death\n1,0\n", "In-hospital_death\n1\n"])
def test_outcomes_without_their_columns(tmp_path: Path, text: str) -> None:
    with pytest.raises(DatasetError, match="must have the columns"):
        physionet2012.read(write_set(tmp_path / "s", text))


@pytest.mark.parametrize("died", ["-1", "2", "", "dead"])
def test_outcomes_that_are_not_0_or_1(tmp_path: Path, died: str) -> None:
    with pytest.raises(DatasetError, match="neither 0 nor 1"):
        physionet2012.read(write_set(tmp_path / "s", f"RecordID,In-hospital_death\n1,{died}\n"))


def test_bytes_that_are_not_text(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "s")
    (folder / "3.txt").write_bytes(b"Time,Parameter,Value\n00:00,RecordID,3\n\xff\xfe\x00")
    with pytest.raises(DatasetError, match="not text"):
        physionet2012.read(folder)


def test_an_archive_in_memory_of_folders_alone(tmp_path: Path) -> None:
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode="w:gz") as archive:
        directory = tarfile.TarInfo("set.txt")
        directory.type = tarfile.DIRTYPE
        archive.addfile(directory)
    (tmp_path / "set.tar.gz").write_bytes(memory.getvalue())
    with pytest.raises(DatasetError, match="holds no stay"):
        physionet2012.read(tmp_path)
