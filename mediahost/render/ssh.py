"""The SSH server's drop-in: keys only, strong algorithms, named users, and first in line.

sshd takes the first value it reads for a keyword and reads the drop-ins in lexical order before the main file
(sshd_config(5)); cloud-init writes 50-cloud-init.conf with `PasswordAuthentication yes` on many images. So ours
is named 00-, and the effective configuration is compared, not the file alone.

The algorithms are our preference as far as the host's own OpenSSH knows them: an unknown name ends sshd. The lists
are those of ssh-audit's hardening guides (https://www.ssh-audit.com/hardening_guides.html).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from mediahost.config import Settings
from mediahost.render import totp
from mediahost.resources import MARK, File

DROP_IN_PATH = "/etc/ssh/sshd_config.d/00-mediahost.conf"
BANNER_PATH = "/etc/ssh/mediahost-banner"
SOCKET_PATH = "/etc/systemd/system/ssh.socket.d/mediahost.conf"
ED25519_HOST_KEY = "/etc/ssh/ssh_host_ed25519_key"
RSA_HOST_KEY = "/etc/ssh/ssh_host_rsa_key"
LONG_RSA_HOST_KEY = "/etc/ssh/ssh_host_rsa_4096_key"
MIN_RSA_HOST_KEY_BITS = 4096
"""What ssh-audit's policies ask of a host key; distributions make 3072."""
MIN_GROUP_BITS = 3071
"""Shortest group in moduli(5) that stays: the file gives the size of a 3072-bit prime as 3071."""

CHECK = "[ -d /run/sshd ] || install -d -m 0755 /run/sshd; /usr/sbin/sshd -t"
"""Tests the whole configuration. The directory it asks for is missing behind a socket that nobody has used yet."""

GROUP_EXCHANGE = "diffie-hellman-group-exchange-sha256"
_ML_KEM = "mlkem768x25519-sha256"
# What somebody records today must not be readable by tomorrow's quantum computer: hybrids first.
_POST_QUANTUM = (_ML_KEM, "sntrup761x25519-sha512", "sntrup761x25519-sha512@openssh.com")
# Kept because paramiko below 5, which pyinfra 3.10 asks for, has no post-quantum exchange at all.
_CURVE25519 = ("curve25519-sha256", "curve25519-sha256@libssh.org")
_FINITE_FIELD = ("diffie-hellman-group16-sha512", "diffie-hellman-group18-sha512", GROUP_EXCHANGE)
_CIPHERS = (
    "chacha20-poly1305@openssh.com",
    "aes256-gcm@openssh.com",
    "aes256-ctr",
    "aes192-ctr",
    "aes128-gcm@openssh.com",
    "aes128-ctr",
)
# Encrypt-then-MAC only.
_MACS = ("hmac-sha2-512-etm@openssh.com", "hmac-sha2-256-etm@openssh.com", "umac-128-etm@openssh.com")
_OLDER_MACS = ("hmac-sha2-256-etm@openssh.com", "hmac-sha2-512-etm@openssh.com", "umac-128-etm@openssh.com")
_SIGNATURES = ("sk-ssh-ed25519@openssh.com", "ssh-ed25519", "rsa-sha2-512", "rsa-sha2-256")
_CERTIFICATES = (
    "sk-ssh-ed25519-cert-v01@openssh.com",
    "ssh-ed25519-cert-v01@openssh.com",
    "rsa-sha2-512-cert-v01@openssh.com",
    "rsa-sha2-256-cert-v01@openssh.com",
)
# Of users only: somebody's hardware key may know nothing else. Never a host key.
_ECDSA = (
    "sk-ecdsa-sha2-nistp256@openssh.com",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
)
_EVERY_ALGORITHM = {
    "kex": frozenset((*_POST_QUANTUM, *_CURVE25519, *_FINITE_FIELD)),
    "cipher": frozenset(_CIPHERS),
    "mac": frozenset(_MACS),
    "HostKeyAlgorithms": frozenset((*_CERTIFICATES, *_SIGNATURES, *_ECDSA)),
}

# `sshd -T` of OpenSSH 9.2 in Debian takes the keyword and does not print it.
_NOT_PRINTED = frozenset({"debianbanner"})
# Keywords of which `sshd -T` prints a line a value, ours and those of other files.
_CUMULATIVE = frozenset({"port", "hostkey", "allowusers"})


