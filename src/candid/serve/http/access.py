"""Access rules of the server: keys of clients, host names, and proxies that name the client."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256

from candid.errors import ConfigError
from candid.serve.errors import RequestError

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Headers = Sequence[tuple[bytes, bytes]]


@dataclass(frozen=True)
class ApiKeys:
    """Keys of clients.

    Attributes:
        read: for queries; empty: queries need no key.
        admin: for item updates and reloads, and for queries too; empty: updates and reloads are
            refused.

    Raises:
        ConfigError: a key is empty, has white space around it, or is not UTF-8.
    """

    read: tuple[str, ...] = ()
    admin: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for kind, keys in (("read", self.read), ("admin", self.admin)):
            if isinstance(keys, str):  # Each of its characters would be a key.
                raise ConfigError(f"the {kind} keys must be a tuple of texts, got one text")
            for number, key in enumerate(keys, start=1):
                fault = _fault_of_key(key)
                if fault is not None:
                    raise ConfigError(f"{kind} key {number} {fault}; choose another key")

    def __repr__(self) -> str:
        return f"ApiKeys({len(self.read)} read, {len(self.admin)} admin)"

    def check(self, key: str | None, needs_admin: bool) -> None:
        """Check the key of a request in constant time.

        Raises:
            RequestError: a key is missing or wrong.
        """
        if needs_admin and not self.admin:
            raise RequestError(
                "needs_key",
                "item updates and reloads need a server that was started with an admin key",
            )
        required = self.admin if needs_admin else self.read
        if not required:
            return
        if key is None:
            raise RequestError(
                "no_key",
                "this server needs a key; send it as Authorization: Bearer KEY or X-API-Key: KEY",
            )
        accepted = self.admin if needs_admin else (*self.read, *self.admin)
        digest = sha256(key.encode("utf-8", "surrogateescape")).digest()
        # Compare all of them, so that the time does not reveal which one matches.
        matches = [hmac.compare_digest(digest, sha256(k.encode()).digest()) for k in accepted]
        if not any(matches):
            raise RequestError("wrong_key", "the server does not accept this key for this request")


def _fault_of_key(key: str) -> str | None:
    """Return why no client could send a key, or why anybody could; None: it can be used."""
    if not key.strip():
        return "is empty"
    if key != key.strip():
        return "has white space around it, which clients cannot send"
    try:
        key.encode()
    except UnicodeEncodeError:
        return "is not UTF-8"
    return None


@dataclass(frozen=True)
class AllowedHosts:
    """Host names under which the server may be called.

    A web page of another origin whose name points to the address of this server (DNS rebinding)
    sends its own name in the Host header, which this check refuses.

    Attributes:
        names: such as ``rec.example.com``, or ``*.example.com`` for all names below a domain;
            without a port; an IPv6 address with or without brackets. Empty: every name is allowed.

    Example:
        >>> AllowedHosts(("*.example.com",)).check(b"rec.example.com:8000")
    """

    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in self.names:
            if not _is_host_name(name.removeprefix("*.")):
                raise ConfigError(
                    f"--allowed-host {name!r} is not a host name; write a name such as "
                    "rec.example.com or *.example.com, without port and path"
                )

    def check(self, host: bytes) -> None:
        """Check the Host header of a request.

        Raises:
            RequestError: the name is not one of the allowed ones.
        """
        if not self.names:
            return
        name = _without_port(host.decode("ascii", "replace")).lower().removesuffix(".")
        for allowed in self.names:
            allowed = allowed.lower().removeprefix("[").removesuffix("]")
            if name == allowed or (allowed.startswith("*.") and name.endswith(allowed[1:])):
                return
        raise RequestError("wrong_host", "this server does not answer under this host name")


@dataclass(frozen=True)
class TrustedProxies:
    """Proxies whose ``X-Forwarded-For`` header names the client of a request.

    Attributes:
        addresses: IP addresses or networks, such as ``10.0.0.0/8``. Empty: the client is always
            the other end of the connection.
    """

    addresses: tuple[str, ...] = ()
    _networks: tuple[Network, ...] = field(init=False, repr=False, compare=False, default=())

    def __post_init__(self) -> None:
        try:
            networks = tuple(ipaddress.ip_network(each, strict=False) for each in self.addresses)
        except ValueError as error:
            raise ConfigError(
                f"--trusted-proxy: {error}; write an IP address such as 10.0.0.7 or a network such "
                "as 10.0.0.0/8"
            ) from None
        object.__setattr__(self, "_networks", networks)

    def client_of(self, peer: str, headers: Headers) -> str:
        """Return the address of the client of a request.

        Each proxy appends the address that it was called from, so the header is read from the
        right, past trusted proxies. The part left of the first other address may be invented by
        the client and is ignored.

        Args:
            peer: address of the other end of the connection.
            headers: of the request, names in lower case.
        """
        if not self._networks or not self._is_trusted(peer):
            return peer
        values = [value for name, value in headers if name == b"x-forwarded-for"]
        client = peer
        for part in reversed(b",".join(values).decode("ascii", "replace").split(",")):
            address = _without_port(part.strip())
            try:
                client = str(ipaddress.ip_address(address))
            except ValueError:
                return client
            if not self._is_trusted(client):
                return client
        return client

    def _is_trusted(self, text: str) -> bool:
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            return False
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return any(address in network for network in self._networks)


@dataclass(frozen=True)
class AccessRules:
    """Access rules of one server.

    Attributes:
        keys: of clients.
        hosts: names under which the server may be called.
        proxies: that name the client of a request.
    """

    keys: ApiKeys = ApiKeys()
    hosts: AllowedHosts = AllowedHosts()
    proxies: TrustedProxies = TrustedProxies()


def is_loopback(host: str) -> bool:
    """Whether an address to listen on can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_host_name(name: str) -> bool:
    """Whether a name has no port, path or wildcard; an IPv6 address may have brackets."""
    if ":" in name or name.startswith("["):
        try:
            ipaddress.IPv6Address(name[1:-1] if name[:1] + name[-1:] == "[]" else name)
        except ValueError:
            return False
        return True
    return bool(name) and not set(name) & set("*/ @[]")


def _without_port(host: str) -> str:
    """Return a host or address without its port and without the brackets of IPv6."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    name, _, port = host.rpartition(":")
    return name if name and ":" not in name and port.isdigit() else host
