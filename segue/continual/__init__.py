"""Continual learning: strategies are hooks around the one training loop (`segue.training.strategy.Strategy`)."""

from __future__ import annotations

import inspect
import json
from typing import Any

from segue.continual.alternate import Alternate
from segue.continual.buffer import Buffer, Recent, Reservoir
from segue.continual.compose import Combined, TaskFree
from segue.continual.distil import DER, DERpp, LwF
from segue.continual.episodes import CORRUPTIONS, Episode, Episodes, mean_interval
from segue.continual.freeze import Freeze
from segue.continual.hypernetwork import Grow, OutputMAS, OutputMatching
from segue.continual.importance import EWC, L2, MAS, SI, LocalMAS
from segue.continual.inner import InnerLoop, tuned
from segue.continual.lora import AdapterTuning, OLoRA
from segue.continual.memory import Memory
from segue.continual.merge import Merge
from segue.continual.metrics import ScoreMatrix
from segue.continual.probing import Probing
from segue.continual.project import AGEM, GEM
from segue.continual.prompting import Prompting
from segue.continual.proxy import LossScale, ProxyDistillation
from segue.continual.replay import GSS, MIR, Replay
from segue.continual.rwalk import RWalk
from segue.continual.sharp import Sharp
from segue.continual.sparsity import SLNID
from segue.continual.state import StateTuning
from segue.continual.stream import Experience, class_incremental, learn_stream
from segue.errors import SegueError, check_choice
from segue.training.strategy import Strategy

STRATEGIES: dict[str, type[Strategy]] = {
    "naive": Strategy, "replay": Replay, "mir": MIR, "gss": GSS,
    "ewc": EWC, "mas": MAS, "local-mas": LocalMAS, "si": SI, "rwalk": RWalk, "l2": L2, "slnid": SLNID,
    "lwf": LwF, "der": DER, "der++": DERpp,
    "agem": AGEM, "gem": GEM,
    "lora": AdapterTuning, "o-lora": OLoRA, "state": StateTuning, "merge": Merge,
    "freeze": Freeze, "proxy-distillation": ProxyDistillation, "loss-scale": LossScale,
}


def strategy_named(text: str) -> Strategy:
    """A strategy by name, with settings behind a colon, several joined by " + ".

    "replay", "ewc:strength=100,rows=64", "mas + replay:share=0.3".
    """
    strategies = [_strategy(name.strip()) for name in text.split(" + ")]
    return strategies[0] if len(strategies) == 1 else Combined(*strategies)


def _strategy(text: str) -> Strategy:
    name, colon, options = text.partition(":")
    check_choice("strategy", name, STRATEGIES)
    strategy_class: Any = STRATEGIES[name]
    parameters = inspect.signature(strategy_class).parameters
    settings: dict[str, Any] = {}
    for option in options.split(",") if colon else []:
        key, equals, value = option.partition("=")
        if not equals or key not in parameters:
            raise SegueError(f"'{option}' does not fit strategy {name}: " +
                             (f"write {name}:NAME=VALUE with {', '.join(parameters)}" if parameters else
                              "it has no settings"))
        default = parameters[key].default
        try:
            settings[key] = value if isinstance(default, str) else json.loads(value)
        except ValueError as error:
            raise SegueError(f"{key}={value} of strategy {name} is no number") from error
        if not isinstance(default, str) and not isinstance(settings[key], bool | int | float):
            raise SegueError(f"{key}={value} of strategy {name} is no number")
        if type(default) is int and type(settings[key]) is not int:
            raise SegueError(f"{key}={value} of strategy {name} is no whole number")
    return strategy_class(**settings)


__all__ = ["AGEM", "CORRUPTIONS", "DER", "EWC", "GEM", "GSS", "L2", "MAS", "MIR", "SI", "SLNID", "STRATEGIES",
           "AdapterTuning", "Alternate", "Buffer", "Combined", "DERpp", "Episode", "Episodes", "Experience", "Freeze",
           "Grow", "InnerLoop", "LocalMAS", "LossScale", "LwF", "Memory", "Merge", "OLoRA", "OutputMAS",
           "OutputMatching", "Probing", "Prompting", "ProxyDistillation", "RWalk", "Recent", "Replay", "Reservoir",
           "ScoreMatrix", "Sharp", "StateTuning", "Strategy", "TaskFree", "class_incremental",
           "learn_stream", "mean_interval", "strategy_named", "tuned"]