@dataclass(frozen=True)
class Server:
    """What only the host can tell about its SSH server and about this run's way in.

    `algorithms` are names by what `ssh -Q` calls their kind; `keywords` those `sshd -T` prints, in lower case.
    `login_user` is who this run logs in as: None where it does not come through SSH, "" where that cannot be told.
    `ports` are those to listen on, none means the wanted one. The default is a server that knows everything.
    """

    algorithms: Mapping[str, frozenset[str]] = field(default_factory=lambda: _EVERY_ALGORITHM)
    keywords: frozenset[str] = frozenset({"requiredrsasize", "persourcepenaltyexemptlist"})
    login_user: str | None = None
    ports: tuple[int, ...] = ()
    rsa_host_key: str = RSA_HOST_KEY


def algorithms(settings: Settings, server: Server) -> dict[str, tuple[str, ...]]:
    """Algorithms to offer by sshd's keyword, the preferred one first. A list of which nothing is known is left out.

    `strict` is, to the letter, the list of ssh-audit's policy for the release: post-quantum exchanges alone where
    the server has ML-KEM (Debian 13, Ubuntu 26.04), before that also curve25519 and long finite fields.
    """
    strict = settings.sshd_crypto_policy == "strict"
    older = _ML_KEM not in server.algorithms.get("kex", ())
    exchanges = (
        *_POST_QUANTUM,
        *(_CURVE25519 if older or not strict else ()),
        *(_FINITE_FIELD if older and strict else ()),
    )
    signatures = (*_CERTIFICATES, *_SIGNATURES)
    wanted = {
        "KexAlgorithms": ("kex", exchanges),
        "Ciphers": ("cipher", _CIPHERS),
        "MACs": ("mac", _OLDER_MACS if older else _MACS),
        "HostKeyAlgorithms": ("HostKeyAlgorithms", signatures),
        "PubkeyAcceptedAlgorithms": ("HostKeyAlgorithms", signatures if strict else (*signatures, *_ECDSA)),
        "CASignatureAlgorithms": ("HostKeyAlgorithms", _SIGNATURES),
    }
    found = {
        keyword: tuple(name for name in names if name in server.algorithms.get(kind, ()))
        for keyword, (kind, names) in wanted.items()
    }
    return {keyword: names for keyword, names in found.items() if names}


def permit_root_login(settings: Settings, server: Server) -> str:
    """`auto` shuts root out, except from a host on which this very run logs in as root."""
    if settings.sshd_permit_root_login == "auto":
        return "prohibit-password" if server.login_user == "root" else "no"
    return settings.sshd_permit_root_login


def allowed_users(settings: Settings, server: Server) -> tuple[str, ...]:
    """Who may log in at all; empty means there is no such list.

    Whoever this run logs in as is always on it. Where that cannot be told there is no list.
    """
    if not settings.admins or server.login_user == "":
        return ()
    login = () if server.login_user is None else (server.login_user,)
    return tuple(sorted({*settings.admins, *settings.sshd_allow_users, *login}))


def options(settings: Settings, server: Server = Server()) -> tuple[tuple[str, str], ...]:  # noqa: B008 - frozen
    """Keywords and values, in the order of the file."""
    found = [("Port", str(port)) for port in (server.ports or (settings.sshd_port,))]
    found += [("HostKey", ED25519_HOST_KEY), ("HostKey", server.rsa_host_key)]
    found += [(keyword, ",".join(names)) for keyword, names in algorithms(settings, server).items()]
    if "requiredrsasize" in server.keywords:  # since OpenSSH 9.1
        found.append(("RequiredRSASize", "3072"))
    found += [("AllowUsers", user) for user in allowed_users(settings, server)]
    found += [
        ("PubkeyAuthentication", "yes"),
        ("PasswordAuthentication", "no"),
        ("KbdInteractiveAuthentication", "no"),
        ("HostbasedAuthentication", "no"),
        ("PermitEmptyPasswords", "no"),
        ("PermitRootLogin", permit_root_login(settings, server)),
        # Sessions and limits come from PAM; without it the account rules of the distribution are off as well.
        ("UsePAM", "yes"),
        ("StrictModes", "yes"),
        ("IgnoreRhosts", "yes"),
        ("PermitUserEnvironment", "no"),
        ("MaxAuthTries", str(settings.sshd_max_auth_tries)),
        ("LoginGraceTime", str(settings.sshd_login_grace_time)),
        ("MaxSessions", str(settings.sshd_max_sessions)),
        ("MaxStartups", settings.sshd_max_startups),
        ("ClientAliveInterval", str(settings.sshd_client_alive_interval)),
        ("ClientAliveCountMax", str(settings.sshd_client_alive_count_max)),
        # A probe below the encryption, which others can answer; the two above it tell a dead client safely.
        ("TCPKeepAlive", "no" if settings.sshd_client_alive_interval else "yes"),
        ("AllowAgentForwarding", "no"),
        ("AllowTcpForwarding", settings.sshd_allow_tcp_forwarding),
        ("GatewayPorts", "no"),
        ("PermitTunnel", "no"),
        ("X11Forwarding", "no"),
        ("Compression", "no"),
        # The fingerprint of the key that logged in: whose it was is otherwise lost where keys share an account.
        ("LogLevel", "VERBOSE"),
        ("Banner", BANNER_PATH if settings.sshd_banner else "none"),
        # Debian and Ubuntu tell their package's revision to everybody who connects, by a patch of theirs.
        ("DebianBanner", "no"),
    ]
    if "persourcepenaltyexemptlist" in server.keywords:
        # Since OpenSSH 9.8 an address that fails is shut out for a while; at home a monitor's probe is a failure.
        found.append(("PerSourcePenaltyExemptList", ",".join(settings.firewall_lan)))
    return tuple(found)


