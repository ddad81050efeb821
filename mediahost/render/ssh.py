"""The SSH server's drop-in: keys only, and first in line.

sshd takes the first value it reads for a keyword and reads the drop-ins in lexical order before the main file
(sshd_config(5)); cloud-init writes 50-cloud-init.conf with `PasswordAuthentication yes` on many images. So ours
is named 00-, and the effective configuration is compared, not the file alone.
"""

from __future__ import annotations

from mediahost.config import Settings
from mediahost.resources import MARK, File

DROP_IN_PATH = "/etc/ssh/sshd_config.d/00-mediahost.conf"


def effective(settings: Settings) -> dict[str, str]:
    """What `sshd -T` must say, by keyword in lower case."""
    return {
        "passwordauthentication": "no",
        "kbdinteractiveauthentication": "no",
        "permitemptypasswords": "no",
        "pubkeyauthentication": "yes",
        # `sshd -T` still prints the old name of prohibit-password.
        "permitrootlogin": {"prohibit-password": "without-password"}.get(
            settings.sshd_permit_root_login, settings.sshd_permit_root_login
        ),
        "maxauthtries": str(settings.sshd_max_auth_tries),
        "logingracetime": str(settings.sshd_login_grace_time),
        "x11forwarding": "no",
        "port": str(settings.sshd_port),
    }


def drop_in(settings: Settings) -> File:
    """The file that brings `effective` about."""
    lines = (
        f"Port {settings.sshd_port}",
        "PubkeyAuthentication yes",
        "PasswordAuthentication no",
        "KbdInteractiveAuthentication no",
        "PermitEmptyPasswords no",
        f"PermitRootLogin {settings.sshd_permit_root_login}",
        f"MaxAuthTries {settings.sshd_max_auth_tries}",
        f"LoginGraceTime {settings.sshd_login_grace_time}",
        "X11Forwarding no",
    )
    content = f"# {MARK}\n" + "\n".join(lines) + "\n"
    # An error in the new file must not reach a running server: sshd reads the main file with this one included.
    return File(DROP_IN_PATH, content.encode(), mode="0600", check="/usr/sbin/sshd -t -f {}")
