"""Errors of this package, all about one value that came from outside.

    SchemaError
    ├── UnitError         a unit is not UCUM, or does not measure this feature
    ├── ModelConfigError  a model folder's config.json cannot be used
    └── PolicyError       an alert policy's file cannot be used

Each carries a `reason`: a short fixed word, safe as a metric label and as a dead letter's reason.
No message of these errors contains a value, an identifier or an unknown name from the input.
"""


class SchemaError(ValueError):
    """A value from outside does not fit its schema."""

    reason = "invalid"

    def __init__(self, message: str, *, reason: str | None = None, path: str = "") -> None:
        super().__init__(message)
        if reason is not None:
            self.reason = reason
        self.path = path


class UnitError(SchemaError):
    """The observation's unit cannot be converted; reject that observation."""

    reason = "unknown-unit"


class ModelConfigError(SchemaError):
    """The model cannot be loaded; the message says which key to mend and how."""

    reason = "invalid-model-config"


class PolicyError(SchemaError):
    """The alert policy cannot be used; the message says which key to mend and how."""

    reason = "invalid-policy"
