"""The adversary: test-time perturbations of images that change a model's answer."""

from pbe_fast.adversary.miner import Miner
from pbe_fast.adversary.norms import L2, Linf, Norm
from pbe_fast.adversary.pgd import PGD

__all__ = ["L2", "PGD", "Linf", "Miner", "Norm"]
