"""The errors that Stepwedge raises. Each message says what happened, to what, and what to do next."""

from pydantic import ValidationError


class StepwedgeError(Exception):
    """Stepwedge cannot go on with this."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").strip())


class SettingsError(StepwedgeError):
    """A setting is missing or wrong."""


class ClockError(StepwedgeError):
    """The clock of this node is wrong; once it is right, a start succeeds."""


class PackageError(StepwedgeError):
    """A model package is incomplete, altered or inconsistent."""


class PolicyError(StepwedgeError):
    """A site policy is incomplete or inconsistent."""


class UnusableInstanceError(StepwedgeError):
    """An instance cannot be stored as what it claims to be.

    ``code`` is the reason under which it is quarantined, ``status`` the C-STORE status (PS3.7 section 9.1.1.1.9)
    that the sender gets.
    """

    def __init__(self, code: str, message: str, *, status: int = 0xC000) -> None:
        super().__init__(message)
        self.code = code
        self.status = status


class NotKeptError(StepwedgeError):
    """What is to be released is not in quarantine, or not any more."""


class SpoolFullError(StepwedgeError):
    """The spool's volume is below its reserve or the disk is full."""


class DecodeError(StepwedgeError):
    """Pixel data cannot be turned into an image. ``code`` is the coded reason for the verdict."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class EngineError(StepwedgeError):
    """The model cannot be loaded or run."""


class InferenceUnavailableError(StepwedgeError):
    """The inference server does not answer; the work can be tried again."""


class InferenceRefusedError(StepwedgeError):
    """The inference server answered that it will not run this request; trying again would not help."""


class DeliveryError(StepwedgeError):
    """A destination did not take an object; the delivery can be tried again."""


def describe_validation(where: str, error: ValidationError) -> str:
    """One line per wrong field: which, what was found, what was wanted."""
    lines = []
    for item in error.errors(include_url=False):
        field = ".".join(str(part) for part in item["loc"]) or "(whole file)"
        found = "" if isinstance(item["input"], dict | list) else f" (found {item['input']!r})"
        lines.append(f"{where}: {field}: {item['msg']}{found}")
    return "\n".join(lines)


def where(error: BaseException) -> str:
    """Module and line of an error: enough to find it, and none of the values that its message may quote."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_globals.get('__name__')}:{trace.tb_lineno}" if trace else ""
