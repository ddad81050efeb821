"""The run, top to bottom, one line a stage: pyinfra inventories/home.py deploy.py"""

from operations import base, compose, docker, guard, manifest, run, ssh, storage, ufw, users, verify

wanted = run.begin()  # validate: every host, before any is changed
settings = wanted.settings

guard.settled(name="guard | unproven changes")
manifest.entered(name="manifest | owned files", owned=wanted.owned)
manifest.pruned(name="manifest | files no longer wanted", owned=wanted.owned)
base.provision(settings)
users.provision(settings)
ssh.provision(settings)
ufw.provision(settings, wanted.stack.exposed_ports)
docker.provision(settings)
run.secrets_kept(name="secrets | vault")
storage.provision(wanted.directories)
compose.provision(wanted)
verify.provision(wanted)
run.end()
