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

# By keyword: in pyinfra's types its own arguments come before a stage's.
rollback.settled(name="guard | unproven changes")
users.login_kept(name="users | the login stays", settings=settings)
ssh.inside_kept(name="ssh | this machine stays inside", settings=settings, factors=wanted.factors)
manifest.entered(name="manifest | owned files", owned=wanted.owned)
mounts.retired(name="mounts | no longer wanted", wanted=wanted)
manifest.pruned(name="manifest | files no longer wanted", owned=wanted.owned, before_ssh=True)
base.provision(settings=settings)
hardening.provision(settings=settings)
users.provision(settings=settings)
run.secrets_kept(name="secrets | vault")
ssh.provision(settings=settings, factors=wanted.factors)
manifest.pruned(name="manifest | codes no longer asked for", owned=wanted.owned)
ufw.provision(settings=settings, exposed=wanted.stack.exposed_ports, vpn=wanted.vpn)
vpn.provision(wanted=wanted)
gpu.provision(wanted=wanted)
mounts.provision(wanted=wanted)
docker.provision(settings=settings)
storage.provision(directories=wanted.directories)
caches.provision(settings=settings)
upkeep.provision(settings=settings)
plex.provision(wanted=wanted)
compose.provision(wanted=wanted)
gpu.finish(wanted=wanted)
follow.provision(wanted=wanted)
vpn.finish(wanted=wanted)
fail2ban.provision(plan=wanted)
hardening.watch(settings=settings)
verify.provision(wanted=wanted)
run.end()
