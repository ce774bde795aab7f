"""Errors of the path. Three fates, decided by class in one place (`lanes.py`):

    WorkerError
    ├── RetryError            wait and do the same again; nothing is lost meanwhile
    │   ├── EngineDownError   the engine fails its own golden data; NEWS2 answers alone until it agrees again
    │   │   └── EngineSilentError   an engine call takes long; it may yet come back
    │   ├── DecoderError      no process is there to decode a picture
    │   ├── PublishError      the broker has not confirmed a publish in time
    │   ├── StoreError        Redis did not answer, or refused a write
    │   └── SourceAwayError   where a picture is kept does not answer at all
    │       ├── SourceUntrustedError   its TLS certificate does not verify
    │       └── SourceDeniedError      it does not take our credentials
    ├── FetchError            the picture of one event cannot be had; its event becomes a dead letter
    │   ├── FetchRefusedError   it must not be fetched, or is not what the event says: never tried again
    │   └── FetchFailedError    it is not there, or did not come whole: tried again a few times first
    ├── OwnershipError        another worker owns the partition now; throw its memory away
    └── FatalError            stop the process and let the supervisor start a fresh one
        └── EngineHungError   an engine call outlived its deadline; its thread cannot be killed

A record that is at fault becomes a dead letter; only a FetchError is raised for one. `reason` is a metric
label. No message holds a payload, an identifier from one, or the path or URL of a picture.
"""


class WorkerError(Exception):
    """Something on the path failed."""

    reason = "worker"


class RetryError(WorkerError):
    """A dependency is away. Its remedy is to mend the dependency; the worker goes on by itself."""

    reason = "retry"


class EngineDownError(RetryError):
    """The engine fails its own golden data. Check the model folder and the device."""

    reason = "engine-down"


class EngineSilentError(EngineDownError):
    """An engine call takes longer than its callers wait. Look at the device, and at what else it does."""

    reason = "engine-silent"


class DecoderError(RetryError):
    """No decoder process can be started, or too many pictures wait. Look at the machine's memory and load."""

    reason = "decoder"


class PublishError(RetryError):
    """The broker has not confirmed in time. Check its health, its ACLs and the topics' in-sync replicas."""

    reason = "publish"


class StoreError(RetryError):
    """Redis did not answer or refused a write. Check that it runs, has memory and lets this user write."""

    reason = "redis"


class SourceAwayError(RetryError):
    """Where a picture is kept does not answer. Mend the server, the mount or the network; nothing is lost.

    Attributes:
        retry_after_s: what the server asked us to wait, if it did.
    """

    reason = "source-away"

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class SourceUntrustedError(SourceAwayError):
    """TLS with the server fails: renew its certificate, or mend RISKSTREAM_IMAGING_CA_FILE."""

    reason = "source-untrusted"


class SourceDeniedError(SourceAwayError):
    """The source does not take our credentials: mend RISKSTREAM_IMAGING_CREDENTIALS or the store's own."""

    reason = "source-denied"


class FetchError(WorkerError):
    """The picture of an event cannot be had; `reason` says why, and is the dead letter's."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class FetchRefusedError(FetchError):
    """Never tried again: it must not be fetched, or is not what its event says."""


class FetchFailedError(FetchError):
    """Worth some tries: it is not there, not there yet, or did not come whole."""


class OwnershipError(WorkerError):
    """Another worker took the partition over while this one was away."""

    reason = "fenced"


class FatalError(WorkerError):
    """The process must stop."""

    reason = "fatal"


class EngineHungError(FatalError):
    """An engine call outlived its deadline."""

    reason = "engine-hung"
