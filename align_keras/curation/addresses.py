"""Refuse URLs that an untrusted table must not make this machine fetch.

A table may hold `file:///etc/passwd`, `http://169.254.169.254/` (where clouds
keep credentials) or `http://router.local/`. Host names are not resolved here;
`docs/security.md` describes the risk that remains.
"""

import ipaddress
import re
import socket
import unicodedata
from urllib.parse import unquote
from urllib.parse import urlsplit

SCHEMES = ("http", "https")
# Why an address is refused.
NO_ADDRESS = "not an address"
OTHER_SCHEME = "not http or https"
PRIVATE = "not a public address"

# Names that mean this machine or its network, whichever resolver is used.
_LOCAL_NAMES = re.compile(
    r"(.*\.)?(localhost|localdomain|local|internal|intranet|lan|home|corp|"
    r"private|home\.arpa)"
)
# Characters that no host name contains, or that programs parse differently.
_UNFIT = re.compile(r"[\x00-\x20\x7f\\<>\"{}|^`]")
# IPv6 networks whose addresses end in the IPv4 address that they embed.
_EMBEDDING = tuple(
    map(ipaddress.ip_network, ("64:ff9b::/96", "64:ff9b:1::/48", "::/96"))
)


def refusal(url: str | None, allow_private: bool = False) -> str | None:
    """Return the reason why a URL must not be fetched, if there is one.

    Args:
        url: string or `None`.
        allow_private: bool. Whether to allow addresses of this machine and of
            private networks. Defaults to `False`.

    Returns:
        string, one of the reasons above, or `None` if the URL is acceptable.

    Example:

    ```python
    refusal("http://127.1/a.jpg")  # "not a public address"
    ```
    """
    try:
        parts = urlsplit((url or "").strip())
        host, _ = parts.hostname, parts.port
    except ValueError:
        return NO_ADDRESS
    if parts.scheme not in SCHEMES:
        return OTHER_SCHEME if parts.scheme else NO_ADDRESS
    if not host or _UNFIT.search(parts.netloc):
        return NO_ADDRESS
    return PRIVATE if not allow_private and not _is_public(host) else None


def _is_public(host):
    # Normalise as clients do: %31 and a full-width digit one both mean 1.
    host = unicodedata.normalize("NFKC", unquote(host)).lower()
    host = re.sub("[\u3002\uff0e\uff61]", ".", host).rstrip(".")
    if not host or _UNFIT.search(host):
        return False
    address = _numeric(host)
    if address is not None:
        return all(map(_is_global, _meant(address)))
    # A name without a dot is resolved within the local network.
    return "." in host and not _LOCAL_NAMES.fullmatch(host)


def _numeric(host):
    """Parse a host as an IP address, in any of the usual notations."""
    try:
        return ipaddress.ip_address(host.partition("%")[0].strip("[]"))
    except ValueError:
        pass
    try:
        # 127.1, 0x7f.0.0.1, 017700000001 and 2130706433 are all 127.0.0.1.
        return ipaddress.IPv4Address(socket.inet_aton(host))
    except (OSError, UnicodeEncodeError):
        return None


def _meant(address):
    """Yield an address and the IPv4 addresses embedded in it."""
    yield address
    if address.version == 4:
        return
    for inner in (address.ipv4_mapped, address.sixtofour):
        if inner is not None:
            yield inner
    if address.teredo is not None:
        yield from address.teredo
    if any(address in network for network in _EMBEDDING):
        yield ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)


def _is_global(address):
    # `is_global` is true for IPv6's deprecated site-local addresses.
    private = address.is_multicast or getattr(address, "is_site_local", False)
    return address.is_global and not private
