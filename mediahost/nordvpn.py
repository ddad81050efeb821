"""NordVPN's API: from an access token to a WireGuard tunnel. Asked from the control side only, never by a run.

The token goes into one header of one request and nowhere else: not into a message, not to where a redirect points.
Source of the calls: NordVPN's own Linux client (https://github.com/NordSecurity/nordvpn-linux, core/urls.go).
"""

from __future__ import annotations

import base64
import difflib
import ipaddress
import json
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mediahost.vpn import Tunnel
from mediahost.wireguard import NAME_SERVERS, public_key

BASE = "https://api.nordvpn.com"
BASE_VARIABLE = "MEDIAHOST_NORDVPN_API"
"""Environment variable: another place that speaks the same, a mirror or a test's server."""

ADDRESS = "10.5.0.2/32"
"""The same for everybody: NordVPN's servers translate each peer's address."""
PORT = 51820

_SECONDS = 20
_LIMIT = 4 << 20
_TECHNOLOGY = "wireguard_udp"


class NordVPNError(Exception):
    """Why there is no tunnel, with the mend; never with the token or a key."""


@dataclass(frozen=True)
class Offer:
    """A tunnel, and the server at its end in words."""

    tunnel: Tunnel
    server: str
    place: str


@dataclass(frozen=True)
class _Server:
    address: str
    key: str
    name: str
    place: str


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """urllib would take the token along, to whatever host the answer names."""
        return


def fetch(token: str, country: str | None = None) -> Offer:
    """The tunnel to the server that NordVPN recommends, in `country` (its name or code) if one is given.

    Raises `NordVPNError`.
    """
    base = _base()
    place = _country(base, country) if country else None
    server = _server(base, place)
    return Offer(
        Tunnel(
            private_key=_private_key(base, token),
            addresses=(ADDRESS,),
            peer=server.key,
            endpoint=server.address,
            endpoint_port=PORT,
            dns=NAME_SERVERS["nordvpn"],
        ),
        server.name,
        server.place,
    )


def _base() -> str:
    base = os.environ.get(BASE_VARIABLE, "").rstrip("/") or BASE
    parts = urllib.parse.urlsplit(base)
    # The token must not cross a network in the clear.
    if not parts.hostname or parts.scheme != "https" and parts.hostname not in ("127.0.0.1", "::1", "localhost"):
        raise NordVPNError(f"{BASE_VARIABLE} must begin with https://: the token would be readable on the way")
    return base


def _private_key(base: str, token: str) -> str:
    # The token is a password to the user name "token".
    login = base64.b64encode(f"token:{token}".encode()).decode()
    answer = _get(f"{base}/v1/users/services/credentials", {"Authorization": f"Basic {login}"})
    key = answer.get("nordlynx_private_key") if isinstance(answer, dict) else None
    if not isinstance(key, str) or not _is_key(key):
        raise NordVPNError(
            "NordVPN gave no WireGuard key for this account: an account without a subscription has none; look at "
            "https://my.nordaccount.com"
        )
    return key


def _country(base: str, wanted: str) -> int:
    answer = _get(f"{base}/v1/servers/countries")
    found: dict[str, int] = {}
    names: dict[str, str] = {}
    for entry in _objects(answer):
        number, name, code = entry.get("id"), entry.get("name"), entry.get("code")
        if isinstance(number, int) and isinstance(name, str) and isinstance(code, str):
            found[name.lower()] = found[code.lower()] = number
            names[name.lower()] = f"{name} ({code})"
    if not found:
        raise _odd("countries")
    # NordVPN's own code of the United Kingdom is GB.
    key = {"uk": "gb", "usa": "us"}.get(wanted.strip().lower(), wanted.strip().lower().replace("_", " "))
    if key in found:
        return found[key]
    near = [names[each] for each in difflib.get_close_matches(key, names, n=3, cutoff=0.5)]
    mend = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(sorted(names.values()))}"
    raise NordVPNError(f"NordVPN has no servers in {wanted!r}; {mend}")


def _server(base: str, country: int | None) -> _Server:
    query = {"filters[servers_technologies][identifier]": _TECHNOLOGY, "limit": "5"}
    if country is not None:
        query["filters[country_id]"] = str(country)
    answer = _get(f"{base}/v1/servers/recommendations?{urllib.parse.urlencode(query)}")
    if answer == []:
        raise NordVPNError("NordVPN recommends no WireGuard server there at present; choose another --country")
    for entry in _objects(answer):
        key = next(_public_keys(entry), None)
        address = _address(entry.get("station"))
        if key is not None and address is not None:
            return _Server(address, key, str(entry.get("hostname") or address)[:80], _place(entry))
    raise _odd("servers")


def _public_keys(server: dict[str, Any]) -> Iterator[str]:
    for technology in _objects(server.get("technologies")):
        if technology.get("identifier") != _TECHNOLOGY:
            continue
        for entry in _objects(technology.get("metadata")):
            value = entry.get("value")
            if entry.get("name") == "public_key" and isinstance(value, str) and _is_key(value):
                yield value


def _place(server: dict[str, Any]) -> str:
    for location in _objects(server.get("locations")):
        country = location.get("country")
        if isinstance(country, dict) and isinstance(country.get("name"), str):
            city = country.get("city")
            town = city.get("name") if isinstance(city, dict) else None
            return f"{town}, {country['name']}"[:80] if isinstance(town, str) else country["name"][:80]
    return ""


def _get(url: str, headers: dict[str, str] | None = None) -> Any:
    place = urllib.parse.urlsplit(url).hostname
    request = urllib.request.Request(url, headers={"Accept": "application/json", **(headers or {})})  # noqa: S310
    # urllib checks the certificate against the system's authorities by default.
    opener = urllib.request.build_opener(_NoRedirect)
    try:
        with opener.open(request, timeout=_SECONDS) as answer:
            return json.loads(answer.read(_LIMIT))
    except urllib.error.HTTPError as error:
        error.close()
        raise NordVPNError(_refused(error.code)) from None
    except urllib.error.URLError as error:
        why = str(getattr(error.reason, "strerror", None) or error.reason)
        raise NordVPNError(f"{place} cannot be reached ({why}); check this machine's network") from None
    except (TimeoutError, OSError) as error:
        why = error.strerror or "no answer in time"
        raise NordVPNError(f"{place} did not answer ({why}); try again") from None
    except ValueError:
        raise _odd("what was asked") from None


def _refused(code: int) -> str:
    if code in (401, 403):
        return (
            "NordVPN does not take this access token: it is mistyped, expired or revoked. Make a new one at "
            "https://my.nordaccount.com/dashboard/nordvpn/access-tokens"
        )
    if code == 429:
        return "NordVPN was asked too often from this address; try again in an hour"
    if 300 <= code < 400:
        return f"NordVPN's API answers with a redirect ({code}), which is not followed: update mediahost"
    return f"NordVPN's API answers {code}; try again later"


def _odd(what: str) -> NordVPNError:
    return NordVPNError(
        f"NordVPN's API does not tell {what} in the form that is known; update mediahost, or get a WireGuard file "
        "elsewhere: mediahost vpn import"
    )


def _objects(value: Any) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _address(value: Any) -> str | None:
    try:
        address = ipaddress.ip_address(value) if isinstance(value, str) else None
    except ValueError:
        return None
    if address is None or address.is_multicast or address.is_unspecified or address.is_loopback:
        return None
    return str(address)


def _is_key(value: str) -> bool:
    try:
        return bool(public_key(value))
    except ValueError:
        return False
