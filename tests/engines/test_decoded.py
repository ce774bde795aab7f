"""What is said of a picture beside its pixels: words, identity, flags; and that it is nothing else."""

import hashlib
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import JPEGBaseline8Bit

from engines import images
from engines.decoded import FLAGS, Decoded, Words, identity_of
from engines.dicom import TAGS
from engines.errors import ImageError
from schemas.model_config import ImageInput
from tests.engines.dicom_files import changed, grey, seeds, wrapped
from tests.engines.pictures import dicom, encoded

SMALL = ImageInput(height=8, width=8)
RAMP = grey(np.uint8, 255)


def code(meaning: str) -> Sequence:
    item = Dataset()
    item.CodeMeaning = meaning
    return Sequence([item])


CHEST = ImageInput(height=8, width=8, modality=("CR", "DX"), body_part=("CHEST",), view=("PA", "AP"))


@pytest.mark.parametrize(
    "attributes",
    [
        {"Modality": "DX", "BodyPartExamined": "CHEST", "ViewPosition": "PA"},
        {"Modality": "dx ", "BodyPartExamined": " Chest", "ViewPosition": "pa"},
        {
            "Modality": "DX",
            "AnatomicRegionSequence": code("Chest"),
            "ViewCodeSequence": code("postero-anterior"),
        },
        {
            "Modality": "DX",
            "AnatomicRegionSequence": code("Chest"),
            "ViewCodeSequence": code("Postero anterior"),
        },
    ],
)
def test_words_of_the_file(attributes: dict[str, Any]) -> None:
    made = images.read(changed(dicom(RAMP), **attributes), CHEST)
    assert (made.modality, made.body_part, made.view) == ("DX", "CHEST", "PA")


@pytest.mark.parametrize(
    ("attributes", "hints", "reason"),
    [
        ({}, ("CR", "chest", "ap"), None),
        ({}, ("", "", ""), "wrong-modality"),
        ({}, ("CT", "CHEST", "PA"), "wrong-modality"),
        ({}, ("CR", "HAND", "PA"), "wrong-body-part"),
        ({}, ("CR", "CHEST", ""), "wrong-view"),
        ({"Modality": "CT"}, ("CR", "CHEST", "PA"), "wrong-modality"),
        ({"BodyPartExamined": "SKULL"}, ("CR", "CHEST", "PA"), "wrong-body-part"),
        ({"ViewPosition": "LL"}, ("CR", "CHEST", "PA"), "wrong-view"),
    ],
)
def test_the_file_counts_before_the_event(
    attributes: dict[str, Any], hints: tuple[str, str, str], reason: str | None
) -> None:
    files = [dicom(RAMP, **attributes)] if attributes else [dicom(RAMP), encoded(RAMP), encoded(RAMP, "JPEG")]
    for content in files:
        if reason is None:
            made = images.read(content, CHEST, hints=Words(*hints))
            assert (made.modality, made.body_part, made.view) == ("CR", "CHEST", "AP")
            continue
        with pytest.raises(ImageError) as caught:
            images.read(content, CHEST, hints=Words(*hints))
        assert caught.value.reason == reason


def test_a_picture_to_learn_from_says_nothing_of_itself_if_it_is_no_dicom() -> None:
    images.decode(encoded(RAMP), CHEST)
    with pytest.raises(ImageError, match="modality must be one of"):
        images.decode(dicom(RAMP), CHEST)


def test_nothing_of_the_patient_is_read_or_leaves() -> None:
    assert not {tag for tag in TAGS if tag.startswith(("Patient", "Study", "Accession", "Referring"))}
    private = {
        "PatientName": "DOE^JANE",
        "PatientID": "4711",
        "StudyDescription": "of Jane Doe",
        "BodyPartExamined": "DOE^JANE",
        "ViewPosition": "A" * 65,
    }
    made = images.read(changed(dicom(RAMP), **private), SMALL)
    told = pickle.dumps(tuple(made)).upper()
    assert not [word for word in (b"DOE", b"4711", b"AAAAA") if word in told]
    assert made._fields == Decoded._fields


def test_an_identity_is_of_the_instance_and_the_frame_or_of_the_bytes() -> None:
    file = dicom(RAMP, SOPInstanceUID="1.2.3")
    expected = hashlib.sha256(b"1.2.3/1").hexdigest()
    assert images.read(file, SMALL).identity == images.read(file, SMALL, frame=1).identity == expected
    assert identity_of(b"", "1.2.3", 2) == hashlib.sha256(b"1.2.3/2").hexdigest()
    second = images.read(changed(seeds()["frames"], SOPInstanceUID="1.2.3"), SMALL, frame=2)
    assert second.identity == identity_of(b"", "1.2.3", 2)
    assert images.read(encoded(RAMP), SMALL).identity == hashlib.sha256(encoded(RAMP)).hexdigest()
    for none in (changed(file, SOPInstanceUID=None), changed(file, SOPInstanceUID="DOE^JANE")):
        assert images.read(none, SMALL).identity == hashlib.sha256(none).hexdigest()


def test_every_flag_is_explained() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "imaging.md").read_text()
    table = text[text.index("| flag | set when |") :].split("\n\n")[0]
    assert set(re.findall(r"^\| `([a-z-]+)`", table, re.MULTILINE)) == FLAGS.keys()


WINDOW: dict[str, Any] = {"WindowCenter": 128, "WindowWidth": 256}
FLAT = np.full((16, 16), 100, dtype=np.uint8)
HALF = np.repeat(np.array([[255, 100]], np.uint8), 8, axis=1).repeat(16, axis=0)


@pytest.mark.parametrize(
    ("content", "flags"),
    [
        (dicom(RAMP, **WINDOW), ()),
        (dicom(RAMP), ("no-window",)),
        (dicom(RAMP[20:25, :7] // 2 * np.arange(1, 3, dtype=np.uint8).repeat([4, 3]), **WINDOW), ("small",)),
        (dicom(FLAT, **WINDOW), ("low-contrast",)),
        (dicom(HALF, **WINDOW), ("saturated",)),
        (encoded(np.where(HALF == 255, 0, HALF).astype(np.uint8)), ()),
        (encoded(np.pad(RAMP, 60)), ("saturated",)),
        (encoded(RAMP, "JPEG"), ("lossy",)),
        (dicom(RAMP, **WINDOW, LossyImageCompression="01"), ("lossy",)),
        (dicom(RAMP, **WINDOW, LossyImageCompression="00"), ()),
        (wrapped(encoded(RAMP, "JPEG"), RAMP, JPEGBaseline8Bit, **WINDOW), ("lossy",)),
        (dicom(RAMP, **WINDOW, PresentationLUTShape="INVERSE"), ("polarity",)),
        (dicom(RAMP, **WINDOW, PresentationLUTShape="IDENTITY"), ()),
        (dicom(RAMP, **WINDOW, PresentationIntentType="FOR PROCESSING"), ("for-processing",)),
        (dicom(RAMP, **WINDOW, BurnedInAnnotation="YES"), ("burned-in",)),
    ],
)
def test_flags(content: bytes, flags: tuple[str, ...]) -> None:
    made = images.read(content, SMALL, allow_burned_in=True)
    assert made.flags == flags
    assert FLAGS.keys() >= set(made.flags)
    assert made.image.shape == SMALL.dims
    assert (made.height, made.width) == images.decode(content.replace(b"YES ", b"NO  ")).shape[:2]
