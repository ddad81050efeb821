"""The run, top to bottom, one line a stage: pyinfra inventories/home.py deploy.py"""

from operations import (
    base,
    caches,
    compose,
    docker,
    fail2ban,
    follow,
    gpu,
    hardening,
    manifest,
    mounts,
    plex,
    rollback,
    run,
    ssh,
    storage,
    ufw,
    upkeep,
    users,
    verify,
    vpn,
)

wanted = run.begin()  # validate: every host, before any is changed
settings = wanted.settings

rollback.settled(name="guard | unproven changes")
users.login_kept(name="users | the login stays", settings=settings)
ssh.inside_kept(name="ssh | this machine stays inside", settings=settings, factors=wanted.factors)
manifest.entered(name="manifest | owned files", owned=wanted.owned)
mounts.retired(name="mounts | no longer wanted", wanted=wanted)
manifest.pruned(name="manifest | files no longer wanted", owned=wanted.owned, before_ssh=True)
base.provision(settings)
hardening.provision(settings)
users.provision(settings)
run.secrets_kept(name="secrets | vault")
ssh.provision(settings, wanted.factors)
manifest.pruned(name="manifest | codes no longer asked for", owned=wanted.owned)
ufw.provision(settings, wanted.stack.exposed_ports, wanted.vpn)
vpn.provision(wanted)
gpu.provision(wanted)
mounts.provision(wanted)
docker.provision(settings)
storage.provision(wanted.directories)
caches.provision(settings)
upkeep.provision(settings)
plex.provision(wanted)
compose.provision(wanted)
gpu.finish(wanted)
follow.provision(wanted)
vpn.finish(wanted)
fail2ban.provision(wanted)
hardening.watch(settings)
verify.provision(wanted)
run.end()
