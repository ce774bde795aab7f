"""Redis: patients' state as a cache of the log. The only home of redis-py.

One namespace per cluster id, group, topic id and partition, its keys in one hash slot:

    {ns}:marker     hash: token (who may write), offset (complete up to), newest (stream time, ms)
    {ns}:patients   set of the digests of stored patients
    {ns}:p:DIGEST   hash: hot, and b<hour> for each bin

Every write goes through a script that compares the token first, so that a worker that was away cannot
overwrite its successor's state. The token changes with every checkpoint, so that neither can a save that
timed out and arrives late, and so that a Redis restored from an older copy is noticed.
"""

import secrets
from collections.abc import Sequence
from functools import partial
from hashlib import blake2b
from typing import Any, NamedTuple

import redis.asyncio as aioredis
from redis.backoff import NoBackoff
from redis.exceptions import NoPermissionError, RedisError
from redis.retry import Retry

from worker.config import Settings
from worker.errors import StoreError
from worker.partition import Lease, Place

_WRITE = """
local token = redis.call('HGET', KEYS[1], 'token')
if not token then return 'missing' end
if token ~= ARGV[1] then return 'fenced' end
local at = 4
local function take(count)
  local taken = {}
  for i = 1, count do taken[i] = ARGV[at + i] end
  at = at + count
  return taken
end
for i = 3, #KEYS do
  local digest, hot, fields, drops = unpack(take(4))
  local put, drop = take(tonumber(fields)), take(tonumber(drops))
  if hot == '' then
    redis.call('DEL', KEYS[i])
    redis.call('SREM', KEYS[2], digest)
  else
    redis.call('HSET', KEYS[i], 'hot', hot, unpack(put))
    if #drop > 0 then redis.call('HDEL', KEYS[i], unpack(drop)) end
    redis.call('SADD', KEYS[2], digest)
  end
end
if ARGV[2] == '-' then
  redis.call('HDEL', KEYS[1], 'offset', 'newest')
elseif ARGV[2] ~= '' then
  redis.call('HSET', KEYS[1], 'offset', ARGV[2], 'newest', ARGV[3], 'token', ARGV[4])
end
return 'ok'
"""
"""KEYS: marker, patients, one per write. ARGV: token, offset (or '' to leave it, '-' to delete it), newest,
the next token, which comes with the offset, then for each write:
digest, hot or '' to delete, number of fields and values, number of fields to drop, these, those."""

_BATCH = 128
"""Patients in one script call: bounds how long Redis serves nobody else, to a few milliseconds."""


class Marker(NamedTuple):
    """Up to where the stored state is complete; offset None when nothing is stored."""

    offset: int | None
    newest_ms: int


class Write(NamedTuple):
    """One patient to store; `hot` empty to delete it."""

    digest: str
    hot: bytes
    bins: dict[int, bytes]
    drop: Sequence[int]


class Stored(NamedTuple):
    """One patient's stored values."""

    hot: bytes
    bins: dict[int, bytes]


