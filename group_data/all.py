"""Every default, generated from mediahost/config.py by `python -m mediahost.reference`.

Do not change values here: set them in your inventory, for a host or a group. `_sudo` tells pyinfra to become root.
"""

_sudo = True

# Time zone of the host and of every container.
timezone = 'Etc/UTC'

# Further packages to install, by name.
packages_extra = []

# Time servers; empty keeps the distribution's.
ntp_servers = []

# Further kernel settings: name to value.
sysctl_extra = {}

# Most disk space the journal may take.
journald_max_use = '1g'

# Oldest journal entry kept (systemd time span).
journald_max_retention = '1month'

# Install security updates by themselves.
unattended_upgrades = True

# Reboot when an update asks for it.
unattended_reboot = False

# When such a reboot may happen, host time.
unattended_reboot_time = '04:30'

# Packages (regular expressions) that unattended upgrades leave alone: an update of these would stop
# containers or break a running transcode.
unattended_blacklist = ['docker-ce',
 'docker-ce-cli',
 'containerd\\.io',
 'docker\\.io',
 'containerd',
 'nvidia',
 'libnvidia',
 'linux-modules-nvidia',
 'plexmediaserver']

# The hardening controls, see docs/hardening.md. False gives all back.
hardening = True

# Controls you do not want, by their names in docs/hardening.md.
hardening_disabled = []

# Controls that cost something and are off unless named here; docs/hardening.md tells the price of each. "all"
# stands for every one of them, less those in hardening_disabled.
hardening_optional = []

# Record changes of security-relevant files with auditd.
audit = True

# Compare system files daily with AIDE; making its database takes minutes.
file_integrity = False

# Administrators: name to public keys (key lines or paths of .pub files on this machine), or to {keys, groups,
# expires, sudo}: further groups, the day such as 2027-01-31 on which the account closes, and sudo False for
# somebody who only logs in. Who is taken out loses keys, sudo and login; files stay.
admins = {}

# Administrators use sudo without a password (their accounts have none to type).
admin_sudo_nopasswd = True

# The account that owns the media and runs the services.
media_user = 'media'

# The group that shares the media.
media_group = 'media'

# User id of media_user, the PUID of the containers.
media_uid = 13000

# Group id of media_group, the PGID of the containers.
media_gid = 13000

# Port of the SSH server.
sshd_port = 22

# Port at which this machine reaches sshd_port where a router maps it; None means the same one.
sshd_port_outside = None

# Whether root may log in with a key. `auto`: no, unless this run itself logs in as root.
sshd_permit_root_login = 'auto'

# Who may log in beside the administrators and the user this run logs in as. Without `admins` everybody with a
# key may.
sshd_allow_users = []

# Algorithms. `default`: post-quantum first, curve25519 for older clients (pyinfra is one). `strict`: the list
# of ssh-audit's policy for the release; refused where this machine could not connect.
sshd_crypto_policy = 'default'

# Tries in one connection.
sshd_max_auth_tries = 4

# Seconds to log in.
sshd_login_grace_time = 30

# Sessions in one connection; pyinfra needs 10.
sshd_max_sessions = 10

# Connections that have not logged in yet: start:rate:full (sshd_config(5)).
sshd_max_startups = '10:30:60'

# Seconds of silence after which a client is asked whether it is there; 0 never asks.
sshd_client_alive_interval = 300

# Unanswered questions after which a client is gone.
sshd_client_alive_count_max = 2

# Logins from outside firewall_lan need a code of six digits (TOTP) beside the key. Only administrators have
# one; mediahost itself must then run from inside.
sshd_totp = False

# Tunnels: `local` lets administrators reach pages bound to the host's own address (ssh -L).
sshd_allow_tcp_forwarding = 'local'

# Text shown before the login; None shows none.
sshd_banner = None

# Seconds after which the host undoes a change of SSH, sudo or firewall that no fresh login proved.
rollback_after = 300

# Manage UFW. False leaves the host's firewall as it is.
firewall = True

# Your home network: what `lan` exposure means. Narrow it to your own block.
firewall_lan = ['10.0.0.0/8', '172.16.0.0/12', '192.168.0.0/16', 'fc00::/7', 'fe80::/10']

# Who may reach SSH; empty means anybody.
firewall_ssh_from = []

# Further rules: {port, protocol, source, comment}. Port is a number or a range 6881:6889, protocol tcp
# (default), udp or any, source an address block or any (default).
firewall_extra = []

# Also delete rules that are not ours.
firewall_prune_foreign = False

# What the host itself may reach. `deny` leaves DNS, time, DHCP, HTTP and HTTPS, and what
# firewall_outbound_allow names; containers in networks of their own are not subject to it.
firewall_outbound = 'allow'

# What the host may reach beside that: {port, protocol, destination, comment}. Port is a number or a range,
# protocol tcp (default), udp or any, destination an address block or any (default).
firewall_outbound_allow = []

