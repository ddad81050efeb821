"""`mediahost vpn`: the tunnel of the download clients: put into the vault, looked at, and tried for leaks.

Keys and tokens come from a file, standard input or a prompt without echo, never from argv. What is asked of a host
travels as one pyinfra fact whose program comes on standard input, so that inventory, groups, sudo and connections
are those of a run.
"""

from __future__ import annotations

import json
import re
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import click
from rich.console import Console
from rich.table import Table

from mediahost import nordvpn, on_host, vpn_on_host, wireguard
from mediahost.catalog import load_catalog
from mediahost.cli.asking import ask_host as _ask_host
from mediahost.cli.inventory import BadInput, check_exists, host_settings, inventory_argument, some_host_data
from mediahost.config import Settings
from mediahost.render import forwarding, wall
from mediahost.secrets import Automatic, Vault, VaultError, vault_path
from mediahost.secrets.error import shown
from mediahost.stack import PROJECT, choose, vault_folder
from mediahost.vpn import BRIDGE, LINK, NETWORK, SECRET, TABLE, Tunnel

NORDVPN_TOKEN = "nordvpn_token"  # noqa: S105 - the name of a vault entry
_LIMIT = 65536

_limit = click.option("--limit", "--host", metavar="HOST", help="Only this host or group.")
_json = click.option("--json", "as_json", is_flag=True, help="Print the answer as one JSON object.")


