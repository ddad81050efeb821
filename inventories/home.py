"""One server at home. Copy this file, change what is marked, and run:

    mediahost plan inventories/home.py      what would change
    mediahost apply inventories/home.py     change it

Every key of group_data/all.py can be set here for this host; docs/reference.md explains each.
"""

hosts = [
    (
        "home",
        {
            # How to reach it: an account that can use sudo (on a cloud image: ubuntu or debian).
            "ssh_hostname": "192.168.1.10",
            "ssh_user": "debian",
            "ssh_key": "~/.ssh/id_ed25519",
            # You, and your public key. Logins by password are switched off.
            "admins": {"me": ["~/.ssh/id_ed25519.pub"]},
            # Your network and your clock.
            "firewall_lan": ["192.168.1.0/24"],
            "timezone": "Europe/Berlin",
            # With a domain the services get https://NAME.example.org; without one http://NAME.home.home.arpa.
            # "domain": "example.org",
            # "acme_email": "me@example.org",
            # What you do not want of the selection (sonarr radarr prowlarr bazarr qbittorrent seerr caddy
            # ddns-updater):
            # "services_disabled": ["ddns-updater"],
        },
    ),
]