# Ban addresses whose logins fail too often. False stops it; its package stays.
fail2ban = True

# Seconds a first ban lasts; each further one lasts twice as long as the one before.
fail2ban_ban_time = 3600

# Seconds no ban exceeds; so long an address is remembered, too.
fail2ban_longest_ban = 3024000

# Seconds within which failures are counted together.
fail2ban_find_time = 600

# Failures within that time that lead to a ban; of a proxy's refused requests four times as many.
fail2ban_max_retry = 5

# Addresses and blocks that are never banned, beside firewall_lan, the containers and the addresses that runs
# come from.
fail2ban_ignore = []

# Docker's own packages, or the distribution's.
docker_source = 'docker'

# Version to pin: 5:29.7.* (Docker's) or 26.1.* (Debian's); None takes the newest.
docker_version = None

# Hold the packages so that only a run of mediahost updates them.
docker_hold = True

# Docker's package repository, or your mirror of it.
docker_apt_url = 'https://download.docker.com/linux'

# Fingerprint its signing key must have.
docker_apt_fingerprint = '9DC858229FC7DD38854AE2D88D81803C0EBFCD88'

# Address blocks for container networks: {base, size}, size being the prefix length of each network. Docker's
# own choice collides with home networks.
docker_address_pools = [{'base': '172.30.0.0/16', 'size': 24}]

# Size at which a container's log is rotated.
docker_log_max_size = '10m'

# Rotated logs kept.
docker_log_max_file = 3

# Containers go on while the engine restarts (not in Swarm).
docker_live_restore = True

# Open files a container starts with.
docker_nofile_soft = 65536

# Open files a container may ask for.
docker_nofile_hard = 1048576

# Registries without TLS, host:port.
docker_insecure_registries = []

# Further keys of daemon.json; ours win nothing over them.
docker_daemon_extra = {}

# Graphics cards for the services that can use one: every card that is found (auto), those of one maker, or
# none. Installs firmware and drivers; docs/gpu.md tells which.
gpu = 'none'

# Which service gets which card: intel, nvidia or amd, a number in the order of the bus (0), an address
# (0000:01:00.0), a node (/dev/dri/renderD128), an UUID (GPU-...), or none. Others get the best one.
gpu_devices = {}

# Hold NVIDIA's packages: an update would break what is being transcoded.
gpu_hold = True

# Load HuC on Intel Gen 9 to Tiger Lake (i915.enable_guc=2) for low-power encoding; needs a reboot, and a few
# old machines hang with it.
gpu_intel_low_power = False

# NVIDIA's driver from the distribution, or from NVIDIA's own repository.
gpu_nvidia_source = 'distro'

# Driver branch such as 580; None takes the one that fits card and release.
gpu_nvidia_branch = None

# With Secure Boot a driver that is built on the host is refused, unless you enrolled its key.
gpu_nvidia_secure_boot = 'refuse'

# NVIDIA's driver repository, or your mirror of it.
gpu_nvidia_apt_url = 'https://developer.download.nvidia.com/compute/cuda/repos'

# Fingerprint its signing key must have.
gpu_nvidia_apt_fingerprint = 'EB693B3035CD5710E231E123A4B469963BF863CC'

# Repository of NVIDIA's container toolkit, or your mirror of it.
gpu_toolkit_apt_url = 'https://nvidia.github.io/libnvidia-container'

# Fingerprint its signing key must have.
gpu_toolkit_apt_fingerprint = 'C95B321B61E88C1809C4F759DDCAE044F796ECB0'

# `trash`: downloads and media below one data_root, imports are hardlinks. `split`: downloads on a disk of
# their own (downloads_root), imports are copies.
layout = 'trash'

# Where the media live (data_root/media).
data_root = '/data'

# Where downloads go in the `split` layout.
downloads_root = '/srv/downloads'

# Directories below media.
media_libraries = ['movies', 'tv', 'music', 'books', 'audiobooks', 'podcasts']

# Compose file, secrets and service configs.
stack_root = '/opt/media-server'

# Disks to mount: {device, at, filesystem, format, options}. device is UUID=... or /dev/disk/by-id/...,
# filesystem ext4, xfs or btrfs; format True makes one, on an empty disk only.
storage_disks = []

# mergerfs pools: {at, branches, policy, minimum_free, options}. policy says where new files go (pfrd),
# minimum_free is left on each branch (20G).
storage_pools = []

# NFS and SMB shares to mount: {kind, source, at, options, account}. account names an SMB share's vault
# entries HOST/account/user and HOST/account/password.
storage_shares = []

# Seconds that a boot waits for a disk or share before it goes on without it.
storage_device_timeout = 30

# Default ACLs on the media tree: what anybody makes there can be changed by the media group, whatever his
# umask. File systems without ACLs are left out.
storage_acl = True

# Mount points of the disks that hold SnapRAID's parity, one file each; as many disks may fail. Empty: no
# SnapRAID.
snapraid_parity = []

