"""What a run that changes nothing costs, measured against a shell script and an Ansible playbook."""
