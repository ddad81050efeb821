"""The second factor of SSH logins from outside the home network: a code of six digits beside the key (RFC 6238).

sshd asks PAM for it, and PAM one module, pam_google_authenticator (pam_google_authenticator(8)). Each
administrator has a secret in the vault and a file on the host that root alone reads. Who has no secret cannot log
in from outside; at home nothing changes.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Callable, Mapping

from mediahost.config import Settings
from mediahost.controls import Insertion
from mediahost.resources import File

PACKAGE = "libpam-google-authenticator"
"""The same on Debian and Ubuntu (universe)."""
DIRECTORY = "/etc/mediahost/totp"
PAM_PATH = "/etc/pam.d/sshd"

# success=done: common-auth, which would ask for a password, is not reached; default=die: no other answer lets anybody
# in, a missing secret and a damaged file among them.
PAM_LINE = (
    "auth [success=done default=die] pam_google_authenticator.so "
    f"secret={DIRECTORY}/${{USER}} user=root no_increment_hotp"
)
# Below the comment at the file's head, so above every rule.
_PAM_EDIT = Insertion(PAM_PATH, r"#", PAM_LINE)

METHODS = "publickey,keyboard-interactive:pam"
"""The key first: who has none is not even asked for a code, and cannot use up an administrator's tries."""

# RFC 4226, section 4, R6: 128 bits at least; 26 characters of base32 are 130.
_SECRET = re.compile(r"[A-Z2-7]{26,}")

# Three tries in 30 seconds, a code is taken once, and clocks may differ by one step of 30 seconds (RFC 6238, 5.2).
# The module writes its own state behind these lines.
_STATE = '" RATE_LIMIT 3 30\n" WINDOW_SIZE 3\n" DISALLOW_REUSE\n" TOTP_AUTH\n'


def packages(settings: Settings) -> tuple[str, ...]:
    """The module's. It stays when the code is switched off: somebody else's PAM file may name it by then."""
    return (PACKAGE,) if settings.sshd_totp else ()


def condition(settings: Settings) -> str:
    """Of the Match block: every address outside firewall_lan."""
    inside = [f"!{network}" for network in settings.firewall_lan]
    if is_inside(settings, "fe80::1"):
        # sshd finds an address with its interface (fe80::1%eth0) in no block.
        inside.append("!fe80:*")
    return ",".join(("*", *inside))


def match_block(settings: Settings) -> str:
    """The last lines of the drop-in: a Match block ends with its file. Empty when off."""
    if not settings.sshd_totp:
        return ""
    options = "".join(f"    {keyword} {value}\n" for keyword, value in effective_outside(settings).items())
    return f"Match Address {condition(settings)}\n{options}"


def effective_outside(settings: Settings) -> dict[str, str]:
    """Keywords and values that `sshd -T` must tell of a login from outside, and of no other."""
    if not settings.sshd_totp:
        return {}
    return {"AuthenticationMethods": METHODS, "KbdInteractiveAuthentication": "yes"}


def is_inside(settings: Settings, address: str) -> bool:
    """Whether a client's address, as SSH_CONNECTION tells it, is one from which no code is asked."""
    try:
        client = ipaddress.ip_address(address)
    except ValueError:
        return False
    return any(client in ipaddress.ip_network(network) for network in settings.firewall_lan)


def edits(settings: Settings) -> list[Insertion]:
    """Our line in PAM's file of sshd; none when off, which takes it out."""
    return [_PAM_EDIT] if settings.sshd_totp else []


def paths(settings: Settings) -> tuple[str, ...]:
    """The file of each administrator's secret."""
    return tuple(f"{DIRECTORY}/{name}" for name in sorted(settings.admins)) if settings.sshd_totp else ()


def files(settings: Settings, host: str, secret: Callable[[str, str], str]) -> tuple[File, ...]:
    """The secrets as the module reads them. `secret(entry, kind)` gives the value of a vault entry."""
    return tuple(
        File(path, f"{secret(f'{host}/totp/{_name(path)}', 'totp')}\n{_STATE}".encode(), mode="0400", secret=True)
        for path in paths(settings)
    )


def unusable(factors: tuple[File, ...]) -> list[str]:
    """Whose secret is none: too short, or not base32."""
    return [_name(file.path) for file in factors if not _SECRET.fullmatch(_first_line(file))]


def differing(factors: tuple[File, ...], seen: Mapping[str, str]) -> tuple[File, ...]:
    """Files whose first line, the secret, is another. `seen` has the sha256 of the first line by path."""
    return tuple(
        file
        for file in factors
        if seen.get(file.path) != hashlib.sha256(f"{_first_line(file)}\n".encode()).hexdigest()
    )


def _first_line(file: File) -> str:
    return file.content.decode().partition("\n")[0]


def _name(path: str) -> str:
    return path.rpartition("/")[2]
