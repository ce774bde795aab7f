"""Errors of the path. Three fates, decided by class in one place (`lanes.py`):

    WorkerError
    ├── RetryError            wait and do the same again; nothing is lost meanwhile
    │   ├── EngineDownError   the engine fails its own golden data; NEWS2 answers alone until it agrees again
    │   │   └── EngineSilentError   an engine call takes long; it may yet come back
    │   ├── DecoderError      no process is there to decode a picture
    │   ├── PublishError      the broker has not confirmed a publish in time
    │   └── StoreError        Redis did not answer, or refused a write
    ├── OwnershipError        another worker owns the partition now; throw its memory away
    └── FatalError            stop the process and let the supervisor start a fresh one
        └── EngineHungError   an engine call outlived its deadline; its thread cannot be killed

A record that is at fault raises none of these: it becomes a dead letter. `reason` is a metric label.
No message holds a payload or an identifier from one.
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


class OwnershipError(WorkerError):
    """Another worker took the partition over while this one was away."""

    reason = "fenced"


class FatalError(WorkerError):
    """The process must stop."""

    reason = "fatal"


class EngineHungError(FatalError):
    """An engine call outlived its deadline."""

    reason = "engine-hung"
