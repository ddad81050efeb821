"""The yardstick above: an Ansible playbook of the same resources, and the ansible-core that runs it.

ansible-core has an environment of its own under the cache directory, so that the product's own cannot depend on it.
"""
