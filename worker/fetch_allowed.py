"""What may be fetched: settings and references -> what is asked for. Pure; asks nobody.

A reference must lie under a base that the settings allow, and the rest of it must be of one exact form. What
is asked for is put together from the base and that rest, never from the text of an event, so encoded slashes,
dots, user names, ports and queries have nowhere to hide.
"""

import ipaddress
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

from worker.errors import FetchRefusedError

_UID = r"[0-9]+(?:\.[0-9]+)*"

_INSTANCE = re.compile(
    rf"/studies/(?P<study>{_UID})/series/(?P<series>{_UID})/instances/(?P<instance>{_UID})"
    r"(?:/frames/(?P<frame>[1-9][0-9]{0,5}))?"
)

_BASE_PATH = re.compile(r"(?:/[A-Za-z0-9._~-]+)*")

_UID_CHARACTERS = 64

_PORTS = {"http": 80, "https": 443}

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")

OBJECT_PROTOCOL = "s3"
"""The one protocol of object stores. Others of fsspec read local files, run through other hosts or chain."""

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")

_THIS_NETWORK = ipaddress.IPv4Network("0.0.0.0/8")

_METADATA = frozenset(ipaddress.ip_address(text) for text in ("fd00:ec2::254", "100.100.100.200"))
"""Where clouds keep their machines' credentials, beside the link-local 169.254.169.254."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Base(NamedTuple):
    """A DICOMweb service. path: without a slash at its end."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def url(self) -> str:
        """The base as a URL, without a slash at its end."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == _PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{host}{port}{self.path}"


class Target(NamedTuple):
    """What is asked of a DICOMweb service.

    frame: the one to choose from the instance, from 1; None for all of it, or where the server has chosen.
    """

    base: Base
    path: str
    rendered: bool
    frame: int | None

    @property
    def url(self) -> str:
        """What to GET."""
        return self.base.url + self.path


def parse_base(text: str) -> Base:
    """A setting such as https://pacs.example/dicom-web.

    Raises:
        ValueError: it is no such URL; the message says what one looks like and not what came, which may
            hold a password.
    """
    base = _split(text.rstrip("/"))
    if base is None or not _BASE_PATH.fullmatch(base.path) or _dotted(base.path):
        raise ValueError(
            "write https://host[:port]/path, without user, query, percent signs or dots as a segment"
        )
    return base


def check_hosts(urls: Sequence[str], internal_hosts: Sequence[str]) -> None:
    """Whether the settings imaging_hosts and imaging_internal_hosts can be used.

    Raises:
        ValueError: what is wrong; it quotes hosts, never whole URLs.
    """
    try:
        bases = [parse_base(url) for url in urls]
    except ValueError as error:
        raise ValueError(f"imaging_hosts: {error}") from None
    strangers = sorted(set(internal_hosts) - {base.host for base in bases})
    if strangers:
        raise ValueError(f"imaging_internal_hosts: {', '.join(strangers)} is no host of imaging_hosts")
    for base in bases:
        if is_literal(base.host) and not is_reachable(base.host, internal=base.host in internal_hosts):
            raise ValueError(
                f"imaging_hosts: {base.host} is private, link-local or reserved; a private or loopback "
                "address must stand in imaging_internal_hosts too"
            )


def authorizations(urls: Sequence[str], secrets: Mapping[str, str]) -> dict[Base, str]:
    """The header Authorization by service, of the setting imaging_credentials.

    Raises:
        ValueError: credentials of an unknown form or service; the message holds none of them.
    """
    bases = {parse_base(url) for url in urls}
    headers = {}
    for url, secret in secrets.items():
        scheme, _, value = secret.partition(" ")
        if not value or not value.isprintable() or scheme.lower() not in ("basic", "bearer"):
            raise ValueError('imaging_credentials: write "basic USER:PASSWORD" or "bearer TOKEN"')
        base = parse_base(url)
        if base not in bases:
            raise ValueError(f"imaging_credentials: {base.host} has an entry that imaging_hosts has not")
        basic = scheme.lower() == "basic"
        headers[base] = f"Basic {b64encode(value.encode()).decode()}" if basic else f"Bearer {value}"
    return headers


def _split(text: str) -> Base | None:
    """The parts of a plain http or https URL; None for anything else."""
    if not text.isascii() or not text.isprintable() or any(c in text for c in "\\ ?#@%"):
        return None
    try:
        parts = urlsplit(text)
        scheme, host, port = parts.scheme, parts.hostname, parts.port
    except ValueError:
        return None
    if scheme not in _PORTS or not host or port == 0:
        return None
    return Base(scheme, host, port or _PORTS[scheme], parts.path)


def target(bases: Sequence[Base], url: str, *, rendered: bool) -> Target:
    """What to ask for a DICOMweb reference.

    Raises:
        FetchRefusedError: `invalid-reference`, `host-not-allowed`.
    """
    asked = _split(url)
    if asked is None:
        raise FetchRefusedError("not a plain http or https URL", reason="invalid-reference")
    for base in bases:
        if asked[:3] == base[:3] and asked.path.startswith(f"{base.path}/"):
            found = _INSTANCE.fullmatch(asked.path[len(base.path) :])
            if found and all(len(found[name]) <= _UID_CHARACTERS for name in ("study", "series", "instance")):
                return _target(base, found, rendered)
    if any(asked[:3] == base[:3] for base in bases):
        raise FetchRefusedError(
            "the URL is not /studies/../series/../instances/.. under an allowed base",
            reason="invalid-reference",
        )
    raise FetchRefusedError("the URL lies under none of imaging_hosts", reason="host-not-allowed")


def _target(base: Base, found: re.Match[str], rendered: bool) -> Target:
    if rendered:
        return Target(base, f"{found[0]}/rendered", rendered, None)
    # A frame alone comes without the attributes that say how to show it: the whole instance is fetched.
    instance = f"/studies/{found['study']}/series/{found['series']}/instances/{found['instance']}"
    return Target(base, instance, rendered, int(found["frame"]) if found["frame"] else None)


def parse_bucket(text: str) -> str:
    """A setting such as s3://bucket or s3://bucket/prefix -> bucket/prefix, without a slash at its end.

    Raises:
        ValueError: it is none; the message says what one looks like.
    """
    path = _object_path(text.rstrip("/"))
    if path is None:
        raise ValueError("write s3://bucket or s3://bucket/prefix")
    return path


def object_path(buckets: Sequence[str], url: str) -> str:
    """bucket/key of an object's URL.

    Args:
        buckets: as `parse_bucket` gives them.

    Raises:
        FetchRefusedError: `invalid-reference`, `bucket-not-allowed`.
    """
    path = _object_path(url)
    if path is None or path.endswith("/"):
        raise FetchRefusedError("not a plain s3://bucket/key", reason="invalid-reference")
    if not any(path.startswith(f"{bucket}/") for bucket in buckets):
        raise FetchRefusedError("the object lies under none of imaging_buckets", reason="bucket-not-allowed")
    return path


def _object_path(text: str) -> str | None:
    """bucket[/key]; None where a library might read the text otherwise than it is written."""
    scheme, separator, path = text.partition("://")
    if scheme != OBJECT_PROTOCOL or not separator or "::" in path:
        return None
    if not path.isprintable() or any(c in path for c in "\\?#*"):
        return None
    bucket, _, key = path.partition("/")
    if not _BUCKET.fullmatch(bucket) or _dotted(f"/{key}") or "//" in path:
        return None
    return path


def _dotted(path: str) -> bool:
    return any(segment in (".", "..") for segment in path.split("/"))


def is_reachable(address: str, *, internal: bool) -> bool:
    """Whether a connection to an address may be made.

    Args:
        address: numeric; a zone after % does not count.
        internal: whether its host may be on a private network or on this machine. Link-local addresses, and
            with them the metadata services of clouds, are nobody's.
    """
    ip = _real(ipaddress.ip_address(address.partition("%")[0]))
    if ip.is_link_local or ip.is_multicast or ip.is_unspecified or ip in _METADATA:
        return False
    if ip.is_loopback:
        return internal
    if ip.is_reserved or (ip.version == 4 and ip in _THIS_NETWORK):
        return False
    return internal or ip.is_global


def _real(ip: Address) -> Address:
    """The IPv4 address that an IPv6 address stands for, if it does: mapped, NAT64, 6to4, Teredo."""
    if not isinstance(ip, ipaddress.IPv6Address):
        return ip
    if ip in _NAT64:
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else ip)


def is_literal(host: str) -> bool:
    """Whether a host is written as an address."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