# Mount points of the disks that it protects; None: every disk of storage_disks that is a branch of a pool, or
# without pools every one that holds no parity.
snapraid_data = None

# What it leaves out, as snapraid.conf's exclude takes it.
snapraid_exclude = ['*.unrecoverable', 'lost+found/', '.Trash-*/', 'incomplete/', '*.part', '*.!qB']

# A sync is refused when more files than this were deleted since the last one.
snapraid_delete_limit = 40

# When the parity is brought up to date, each day, host time.
snapraid_sync_at = '03:30'

# When a part of the disks is read and compared with the parity, each week.
snapraid_scrub_on = 'Sun 05:30'

# How much of the array each scrub reads, per cent; 12 reads all of it in two months.
snapraid_scrub_percent = 12

# Swap of ours, beside what the host has: a file, or compressed memory (zram); none makes none.
swap = 'none'

# Size of that swap; of zram before compression.
swap_size = '2g'

# Watch the disks' own health reports (SMART) with smartd.
smart = False

# Disks to watch; empty: every one that smartd finds.
smart_devices = []

# Let each disk test itself: shortly each day at 02, thoroughly on Saturdays at 03.
smart_self_tests = True

# Degrees Celsius at which a disk is reported as too hot.
smart_temperature = 55

# Tell SSDs each week which blocks are free (fstrim.timer). False leaves the host's timer alone.
trim = False

# A directory for transcodes that can never grow beyond this, such as 100g; None: none.
transcode_size = None

# Where that directory is; on an SSD, when you have one.
transcode_root = '/srv/cache/transcode'

# Whether transcodes are kept on that disk, or in memory (tmpfs) until the next boot.
transcode_in = 'disk'

# A directory for thumbnails that can never grow beyond this, such as 50g; None: none.
thumbnails_size = None

# Where that directory is.
thumbnails_root = '/srv/cache/thumbnails'

# A named set of services.
selection = 'home'

# Services beside those of the selection.
services = []

# Services of the selection you do not want.
services_disabled = []

# Per service: image, exposure, route, memory, environment, host_port.
service_overrides = {}

# Accept services whose upstream is dead.
allow_retired = False

# Put before every image name: a registry mirror such as registry.example.org:5000.
registry_prefix = ''

# Seconds a service has to become healthy.
compose_wait_timeout = 300

# Whose WireGuard tunnel the download clients use; `mediahost vpn import` or `mediahost vpn nordvpn` puts its
# configuration into the vault. none: no VPN.
vpn_provider = 'none'

# Who holds the tunnel: the host's kernel, or a Gluetun container whose network clients share.
vpn_mode = 'host'

# The host's own wall: whatever happens to the tunnel, their packets leave nowhere else.
vpn_killswitch = True

# Services whose traffic leaves through the tunnel; None: every download client that runs here.
vpn_services = None

# Addresses of the bridge whose only way out is the tunnel (IPv4).
vpn_subnet = '172.29.29.0/24'

# Name servers asked through the tunnel; empty takes those of the WireGuard configuration.
vpn_dns = []

# The port at which peers reach the torrent client through the tunnel: nat-pmp asks the provider (Proton), a
# number is one you were given (AirVPN).
vpn_port_forwarding = 'off'

# Plex Media Server: a package of Plex's own repository (native), a container (docker), or none.
plex = 'none'

# Version of the package to pin, such as 1.43.3.*; None takes the newest once. Another one is installed only
# when nobody is playing.
plex_version = None

# Hold the package so that only a run of mediahost updates it.
plex_hold = True

# Plex's package repository, or your mirror.
plex_apt_url = 'https://repo.plex.tv/deb'

# Where its signing key is published.
plex_apt_key_url = 'https://downloads.plex.tv/plex-keys/PlexSign.v2.key'

# Fingerprint that key must have.
plex_apt_fingerprint = '6EFFEB478A6559D75C7C4FE706C521790B9CFFDE'

# Who may reach Plex at port 32400: everybody, as remote access without Plex's relay needs, or the home
# network. What it uses to be discovered is open to the home network only.
plex_exposure = 'wan'

# The server's name in Plex's apps; None leaves it as it is.
plex_name = None

# Where the native Plex keeps running transcodes; None: transcode_root when transcode_size makes it, else
# among Plex's data.
plex_transcode_directory = None

# Libraries to create where Plex has none of these paths (native): title to {type, paths, language}, type
# being movie, show, artist or photo. None: those of media_libraries that Plex knows.
plex_libraries = None

# Further preferences of Plex by their own names (native), such as LanNetworksBandwidth.
plex_preferences = {}

# Your domain: services get https://NAME.domain. None: http://NAME.HOST.home.arpa.
domain = None

# Certificates: from Let's Encrypt, from Caddy's own authority, or none (no domain: off).
proxy_tls = 'acme'

# Where Let's Encrypt sends warnings.
acme_email = None

# ddns-updater's settings; write a secret as `secret:NAME` and keep it in the vault.
ddns_settings = []