class _Commands(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (VaultError, nordvpn.NordVPNError) as error:
            raise BadInput(str(error)) from None


@click.group("vpn", cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Set up the VPN's tunnel, look at it, and try whether anything leaks around it.

    Whatever the provider, all that a host needs is one WireGuard configuration in the vault. Get it there once:

    \b
      NordVPN    mediahost vpn nordvpn inventories/home.py --country Netherlands
      others     download a WireGuard file (.conf) from the provider's site, then
                 mediahost vpn import inventories/home.py FILE

    Then set vpn_provider in the inventory and run mediahost apply. Afterwards:

    \b
      mediahost vpn status inventories/home.py
      mediahost vpn leak-test inventories/home.py

    Exit codes: 0 done and well, 1 not well or a leak, 2 bad input, nothing was changed, 3 not everything could
    be judged.
    """


# --- into the vault ---------------------------------------------------------------------------------------


@command.command("import")
@click.argument("inventory", type=click.Path(path_type=Path))
@click.argument("file", type=click.File("rb"))
@click.option("--limit", "--host", metavar="HOST", help="For this host, where the inventory has several.")
def import_(inventory: Path, file: Any, limit: str | None) -> None:
    """Put the WireGuard configuration FILE (- reads standard input) into the vault of INVENTORY.

    FILE is what Mullvad, Proton, AirVPN and others let you download. An endpoint given as a name is looked up now,
    and its address is kept: the host has no way to ask while the tunnel is down. Commands in the file (PostUp) are
    never run. Delete FILE afterwards: it holds your private key.

    \b
    Example:
      mediahost vpn import inventories/home.py ~/Downloads/wg-NL-123.conf
    """
    host, data = _one_host(inventory, limit)
    provider = data.get("vpn_provider", "none")
    try:
        loaded = wireguard.load(_text(file), str(provider), _resolve)
    except wireguard.WireGuardError as error:
        raise BadInput(f"{_called(file)}, {error}") from None
    _store(inventory, host, data, loaded.tunnel, loaded.notices)


@command.command("nordvpn")
@click.argument("inventory", type=click.Path(path_type=Path))
@click.option("--country", metavar="NAME|CODE", help="Where the server shall be, such as Netherlands or NL.")
@click.option("--limit", "--host", metavar="HOST", help="For this host, where the inventory has several.")
def nordvpn_(inventory: Path, country: str | None, limit: str | None) -> None:
    """Ask NordVPN for your key and its best server, and put both into the vault of INVENTORY.

    It needs an access token of your account (https://my.nordaccount.com, NordVPN, Set up NordVPN manually). The
    token is taken from the vault entry nordvpn_token, else from standard input, else you are asked for it unseen;
    only the key that it gives is kept. Do it again to change the server.

    \b
    Example:
      mediahost vpn nordvpn inventories/home.py --country NL
    """
    host, data = _one_host(inventory, limit)
    offer = nordvpn.fetch(_token(_open(inventory)), country)
    where = f"{offer.server} in {offer.place}" if offer.place else offer.server
    _store(inventory, host, data, offer.tunnel, (f"NordVPN's server is {where}",), "nordvpn")


def _one_host(inventory: Path, limit: str | None) -> tuple[str, dict[str, Any]]:
    """The host whose tunnel is meant. Raises `BadInput` for none or several: two hosts with one key throw each
    other out of the tunnel."""
    hosts = some_host_data(inventory, limit)
    if len(hosts) > 1:
        raise BadInput(
            f"{inventory}: {limit or 'it'} has {len(hosts)} hosts ({', '.join(sorted(hosts))}) and each needs a "
            "configuration of its own: two with the same key throw each other out. Name one with --limit HOST"
        )
    return next(iter(hosts.items()))


def _called(file: Any) -> str:
    name = str(getattr(file, "name", "-"))
    return "standard input" if name in ("-", "<stdin>") else name


def _text(file: Any) -> str:
    """The file's text. Raises `BadInput` for what is none, without showing any of it."""
    name = _called(file)
    raw: bytes = file.read(_LIMIT + 1)
    if raw.startswith(b"PK\x03\x04"):
        raise BadInput(f"{name}: a zip archive; unpack it, then import the one server's .conf that you choose")
    try:
        # Windows' editor calls it Unicode.
        return raw.decode("utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError:
        pass
    raise BadInput(f"{name}: not a text; a WireGuard configuration begins with [Interface]")


def _resolve(name: str) -> str:
    # IPv4 first: every network that can carry the tunnel has it.
    found = socket.getaddrinfo(name, None, type=socket.SOCK_DGRAM)
    addresses = sorted(found, key=lambda each: each[0] != socket.AF_INET)
    return str(addresses[0][4][0])


def _token(vault: Vault) -> str:
    if NORDVPN_TOKEN in vault:
        return vault.get(NORDVPN_TOKEN)
    if sys.stdin.isatty():
        token = click.prompt("NordVPN access token", hide_input=True, err=True)
    else:
        token = sys.stdin.buffer.read(_LIMIT).decode("ascii", "replace")
    token = str(token).strip()
    if not re.fullmatch(r"[A-Za-z0-9._-]{8,512}", token):
        raise BadInput(
            "no access token: type it when asked, send it on standard input, or keep it in the vault: "
            f"mediahost secrets set {NORDVPN_TOKEN}"
        )
    return token


def _store(
    inventory: Path,
    host: str,
    data: dict[str, Any],
    tunnel: Tunnel,
    notices: tuple[str, ...],
    provider: str | None = None,
) -> None:
    """Keep the tunnel, and say in words what was kept and what comes next."""
    vault = _open(inventory)
    entry = f"{vault_folder(host)}/vpn/{SECRET}"
    vault.set(entry, wireguard.write(tunnel))
    changed = vault.modified
    vault.save()
    click.echo(f"{entry} " + ("is in the vault" if changed else "is unchanged: the vault has this very tunnel"))
    click.echo(f"  address     {', '.join(tunnel.addresses)}")
    click.echo(f"  server      {tunnel.endpoint}, port {tunnel.endpoint_port}/udp")
    click.echo(f"  DNS         {', '.join(tunnel.dns) or 'none: set vpn_dns'}")
    click.echo(f"  MTU         {tunnel.mtu}")
    click.echo(f"  public key  {wireguard.public_key(tunnel.private_key)} (this end's)")
    for notice in notices:
        click.echo(f"note: {notice}")
    configured = data.get("vpn_provider", "none")
    if configured == "none":
        name = provider or "mullvad, proton, airvpn or custom"
        click.echo(f"next: set vpn_provider = {name} for {host}, then mediahost apply {inventory}")
    elif provider is not None and configured != provider:
        click.echo(
            f"next: {host} has vpn_provider = {configured}: set it to {provider}, then mediahost apply {inventory}"
        )
    else:
        click.echo(f"next: mediahost apply {inventory}, then mediahost vpn status {inventory}")


def _open(inventory: Path) -> Vault:
    check_exists(inventory)
    return Vault.open(vault_path(inventory), Automatic(_ask if sys.stdin.isatty() else None))


def _ask(path: Path) -> str:
    answer: str = click.prompt(f"Passphrase of {shown(path)}", hide_input=True, err=True)
    return answer


# --- on the hosts -----------------------------------------------------------------------------------------


_ECHO = ("https://api.ipify.org", "https://icanhazip.com", "https://ifconfig.me/ip")
_echo = click.option(
    "--echo",
    multiple=True,
    metavar="URL",
    envvar="MEDIAHOST_ECHO",
    default=_ECHO,
    show_default=True,
    help="Who tells the address that we are seen with; the first that answers. Repeatable.",
)


@command.command()
@inventory_argument
@_limit
@_echo
@click.option("--no-echo", is_flag=True, help="Ask nobody outside; the seen address is left out.")
@_json
def status(inventory: Path, limit: str | None, echo: tuple[str, ...], no_echo: bool, as_json: bool) -> None:
    """Show the tunnel, the wall and who is confined, and what is not well.

    The address is asked of a public service twice: from a confined container, through the tunnel, and from the host
    itself. The two must differ. Counters tell how many packets the wall has dropped since it was loaded; a few are
    usual (a client that tries IPv6), and each is one that did not leak.

    \b
    Example:
      mediahost vpn status inventories/home.py --no-echo

    Exit codes: 0 all is well, 1 something is not, or a host could not be asked, 2 bad input.
    """
    more = {"echo": [] if no_echo else list(echo)}
    answers = _ask_hosts(inventory, limit, "mediahost.vpn_on_host", more)
    if as_json:
        click.echo(answers.as_json())
    else:
        for host, told in answers.told.items():
            _tell_status(host, told)
    well = not answers.failed and not any(told["problems"] for told in answers.told.values())
    _leave(answers, as_json, 0 if well else 1)


@command.command("leak-test")
@inventory_argument
@_limit
@click.option("--yes", is_flag=True, help="Take the tunnel down for a moment without asking.")
@click.option("--without-taking-down", is_flag=True, help="Leave the tunnel up; then not everything can be judged.")
@click.option(
    "--target",
    multiple=True,
    metavar="ADDRESS",
    default=("1.1.1.1", "9.9.9.9", "2606:4700:4700::1111"),
    show_default=True,
    help="An address of the internet to try, IPv4 or IPv6. Repeatable.",
)
@click.option("--near", multiple=True, metavar="ADDRESS", help="A further address of the home network. Repeatable.")
@_json
def leak_test(
    inventory: Path,
    limit: str | None,
    yes: bool,
    without_taking_down: bool,
    target: tuple[str, ...],
    near: tuple[str, ...],
    as_json: bool,
) -> None:
    """Try to leak, in every way we know, from inside each confined container.

    TCP, UDP, ping and DNS to the internet by each interface, to the home network, to this host and its name servers,
    over IPv4 and IPv6, and forged frames past the container's own routing; once with the tunnel up and, if you
    agree, once while it is down for a moment (downloads pause; the tunnel always comes back, even if the connection
    to the host breaks). Every packet that leaves the host past the tunnel is looked at. A probe counts as stopped
    only if the same one, sent from the host itself, was seen to leave.

    The host needs python3; the containers need nothing.

    \b
    Example:
      mediahost vpn leak-test inventories/home.py

    Exit codes: 0 safe, 1 a leak, 2 bad input, 3 not everything could be judged.
    """
    for address in (*target, *near):
        if not vpn_on_host.is_address(address):
            raise BadInput(f"{address}: write an address such as 192.0.2.1, not a name")
    take_down = not without_taking_down and (yes or _consent())
    more = {"take_down": take_down, "far": list(target), "near": list(near)}
    answers = _ask_hosts(inventory, limit, "mediahost.leaks_on_host", more)
    verdict = _verdict(answers)
    if as_json:
        click.echo(answers.as_json(verdict=_VERDICTS[verdict][0]))
    else:
        for host, told in answers.told.items():
            _tell_probes(host, told)
    for host, what in () if as_json else answers.failed.items():
        click.echo(f"{host}: {what}", err=True)
    if not as_json:
        if answers.told or answers.failed:
            click.echo(f"verdict: {_VERDICTS[verdict][1]}")
        else:
            click.echo("no VPN is configured; there is nothing to test")
    raise SystemExit(verdict)


_VERDICTS = {
    0: ("safe", "SAFE. Nothing left the host past the tunnel."),
    1: ("leak", "LEAK. The marked probes left the host past the tunnel: stop the services, then mediahost apply."),
    3: ("not judged", "NOT PROVEN. No leak was seen, but not everything could be judged; see above."),
}


def _consent() -> bool:
    if not sys.stdin.isatty():
        return False
    return click.confirm("Take the tunnel down for a moment, to try what leaks then? Downloads pause.", err=True)


def _verdict(answers: Answers) -> int:
    """0 safe, 1 a leak, 3 not everything judged."""
    rows = [row for told in answers.told.values() for row in told["rows"]]
    if any(row["verdict"] == "leak" for row in rows):
        return 1
    unjudged = any(row["verdict"] == "not judged" for row in rows)
    if answers.failed or unjudged or any(told["problems"] for told in answers.told.values()):
        return 3
    # Without a single probe that was stopped nothing was shown, unless there is no VPN at all.
    return 0 if not answers.told or any(row["verdict"] == "safe" for row in rows) else 3


@dataclass
class Answers:
    """What the hosts said, by host; `failed` host to reason, `without` the hosts that have no VPN."""

    told: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    without: list[str] = field(default_factory=list)

    def as_json(self, **more: Any) -> str:
        """All of it, for programs."""
        failed = [{"host": host, "what": what} for host, what in self.failed.items()]
        return json.dumps({**more, "hosts": self.told, "without_vpn": self.without, "failed": failed}, indent=2)


def _ask_hosts(inventory: Path, limit: str | None, module: str, more: dict[str, Any]) -> Answers:
    """Let each host with a VPN run a program of ours. Raises `BadInput` when the inventory cannot be used."""
    answers = Answers()
    settings = host_settings(inventory, limit)
    for host, chosen in settings.items():
        if chosen.vpn_provider == "none":
            answers.without.append(host)
    asked = [host for host in settings if host not in answers.without]
    # A host at a time: each is asked with its own settings.
    for host in asked:
        try:
            told = _ask_host(inventory, host, on_host.program(module, {**_request(settings[host]), **more}))
        except click.ClickException as error:
            answers.failed[host] = error.message
            continue
        if "error" in told:
            answers.failed[host] = str(told["error"])
        else:
            answers.told[host] = told
    return answers


def _request(settings: Settings) -> dict[str, Any]:
    """What a host's program has to know: names, and what there should be."""
    return {
        "mode": settings.vpn_mode,
        "killswitch": settings.vpn_killswitch,
        "services": _confined(settings),
        "forwarding": settings.vpn_port_forwarding,
        "network": f"{PROJECT}_{NETWORK}",
        "bridge": BRIDGE,
        "link": LINK,
        "route_table": TABLE,
        "table": wall.NFT_TABLE,
        "inside_table": wall.INSIDE_TABLE,
        "wall_unit": wall.WALL_UNIT,
        "tunnel_unit": wall.TUNNEL_UNIT,
        "port_unit": forwarding.UNIT,
        "port_file": forwarding.STATE_PATH,
    }


def _confined(settings: Settings) -> list[str]:
    return [choice.service.name for choice in choose(settings, load_catalog(), "") if choice.confined]


def _leave(answers: Answers, as_json: bool, code: int) -> NoReturn:
    if not as_json:
        for host in answers.without:
            click.echo(f"{host}: no VPN (vpn_provider = none)")
    for host, what in answers.failed.items():
        click.echo(f"{host}: {what}", err=True)
    raise SystemExit(code)


def _tell_status(host: str, told: dict[str, Any]) -> None:
    """One host's status in words."""
    click.echo(f"{host}: {'not well' if told['problems'] else 'well'}")
    lines = {"tunnel": _tunnel_words(told["tunnel"]), "wall": _wall_words(told["wall"])}
    for container in told["containers"]:
        seen = f"seen as {container['seen']}" if container["seen"] else "seen address not known"
        lines[f"confined: {', '.join(container['names'])}"] = seen
    if told["own_address"]:
        lines["the host itself"] = f"seen as {told['own_address']}"
    if told["port"] is not None:
        lines["forwarded port"] = str(told["port"])
    width = max(map(len, lines))
    for name, words in lines.items():
        click.echo(f"  {name:{width}}  {words}")
    dropped = [(counter["packets"], wall.COUNTERS.get(counter["name"], counter["name"])) for counter in told["drops"]]
    dropped += [
        (counter["packets"], f"by another network than the tunnel's, of {', '.join(container['names'])}")
        for container in told["containers"]
        for counter in container["drops"]
    ]
    for packets, what in dropped:
        if packets:
            click.echo(f"  dropped: {packets} packets {what}")
    if dropped and not any(packets for packets, _ in dropped):
        click.echo("  dropped: nothing since the wall was loaded")
    for problem in told["problems"]:
        click.echo(f"  ! {problem}")


def _tunnel_words(tunnel: dict[str, Any]) -> str:
    if tunnel["link"] is None:
        return "none"
    words = [tunnel["link"], "up" if tunnel["up"] else "down"]
    if tunnel["endpoint"]:
        words.append(f"to {tunnel['endpoint']}")
    if tunnel["handshake"] is not None:
        words.append(f"answered {tunnel['handshake']} s ago")
    if tunnel["sent"] or tunnel["received"]:
        words.append(f"{_size(tunnel['received'])} in, {_size(tunnel['sent'])} out")
    return ", ".join([" ".join(words[:2]), *words[2:]])


def _wall_words(told: dict[str, Any]) -> str:
    return f"{'loaded' if told['table'] else 'NOT LOADED'}, unit {told['unit']}"


def _size(count: int) -> str:
    value, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.0f} {units[0]}" if units[0] == "B" else f"{value:.1f} {units[0]}"


def _tell_probes(host: str, told: dict[str, Any]) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("host", "container", "phase", "probe", "verdict", "why"):
        table.add_column(column, no_wrap=True)
    # Leaks first, then what is not known: the reader is looking for these.
    order = {"leak": 0, "not judged": 1}
    for row in sorted(told["rows"], key=lambda row: order.get(row["verdict"], 2)):
        verdict = row["verdict"].upper() if row["verdict"] == "leak" else row["verdict"]
        table.add_row(host, row["container"], row["phase"], row["probe"], verdict, row["why"])
    # As wide as it takes: a table that is cut off hides addresses.
    Console(highlight=False, width=200).print(table)
    for problem in told["problems"]:
        click.echo(f"{host}: {problem}")