def effective(settings: Settings, server: Server = Server()) -> dict[str, tuple[str, ...]]:  # noqa: B008 - frozen
    """What `sshd -T` must say, by keyword in lower case."""
    found: dict[str, tuple[str, ...]] = {}
    for keyword, value in options(settings, server):
        key = keyword.lower()
        # `sshd -T` still prints the old name of prohibit-password.
        shown = "without-password" if value == "prohibit-password" else value
        found[key] = (*found.get(key, ()), shown)
    return found


def overruled(settings: Settings, server: Server, shown: Mapping[str, tuple[str, ...]]) -> list[tuple[str, str, str]]:
    """Keyword, value in effect and wanted value of what another file decided. `shown` is what `sshd -T` says."""
    wrong = []
    for key, values in effective(settings, server).items():
        present = shown.get(key, ())
        if not present and key in _NOT_PRINTED:
            continue
        # Further ports and host keys of other files do no harm; further users do.
        missing = set(values) - set(present) or (key == "allowusers" and set(present) - set(values))
        if missing if key in _CUMULATIVE else values != present:
            wrong.append((key, " ".join(present) or "nothing", " ".join(values)))
    return wrong


WEAKENING: Mapping[str, tuple[str, ...]] = {
    "passwordauthentication": ("yes",),
    "kbdinteractiveauthentication": ("yes",),
    "challengeresponseauthentication": ("yes",),
    "permitemptypasswords": ("yes",),
    "hostbasedauthentication": ("yes",),
    "permitrootlogin": ("yes",),
}
"""What no Match block may set: it wins over every drop-in for the logins it is about."""


def weakening_matches(files: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """File, condition and line of every Match block that lets in what the drop-in shuts out."""
    found = []
    for path, content in sorted(files.items()):
        condition = ""
        for line in content.splitlines():
            keyword, _, value = line.strip().replace("=", " ", 1).partition(" ")
            value = value.strip()
            if keyword.lower() == "match":
                condition = value
            elif condition and value.strip('"').lower() in WEAKENING.get(keyword.lower(), ()):
                found.append((path, condition, f"{keyword} {value}"))
    return found


def drop_in(settings: Settings, server: Server = Server()) -> File:  # noqa: B008 - frozen
    """The file that brings `effective` about."""
    content = f"# {MARK}\n" + "".join(f"{keyword} {value}\n" for keyword, value in options(settings, server))
    content += totp.match_block(settings)
    # An error in the new file must not reach a running server: sshd reads the main file with this one included.
    return File(DROP_IN_PATH, content.encode(), mode="0600", check=f"{CHECK} -f {{}}")


def banner_file(settings: Settings) -> File | None:
    """What everybody reads before he logs in; sshd shows the file as it is, so no mark of ours is in it."""
    if not settings.sshd_banner:
        return None
    return File(BANNER_PATH, f"{settings.sshd_banner.rstrip()}\n".encode())


def socket_file(ports: Iterable[int]) -> File:
    """Ports of ssh.socket where no generator takes them from sshd_config (Ubuntu 22.10 to 23.10, Debian)."""
    listen = "".join(f"ListenStream={port}\n" for port in ports)
    return File(SOCKET_PATH, f"# {MARK}\n[Socket]\nListenStream=\n{listen}".encode())


def owned_paths(settings: Settings) -> tuple[str, ...]:
    """Files of ours that are on a host, or may be."""
    banner = banner_file(settings)
    return (DROP_IN_PATH, SOCKET_PATH, *((banner.path,) if banner else ()))
