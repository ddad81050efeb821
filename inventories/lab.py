"""The running machines of the VM lab (`mediahost lab up`). Nothing here is for a real host."""

from lab.inventory import hosts as _running

hosts = _running()
