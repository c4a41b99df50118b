"""Trains an arm of the ablation of the plan: another RoPE for the plan layers, or a planner without towers.

python examples/nano/plan_arms.py temporal examples/configs/nano/transformer.yaml [trainer.steps=100 ...]
python examples/nano/plan_arms.py none examples/configs/nano/transformer.yaml
python examples/nano/plan_arms.py towerless examples/configs/nano/planner.yaml

All else is as in `train_transformer.py` and `train_planner.py`. examples/configs/nano/plan_arms.toml compares the arms.
"""

import baton_diffusers.interrupts  # noqa: F401


# isort: split
import sys
from pathlib import Path

from baton_diffusers.training.config import PlannerTraining, TransformerTraining
from baton_diffusers.training.script import run_one_of


sys.path.insert(0, str(Path(__file__).parents[1]))


def train_with_plan_rope(config: TransformerTraining, name: str) -> None:
    """Trains a transformer whose plan layers rotate by this variant of RS-RoPE."""
    import train_transformer

    from baton_diffusers.evaluation.plan_variants import set_plan_rope
    from baton_diffusers.training.transformer import build_transformer

    def build(config):
        module = build_transformer(config)
        set_plan_rope(module.transformer, name)
        return module

    train_transformer.main(config, build)


def train_without_towers(config: PlannerTraining) -> None:
    """Trains a planner that regresses the plan by a linear map."""
    import train_planner

    from baton_diffusers.evaluation.plan_variants import TowerlessPlanner
    from baton_diffusers.training.planner import build_planner

    train_planner.main(config, build=lambda config: build_planner(config, TowerlessPlanner))


RECIPES = {
    "temporal": (lambda config: train_with_plan_rope(config, "temporal"), TransformerTraining),
    "none": (lambda config: train_with_plan_rope(config, "none"), TransformerTraining),
    "towerless": (train_without_towers, PlannerTraining),
}


if __name__ == "__main__":
    run_one_of(RECIPES, __doc__)
