# Inside an image the programs lie side by side and import each other by their bare names.
from lab.images.linuxserver import *
