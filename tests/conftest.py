"""One thread for every test: the tensors are tiny, and threads that wait for a busy core spin."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # also for the processes that tests start

import torch  # reads the variable when it is imported

torch.set_num_threads(1)
