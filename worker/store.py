"""Redis: patients' state as a cache of the log. The only home of redis-py.

One namespace per cluster id, group, topic id and partition, its keys in one hash slot:

    {ns}:marker     hash: token (who may write), offset (complete up to), newest (stream time, ms)
    {ns}:patients   set of the digests of stored patients
    {ns}:p:DIGEST   hash: hot, and b<hour> for each bin

Every write goes through a script that compares the token first, so that a worker that was away cannot
overwrite its successor's state.
"""

import secrets
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

import redis.asyncio as aioredis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from worker.config import Settings
from worker.errors import StoreError
from worker.partition import Place

_WRITE = """
local token = redis.call('HGET', KEYS[1], 'token')
if not token then return 'missing' end
if token ~= ARGV[1] then return 'fenced' end
local at = 3
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
if ARGV[2] ~= '' then redis.call('HSET', KEYS[1], 'offset', ARGV[2], 'newest', ARGV[3]) end
return 'ok'
"""
"""KEYS: marker, patients, one per write. ARGV: token, offset or '', newest, then for each write:
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
        await _answer(self._redis.ping())

    async def acquire(self, place: Place) -> tuple[str, Marker]:
        """Take the partition's state over: from now on only the returned token may write it."""
        token = secrets.token_hex(8)
        marker = self._namespace(place) + ":marker"
        await _answer(self._redis.hset(marker, "token", token))
        offset, newest = await _answer(self._redis.hmget(marker, "offset", "newest"))
        return token, Marker(None if offset is None else int(offset), int(newest or 0))

    async def discard(self, place: Place) -> None:
        """Delete the partition's stored state but for the token."""
        namespace = self._namespace(place)
        digests = await self._digests(place)
        for at in range(0, len(digests), _BATCH):
            keys = [f"{namespace}:p:{digest}" for digest in digests[at : at + _BATCH]]
            await _answer(self._redis.unlink(*keys))
        await _answer(self._redis.unlink(f"{namespace}:patients"))
        await _answer(self._redis.hdel(f"{namespace}:marker", "offset", "newest"))

    async def load(self, place: Place) -> list[Stored]:
        """Every stored patient of the partition."""
        namespace = self._namespace(place)
        digests = await self._digests(place)
        loaded: list[Stored] = []
        for at in range(0, len(digests), _BATCH):
            pipe = self._redis.pipeline(transaction=False)
            for digest in digests[at : at + _BATCH]:
                pipe.hgetall(f"{namespace}:p:{digest}")
            for fields in await _answer(pipe.execute()):
                if b"hot" in fields:
                    bins = {int(name[1:]): value for name, value in fields.items() if name != b"hot"}
                    loaded.append(Stored(fields[b"hot"], bins))
        return loaded

    async def save(
        self, place: Place, token: str, writes: Sequence[Write], offset: int, newest_ms: int
    ) -> str:
        """Store a checkpoint: every write, then the marker. Safe to repeat.

        Returns:
            "ok"; "missing" when Redis has lost the marker; "fenced" when another worker owns it.
        """
        namespace = self._namespace(place)
        for at in range(0, max(len(writes), 1), _BATCH):
            part = writes[at : at + _BATCH]
            last = at + _BATCH >= len(writes)
            keys = [
                f"{namespace}:marker",
                f"{namespace}:patients",
                *(f"{namespace}:p:{w.digest}" for w in part),
            ]
            arguments: list[str | bytes | int] = [token, offset if last else "", newest_ms]
            for write in part:
                arguments += _arguments(write)
            verdict = await _answer(self._write(keys=keys, args=arguments))
            if verdict != b"ok":
                return str(verdict.decode())
        return "ok"

    async def policy(self) -> str:
        """Redis's maxmemory-policy; only `noeviction` is acceptable."""
        info = await _answer(self._redis.info("memory"))
        return str(info.get("maxmemory_policy", "unknown"))

    async def _digests(self, place: Place) -> list[str]:
        members = await _answer(self._redis.smembers(self._namespace(place) + ":patients"))
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


async def _answer(call: Any) -> Any:
    try:
        return await call
    except (RedisError, OSError, TimeoutError) as error:
        raise StoreError(f"Redis: {type(error).__name__}") from None
