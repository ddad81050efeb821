"""The unit that keeps confined services in Gluetun's network when Gluetun is started anew (mode container).

A network namespace ends with the start of its container that made it. Docker restarts Gluetun after a crash and all
containers after a boot, and does not care who shares whose network: those in the old one are cut off for good, and
one that was to be started before Gluetun is given up ("cannot join network of a non running container",
passteque/gluetun issue 641). Nothing leaks then, but nothing works either. Compose's `restart: true` helps only
where Compose itself is at work.
"""

from __future__ import annotations

import shlex

from mediahost.config import Settings
from mediahost.render.compose import SERVICE_LABEL, compose_path
from mediahost.resources import MARK, File
from mediahost.vpn import CLIENT, Vpn

UNIT = "mediahost-vpn-follow.service"
UNIT_PATH = f"/etc/systemd/system/{UNIT}"
SCRIPT_PATH = "/usr/local/lib/mediahost/vpn-follow"
PATHS = (SCRIPT_PATH, UNIT_PATH)


def runs(vpn: Vpn | None) -> bool:
    """Whether the unit is wanted on this host."""
    return vpn is not None and vpn.mode == "container"


def files(vpn: Vpn | None, settings: Settings) -> tuple[File, ...]:
    """The unit and its script; empty where nothing runs. `UNIT` restarts when one changes."""
    if vpn is None or not runs(vpn):
        return ()
    values = {
        "COMPOSE": compose_path(settings),
        "LABEL": SERVICE_LABEL,
        "CLIENT": CLIENT,
        "SERVICES": " ".join(vpn.services),
    }
    head = "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items())
    return (
        File(SCRIPT_PATH, f"#!/bin/sh\n# {MARK}\n{head}{_SCRIPT}".encode(), mode="0755"),
        File(UNIT_PATH, f"# {MARK}\n{_UNIT}".encode()),
    )


# Only when Gluetun is healthy: until then its own firewall may not stand, and the host's wall can be switched off.
# Who was stopped by a person has no error and stays stopped.
_SCRIPT = r"""set -u

one() { # the id of a service's container, in any state
  docker ps -aq --no-trunc --filter "label=$LABEL=$1" | head -n 1
}

state() {
  docker inspect -f "$2" "$1"
}

before() { # is the first moment the earlier one? Both as Docker writes them, whose fractions differ in length.
  [ "$1" != "$2" ] && [ "$(printf '%s\n%s\n' "${1%Z}" "${2%Z}" | LC_ALL=C sort | head -n 1)" = "${1%Z}" ]
}

follow() {
  owner=$(one "$CLIENT")
  [ -n "$owner" ] || return 0
  [ "$(state "$owner" '{{.State.Running}} {{.State.Health.Status}}')" = 'true healthy' ] || return 0
  since=$(state "$owner" '{{.State.StartedAt}}')
  for service in $SERVICES; do
    id=$(one "$service")
    [ -n "$id" ] || continue
    if [ "$(state "$id" '{{.HostConfig.NetworkMode}}')" != "container:$owner" ]; then
      echo "$service shares the network of a container that is gone, is made anew"
      docker compose --ansi never --progress quiet -f "$COMPOSE" up -d --no-deps --force-recreate "$service"
    elif [ "$(state "$id" '{{.State.Running}}')" != true ]; then
      [ -z "$(state "$id" '{{.State.Error}}')" ] && continue
      echo "$service could not be started before $CLIENT, is started"
      docker start "$id"
    elif before "$(state "$id" '{{.State.StartedAt}}')" "$since"; then
      echo "$service is in the network of before $CLIENT's start, is restarted"
      docker restart "$id"
    fi
  done
}

# Listen first, then look: what happens in between is not missed.
docker events --since "$(date +%s)" --filter type=container --filter event=health_status \
  --filter "label=$LABEL=$CLIENT" --format x |
  {
    follow
    while read -r _; do follow; done
  }
# The engine stopped. systemd starts this again.
exit 1
"""

_UNIT = f"""[Unit]
Description=Services that share {CLIENT}'s network follow it when it is started anew
After=docker.service
Wants=docker.service

[Service]
Type=simple
ExecStart={SCRIPT_PATH}
Restart=always
RestartSec=5
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=read-only
PrivateTmp=yes
PrivateNetwork=yes
CapabilityBoundingSet=
RestrictAddressFamilies=AF_UNIX
MemoryMax=256M

[Install]
WantedBy=multi-user.target
"""
