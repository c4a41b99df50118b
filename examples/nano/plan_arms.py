"""Trains an arm of the ablation of the plan: another RoPE for the plan layers, a planner without towers, or a control.

python examples/nano/plan_arms.py temporal examples/configs/nano/transformer.yaml [trainer.steps=100 ...]
python examples/nano/plan_arms.py none examples/configs/nano/transformer.yaml
python examples/nano/plan_arms.py towerless examples/configs/nano/planner.yaml
python examples/nano/plan_arms.py sheet-as-text examples/configs/nano/transformer_stage3.yaml
python examples/nano/plan_arms.py own-sheets examples/configs/nano/transformer_stage3.yaml

All else is as in `train_transformer.py` and `train_planner.py`. examples/configs/nano/plan_arms.toml compares the first three arms,
controls.toml the last two.
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


def train_with_sheets_as_text(config: TransformerTraining) -> None:
    """Trains a transformer that reads the clip's sheet as text beside the prompt, and has no plan. The text encoder is frozen."""
    import torch
    import train_transformer

    from baton_diffusers.evaluation.plan_variants import states_of_sheets
    from baton_diffusers.training.flow_matching import FlowMatchingLoss
    from baton_diffusers.training.transformer import TransformerWithText, build_transformer

    text_encoder = None

    def build(config):
        nonlocal text_encoder
        module = build_transformer(config)
        text_encoder = module.text_encoder.eval()
        return TransformerWithText(module.transformer)

    class SheetsAsText(FlowMatchingLoss):
        def to(self, device):
            super().to(device)
            text_encoder.to(device)

        @torch.no_grad()
        def _text(self, batch, repeats, lost):
            ids, mask = super()._text(batch, repeats, lost)
            states = text_encoder(ids, attention_mask=mask).last_hidden_state * mask[..., None]
            read = states_of_sheets(self.planner, batch["planner_ids"][0], batch["planner_mask"][0])
            read = read.repeat_interleave(repeats, dim=0).masked_fill(lost[:, None, None], 0)
            return torch.cat([states, read], dim=1), None

        def _plan(self, batch, repeats, generator):
            return None

    train_transformer.main(config, build, SheetsAsText)
    text_encoder.save_pretrained(Path(config.trainer.run_dir, "export", "text_encoder"))


def train_on_own_sheets(config: TransformerTraining) -> None:
    """Trains stage 3 with half of the plans from sheets that the planner writes itself, right or wrong.

    A sheet keeps the clip's instants, and its places if the cast is right: a prompt leaves both open. One with another number of events
    is not used.
    """
    import torch
    import train_transformer
    from transformers import AutoTokenizer

    from baton_diffusers.cues import Sheet, format_sheet, parse_sheet
    from baton_diffusers.models.va_planner import plan_prompts, tokenize_cues, tokenize_prompts
    from baton_diffusers.training.flow_matching import FlowMatchingLoss
    from baton_diffusers.training.seeds import step_seed

    tokenizer = AutoTokenizer.from_pretrained(config.planner_tokenizer)

    class OwnSheets(FlowMatchingLoss):
        written = wrong = 0

        def __call__(self, module, batch, generator, step):
            host = torch.Generator().manual_seed(step_seed(generator.initial_seed(), step, 2))
            rows = (torch.rand(len(batch["prompt"]), generator=host) < 0.5).nonzero()[:, 0].tolist()
            sheets = list(batch["cues"])
            if rows:
                for row, text in zip(
                    rows, self.write([batch["prompt"][row] for row in rows], batch, host), strict=True
                ):
                    sheets[row] = like_the_clip(parse_sheet(text), parse_sheet(sheets[row]))
            self.written += len(rows)
            self.wrong += sum(sheet != true for sheet, true in zip(sheets, batch["cues"], strict=True))
            if step % 50 == 49:
                print(f"{self.wrong} of {self.written} sheets were wrong", flush=True)
            planner = self.planner.config
            sheets += [""] * len(sheets)
            prompts = plan_prompts([*batch["prompt"], *batch["prompt"]], sheets, planner.plans_from_sheets)
            ids, mask, _ = tokenize_cues(tokenizer, prompts, sheets, planner.system_prompt, planner.timestamp_rate)
            ids, mask = (x.to(batch["planner_ids"].device).unflatten(0, (2, -1)) for x in (ids, mask))
            return super().__call__(module, batch | {"planner_ids": ids, "planner_mask": mask}, generator, step)

        @torch.no_grad()
        def write(self, prompts, batch, host):
            device = batch["planner_ids"].device
            ids, mask = tokenize_prompts(tokenizer, prompts, self.planner.config.system_prompt)
            duration = self.features.plan(batch["video_tokens"], batch["audio_tokens"]).duration
            return tokenizer.batch_decode(
                self.planner.generate_cues(ids.to(device), mask.to(device), duration, 1.0, host)
            )

    def like_the_clip(own: Sheet, true: Sheet) -> str:
        if len(own.cues) != len(true.cues):
            return format_sheet(true)
        right = {member.name for member in own.cast} == {member.name for member in true.cast}
        cues = tuple(cue._replace(time=at.time) for cue, at in zip(own.cues, true.cues, strict=True))
        return format_sheet(Sheet(true.cast if right else own.cast, cues))

    train_transformer.main(config, build_loss=OwnSheets)


RECIPES = {
    "temporal": (lambda config: train_with_plan_rope(config, "temporal"), TransformerTraining),
    "none": (lambda config: train_with_plan_rope(config, "none"), TransformerTraining),
    "towerless": (train_without_towers, PlannerTraining),
    "sheet-as-text": (train_with_sheets_as_text, TransformerTraining),
    "own-sheets": (train_on_own_sheets, TransformerTraining),
}


if __name__ == "__main__":
    run_one_of(RECIPES, __doc__)
