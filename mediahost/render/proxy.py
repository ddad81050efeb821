"""The Caddyfile of a stack's routes.

It must never widen access: a `lan` route refuses whoever is not positively known to be in the home network, also
when the address it sees is not the client's own.
"""

from __future__ import annotations

from collections.abc import Iterable

from mediahost.config import Settings
from mediahost.resources import MARK, File
from mediahost.stack import PROXY, Route, Stack

# What Docker picks networks from when it is told nothing (moby, daemon/libnetwork/ipamutils); 192.168.0.0/16 is
# its last resort and also the commonest home network, so it is left out.
_DEFAULT_POOLS = ("172.16.0.0/12",)

ACCESS_LOG = "/data/logs/access.log"
"""Where Fail2Ban's jail reads which requests were refused; a path in the container."""


def render_proxy(stack: Stack, settings: Settings) -> File | None:
    """The Caddyfile of `stack`; None when it has no proxy.

    Caddy must reload it after a change (`caddy validate`, then `caddy reload`, both with
    `--config /etc/caddy/Caddyfile`); the container's digest does not depend on it.
    """
    proxy = stack.service(PROXY)
    if proxy is None:
        return None
    return File(
        f"{settings.stack_root}/config/{PROXY}/etc/Caddyfile",
        caddyfile(stack, settings).encode(),
        owner="0",
        group=str(proxy.gid),
        mode="0640",
    )


def caddyfile(stack: Stack, settings: Settings) -> str:
    """The text of the Caddyfile, formatted as `caddy fmt` does."""
    blocks = [_global(settings), _headers(settings), _lan_only(settings)]
    if settings.fail2ban:
        blocks.append(_access_log())
    blocks.extend(_site(route, settings) for route in stack.routes)
    blocks.append(_block("http://", ["respond 404"]))
    header = f"# {MARK}. Changes here are overwritten: use service_overrides in your inventory.\n"
    return header + "\n".join(blocks)


def tls_mode(settings: Settings) -> str:
    """`acme`, `internal` or `off`: without a domain there is nothing to certify."""
    return settings.proxy_tls if settings.domain else "off"


def _global(settings: Settings) -> str:
    # Loopback inside the container: the health check and `caddy reload` use it, nobody else can.
    lines = ["admin localhost:2019"]
    mode = tls_mode(settings)
    if mode == "off":
        lines.append("auto_https off")
    elif mode == "internal":
        lines += ["local_certs", "skip_install_trust"]
    elif settings.acme_email:
        lines.append(f"email {settings.acme_email}")
    return _block("", lines)


def _headers(settings: Settings) -> str:
    lines = [
        "-Server",
        "Referrer-Policy strict-origin-when-cross-origin",
        "X-Content-Type-Options nosniff",
        "X-Frame-Options SAMEORIGIN",
    ]
    if tls_mode(settings) == "acme":
        # One year, as RFC 6797 advises; not for a private authority, whose loss would lock browsers out.
        lines.append('Strict-Transport-Security "max-age=31536000"')
    return _block("(security_headers)", [_block("header", lines)])


def _lan_only(settings: Settings) -> str:
    """Refuses everybody outside `firewall_lan`, and every container address inside it.

    Docker's userland proxy hands on what it accepts itself (IPv6 when the network has none, and loopback) with
    the bridge's gateway as source. That address says nothing about the client: it may be anybody on the
    internet, while Docker's address pools usually lie inside a private range of `firewall_lan`. A client on the
    host itself that uses 127.0.0.1 is refused too; it has the service's own port.
    """
    pools = [str(pool["base"]) for pool in settings.docker_address_pools if "base" in pool]
    return _block(
        "(lan_only)",
        [
            f"@relayed remote_ip {' '.join(pools or _DEFAULT_POOLS)}",
            "respond @relayed 403",
            f"@outside not remote_ip {' '.join(settings.firewall_lan)}",
            "respond @outside 403",
        ],
    )


def _access_log() -> str:
    """What Fail2Ban needs of each request. Headers and queries hold API keys and session tokens: they stay out."""
    return _block(
        "(access_log)",
        [
            _block(
                "log",
                [
                    # 30 MiB at most; Caddy's own 1 GiB is for people who read it.
                    _block(f"output file {ACCESS_LOG}", ["roll_size 10MiB", "roll_keep 2"]),
                    _block(
                        "format filter",
                        ["request>headers delete", 'request>uri regexp [?].* ""', "resp_headers delete"],
                    ),
                ],
            )
        ],
    )


def _site(route: Route, settings: Settings) -> str:
    scheme = "http" if tls_mode(settings) == "off" else "https"
    lines = ["import security_headers"]
    if settings.fail2ban:
        lines.append("import access_log")
    if route.access == "lan":
        lines.append("import lan_only")
    upstream = f"{route.service}:{route.port}"
    lines.append(f"reverse_proxy {'https://' if route.scheme == 'https' else ''}{upstream}")
    return _block(f"{scheme}://{route.hostname}", lines)


def _block(head: str, lines: Iterable[str]) -> str:
    """`head { lines }` with tabs, nested blocks included."""
    body = "".join(f"\t{line}\n" for text in lines for line in text.splitlines())
    return f"{head} {{\n{body}}}\n".lstrip(" ")