class Store:
    """Redis, with a deadline on every call.

    Every method raises `StoreError` when Redis does not answer in time or refuses.
    """

    def __init__(self, settings: Settings, topic_id: str = "") -> None:
        """A store for one input topic; its id stands in every key, so that a topic made anew is another."""
        self._group = settings.group
        self._topic_id = topic_id
        self._redis: Any = connect(settings)
        self._write = self._redis.register_script(_WRITE)

    async def close(self) -> None:
        """Disconnect."""
        await self._redis.aclose()

    async def ping(self) -> None:
        """Ask whether Redis answers."""
        await answer(self._redis.ping())

    async def acquire(self, place: Place) -> tuple[Lease, Marker]:
        """Take the partition's state over: from now on only the returned lease may write it."""
        lease = Lease()
        marker = self._namespace(place) + ":marker"
        await answer(self._redis.hset(marker, "token", lease.token))
        offset, newest = await answer(self._redis.hmget(marker, "offset", "newest"))
        return lease, Marker(None if offset is None else int(offset), int(newest or 0))

    async def discard(self, place: Place, lease: Lease) -> str:
        """Delete the partition's stored state but for the token, the offset first.

        Returns:
            As `save`.
        """
        writes = [Write(found, b"", {}, ()) for found in await self._digests(place)]
        verdict = await self._run(place, lease, [], "-", 0)
        for at in range(0, len(writes), _BATCH):
            if verdict == "ok":
                verdict = await self._run(place, lease, writes[at : at + _BATCH], "", 0)
        return verdict

    async def load(self, place: Place) -> list[Stored]:
        """Every stored patient of the partition."""
        namespace = self._namespace(place)
        digests = await self._digests(place)
        loaded: list[Stored] = []
        for at in range(0, len(digests), _BATCH):
            pipe = self._redis.pipeline(transaction=False)
            for digest in digests[at : at + _BATCH]:
                pipe.hgetall(f"{namespace}:p:{digest}")
            for fields in await answer(pipe.execute()):
                if b"hot" in fields:
                    bins = {int(name[1:]): value for name, value in fields.items() if name != b"hot"}
                    loaded.append(Stored(fields[b"hot"], bins))
        return loaded

    async def save(
        self, place: Place, lease: Lease, writes: Sequence[Write], offset: int, newest_ms: int
    ) -> str:
        """Store a checkpoint: what is written, then the marker, then what is deleted.

        Deletions carry no stamp, so they follow the marker; one that is lost leaves a patient behind whom the
        next owner forgets again. With the marker the token changes: a Redis that came back with older
        state, or a save that arrives late, no longer fits.

        Returns:
            "ok"; "missing" when Redis has lost the marker; "fenced" when the lease is not the newest.
        """
        kept = [write for write in writes if write.hot]
        gone = [write for write in writes if not write.hot]
        verdict = "ok"
        for at in range(0, max(len(kept), 1), _BATCH):
            mark = str(offset) if at + _BATCH >= len(kept) else ""
            verdict = await self._run(place, lease, kept[at : at + _BATCH], mark, newest_ms)
            if verdict != "ok":
                return verdict
        for at in range(0, len(gone), _BATCH):
            verdict = await self._run(place, lease, gone[at : at + _BATCH], "", newest_ms)
        return verdict

    async def _run(
        self, place: Place, lease: Lease, writes: Sequence[Write], mark: str, newest_ms: int
    ) -> str:
        """One script call; a new mark brings the lease its next token."""
        namespace = self._namespace(place)
        following = secrets.token_hex(8)
        keys = [
            f"{namespace}:marker",
            f"{namespace}:patients",
            *(f"{namespace}:p:{w.digest}" for w in writes),
        ]
        arguments: list[str | bytes | int] = [lease.token, mark, newest_ms, following]
        for write in writes:
            arguments += _arguments(write)
        verdict = str((await answer(self._write(keys=keys, args=arguments))).decode())
        if verdict == "ok" and mark not in {"", "-"}:
            lease.token = following
        return verdict

    async def info(self) -> dict[str, Any]:
        """What Redis says of its version, memory and persistence."""
        found: dict[str, Any] = {}
        for section in ("server", "memory", "persistence"):
            found |= await answer(self._redis.info(section))
        return found

    async def refused(self) -> list[str]:
        """Commands that this user may not give on our keys; asked of keys that do not exist."""
        marker = f"riskstream:{{check:{secrets.token_hex(8)}}}:marker"
        asked = {
            "HMGET": partial(self._redis.hmget, marker, "token"),
            "HGETALL": partial(self._redis.hgetall, marker),
            "SMEMBERS": partial(self._redis.smembers, marker),
            "DEL": partial(self._redis.delete, marker),
            "HDEL": partial(self._redis.hdel, marker, "token"),
            "SREM": partial(self._redis.srem, marker, "token"),
            "EVALSHA": partial(self._write, keys=[marker, marker], args=["", "", 0, ""]),
        }
        refused = []
        for command, call in asked.items():
            try:
                await call()
            except NoPermissionError:
                refused.append(command)
            except (RedisError, OSError, TimeoutError) as error:
                raise StoreError(f"Redis: {type(error).__name__}") from None
        return refused

    async def _digests(self, place: Place) -> list[str]:
        members = await answer(self._redis.smembers(self._namespace(place) + ":patients"))
        return sorted(member.decode() for member in members)

    def _namespace(self, place: Place) -> str:
        topic = self._topic_id or place.topic
        return f"riskstream:{{{place.cluster}:{self._group}:{topic}:{place.partition}}}"


def digest(patient_id: str) -> str:
    """A patient's name in keys: no identifier stands in a key."""
    return blake2b(patient_id.encode(), digest_size=16).hexdigest()


def connect(settings: Settings) -> Any:
    """A client from the settings; connects on first use."""
    options: dict[str, Any] = {
        "socket_timeout": settings.redis_timeout_s,
        "socket_connect_timeout": settings.redis_timeout_s,
        "retry": Retry(NoBackoff(), 1),
        "retry_on_error": [aioredis.ConnectionError],
        "health_check_interval": 15,
    }
    if settings.redis_username:
        options["username"] = settings.redis_username
    if settings.redis_password.get_secret_value():
        options["password"] = settings.redis_password.get_secret_value()
    url = settings.redis.get_secret_value()
    if url.startswith("rediss://"):
        for name, file in (
            ("ssl_ca_certs", settings.redis_ca_file),
            ("ssl_certfile", settings.redis_cert_file),
            ("ssl_keyfile", settings.redis_key_file),
        ):
            if file is not None:
                options[name] = str(file)
    return aioredis.Redis.from_url(url, **options)


def _arguments(write: Write) -> list[str | bytes | int]:
    put: list[str | bytes] = []
    for hour, value in write.bins.items():
        put += [f"b{hour}", value]
    return [write.digest, write.hot, len(put), len(write.drop), *put, *(f"b{hour}" for hour in write.drop)]


async def answer(call: Any) -> Any:
    """What a call to Redis gives.

    Raises:
        StoreError: it did not answer in time, or refused.
    """
    try:
        return await call
    except (RedisError, OSError, TimeoutError) as error:
        raise StoreError(f"Redis: {type(error).__name__}") from None
