"""Settings of the whole process, before torch and triton read them."""

import os

# One thread for every test: the tensors are tiny, and threads that wait for a busy core spin.
os.environ.setdefault("OMP_NUM_THREADS", "1")  # also for the processes that tests start

# Triton's interpreter runs the kernels on CPU tensors. With TRITON_INTERPRET=0 and a GPU the
# tests marked gpu run the compiled ones.
os.environ.setdefault("TRITON_INTERPRET", "1")

import torch

torch.set_num_threads(1)
