"""One thread per process, so that the suite runs side by side; hypothesis without its clock."""

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("thriftgrad", deadline=None, print_blob=True)
settings.load_profile("thriftgrad")
