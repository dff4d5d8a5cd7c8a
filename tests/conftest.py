"""Settings of the whole suite."""

import torch

# Tests run side by side; tiny products gain nothing from threads that wait for each other.
torch.set_num_threads(1)
