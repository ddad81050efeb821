"""What time and people do to a server: each a command that breaks one thing, and what the plan must say of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Drift:
    """`breaks` runs as root on the host; `expected` are the plan's differences, all of them, as prefixes.

    `sample` ones run in every `make test`.
    """

    name: str
    breaks: str
    expected: tuple[str, ...]
    sample: bool = False


_LAN = "10.0.0.0/8 to any port 5055,6767,7878,8989,9696 proto tcp"

DRIFTS = (
    Drift(
        "a file edited",
        "echo 'vm.swappiness = 99' >>/etc/sysctl.d/60-mediahost.conf",
        ("base | kernel settings file: /etc/sysctl.d/60-mediahost.conf: content differs",),
    ),
    Drift(
        "a file deleted",
        "rm /etc/apt/apt.conf.d/52mediahost-unattended-upgrades",
        ("base | apt settings: /etc/apt/apt.conf.d/52mediahost-unattended-upgrades: missing",),
    ),
    Drift(
        "a secret made readable",
        "chmod 0644 /opt/media-server/secrets/sonarr_api_key",
        ("stack | compose file, secrets and seeds: /opt/media-server/secrets/sonarr_api_key: mode is 0644",),
        sample=True,
    ),
    Drift(
        "a file's owner changed",
        "chown media /etc/apt/apt.conf.d/90mediahost",
        ("base | apt settings: /etc/apt/apt.conf.d/90mediahost: owner is media:root, wanted root:root",),
    ),
    Drift(
        "a unit stopped",
        "systemctl stop systemd-timesyncd",
        ("base | time synchronisation: systemd-timesyncd.service: inactive",),
    ),
    Drift(
        "a unit disabled",
        "systemctl -q disable apt-daily-upgrade.timer",
        ("base | unattended upgrades: apt-daily-upgrade.timer: not enabled",),
    ),
    Drift(
        "a package removed",
        "apt-get -qq -y purge acl >/dev/null",
        ("base | packages: package acl: not installed",),
        sample=True,
    ),
    Drift(
        "a package no longer held",
        "apt-mark unhold docker-ce >/dev/null",
        ("docker | engine packages: package docker-ce: not held",),
    ),
    Drift(
        "a firewall rule deleted",
        f"ufw --force delete allow in from {_LAN} >/dev/null",
        (f"firewall | ufw: firewall rule allow in from {_LAN} (mediahost lan:",),
        sample=True,
    ),
    Drift(
        "the firewall switched off",
        "ufw --force disable >/dev/null",
        ("firewall | ufw: firewall: not enabled",),
    ),
    Drift(
        "Docker's firewall chain flushed",
        "iptables -F DOCKER-USER",
        ("firewall | ufw: firewall rules in the kernel: IPv4 DOCKER-USER not as wanted",),
    ),
    Drift(
        "our chain before Docker's flushed",
        "ip6tables -F MEDIAHOST-DOCKER",
        ("firewall | ufw: firewall rules in the kernel: IPv6 MEDIAHOST-DOCKER not as wanted",),
    ),
    Drift(
        "an administrator's account closed",
        "usermod -e 1 alice",
        ("users | accounts: user alice: account closes on day 1 after 1970-01-01, wanted: account does not expire",),
    ),
    Drift(
        "a home that others can write to",
        "chmod 0777 /home/alice",
        ("users | keys: /home/alice: mode is 0777, sshd does not read keys where others can write",),
    ),
    Drift(
        "a default policy changed",
        "ufw default allow incoming >/dev/null",
        ("firewall | ufw: firewall default incoming: ACCEPT, wanted DROP",),
    ),
    Drift(
        "a container killed",
        "docker kill mediahost-radarr-1 >/dev/null",
        ("stack | services: service radarr: exited",),
        sample=True,
    ),
    Drift(
        "a container removed",
        "docker rm -f mediahost-seerr-1 >/dev/null",
        ("stack | services: service seerr: not there",),
    ),
    Drift(
        "a container made anew from another image",
        "docker tag $(docker inspect -f '{{.Config.Image}}' mediahost-sonarr-1) elsewhere/sonarr:1; "
        "docker rm -f mediahost-sonarr-1 >/dev/null; docker run -d --name mediahost-sonarr-1 "
        "--label mediahost.service=sonarr --label com.docker.compose.project=mediahost "
        "--label com.docker.compose.service=sonarr --label com.docker.compose.oneoff=False "
        "--label com.docker.compose.container-number=1 elsewhere/sonarr:1 >/dev/null",
        ("stack | services: service sonarr: runs image elsewhere/sonarr:1",),
    ),
    Drift(
        "a container in the wrong network",
        "docker network disconnect mediahost_proxy mediahost-seerr-1",
        ("stack | services: service seerr: is in networks mediahost_apps, wanted",),
    ),
    Drift(
        "a directory's owner changed",
        "chown root /data/media/movies",
        ("storage | directory tree: /data/media/movies: owner is root:media, wanted 13000:13000",),
    ),
    Drift(
        "a directory's setgid bit gone",
        "chmod g-s /data/torrents/tv",
        ("storage | directory tree: /data/torrents/tv: mode is 0775, wanted 2775",),
    ),
    Drift(
        "a directory removed",
        "rmdir /data/usenet/incomplete",
        ("storage | directory tree: /data/usenet/incomplete: missing",),
    ),
    Drift(
        "a kernel setting changed",
        "echo 60 >/proc/sys/vm/swappiness",
        ("base | kernel settings: sysctl vm.swappiness: 60, wanted 10",),
    ),
    Drift(
        "a user out of a group",
        "gpasswd -d alice media >/dev/null",
        ("users | accounts: user alice: not in group media",),
    ),
    Drift(
        "a key removed",
        "sed -i /^ssh-ed25519/d /home/alice/.ssh/authorized_keys",
        ("users | keys: /home/alice/.ssh/authorized_keys: content differs",),
    ),
    Drift(
        "SSH settings edited",
        "sed -i 's/^MaxAuthTries.*/MaxAuthTries 9/' /etc/ssh/sshd_config.d/00-mediahost.conf",
        (
            "ssh | server: /etc/ssh/sshd_config.d/00-mediahost.conf: content differs",
            "ssh | server: ssh.service: runs with an older configuration, is reloaded",
        ),
        sample=True,
    ),
    Drift(
        "the sudo policy gone",
        "rm /etc/sudoers.d/60-mediahost",
        ("users | sudo policy: /etc/sudoers.d/60-mediahost: missing",),
    ),
    Drift(
        "the engine's settings emptied",
        "echo '{}' >/etc/docker/daemon.json",
        (
            "docker | engine: /etc/docker/daemon.json: content differs",
            "docker | engine: docker.service: runs with an older configuration, is restarted",
        ),
    ),
    Drift(
        "the time zone changed",
        "ln -sfn /usr/share/zoneinfo/Europe/Paris /etc/localtime",
        ("base | time zone: time zone: Europe/Paris, wanted Etc/UTC",),
    ),
    Drift(
        "the routes edited",
        "echo 'respond hello' >>/opt/media-server/config/caddy/etc/Caddyfile",
        (
            "stack | proxy routes: /opt/media-server/config/caddy/etc/Caddyfile: content differs",
            "stack | proxy routes: caddy: routes changed, are reloaded",
        ),
    ),
    Drift(
        "the compose file edited",
        "sed -i s/4.0.19.2979-ls316/4.0.18.2971-ls310/ /opt/media-server/compose.yaml",
        ("stack | compose file, secrets and seeds: /opt/media-server/compose.yaml: content differs",),
    ),
    Drift(
        "the vendor's signing key exchanged",
        "cp /usr/share/keyrings/debian-archive-keyring.gpg /etc/apt/keyrings/docker.asc",
        ("docker | engine packages: /etc/apt/keyrings/docker.asc: is not the one that was verified",),
    ),
)
