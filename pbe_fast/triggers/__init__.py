"""Backdoor attacks: triggers, the labels they lead to, and the poisoning of a data set."""

from pbe_fast.triggers.badnets import BadNets
from pbe_fast.triggers.base import Attack, Content, Grid, Pattern, Trigger, plant, planted_input
from pbe_fast.triggers.blend import Blend
from pbe_fast.triggers.input_aware import InputAware, InputAwareTraining, train_input_aware
from pbe_fast.triggers.sig import SIG
from pbe_fast.triggers.store import ATTACKS, load_attack, save_attack
from pbe_fast.triggers.wanet import WaNet

__all__ = [
    "ATTACKS",
    "SIG",
    "Attack",
    "BadNets",
    "Blend",
    "Content",
    "Grid",
    "InputAware",
    "InputAwareTraining",
    "Pattern",
    "Trigger",
    "WaNet",
    "load_attack",
    "plant",
    "planted_input",
    "save_attack",
    "train_input_aware",
]
