"""Settings that are each valid and do not fit together, and what they need of the machine."""

import tempfile
from collections.abc import Iterator
from urllib.parse import urlsplit

from worker import fetch_object, tracing
from worker.board_access import is_loopback
from worker.config import Settings
from worker.deadlines import shutdown_s
from worker.fetch_allowed import parse_base
from worker.finding import Finding, failed, ok, warning

GRACE_S = 45.0
"""What the shipped docker-compose.yml leaves a worker after SIGTERM; the Kubernetes manifests leave 50 s."""


def check_settings(settings: Settings) -> list[Finding]:
    """One finding for each odd combination; one that says so when there is none."""
    stop_s = shutdown_s(settings.rebalance_timeout_s)
    return [*_odd(settings)] or [ok("settings", f"they fit together; a stop takes at most {stop_s:g} s")]


def _odd(settings: Settings) -> Iterator[Finding]:
    yield from _odd_times(settings)
    yield from _odd_transport(settings)
    yield from _odd_imaging(settings)
    if settings.traces != "off" and not tracing.installed():
        yield failed(
            "settings: traces",
            f"traces is {settings.traces}, and OpenTelemetry is not installed",
            "pip install 'riskstream[tracing]', or set RISKSTREAM_TRACES to off",
        )


def _odd_times(settings: Settings) -> Iterator[Finding]:
    s, subject = settings, "settings: times"
    stop_s = shutdown_s(s.rebalance_timeout_s)
    if stop_s > GRACE_S:
        yield warning(
            subject,
            f"a stop may take {stop_s:g} s: half of rebalance_timeout_s {s.rebalance_timeout_s:g} and 25",
            "have the supervisor wait longer: the shipped manifests leave 50 s, docker-compose.yml 45",
        )
    if s.rebalance_timeout_s < s.session_timeout_s:
        yield warning(
            subject,
            f"rebalance_timeout_s {s.rebalance_timeout_s:g} is below session_timeout_s "
            f"{s.session_timeout_s:g}",
            "make it longer: a worker that is slow to let go is thrown out before it counts as gone",
        )
    if s.redis_timeout_s >= s.rebalance_timeout_s / 2:
        yield warning(
            subject,
            f"redis_timeout_s {s.redis_timeout_s:g} is not below half of rebalance_timeout_s "
            f"{s.rebalance_timeout_s:g}",
            "lower it: the last checkpoint before a rebalance or a stop must fit in that half",
        )
    if s.infer_timeout_s >= s.max_poll_interval_s:
        yield warning(
            subject,
            f"infer_timeout_s {s.infer_timeout_s:g} is not below max_poll_interval_s "
            f"{s.max_poll_interval_s:g}",
            "lower it: a worker whose engine hangs would leave the group before it ends itself",
        )
    if s.engine_patience_s >= s.infer_timeout_s:
        yield warning(
            subject,
            f"engine_patience_s {s.engine_patience_s:g} is not below infer_timeout_s {s.infer_timeout_s:g}",
            "lower it: NEWS2 would never answer alone before the process ends",
        )
    longest = max(s.infer_timeout_s, s.publish_timeout_s)
    if s.stall_after_s <= longest:
        yield warning(
            subject,
            f"stall_after_s {s.stall_after_s:g} is not above infer_timeout_s and publish_timeout_s, "
            f"{longest:g}",
            "raise it: a worker that waits for the broker would be restarted instead",
        )


def _odd_transport(settings: Settings) -> Iterator[Finding]:
    s = settings
    if s.kafka_username and not s.kafka_security_protocol.startswith("SASL"):
        yield warning(
            "settings: kafka",
            f"kafka_username is set, and {s.kafka_security_protocol} sends none",
            "set RISKSTREAM_KAFKA_SECURITY_PROTOCOL to SASL_SSL, or drop the user",
        )
    if not s.kafka_security_protocol.endswith("SSL") and not all(
        is_loopback(server.rsplit(":", 1)[0].strip("[]")) for server in s.bootstrap_servers
    ):
        yield warning(
            "settings: kafka",
            f"{s.kafka_security_protocol} to another machine: vitals travel unencrypted",
            "set RISKSTREAM_KAFKA_SECURITY_PROTOCOL to SSL or SASL_SSL",
        )
    tls_files = (s.redis_ca_file, s.redis_cert_file)
    if any(tls_files) and not s.redis.get_secret_value().startswith("rediss://"):
        yield warning(
            "settings: redis", "certificates for Redis are set, and redis:// uses none", "write rediss://"
        )
    redis = urlsplit(s.redis.get_secret_value())
    if redis.scheme == "redis" and not is_loopback(redis.hostname or ""):
        yield warning(
            "settings: redis",
            "redis:// to another machine: patients' state travels unencrypted",
            "write rediss://, and give Redis a certificate",
        )
    yield from _odd_board(settings)


def _odd_imaging(settings: Settings) -> Iterator[Finding]:
    s, subject = settings, "settings: imaging"
    if s.imaging_buckets and not fetch_object.installed():
        yield failed(
            subject,
            "imaging_buckets is set, and fsspec or s3fs is not installed",
            "pip install 'riskstream[objects]', or leave RISKSTREAM_IMAGING_BUCKETS empty",
        )
    bases = [parse_base(url) for url in s.imaging_hosts]
    if any(base.scheme == "http" and not is_loopback(base.host) for base in bases):
        yield warning(
            subject,
            "imaging_hosts has http:// to another machine: pictures and credentials travel unencrypted",
            "write https://, with RISKSTREAM_IMAGING_CA_FILE if the hospital signs its own certificates",
        )
    if s.imaging_silence_timeout_s >= s.imaging_fetch_timeout_s:
        yield warning(
            subject,
            f"imaging_silence_timeout_s {s.imaging_silence_timeout_s:g} is not below imaging_fetch_timeout_s "
            f"{s.imaging_fetch_timeout_s:g}",
            "lower it: a response that has stopped would never be told from a slow one",
        )


def _odd_board(settings: Settings) -> Iterator[Finding]:
    s, subject = settings, "settings: board"
    if is_loopback(s.board_host):
        return
    if not s.board_token.get_secret_value():
        yield warning(
            subject,
            f"board_host is {s.board_host}, which other machines can reach, and there is no board_token",
            "set RISKSTREAM_BOARD_TOKEN: `riskstream board` refuses to start",
        )
    elif s.board_cert_file is None:
        yield warning(
            subject,
            f"the ward page on {s.board_host} has no certificate: token and patients travel unencrypted",
            "set RISKSTREAM_BOARD_CERT_FILE and _KEY_FILE, or put a proxy with TLS before it",
        )


def check_disk() -> Finding:
    """The worker's folder for the time it runs; it keeps nothing there."""
    try:
        with tempfile.TemporaryDirectory(prefix="riskstream-"):
            return ok("disk", f"{tempfile.gettempdir()} can be written")
    except OSError as error:
        return failed(
            "disk",
            f"no folder for temporary files can be written: {type(error).__name__}",
            "mount a tmpfs at /tmp, as docker-compose.yml does, or set TMPDIR",
        )
