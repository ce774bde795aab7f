"""Every metric of the worker, declared once. Base units; labels never name a patient or a message."""

from prometheus_client import Counter, Gauge, Histogram

_FAST = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Buckets in seconds for work inside the worker."""

_SLOW = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 3600.0, 21600.0)
"""Buckets in seconds for times that include the world outside."""

_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)

records = Counter("riskstream_records_total", "Records by fate", ["topic", "fate"])
observations = Counter("riskstream_observations_total", "Observations accepted or rejected", ["outcome"])
rejections = Counter("riskstream_rejections_total", "Records and observations refused", ["stage", "reason"])
stage_duration = Histogram(
    "riskstream_stage_duration_seconds", "Time of a chunk in a stage", ["stage"], buckets=_FAST
)
event_age = Histogram(
    "riskstream_event_age_seconds", "Event time to confirmed publish of a scored record", buckets=_SLOW
)
end_to_end = Histogram(
    "riskstream_end_to_end_seconds",
    "Input record's timestamp to its confirmed alert, by who raised it",
    ["model"],
    buckets=_SLOW,
)
batch_size = Histogram("riskstream_batch_size_rows", "Rows in a batch", ["model"], buckets=_ROWS)
batch_flushes = Counter(
    "riskstream_batch_flushes_total", "Batches by why they were closed", ["model", "reason"]
)
queue_delay = Histogram(
    "riskstream_queue_delay_seconds", "Time a request waited for the engine", buckets=_FAST
)
inference_count = Counter("riskstream_inferences_total", "Rows inferred", ["model", "backend"])
execution_count = Counter("riskstream_executions_total", "Batches executed", ["model", "backend"])
inference_duration = Histogram(
    "riskstream_inference_duration_seconds",
    "Time of one batch in the engine",
    ["model", "backend"],
    buckets=_FAST,
)
engine_failures = Counter("riskstream_engine_failures_total", "Failed engine calls", ["model", "reason"])
backend_in_use = Gauge("riskstream_backend_info", "1 for the backend in use", ["model", "version", "backend"])
rung = Gauge(
    "riskstream_ladder_rung",
    "0 while the backend asked for serves, 1 while the next one stands in",
    ["model"],
)
ladder_steps = Counter(
    "riskstream_ladder_steps_total",
    "Changes of the backend that serves, to which one and why",
    ["model", "backend", "reason"],
)
model_swaps = Counter(
    "riskstream_model_swaps_total",
    "Versions of the model that came into the repository while the worker ran, by what became of them",
    ["model", "outcome"],
)
shadow = Gauge(
    "riskstream_shadow_info", "1 for a worker that scores as a shadow and alerts nobody", ["model", "version"]
)
alerts = Counter(
    "riskstream_alerts_total",
    "Alerts by who raised them, a model or news2, transition and severity",
    ["model", "transition", "severity"],
)
feedback = Counter(
    "riskstream_feedback_total",
    "What people said of alerts, by who raised them",
    ["model", "action", "reason"],
)
time_to_acknowledgement = Histogram(
    "riskstream_time_to_acknowledgement_seconds",
    "An alert's time to its acknowledgement, by who raised it",
    ["model"],
    buckets=_SLOW,
)
policy_changes = Gauge("riskstream_policy_changes", "Changes of policies held, by source", ["source"])
policy_refusals = Gauge(
    "riskstream_policy_refusals", "Changes of policies that cannot be used, by source", ["source"]
)
floor_active = Gauge(
    "riskstream_floor_active", "1 while NEWS2 answers alone, for want of the model", ["topic", "partition"]
)
risk = Histogram(
    "riskstream_risk_ratio",
    "Risks computed",
    buckets=(0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
)
feature_missing = Counter(
    "riskstream_feature_missing_total", "Scored rows in which a feature was not in the window", ["feature"]
)
hourly_rows = Counter(
    "riskstream_hourly_rows_total",
    "Patient-hours by where a feature's last scored value lies among the bins of the model's reference",
    ["reference", "feature", "bin"],
)
reference_share = Gauge(
    "riskstream_reference_share_ratio",
    "Share of each bin in the model's reference",
    ["reference", "feature", "bin"],
)
reference_noise = Gauge(
    "riskstream_reference_noise_ratio",
    "Stability index that chance alone gives, times the number of patient-hours",
    ["reference", "feature"],
)
lag = Gauge("riskstream_lag_records", "Records not yet handled", ["topic", "partition"])
partition_ready = Gauge(
    "riskstream_partition_ready", "1 once a partition's state is restored", ["topic", "partition"]
)
patients = Gauge("riskstream_patients", "Patients in memory", ["topic", "partition"])
checkpoint_duration = Histogram(
    "riskstream_checkpoint_duration_seconds", "Redis writes and commit", buckets=_FAST
)
checkpoint_bytes = Counter("riskstream_checkpoint_bytes_total", "Bytes of state written to Redis")
checkpoint_failures = Counter("riskstream_checkpoint_failures_total", "Checkpoints not completed", ["reason"])
publish_failures = Counter("riskstream_publish_failures_total", "Publishes sent again", ["topic"])
redis_up = Gauge("riskstream_redis_up", "1 while Redis answers")
trace_spans = Counter(
    "riskstream_trace_spans_total", "Spans by what became of them: exported, failed, dropped", ["fate"]
)
restores = Counter("riskstream_partition_restores_total", "How a partition's state was restored", ["how"])
replayed = Counter(
    "riskstream_replayed_records_total", "Records read again to rebuild state, published nothing"
)
imaging_stage_duration = Histogram(
    "riskstream_imaging_stage_duration_seconds",
    "Time of a picture in a stage, waiting for a source or the engine included",
    ["stage"],
    buckets=_SLOW,
)
imaging_end_to_end = Histogram(
    "riskstream_imaging_end_to_end_seconds",
    "Imaging record's timestamp to its confirmed finding",
    buckets=_SLOW,
)
imaging_in_flight = Gauge("riskstream_imaging_in_flight_records", "Imaging records on their way")
imaging_source_away = Gauge(
    "riskstream_imaging_source_away_records", "Imaging records that wait for a source that is away"
)
fetches = Counter(
    "riskstream_fetches_total",
    "Tries to fetch a picture, by what it is kept in and outcome",
    ["source", "outcome"],
)
fetch_duration = Histogram(
    "riskstream_fetch_duration_seconds", "Time of one try to fetch a picture", ["source"], buckets=_SLOW
)
fetch_bytes = Counter("riskstream_fetch_bytes_total", "Bytes of pictures fetched")
fetch_stuck_threads = Gauge(
    "riskstream_fetch_stuck_threads", "Threads in a read that nobody waits for any more", ["source"]
)
