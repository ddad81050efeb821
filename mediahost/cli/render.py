"""`mediahost render`: write every artefact to a folder, to be read. No host is contacted."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import click

from mediahost import secrets, wanted
from mediahost.catalog import CatalogError, load_catalog
from mediahost.check import check_all
from mediahost.cli.inventory import BadInput, host_data, inventory_argument
from mediahost.config import ConfigError
from mediahost.render import base, docker, fail2ban, firewall, follow, forwarding, hardening, ssh, users, wall
from mediahost.resources import File
from mediahost.vpn import SECRET

# Stands for the provider's WireGuard file: an address of the documentation (RFC 5737) and keys that are no secret.
_TUNNEL = f"""[Interface]
PrivateKey = {base64.b64encode(bytes([2] * 32)).decode()}
Address = 10.64.0.2/32
DNS = 10.64.0.1
[Peer]
PublicKey = {base64.b64encode(bytes([1] * 32)).decode()}
AllowedIPs = 0.0.0.0/0
Endpoint = 192.0.2.1:51820
"""


@click.command("render")
@inventory_argument
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("rendered"),
    show_default=True,
    help="Folder to write to; one folder a host below it.",
)
def command(inventory: Path, output: Path) -> None:
    """Write what would be put on each host to a folder. Secrets are left out; no host is contacted.

    \b
    Example: mediahost render inventories/home.py --output /tmp/look
    """
    try:
        catalog = load_catalog()
        settings = check_all(host_data(inventory), catalog)
        for host, each in settings.items():
            plan = wanted.build(host, each, catalog, _placeholder)
            files = [
                *base.apt_files(each),
                base.sysctl_file(each),
                base.journald_file(each),
                base.timesyncd_file(each),
                users.sudoers(each),
                ssh.drop_in(each),
                ssh.banner_file(each),
                docker.daemon_file(each, None),
                docker.pin_file(each),
                *hardening.every_file(each),
                *plan.stack_files,
                plan.proxy_file,
            ]
            if each.fail2ban:
                files += [*fail2ban.files(each, plan.jails), *fail2ban.reload_units()]
            files += [*wall.files(plan.vpn, each), *forwarding.files(plan.vpn, each, plan.stack)]
            files += follow.files(plan.vpn, each)
            files += plan.mount_files
            for version, path in firewall.AFTER_PATHS.items():
                block = firewall.container_block(each, plan.stack.exposed_ports, version)
                files.append(File(f"{path}.block", block.encode()))
            files.append(File(f"{firewall.INIT_PATH}.block", firewall.init_block().encode()))
            written = [file for file in files if file is not None and not file.secret]
            for file in written:
                _write(output / host, file)
            click.echo(f"{host}: {len(written)} files in {output / host}")
    except (ConfigError, CatalogError, secrets.VaultError) as error:
        raise BadInput(str(error)) from None


def _placeholder(entry: str, kind: str) -> str:
    """Stands for a secret; the files it ends up in are marked secret and are not written."""
    if entry.endswith(f"/vpn/{SECRET}"):
        return _TUNNEL
    return f"<{kind} {entry}>"


def _write(folder: Path, file: File) -> None:
    target = folder / file.path.lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(file.content)
