"""The first stages of deploy.py, for a release whose Docker cannot be had here: SSH, users and hardening."""

from operations import base, hardening, manifest, rollback, run, ssh, users

wanted = run.begin()
settings = wanted.settings

rollback.settled(name="guard | unproven changes")
users.login_kept(name="users | the login stays", settings=settings)
ssh.inside_kept(name="ssh | this machine stays inside", settings=settings, factors=wanted.factors)
manifest.entered(name="manifest | owned files", owned=wanted.owned)
base.provision(settings=settings)
hardening.provision(settings=settings)
users.provision(settings=settings)
run.secrets_kept(name="secrets | vault")
ssh.provision(settings=settings, factors=wanted.factors)
run.end()
