"""The settings of pictures: the imaging role, its decoders, and where pictures may come from.

Part of `config.Settings`, which reads the environment; apart for its length.
"""

import ssl
from typing import Annotated, Any

from pydantic import BeforeValidator, DirectoryPath, Field, FilePath, SecretStr, model_validator
from pydantic_settings import BaseSettings, NoDecode

from worker.fetch_allowed import Base, authorizations, check_hosts, parse_bucket


def _listed(value: Any) -> Any:
    """What stands between commas; anything but text is left alone."""
    return [item.strip() for item in value.split(",") if item.strip()] if isinstance(value, str) else value


Listed = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_listed)]
Folders = Annotated[tuple[DirectoryPath, ...], NoDecode, BeforeValidator(_listed)]


class ImagingSettings(BaseSettings):
    """Settings of pictures. Times are in seconds unless the name says otherwise."""

    # The imaging role
    imaging_group: str = Field(
        "riskstream-imaging",
        description="consumer group of the imaging role",
        pattern=r"^[A-Za-z0-9._-]{1,200}$",
    )
    imaging_concurrency: int = Field(
        8,
        ge=1,
        le=16,
        description="pictures held at once of each kind of source, from fetch to decoded",
    )
    imaging_allow_burned_in: bool = Field(
        False, description="take DICOM whose header says that text is burned into its pixels"
    )
    imaging_match_patient: bool = Field(
        False, description="refuse DICOM whose Patient ID is another than its event's patient"
    )
    imaging_max_record_bytes: int = Field(
        12 << 20,
        ge=1 << 10,
        le=64 << 20,
        description="larger imaging records are dead-lettered; base64 makes 8 MiB inline into 11",
    )
    imaging_window_bytes: int = Field(
        64 << 20, ge=1 << 20, le=4 << 30, description="imaging records on their way; no more are fetched then"
    )
    imaging_memory_h: float = Field(
        720.0, gt=0, le=24.0 * 366, description="how long Redis remembers which images have been scored"
    )

    # Decoders
    imaging_decoders: int = Field(
        2, ge=1, le=64, description="processes that decode pictures, one picture each at a time"
    )
    imaging_decode_timeout_s: float = Field(
        20.0, gt=0, le=300, description="a picture that takes longer to decode is refused"
    )
    imaging_decode_memory_mb: int = Field(
        2048, ge=64, le=16_384, description="MiB that decoding one picture may take"
    )

    # Where pictures come from; several between commas, or a list in the file
    imaging_roots: Folders = Field((), description="folders under which picture files may be read")
    imaging_hosts: Listed = Field(
        (), description="DICOMweb services that may be asked, such as https://pacs.example/dicom-web"
    )
    imaging_internal_hosts: Listed = Field(
        (), description="those of their hosts that have private or loopback addresses"
    )
    imaging_credentials: dict[str, SecretStr] = Field(
        {}, description='JSON, by imaging_hosts entry: "basic USER:PASSWORD" or "bearer TOKEN"'
    )
    imaging_ca_file: FilePath | None = Field(
        None, description="PEM of the authorities that signed the services' certificates"
    )
    imaging_cert_file: FilePath | None = Field(None, description="PEM of the client certificate")
    imaging_key_file: FilePath | None = Field(None, description="PEM of the client certificate's key")
    imaging_buckets: Listed = Field(
        (), description="where objects may be read, such as s3://bucket/prefix, by the extra objects"
    )
    imaging_max_bytes: int = Field(64 << 20, ge=1 << 10, le=1 << 30, description="of a picture as it comes")
    imaging_fetch_concurrency: int = Field(
        8, ge=1, le=64, description="fetches under way at once, for each service, for files and for objects"
    )
    imaging_connect_timeout_s: float = Field(
        5.0, gt=0, le=60, description="a source that has not answered for this long is away"
    )
    imaging_silence_timeout_s: float = Field(10.0, gt=0, le=300, description="longest pause in a response")
    imaging_fetch_timeout_s: float = Field(60.0, gt=0, le=900, description="longest fetch of one picture")
    imaging_min_bytes_per_s: int = Field(
        16 << 10, ge=1, description="a response slower than this, after its longest pause, is given up"
    )
    imaging_fetch_tries: int = Field(
        6, ge=1, le=100, description="tries of a picture that is missing or broken"
    )
    imaging_patience_s: float = Field(
        300.0,
        gt=0,
        le=86_400,
        description="how long those tries go on, the source's absence and the wait for a place apart",
    )
    imaging_backoff_s: float = Field(1.0, gt=0, le=60, description="the first wait; it doubles")
    imaging_backoff_max_s: float = Field(30.0, gt=0, le=600, description="the longest wait")
    imaging_retry_after_max_s: float = Field(
        300.0, ge=0, le=3600, description="how long a server may ask us to wait"
    )

    @model_validator(mode="after")
    def _pictures_consistent(self) -> "ImagingSettings":
        if bool(self.imaging_cert_file) != bool(self.imaging_key_file):
            raise ValueError("imaging_cert_file and imaging_key_file go together")
        check_hosts(self.imaging_hosts, self.imaging_internal_hosts)
        self.imaging_authorizations()
        for bucket in self.imaging_buckets:
            parse_bucket(bucket)
        return self

    def imaging_ssl_context(self) -> ssl.SSLContext:
        """The TLS context for DICOMweb, verifying host names."""
        context = ssl.create_default_context(cafile=self.imaging_ca_file)
        if self.imaging_cert_file and self.imaging_key_file:
            context.load_cert_chain(self.imaging_cert_file, self.imaging_key_file)
        return context

    def imaging_authorizations(self) -> dict[Base, str]:
        """The header Authorization for each DICOMweb service that has credentials."""
        secrets = {url: secret.get_secret_value() for url, secret in self.imaging_credentials.items()}
        return authorizations(self.imaging_hosts, secrets)
